import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { logLineOf, wireErrorOf } from '../dist/esm/errors.js';

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

test('refused credentials of the provider are not the caller\'s own, and what the server said of them stays here', () => {
  for (const status of [401, 403]) {
    const error = wireErrorOf(apiError(status, { message: 'bad key sk-abc' }));
    assert.deepEqual([error.code, error.http_status, error.body_json], ['ERROR_CODE_PROVIDER_AUTH', undefined, undefined]);
    assert.equal(error.message, `The model's server refused this machine's credentials (${status}).`);
    assert.match(logLineOf(error), /bad key sk-abc/);
  }
});

test('a server that cannot be reached is unavailable and worth another try, however deep the cause; its address stays here', () => {
  const refused = Object.assign(new Error('connect ECONNREFUSED 127.0.0.1:8080'), { code: 'ECONNREFUSED' });
  const fetchFailed = new TypeError('fetch failed', { cause: refused });
  const bothFamilies = new TypeError('fetch failed', { cause: new AggregateError([refused]) });
  const sdk = new Error('Connection error.', { cause: fetchFailed });
  for (const thrown of [refused, fetchFailed, bothFamilies, sdk]) {
    const error = wireErrorOf(thrown);
    assert.deepEqual([error.code, error.retryable], ['ERROR_CODE_PROVIDER_UNAVAILABLE', true]);
    assert.equal(error.message, 'The model\'s server cannot be reached (ECONNREFUSED).');
    assert.match(logLineOf(error), /ECONNREFUSED 127\.0\.0\.1:8080/);
  }
  const slow = wireErrorOf(new TypeError('fetch failed', { cause: { code: 'UND_ERR_HEADERS_TIMEOUT' } }));
  assert.deepEqual([slow.code, slow.retryable], ['ERROR_CODE_TIMEOUT', true]);
});

test('a real refused connection reads so too', async () => {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  const thrown = await fetch(`http://127.0.0.1:${port}/v1`).catch((error) => error);
  assert.equal(wireErrorOf(thrown).code, 'ERROR_CODE_PROVIDER_UNAVAILABLE');
});

test('an error of the file system does not tell the caller a path', () => {
  const missing = Object.assign(new Error("ENOENT: no such file or directory, open '/home/me/model'"), { code: 'ENOENT', syscall: 'open' });
  const error = wireErrorOf(missing);
  assert.equal(error.message, 'The provider failed with ENOENT.');
  assert.match(logLineOf(error), /home\/me\/model/);
});

test('causes that lead in a circle end', () => {
  const first = new Error('a');
  first.cause = new Error('b', { cause: first });
  assert.equal(wireErrorOf(first).message, 'a');
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
