// The packed and installed client against the real agent and fake-mcpd: what mcplocal's developer relies on.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { after, afterEach, before, test } from 'node:test';
import { pause, resume, startRegistrar, watchAgent } from '@mcpctl/mcprelay-client';
import { contentOf, Mcpd, newHome, startAgent, stopAll, until } from './parts.mjs';

/** How long the agent keeps a lost session's providers listed; a client must be back well before. */
const GRACE_MS = 10_000;
/** No trace leaves for here: the port is closed. It only switches tracing on. */
const TRACING = { OTEL_TRACES_EXPORTER: 'otlp', OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9' };

let mcpd;
let home;
let agent;
let registrar;

before(async () => {
  mcpd = await Mcpd.start();
  home = newHome(mcpd);
  agent = startAgent(home, TRACING);
});

afterEach(() => registrar?.stop({ graceMs: 1_000 }));

after(async () => {
  await stopAll();
  home?.remove();
});

const provider = (name, fields = {}) => ({
  name, type: 'test', model: 'test-model', publish: true, complete: async () => 'whole answer', ...fields,
});

/** Starts the package with these providers, and waits until callers can use those that are opted in. */
async function serve(...providers) {
  registrar = startRegistrar({ socketPath: home.socket, clientId: 'package-test', providers });
  for (const { name, publish } of providers) if (publish) await mcpd.row(name, 'active');
  await online();
}

const online = () => until('the agent is online', () => registrar.status.agent?.state === 'online');

const connected = () => until('the registrar is connected', () => registrar.status.state === 'connected');

/** Settles when the signal fires. */
const aborted = (signal) => (signal.aborted ? Promise.resolve() : once(signal, 'abort'));

test('of two providers only the one that is opted in is listed, and the status says so', async () => {
  await serve(provider('pkg-open', { tier: 'fast' }), provider('pkg-private', { publish: false }));
  const rows = await mcpd.llms('pkg-');
  assert.deepEqual(rows.map(({ name, tier, kind }) => [name, tier, kind]), [['pkg-open', 'fast', 'virtual']]);
  assert.deepEqual(registrar.status.providers, [{ name: 'pkg-open', verdict: 'published' }, { name: 'pkg-private', verdict: 'not_opted_in' }]);
});

test('text, plain objects and OpenAI objects answer plain and streaming callers', async () => {
  const message = { content: 'one two', finish_reason: 'stop', usage: { prompt_tokens: 1, completion_tokens: 2 } };
  const openai = { id: 'c', object: 'chat.completion', created: 1, model: 'm', choices: [{ index: 0, message: { role: 'assistant', content: 'one two' }, finish_reason: 'stop' }] };
  const chunk = (delta, finish_reason = null) => ({ id: 'c', object: 'chat.completion.chunk', created: 1, model: 'm', choices: [{ index: 0, delta, finish_reason }] });
  const forms = [
    ['text', 'one two', ['one', ' two']],
    ['plain', message, [{ content: 'one' }, { content: ' two', finish_reason: 'stop' }]],
    ['openai', openai, [chunk({ role: 'assistant', content: 'one' }), chunk({ content: ' two' }), chunk({}, 'stop')]],
    ['bytes', Buffer.from(JSON.stringify(openai)), [chunk({ content: 'one two' }), chunk({}, 'stop')].map((c) => ({ raw: JSON.stringify(c) }))],
  ];
  await serve(...forms.flatMap(([form, whole, pieces]) => [
    provider(`form-${form}`, { complete: async () => whole, stream: async function* () { yield* pieces; } }),
    provider(`form-${form}-only-complete`, { complete: async () => whole }),
  ]));
  for (const { name } of await mcpd.llms('form-')) {
    assert.equal(await mcpd.answer(name), 'one two', name);
    const events = await mcpd.streamed(name);
    assert.equal(contentOf(events), 'one two', name);
    assert.equal(JSON.parse(events.at(-1)).choices[0].finish_reason, 'stop', name);
  }
});

test('a stream reaches the caller while the provider is still at it', async () => {
  let goOn;
  const stream = async function* () {
    yield 'first';
    await new Promise((resolve) => (goOn = resolve));
    yield ' second';
  };
  await serve(provider('live', { stream }));
  const events = mcpd.events('live');
  assert.equal(contentOf([(await events.next()).value]), 'first');
  goOn();
  const rest = [];
  for await (const event of events) rest.push(event);
  assert.equal(rest.pop(), '[DONE]');
  assert.equal(contentOf(rest), ' second');
});

test('what a provider throws keeps its status, its body and when to come back', async () => {
  const complete = async () => {
    const error = { message: 'slow down', type: 'requests', code: 'rate_limit_exceeded' };
    throw Object.assign(new Error('429 slow down'), { status: 429, headers: new Headers({ 'retry-after': '7' }), error });
  };
  await serve(provider('limited', { complete }));
  const { status, headers, body } = await mcpd.plain('limited');
  assert.equal(status, 429);
  assert.equal(headers.get('retry-after'), '7');
  assert.equal(body.error.code, 'rate_limit_exceeded');
});

for (const streaming of [true, false]) {
  test(`a ${streaming ? 'streaming' : 'plain'} caller who goes fires the provider's AbortSignal`, async () => {
    const name = `left-alone-${streaming}`;
    let begun = false;
    let fired = false;
    const work = async (signal) => {
      begun = true;
      await aborted(signal);
      fired = true;
      throw signal.reason;
    };
    const stream = async function* (_options, signal) {
      yield 'first';
      await work(signal);
    };
    await serve(provider(name, { stream, complete: (_options, signal) => work(signal) }));
    const caller = new AbortController();
    const call = mcpd.infer(name, { body: { stream: streaming }, signal: caller.signal }).catch(() => {});
    await until('the provider is at work', () => begun);
    if (streaming) await call;
    caller.abort();
    await until('the signal fires', () => fired);
    await until('the task has ended', () => registrar.status.runningTasks === 0);
  });
}

test('the provider gets the caller\'s trace, with the relay\'s span as its parent', async () => {
  let traceContext;
  await serve(provider('traced', { complete: async (options) => ((traceContext = options.traceContext), 'x') }));
  const [traceId, callersSpan] = ['0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'];
  await mcpd.plain('traced', { headers: { traceparent: `00-${traceId}-${callersSpan}-01` } });
  const [version, trace, span, flags] = traceContext.traceparent.split('-');
  assert.deepEqual([version, trace, flags], ['00', traceId, '01']);
  assert.match(span, /^[0-9a-f]{16}$/);
  assert.notEqual(span, callersSpan);
});

test('what Node programs have as a result reaches callers whole, and an answer ends once', async () => {
  const toolCalls = [{ id: 'a', name: 'f', arguments: '{"x":1}' }, { id: 'b', name: 'g', arguments: '{}' }];
  const result = { content: 'cut', toolCalls, finishReason: 'length', usage: { promptTokens: 3, completionTokens: 4 } };
  const stream = async function* () {
    yield { content: 'cu' };
    yield { content: 't' };
    yield* toolCalls.map((call) => ({ toolCalls: [call] }));
    yield { finishReason: 'length' };
    yield { usage: result.usage };
  };
  await serve(provider('natural', { complete: async () => result, stream }));
  const { choices: [choice], usage } = (await mcpd.plain('natural')).body;
  assert.deepEqual([choice.message.content, choice.finish_reason, usage.prompt_tokens, usage.completion_tokens], ['cut', 'length', 3, 4]);
  assert.deepEqual(choice.message.tool_calls.map((call) => [call.id, call.function.name, call.function.arguments]), toolCalls.map(Object.values));
  const chunks = (await mcpd.streamed('natural')).map((event) => JSON.parse(event).choices[0]).filter(Boolean);
  assert.equal(chunks.map(({ delta }) => delta.content ?? '').join(''), 'cut');
  assert.deepEqual(chunks.flatMap(({ delta }) => delta.tool_calls ?? []).map(({ index, id }) => [index, id]), [[0, 'a'], [1, 'b']]);
  assert.deepEqual(chunks.map(({ finish_reason: reason }) => reason).filter(Boolean), ['length']);
});

test('a burst of tokens arrives whole and in order', async () => {
  const tokens = Array.from({ length: 5_000 }, (_, n) => `${n} `);
  const stream = async function* () {
    yield* tokens;
  };
  await serve(provider('burst', { stream }));
  const answers = await Promise.all(Array.from({ length: 8 }, () => mcpd.streamed('burst')));
  for (const events of answers) assert.equal(contentOf(events), tokens.join(''));
});

test('a model that is not running is 503, refused credentials are 502, and neither says what the owner alone should read', async () => {
  const thrown = {
    down: new TypeError('fetch failed', { cause: Object.assign(new Error('connect ECONNREFUSED 10.1.2.3:80'), { code: 'ECONNREFUSED' }) }),
    locked: Object.assign(new Error('401 bad key sk-abc'), { status: 401 }),
  };
  await serve(...Object.entries(thrown).map(([name, error]) => provider(name, { complete: async () => Promise.reject(error) })));
  const [down, locked] = [await mcpd.plain('down'), await mcpd.plain('locked')];
  assert.deepEqual([down.status, locked.status], [503, 502]);
  assert.doesNotMatch(JSON.stringify([down.body, locked.body]), /10\.1\.2\.3|sk-abc/);
});

test('the agent is watched, and its providers are paused and resumed', async () => {
  await serve(provider('steered'), provider('other'));
  const here = { socketPath: home.socket };
  const seen = [];
  for await (const { agent: link, providers } of watchAgent(here)) {
    const { paused, verdict, provider: { state } } = providers.find((row) => row.provider.name === 'steered');
    assert.deepEqual([verdict, state, typeof link.state], ['published', 'ready', 'string']);
    if (seen.at(-1) !== paused) seen.push(paused);
    if (seen.length === 1) assert.deepEqual(await pause('steered', here), ['steered']);
    if (seen.length === 2) assert.deepEqual(await resume(undefined, here), ['steered']);
    if (seen.length === 3) break;
  }
  assert.deepEqual(seen, [false, true, false]);
  await assert.rejects(pause('nobody', here), /nobody/);
});

test('an update publishes and withdraws without a new session', async () => {
  await serve(provider('first-set'));
  const { sessionId } = registrar.status;
  registrar.update([provider('second-set')]);
  await mcpd.row('second-set', 'active');
  await mcpd.row('first-set', 'inactive');
  assert.equal(registrar.status.sessionId, sessionId);
});

test('an agent that stops reading stops the provider, and the answer arrives whole afterwards', async () => {
  const piece = 'x'.repeat(16 * 1024);
  let pulled = 0;
  let last = Infinity;
  let begin;
  const stream = async function* () {
    yield 'start';
    await new Promise((resolve) => (begin = resolve));
    while (pulled < last) {
      pulled += 1;
      yield piece;
    }
  };
  await serve(provider('pressed', { stream }));
  const caller = mcpd.streamed('pressed');
  await until('the stream has begun', () => begin);
  agent.signal('SIGSTOP');
  begin();
  let before = -1;
  let since = 0;
  await until('the provider is asked for nothing more', () => {
    if (pulled !== before) [before, since] = [pulled, Date.now()];
    return pulled > 0 && Date.now() - since > 300;
  });
  const taken = pulled;
  last = taken;
  agent.signal('SIGCONT');
  assert.ok(taken * piece.length < 4 * 1024 * 1024, `${taken} pieces of 16 KiB were taken from the provider`);
  assert.equal(contentOf(await caller), `start${piece.repeat(taken)}`);
});

test('an agent that is killed and started again has the same row back, within the grace', async () => {
  await serve(provider('survivor'));
  const { id } = await mcpd.row('survivor', 'active');
  await agent.stop('SIGKILL');
  await until('the loss is noticed', () => registrar.status.state === 'waiting');
  agent = startAgent(home, TRACING);
  const restarted = performance.now();
  await connected();
  assert.ok(performance.now() - restarted < GRACE_MS);
  await online();
  assert.equal((await mcpd.row('survivor', 'active')).id, id);
  assert.equal(await mcpd.answer('survivor'), 'whole answer');
});

test('a program that starts before its agent is published when the agent comes', async () => {
  const own = newHome(mcpd);
  registrar = startRegistrar({ socketPath: own.socket, providers: [provider('early')] });
  await until('it waits', () => registrar.status.state === 'waiting');
  const late = startAgent(own);
  await mcpd.row('early', 'active');
  await registrar.stop();
  await late.stop();
  own.remove();
});

test('stop() lets the running task finish and leaves the list at once', async () => {
  let answer;
  await serve(provider('leaving', { complete: () => new Promise((resolve) => (answer = resolve)) }));
  const caller = mcpd.answer('leaving');
  await until('the provider is at work', () => answer);
  const stopped = registrar.stop();
  await mcpd.row('leaving', 'inactive');
  answer('last words');
  assert.equal(await caller, 'last words');
  await stopped;
  assert.equal(registrar.status.state, 'stopped');
});

test('the installed package serves CommonJS too', () => {
  const require = createRequire(import.meta.url);
  assert.equal(typeof require('@mcpctl/mcprelay-client').startRegistrar, 'function');
  assert.ok(require.resolve('@mcpctl/mcprelay-client/bridge.proto'));
});
