// Every form of answer, as the agent hears it.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startRegistrar, textOf } from '../dist/esm/index.js';
import { startFakeAgent, testOptions } from '../dist/esm/testing/index.js';

const chunk = { id: 'c', object: 'chat.completion.chunk', choices: [{ index: 0, delta: { content: 'x' } }], future: 1 };
const completion = { id: 'c', object: 'chat.completion', choices: [{ message: { content: 'x' } }], usage: { prompt_tokens: 3, completion_tokens: 4 } };
const call = { index: 0, id: 'call_1', type: 'function', function: { name: 'f', arguments: '{"a":' } };

let agent;
let registrar;
/** Every task that was offered. */
const tasks = [];
/** What the provider does in the running test. */
let complete;
let stream;

before(async () => {
  agent = await startFakeAgent();
  const provider = { name: 'p', type: 't', model: 'm', publish: true };
  const methods = { complete: (...args) => complete(...args), stream: (...args) => stream(...args) };
  registrar = startRegistrar({ socketPath: agent.socketPath, providers: [{ ...provider, ...methods }] });
});

after(async () => {
  await registrar.stop();
  agent.close();
});

/** Runs one task and gives what it was answered. */
async function run(streaming, body, traceContext) {
  const task = await agent.offer('p', body, { streaming, traceContext });
  tasks.push(task);
  const answer = await task.answer;
  return { ...answer, messages: task.messages };
}

async function completed(answer) {
  complete = async () => answer;
  return run(false);
}

async function streamed(...pieces) {
  stream = async function* () {
    yield* pieces;
  };
  return run(true);
}

const deltas = ({ pieces }) => pieces.map(({ text, finishReason }) => [text, finishReason]);

test('a string is a plain result', async () => {
  const { outcome, text, raw } = await completed('hello');
  assert.deepEqual([outcome, text, raw], ['completed', 'hello', undefined]);
});

test('a plain object keeps its content, tool calls, finish reason and usage, in OpenAI\'s spelling', async () => {
  const usage = { input_tokens: 1, output_tokens: 2 };
  const answer = await completed({ content: null, tool_calls: [{ ...call, function: { name: 'f', arguments: { a: 1 } } }], finish_reason: 'tool_calls', usage });
  assert.deepEqual(answer.toolCalls, [{ id: 'call_1', name: 'f', arguments: '{"a":1}' }]);
  assert.equal(answer.finishReason, 'tool_calls');
  assert.deepEqual(answer.usage, { promptTokens: 1, completionTokens: 2 });
});

test('and in JavaScript\'s', async () => {
  const toolCalls = [{ id: 'a', name: 'f', arguments: '{}' }, { id: 'b', name: 'g', arguments: '{}' }];
  const natural = { content: 'text', reasoning: 'why', toolCalls, finishReason: 'length', usage: { promptTokens: 1, completionTokens: 2 } };
  const { content, ...rest } = natural;
  for (const answer of [await completed(natural), await streamed(natural)]) {
    const { text, reasoning, finishReason, usage } = answer;
    assert.deepEqual({ reasoning, toolCalls: answer.toolCalls, finishReason, usage }, rest);
    assert.equal(text, content);
  }
});

test('content in parts is their text', async () => {
  assert.equal((await completed({ content: [{ type: 'text', text: 'one ' }, { type: 'text', text: 'two' }] })).text, 'one two');
});

test('a field that no answer has is an error that names it, whole or in pieces', async () => {
  for (const wrong of [{ content: 'x', stopReason: 'stop' }, { text: 'hello' }, { content: 'x', choice: 1 }]) {
    const field = Object.keys(wrong).at(-1);
    for (const { error } of [await completed(wrong), await streamed('a', wrong)]) {
      assert.match(error?.message ?? '', new RegExp(`field "${field}"`));
    }
  }
  const { error } = await completed({ toolCalls: [{ id: 'a', name: 'f', args: {} }] });
  assert.match(error.message, /tool call with a field "args"/);
  assert.match((await completed({ content: 'x', usage: { tokens: 7 } })).error.message, /neither promptTokens nor completionTokens/);
  assert.match((await completed({ content: 'x', finishReason: 7 })).error.message, /a number as "finishReason"/);
  assert.equal((await completed({ content: 'x', refusal: null, annotations: [], usage: {} })).text, 'x', 'what says nothing is not lost');
});

test('a whole OpenAI completion goes out as JSON, its usage beside it', async () => {
  const answer = await completed(completion);
  assert.deepEqual(JSON.parse(answer.raw), completion);
  assert.deepEqual(answer.usage, { promptTokens: 3, completionTokens: 4 });
});

test('JSON text goes out byte for byte', async () => {
  const odd = '{ "choices" : [] , "n": 1.0e0, "\\u0061":1 }';
  assert.equal((await completed(Buffer.from(odd))).raw, odd);
  assert.equal((await completed({ raw: odd })).raw, odd);
});

test('what is no answer is an error that says so', async () => {
  for (const [answer, named] of [[undefined, 'nothing'], [7, 'a number'], [{ foo: 1 }, '"foo"'], [{}, 'says nothing'], [{ error: null }, 'says nothing']]) {
    const { error } = await completed(answer);
    assert.ok(error.message.includes(named), error.message);
  }
});

test('an error object that is given instead of thrown is an error, whole or in pieces', async () => {
  const failed = { error: { message: 'model is broken' } };
  for (const answer of [failed, { ...failed, choices: [] }, { object: 'error', message: 'model is broken' }]) {
    assert.equal((await completed(answer)).error.message, 'model is broken');
    assert.equal((await streamed('a', answer)).error.message, 'model is broken');
  }
});

test('an error that says nothing is none', async () => {
  for (const error of [null, undefined, '', {}, { message: '', code: null }]) {
    assert.equal((await completed({ content: 'hello', error })).text, 'hello');
    const { pieces, outcome } = await streamed({ content: 'hel', error }, { content: 'lo', error });
    assert.deepEqual([outcome, deltas({ pieces })], ['completed', [['hel', ''], ['lo', ''], ['', 'stop']]]);
  }
});

test('strings are deltas, and the last says why it ends', async () => {
  const answer = await streamed('a', 'b');
  assert.deepEqual(deltas(answer), [['a', ''], ['b', ''], ['', 'stop']]);
  assert.equal(answer.outcome, 'completed');
});

test('pieces that are there at one moment go in one message, at most 64 KiB of them, and a piece that is alone goes at once', async () => {
  const { messages } = await streamed('a', 'b', { content: 'c' });
  assert.deepEqual(messages.map((pieces) => pieces.length), [4]);
  const long = 'x'.repeat(20 * 1024);
  const gathered = await streamed(long, long, long, long, 'y'.repeat(100 * 1024), 'z');
  assert.deepEqual(gathered.messages.map((pieces) => pieces.length), [3, 1, 1, 2]);
  let goOn;
  stream = async function* () {
    yield 'first';
    await new Promise((resolve) => (goOn = resolve));
    yield 'second';
  };
  const task = await agent.offer('p', {}, { streaming: true });
  tasks.push(task);
  assert.deepEqual(deltas({ pieces: await task.hasPieces(1) }), [['first', '']]);
  goOn();
  assert.equal((await task.answer).text, 'firstsecond');
});

test('an iterator that is not asynchronous, and one of another make, give their pieces too', async () => {
  stream = function* () {
    yield 'a';
    yield 'b';
  };
  assert.equal((await run(true)).text, 'ab');
  const left = ['a', 'b'];
  const next = () => ({ then: (resolve) => resolve({ done: left.length === 0, value: left.shift() }) });
  stream = () => ({ [Symbol.asyncIterator]: () => ({ next }) });
  assert.equal((await run(true)).text, 'ab');
});

test('a character that is cut in two between pieces arrives whole, and half of one ends neither stream nor session', async () => {
  const { text, reasoning } = await streamed('a\ud83d', '\ude00b', { reasoning: '\ud83d' }, { reasoning: '\ude00', content: 'c\ud83d', finish_reason: 'stop' });
  assert.equal(text, 'a\u{1f600}bc\ufffd');
  assert.equal(reasoning, '\u{1f600}');
  assert.equal((await completed('x\ude00y')).text, 'x\ufffdy');
  assert.equal((await completed({ toolCalls: [{ id: 'a', name: 'f', arguments: '\ud83d' }] })).toolCalls[0].arguments, '\ufffd');
  complete = async () => {
    throw new Error('cut \ud83d');
  };
  assert.equal((await run(false)).error.message, 'cut \ufffd');
  assert.equal(agent.sessions.length, 1);
});

test('an answer ends once: what the provider says of its end is not followed by another', async () => {
  const usage = { prompt_tokens: 1, completion_tokens: 2 };
  const ends = [
    await streamed('a', { content: 'b', finish_reason: 'length', usage }),
    await streamed('a', 'b', { finish_reason: 'length' }, { usage }),
    await streamed('a', 'b', { finishReason: 'length' }, { finishReason: 'stop', usage }),
  ];
  for (const end of ends) {
    assert.deepEqual(deltas(end).filter(([, reason]) => reason), [[end === ends[0] ? 'b' : '', 'length']]);
    assert.deepEqual([end.text, end.usage], ['ab', { promptTokens: 1, completionTokens: 2 }]);
  }
  assert.deepEqual(deltas(await streamed({ content: 'a', finishReason: 'null' })), [['a', ''], ['', 'stop']], 'no reason yet');
});

test('pieces of tool calls keep their index, and end as tool_calls', async () => {
  const answer = await streamed({ tool_calls: [call] }, { tool_calls: [{ index: 0, function: { arguments: '1}' } }] }, { usage: { prompt_tokens: 5 } });
  assert.deepEqual(answer.pieces[0].toolCalls, [{ index: 0, id: 'call_1', name: 'f', arguments: '{"a":' }]);
  assert.deepEqual(answer.pieces[1].toolCalls, [{ index: 0, id: '', name: '', arguments: '1}' }]);
  assert.equal(answer.finishReason, 'tool_calls');
  assert.deepEqual(answer.usage, { promptTokens: 5 });
});

test('tool calls without an index each get their own, in pieces of one and of several', async () => {
  const f = { id: 'a', name: 'f', arguments: '{"x":' };
  const pieces = [{ toolCalls: [f] }, { toolCalls: [{ arguments: '1}' }] }, { toolCalls: [{ id: 'b', name: 'g', arguments: '{}' }, { name: 'h', arguments: {} }] }, { toolCalls: [{ id: 'b', arguments: ' ' }] }];
  const { toolCalls } = await streamed(...pieces);
  assert.deepEqual(toolCalls, [{ id: 'a', name: 'f', arguments: '{"x":1}' }, { id: 'b', name: 'g', arguments: '{} ' }, { id: '', name: 'h', arguments: '{}' }]);
});

test('OpenAI chunks go out as they are: objects as JSON, text byte for byte', async () => {
  const odd = '{ "choices":[], "x" : 1 }';
  const { pieces, outcome } = await streamed(chunk, Buffer.from(odd), { raw: odd });
  assert.deepEqual(JSON.parse(pieces[0].raw), chunk);
  assert.deepEqual([pieces[1].raw, pieces[2].raw], [odd, odd]);
  assert.equal(pieces.length, 3, 'no closing delta among raw chunks');
  assert.equal(outcome, 'completed');
});

test('an empty piece is a sign of life, which pieces of the same moment are too', async () => {
  stream = async function* () {
    yield null;
    await new Promise(setImmediate);
    yield* ['', undefined];
    await new Promise(setImmediate);
    yield* [null, 'a'];
  };
  const { messages } = await run(true);
  assert.deepEqual(messages.map((pieces) => pieces.length), [0, 0, 2]);
});

test('a stream without a piece is an empty answer', async () => {
  const { outcome, pieces } = await streamed();
  assert.deepEqual([outcome, pieces], ['completed', []]);
});

test('complete() may answer with pieces, and stream() with a whole answer or a promise', async () => {
  complete = () => ['a', 'b'];
  assert.deepEqual(deltas(await run(false)), [['a', ''], ['b', ''], ['', 'stop']]);
  stream = async () => 'whole';
  assert.equal((await run(true)).text, 'whole');
  stream = async () => ['c'];
  assert.deepEqual(deltas(await run(true)), [['c', ''], ['', 'stop']]);
});

test('a plain task asks complete(), also where there is a stream()', async () => {
  stream = () => assert.fail('not asked for');
  assert.equal((await completed('x')).text, 'x');
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
  assert.deepEqual({ ...options.traceContext }, { traceparent });
  assert.equal(options.requestJson.toString(), JSON.stringify(body));
  assert.equal(options.timeoutMs, 60_000);
});

test('no field of a caller hides the facts of the task or replaces what they are inherited from', async () => {
  let seen;
  complete = (options) => ((seen = options), '');
  const facts = '"signal":1,"traceContext":1,"taskId":1,"timeoutMs":1,"requestJson":1';
  await run(false, Buffer.from(`{"model":"p","messages":[],${facts},"__proto__":{"signal":2},"constructor":3}`));
  assert.ok(seen.signal instanceof AbortSignal && seen.taskId.startsWith('task-') && seen.timeoutMs === 60_000);
  assert.equal(JSON.stringify(seen), '{"model":"p","messages":[],"constructor":3}');
});

test('testOptions makes the same options without an agent', async () => {
  const options = testOptions({ model: 'm', temperature: 0.5, taskId: 't1', traceContext: { traceparent: 'x' } });
  assert.deepEqual(JSON.parse(JSON.stringify(options)), { model: 'm', messages: [{ role: 'user', content: 'Hello.' }], temperature: 0.5 });
  assert.deepEqual(JSON.parse(options.requestJson.toString()), { ...options });
  assert.deepEqual([options.taskId, options.traceContext.traceparent, options.signal.aborted, options.timeoutMs], ['t1', 'x', false, 600_000]);
});

test('the text of a message is its content, or that of its parts', () => {
  const image = { type: 'image_url', image_url: { url: 'data:' } };
  assert.equal(textOf({ role: 'user', content: 'hi' }), 'hi');
  assert.equal(textOf({ role: 'user', content: [{ type: 'text', text: 'a' }, image, { type: 'text', text: 'b' }] }), 'ab');
  assert.equal(textOf({ role: 'assistant', content: null }), '');
  assert.throws(() => textOf({ content: 5 }), TypeError);
});

test('a body that is no JSON object is an invalid request', async () => {
  complete = () => assert.fail('not called');
  for (const body of ['{', '[]', 'null', '']) {
    const { error } = await run(false, Buffer.from(body));
    assert.equal(error.code, 'invalid_request');
  }
});

test('a throw at once, a rejection, and a throw in the middle each end the task once', async () => {
  complete = () => {
    throw new Error('at once');
  };
  assert.equal((await run(false)).error.message, 'at once');
  complete = async () => {
    throw Object.assign(new Error('busy'), { status: 429 });
  };
  assert.equal((await run(false)).error.status, 429);
  stream = async function* () {
    yield 'a';
    throw new Error('in the middle');
  };
  const answer = await run(true);
  assert.equal(answer.error.message, 'in the middle');
  assert.deepEqual(deltas(answer), [['a', '']]);
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
  assert.match((await run(true)).error.message, /yielded a number/);
  assert.ok(cleaned);
});

test('a message over the agent\'s limit fails its task and nothing else', async () => {
  const tooLong = 'x'.repeat(5 * 1024 * 1024);
  assert.match((await completed(tooLong)).error.message, /over the agent's limit/);
  const answer = await streamed('a', tooLong, 'b');
  assert.match(answer.error.message, /over the agent's limit/);
  assert.deepEqual(deltas(answer), [['a', '']]);
  assert.equal((await completed('still here')).text, 'still here');
});

test('every offer has had exactly one end', () => {
  for (const { ends } of tasks) assert.equal(ends.length, 1);
});
