// Every form of answer, as the agent hears it.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startRegistrar } from '../dist/esm/index.js';
import { FakeAgent } from './fake-agent.mjs';

const chunk = { id: 'c', object: 'chat.completion.chunk', choices: [{ index: 0, delta: { content: 'x' } }], future: 1 };
const completion = { id: 'c', object: 'chat.completion', choices: [{ message: { content: 'x' } }], usage: { prompt_tokens: 3, completion_tokens: 4 } };
const call = { index: 0, id: 'call_1', type: 'function', function: { name: 'f', arguments: '{"a":' } };

let agent;
let registrar;
let session;
/** What the provider does in the running test. */
let complete;
let stream;

before(async () => {
  agent = await new FakeAgent().start();
  const provider = { name: 'p', type: 't', model: 'm', publish: true };
  const methods = { complete: (...args) => complete(...args), stream: (...args) => stream(...args) };
  registrar = startRegistrar({ socketPath: agent.socket, providers: [{ ...provider, ...methods }] });
  session = await agent.session();
});

after(async () => {
  await registrar.stop();
  agent.close();
});

/** Runs one task and gives its one end and its chunks. */
async function run(streaming, body = { model: 'p', messages: [] }, trace) {
  const id = session.offer(body, { streaming, trace });
  const end = await session.finished(id);
  return { end, chunks: session.chunks(id) };
}

async function completed(answer) {
  complete = async () => answer;
  return (await run(false)).end;
}

async function streamed(...pieces) {
  stream = async function* () {
    yield* pieces;
  };
  return run(true);
}

const deltas = (chunks) => chunks.map(({ delta }) => [delta.content, delta.finish_reason]);

test('a string is a plain result', async () => {
  const { result, outcome } = await completed('hello');
  assert.equal(outcome, 'result');
  assert.equal(result.content, 'hello');
});

test('a plain object keeps its content, tool calls, finish reason and usage', async () => {
  const usage = { input_tokens: 1, output_tokens: 2 };
  const end = await completed({ content: null, tool_calls: [{ ...call, function: { name: 'f', arguments: { a: 1 } } }], finish_reason: 'tool_calls', usage });
  assert.deepEqual(end.result.tool_calls, [{ id: 'call_1', name: 'f', arguments: '{"a":1}' }]);
  assert.equal(end.result.finish_reason, 'tool_calls');
  assert.deepEqual([end.usage.input_tokens, end.usage.output_tokens], [1, 2]);
});

test('a whole OpenAI completion goes out as JSON, its usage beside it', async () => {
  const end = await completed(completion);
  assert.deepEqual(JSON.parse(end.body_json), completion);
  assert.deepEqual([end.usage.input_tokens, end.usage.output_tokens], [3, 4]);
});

test('JSON text goes out byte for byte', async () => {
  const odd = '{ "choices" : [] , "n": 1.0e0, "\\u0061":1 }';
  assert.equal((await completed(Buffer.from(odd))).body_json.toString(), odd);
  assert.equal((await completed({ raw: odd })).body_json.toString(), odd);
});

test('what is no answer is an error that says so', async () => {
  for (const [answer, named] of [[undefined, 'nothing'], [7, 'a number'], [{ foo: 1 }, '[foo]']]) {
    const { error } = await completed(answer);
    assert.ok(error.message.includes(named), error.message);
  }
});

test('an error object that is returned instead of thrown is an error', async () => {
  assert.equal((await completed({ error: { message: 'model is broken' } })).error.message, 'model is broken');
});

test('strings are deltas, and the last says why it ends', async () => {
  const { end, chunks } = await streamed('a', 'b');
  assert.deepEqual(deltas(chunks), [['a', ''], ['b', ''], ['', 'stop']]);
  assert.equal(end.outcome, undefined);
});

test('a character that is cut in two between pieces arrives whole, and half of one ends neither stream nor session', async () => {
  const { chunks } = await streamed('a\ud83d', '\ude00b', { reasoning: '\ud83d' }, { reasoning: '\ude00', content: 'c\ud83d', finish_reason: 'stop' });
  assert.equal(chunks.map(({ delta }) => delta.content).join(''), 'a\u{1f600}bc\ufffd');
  assert.equal(chunks.map(({ delta }) => delta.reasoning).join(''), '\u{1f600}');
  assert.equal((await completed('x\ude00y')).result.content, 'x\ufffdy');
  complete = async () => {
    throw new Error('cut \ud83d');
  };
  assert.equal((await run(false)).end.error.message, 'cut \ufffd');
  assert.equal(agent.sessions.length, 1);
});

test('a finish reason of the provider\'s own is not followed by another', async () => {
  const { chunks } = await streamed('a', { content: 'b', finish_reason: 'length', usage: { completion_tokens: 2 } });
  assert.deepEqual(deltas(chunks), [['a', ''], ['b', 'length']]);
});

test('pieces of tool calls keep their index, and end as tool_calls', async () => {
  const { chunks, end } = await streamed({ tool_calls: [call] }, { tool_calls: [{ index: 0, function: { arguments: '1}' } }] }, { usage: { prompt_tokens: 5 } });
  assert.deepEqual(chunks[0].delta.tool_calls, [{ index: 0, id: 'call_1', name: 'f', arguments: '{"a":' }]);
  assert.deepEqual(chunks[1].delta.tool_calls, [{ index: 0, id: '', name: '', arguments: '1}' }]);
  assert.equal(chunks.at(-1).delta.finish_reason, 'tool_calls');
  assert.equal(end.usage.input_tokens, 5);
});

test('OpenAI chunks go out as they are: objects as JSON, text byte for byte', async () => {
  const odd = '{ "choices":[], "x" : 1 }';
  const { chunks, end } = await streamed(chunk, Buffer.from(odd), { raw: odd });
  assert.deepEqual(JSON.parse(chunks[0].chunk_json), chunk);
  assert.equal(chunks[1].chunk_json.toString(), odd);
  assert.equal(chunks[2].chunk_json.toString(), odd);
  assert.equal(chunks.length, 3, 'no closing delta among raw chunks');
  assert.equal(end.outcome, undefined);
});

test('an empty piece is a sign of life', async () => {
  const { chunks } = await streamed(null, '', undefined, 'a');
  assert.deepEqual(chunks.map((c) => c.output), [undefined, undefined, undefined, 'delta', 'delta']);
});

test('a stream without a piece is an empty answer', async () => {
  const { end } = await streamed();
  assert.equal(end.outcome, 'result');
});

test('complete() may answer with pieces, and stream() with a whole answer or a promise', async () => {
  complete = () => ['a', 'b'];
  const gathered = await run(false);
  assert.deepEqual(deltas(gathered.chunks), [['a', ''], ['b', ''], ['', 'stop']]);
  stream = async () => 'whole';
  assert.equal((await run(true)).end.result.content, 'whole');
  stream = async () => ['c'];
  assert.deepEqual(deltas((await run(true)).chunks), [['c', ''], ['', 'stop']]);
});

test('a plain task asks complete(), also where there is a stream()', async () => {
  stream = () => assert.fail('not asked for');
  assert.equal((await completed('x')).result.content, 'x');
});

test('options are the body, with the facts of the task out of JSON\'s way', async () => {
  const body = { model: 'p', messages: [{ role: 'user', content: 'hi' }], temperature: 0.5, signal: 'a field of the caller' };
  let seen;
  complete = (options, signal) => {
    seen = { options, signal };
    return '';
  };
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  await run(false, body, { traceparent });
  const { options, signal } = seen;
  const { signal: callers, ...rest } = body;
  assert.deepEqual(JSON.parse(JSON.stringify(options)), rest);
  assert.ok(options.signal instanceof AbortSignal && options.signal === signal, callers);
  assert.deepEqual(options.traceContext, { traceparent });
  assert.equal(options.requestJson.toString(), JSON.stringify(body));
  assert.equal(options.timeoutMs, 60_000);
});

test('a body that is no JSON object is an invalid request', async () => {
  complete = () => assert.fail('not called');
  for (const body of ['{', '[]', 'null', '']) {
    const { end } = await run(false, Buffer.from(body));
    assert.equal(end.error.code, 'ERROR_CODE_INVALID_REQUEST');
  }
});

test('a throw at once, a rejection, and a throw in the middle each end the task once', async () => {
  complete = () => {
    throw new Error('at once');
  };
  assert.equal((await run(false)).end.error.message, 'at once');
  complete = async () => {
    throw Object.assign(new Error('busy'), { status: 429 });
  };
  assert.equal((await run(false)).end.error.http_status, 429);
  stream = async function* () {
    yield 'a';
    throw new Error('in the middle');
  };
  const { end, chunks } = await run(true);
  assert.equal(end.error.message, 'in the middle');
  assert.deepEqual(deltas(chunks), [['a', '']]);
});

test('a piece that is none stops the provider and ends the task', async () => {
  let cleaned = false;
  stream = async function* () {
    try {
      for (;;) yield 7;
    } finally {
      cleaned = true;
    }
  };
  const { end } = await run(true);
  assert.match(end.error.message, /yielded a number/);
  assert.ok(cleaned);
});

test('a message over the agent\'s limit fails its task and nothing else', async () => {
  const tooLong = 'x'.repeat(5 * 1024 * 1024);
  assert.match((await completed(tooLong)).error.message, /over the agent's limit/);
  const { end, chunks } = await streamed('a', tooLong, 'b');
  assert.match(end.error.message, /over the agent's limit/);
  assert.deepEqual(deltas(chunks), [['a', '']]);
  assert.equal((await completed('still here')).result.content, 'still here');
});

test('every offer has had exactly one end', () => {
  for (let n = 1; n <= session.offered; n++) assert.equal(session.ends(`task-${n}`).length, 1);
});
