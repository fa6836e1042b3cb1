import assert from 'node:assert/strict';
import { test } from 'node:test';
import { wireErrorOf } from '../dist/esm/errors.js';

/** As OpenAI's SDK throws it: `error` is the inside of the provider's error body. */
function apiError(status, error, headers = {}) {
  return Object.assign(new Error(`${status} ${error.message}`), { status, error, code: error.code, headers: new Headers(headers) });
}

test('a rate limit keeps its status, its body and when to come back', () => {
  const error = wireErrorOf(apiError(429, { message: 'slow down', type: 'requests' }, { 'retry-after': '7' }));
  assert.deepEqual(
    { ...error, body_json: JSON.parse(error.body_json) },
    {
      code: 'ERROR_CODE_RATE_LIMITED',
      message: '429 slow down',
      retryable: true,
      retry_after_ms: 7000,
      http_status: 429,
      body_json: { error: { message: 'slow down', type: 'requests' } },
    },
  );
});

test('a whole error body is not wrapped a second time', () => {
  const error = wireErrorOf({ status: 400, error: { error: { message: 'bad' } } });
  assert.deepEqual(JSON.parse(error.body_json), { error: { message: 'bad' } });
});

test('a context overflow and a content filter are told apart from other 400s', () => {
  const codes = ['context_length_exceeded', 'content_filter', 'something_else'].map((code) => {
    return wireErrorOf(apiError(400, { message: 'no', code })).code;
  });
  assert.deepEqual(codes, ['ERROR_CODE_CONTEXT_LENGTH', 'ERROR_CODE_CONTENT_FILTERED', 'ERROR_CODE_INVALID_REQUEST']);
});

test('refused credentials of the provider do not become the caller\'s own 401', () => {
  const error = wireErrorOf(apiError(401, { message: 'bad key' }));
  assert.equal(error.code, 'ERROR_CODE_PROVIDER_AUTH');
  assert.equal(error.http_status, undefined);
  assert.equal(error.body_json, undefined);
});

test('a provider that is not running is unavailable and worth another try', () => {
  const refused = Object.assign(new Error('fetch failed'), { cause: { code: 'ECONNREFUSED' } });
  const error = wireErrorOf(refused);
  assert.deepEqual([error.code, error.retryable], ['ERROR_CODE_PROVIDER_UNAVAILABLE', true]);
});

test('a retry-after may be milliseconds, seconds or a date, and nonsense is left out', () => {
  const after = (headers) => wireErrorOf({ status: 503, message: 'x', headers }).retry_after_ms;
  assert.equal(after({ 'retry-after-ms': '250' }), 250);
  assert.equal(after({ 'Retry-After': '0.5' }), 500);
  assert.ok(after({ 'retry-after': new Date(Date.now() + 60_000).toUTCString() }) > 50_000);
  assert.equal(after({ 'retry-after': new Date(0).toUTCString() }), 0);
  assert.equal(after({ 'retry-after': 'soon' }), undefined);
});

test('a bug in a provider is an internal error that nobody retries', () => {
  const error = wireErrorOf(new TypeError('x is not a function'));
  assert.deepEqual([error.code, error.retryable, error.http_status], ['ERROR_CODE_INTERNAL', false, undefined]);
});

test('whatever is thrown has a message', () => {
  const hostile = { get status() { throw new Error('no'); } };
  for (const thrown of [undefined, null, '', 0, {}, [], Symbol('s'), hostile, { error: {} }, Object.create(null)]) {
    const { message, code } = wireErrorOf(thrown);
    assert.ok(message.length > 0);
    assert.equal(code, 'ERROR_CODE_INTERNAL');
  }
  assert.equal(wireErrorOf('plain text').message, 'plain text');
  assert.equal(wireErrorOf({ error: 'as Ollama says it' }).message, 'as Ollama says it');
});

test('an endless message and an endless body are not sent', () => {
  const error = wireErrorOf({ status: 500, message: 'm'.repeat(1e6), error: { message: 'b'.repeat(1e6) } });
  assert.equal(error.message.length, 4096);
  assert.equal(error.body_json, undefined);
});
