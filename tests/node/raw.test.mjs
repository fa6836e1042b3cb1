// A plain @grpc/grpc-js client against the real agent and fake-mcpd: the bridge as any program meets it.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import grpc from '@grpc/grpc-js';
import { contentOf, Mcpd, newHome, startAgent, stopAll, until } from './parts.mjs';
import { connect, provider, RawSession } from './raw-session.mjs';

let mcpd;
let home;
let agent;

before(async () => {
  mcpd = await Mcpd.start();
  home = newHome(mcpd);
  agent = startAgent(home);
  await until('the agent answers on its socket', () => answers(home.socket));
});

after(async () => {
  await stopAll();
  home?.remove();
});

/** Whether grpc.health.v1 says SERVING; asked without generated code, as its messages are two bytes. */
function answers(socket) {
  const client = connect(socket);
  const same = (bytes) => bytes;
  return new Promise((resolve) => {
    client.makeUnaryRequest('/grpc.health.v1.Health/Check', same, same, Buffer.alloc(0), (_error, reply) => {
      client.close();
      resolve(reply?.toString('hex') === '0801');
    });
  });
}

/** A session with one published provider that callers can use. */
async function serving(name, { hello, ...fields } = {}) {
  const session = await RawSession.open(home.socket, [provider(name, fields)], hello);
  await mcpd.row(name, 'active');
  await session.online();
  return session;
}

const chunkOf = (content, more = {}) => {
  const choices = [{ index: 0, delta: content ? { content } : {}, finish_reason: content ? null : 'stop' }];
  return Buffer.from(JSON.stringify({ id: 'c1', object: 'chat.completion.chunk', created: 1, model: 'm', choices, ...more }));
};

const completion = {
  id: 'c1', object: 'chat.completion', created: 1, model: 'm', future_field: { kept: true },
  choices: [{ index: 0, message: { role: 'assistant', content: 'Hello you' }, finish_reason: 'stop' }],
};

/** The ways to answer "Hello you". */
const ANSWERS = {
  'raw chunks'(session, offer) {
    for (const text of ['Hel', 'lo', ' you', '']) session.chunk(offer, { chunk_json: chunkOf(text) });
    session.finish(offer);
  },
  'plain deltas'(session, offer) {
    for (const content of ['Hel', 'lo', ' you']) session.chunk(offer, { delta: { content } });
    session.chunk(offer, { delta: { finish_reason: 'stop' } });
    session.finish(offer);
  },
  'a raw body'(session, offer) {
    session.finish(offer, { body_json: Buffer.from(JSON.stringify(completion)) });
  },
  'a plain result'(session, offer) {
    session.finish(offer, { result: { content: 'Hello you' }, usage: { input_tokens: 3, output_tokens: 2 } });
  },
};

test('of two providers only the one that is opted in is listed by mcpd', async () => {
  const session = await RawSession.open(home.socket, [provider('two-open'), provider('two-private', { publish: false })]);
  assert.deepEqual(
    session.verdicts.map(({ name, verdict }) => [name, verdict]),
    [['two-open', 'VERDICT_PUBLISHED'], ['two-private', 'VERDICT_NOT_OPTED_IN']],
  );
  await mcpd.row('two-open', 'active');
  const rows = await mcpd.llms('two-');
  assert.deepEqual(rows.map(({ name, kind, type, model }) => [name, kind, type, model]), [['two-open', 'virtual', 'test', 'test-model']]);
  await session.online();
  await session.leave();
});

for (const [how, answer] of Object.entries(ANSWERS)) {
  test(`a streaming task may be answered by ${how}`, async () => {
    const name = `stream by ${how}`;
    const session = await serving(name);
    const caller = mcpd.streamed(name);
    const offer = await session.offer();
    assert.equal(offer.streaming, true);
    assert.equal(JSON.parse(offer.request_json).messages[0].content, 'hi');
    assert.ok(offer.timeout_ms > 0);
    answer(session, offer);
    const events = await caller;
    assert.equal(contentOf(events), 'Hello you');
    assert.ok(events.some((event) => JSON.parse(event).choices[0]?.finish_reason === 'stop'));
    await session.leave();
  });

  test(`a plain task may be answered by ${how}`, async () => {
    const name = `plain by ${how}`;
    const session = await serving(name);
    const caller = mcpd.plain(name);
    const offer = await session.offer();
    assert.equal(offer.streaming, false);
    answer(session, offer);
    const { status, body } = await caller;
    assert.equal(status, 200);
    assert.equal(body.choices[0].message.content, 'Hello you');
    assert.equal(body.choices[0].finish_reason, 'stop');
    if (how === 'a raw body') assert.deepEqual(body, completion);
    if (how === 'a plain result') assert.equal(body.usage.prompt_tokens, 3);
    await session.leave();
  });
}

test('each chunk reaches the caller before the next is made, the first byte for byte', async () => {
  const session = await serving('as-it-comes');
  const events = mcpd.events('as-it-comes');
  const first = events.next();
  const offer = await session.offer();
  const odd = '{ "id":"c1",  "future": [1.0e0], "choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}] }';
  session.chunk(offer, { chunk_json: Buffer.from(odd) });
  assert.equal((await first).value, odd);
  session.chunk(offer, { delta: { content: 'b' } });
  assert.equal(contentOf([(await events.next()).value]), 'b');
  session.finish(offer);
  const rest = [];
  for await (const event of events) rest.push(event);
  assert.equal(rest.at(-1), '[DONE]');
  await session.leave();
});

test('pieces of a tool call are gathered for a caller who asked plainly', async () => {
  const session = await serving('tools');
  const caller = mcpd.plain('tools');
  const offer = await session.offer();
  const piece = (call) => session.chunk(offer, { delta: { tool_calls: [{ index: 0, ...call }] } });
  piece({ id: 'call_1', name: 'weather', arguments: '{"city":' });
  piece({ arguments: '"Bern"}' });
  session.chunk(offer, { delta: { finish_reason: 'tool_calls' } });
  session.finish(offer);
  const [choice] = (await caller).body.choices;
  assert.deepEqual(choice.message.tool_calls[0].function, { name: 'weather', arguments: '{"city":"Bern"}' });
  assert.equal(choice.finish_reason, 'tool_calls');
  await session.leave();
});

test('an error keeps its status, its body and when to come back', async () => {
  const session = await serving('failing');
  const caller = mcpd.plain('failing');
  const body = { error: { message: 'too many tokens', type: 'invalid_request_error', code: 'context_length_exceeded' } };
  const error = { code: 'ERROR_CODE_CONTEXT_LENGTH', message: 'too many tokens', http_status: 400 };
  session.finish(await session.offer(), { error: { ...error, body_json: Buffer.from(JSON.stringify(body)) } });
  const reply = await caller;
  assert.equal(reply.status, 400);
  assert.equal(reply.body.error.code, 'context_length_exceeded');
  await session.leave();
});

test('a caller who goes cancels the task, and the provider serves the next', async () => {
  const session = await serving('cancelled', { max_in_flight: 1 });
  const caller = new AbortController();
  const events = mcpd.events('cancelled', { signal: caller.signal });
  const first = events.next();
  const offer = await session.offer();
  session.chunk(offer, { delta: { content: 'a' } });
  await first;
  caller.abort();
  const cancel = await session.hears('task_cancel', ({ task_id }) => task_id === offer.task_id);
  assert.equal(cancel.reason, 'CANCEL_REASON_CALLER_GONE');
  session.finish(offer, { cancelled: {} });
  const next = mcpd.answer('cancelled');
  session.finish(await session.offer(1), { result: { content: 'free again' } });
  assert.equal(await next, 'free again');
  await session.leave();
});

test('a second session of one client replaces the first, and mcpd\'s row stays the same', async () => {
  const hello = { client_id: 'restarted' };
  const first = await serving('replaced', { hello });
  const row = await mcpd.row('replaced', 'active');
  const second = await RawSession.open(home.socket, [provider('replaced')], hello);
  const { code, details } = await first.ended;
  assert.equal(code, grpc.status.ABORTED);
  assert.match(details, /replaced/);
  const caller = mcpd.answer('replaced');
  second.finish(await second.offer(), { result: { content: 'from the second' } });
  assert.equal(await caller, 'from the second');
  assert.equal((await mcpd.row('replaced', 'active')).id, row.id);
  await second.leave();
});

test('a client that is lost and comes back within the grace gets the task that waited', async () => {
  const hello = { client_id: 'comes-back' };
  const first = await serving('comes-back', { hello });
  first.call.cancel();
  await first.ended;
  const caller = mcpd.answer('comes-back');
  const second = await RawSession.open(home.socket, [provider('comes-back')], hello);
  second.finish(await second.offer(), { result: { content: 'worth the wait' } });
  assert.equal(await caller, 'worth the wait');
  await second.leave();
});

test('a session that drains finishes its task, gets no further one, and leaves the list at once', async () => {
  const session = await serving('draining');
  const caller = mcpd.answer('draining');
  const offer = await session.offer();
  session.say({ drain: { grace_ms: 10_000, reason: 'goodbye' } });
  await mcpd.row('draining', 'inactive');
  assert.equal((await mcpd.plain('draining')).status, 503);
  session.finish(offer, { result: { content: 'last words' } });
  assert.equal(await caller, 'last words');
  session.call.end();
  assert.equal((await session.ended).code, grpc.status.OK);
  assert.equal(session.offers().length, 1);
});

test('a session that does not begin with Hello ends as an invalid argument', async () => {
  const session = new RawSession(home.socket);
  session.say({ provider_snapshot: { generation: 1, providers: [provider('nobody')] } });
  const { code, details } = await session.ended;
  assert.equal(code, grpc.status.INVALID_ARGUMENT);
  assert.match(details, /hello/i);
});

test('a second Hello ends the session as an invalid argument', async () => {
  const session = await RawSession.open(home.socket, [provider('two-hellos', { publish: false })]);
  session.say({ hello: { client_id: 'again' } });
  const { code, details } = await session.ended;
  assert.equal(code, grpc.status.INVALID_ARGUMENT);
  assert.match(details, /hello/i);
});

test('chunks and ends of tasks that there are not disturb nothing', async () => {
  const session = await serving('confused');
  session.chunk({ task_id: 'no-such-task' }, { delta: { content: 'x' } });
  session.finish({ task_id: 'no-such-task' }, { result: { content: 'x' } });
  for (const n of [0, 1]) {
    const caller = mcpd.answer('confused');
    const offer = await session.offer(n);
    session.finish(offer, { result: { content: `answer ${n}` } });
    session.finish(offer, { result: { content: 'a second end' } });
    session.chunk(offer, { delta: { content: 'after the end' } });
    assert.equal(await caller, `answer ${n}`);
  }
  await session.leave();
});

test('a body after chunks is an error for the caller, not a second answer', async () => {
  const session = await serving('both-ways');
  const caller = mcpd.plain('both-ways');
  const offer = await session.offer();
  session.chunk(offer, { delta: { content: 'a' } });
  session.finish(offer, { result: { content: 'b' } });
  assert.ok((await caller).status >= 500);
  const next = mcpd.plain('both-ways');
  session.finish(await session.offer(1), { result: { content: 'still served' } });
  assert.equal((await next).status, 200);
  await session.leave();
});

test('a message over the limit ends its session with an error, and another session works', async () => {
  const session = await serving('oversized');
  const caller = mcpd.answer('oversized').catch((error) => error);
  const offer = await session.offer();
  session.chunk(offer, { chunk_json: Buffer.alloc(session.welcome.max_message_bytes + 1, 'x') });
  const { code } = await session.ended;
  const tooLarge = [grpc.status.RESOURCE_EXHAUSTED, grpc.status.OUT_OF_RANGE];
  assert.ok(tooLarge.includes(code), `the stream ended with ${grpc.status[code]}`);
  const other = await RawSession.open(home.socket, [provider('oversized')]);
  other.finish(await other.offer(), { result: { content: 'small' } });
  assert.equal(await caller, 'small', 'the task had sent nothing, so it waited');
  await other.leave();
});

test('a request over the client\'s own limit is 413 for its caller', async () => {
  const session = await serving('small-client', { hello: { client_id: 'small', max_message_bytes: 64 * 1024 } });
  const body = { messages: [{ role: 'user', content: 'x'.repeat(200 * 1024) }] };
  assert.equal((await mcpd.plain('small-client', { body })).status, 413);
  assert.equal(session.offers().length, 0);
  await session.leave();
});

test('names that are there twice or are empty are refused with a reason, the others are published', async () => {
  const names = ['bad-twice', 'bad-twice', '', 'bad-but-good'];
  const session = await RawSession.open(home.socket, names.map((name) => provider(name)));
  assert.deepEqual(session.verdicts.map(({ name }) => name), names);
  const [, twice, empty, good] = session.verdicts;
  assert.deepEqual([twice.verdict, twice.error.code], ['VERDICT_REFUSED', 'ERROR_CODE_DUPLICATE']);
  assert.equal(empty.verdict, 'VERDICT_REFUSED');
  assert.match(empty.error.message, /empty/);
  assert.equal(good.verdict, 'VERDICT_PUBLISHED');
  await mcpd.row('bad-but-good', 'active');
  await session.leave();
});

test('the status is sent at once and counts as plain numbers', async () => {
  const session = await RawSession.open(home.socket, [provider('watched', { publish: false })], { client_id: 'watched' });
  const client = connect(home.socket);
  const call = client.WatchStatus({});
  call.on('error', () => {}); // Our own cancel.
  const status = await new Promise((resolve) => call.once('data', resolve));
  assert.ok(status.sessions.some(({ client_id }) => client_id === 'watched'));
  assert.equal(typeof status.totals.tasks_ok, 'number');
  assert.ok(status.totals.tasks_ok > 0);
  call.cancel();
  client.close();
  await session.leave();
});

test('an agent that stops says goodbye to its sessions and exits well', async () => {
  const own = newHome(mcpd);
  const stopping = startAgent(own);
  await until('the agent answers', () => answers(own.socket));
  const session = await RawSession.open(own.socket, [provider('goodbye')]);
  await mcpd.row('goodbye', 'active');
  const exit = stopping.stop();
  await session.hears('drain');
  assert.equal((await session.ended).code, grpc.status.UNAVAILABLE);
  assert.deepEqual(await exit, { code: 0, signal: null });
  await mcpd.row('goodbye', 'inactive');
  own.remove();
});
