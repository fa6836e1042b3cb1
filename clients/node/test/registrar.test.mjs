// The registrar's life with an agent that comes, goes, refuses and hangs.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { afterEach, beforeEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { startRegistrar } from '../dist/esm/index.js';
import { FakeAgent } from '../dist/esm/testing/index.js';
import { statusOf, until } from './waits.mjs';

const provider = (fields = {}) => ({ name: 'p', type: 'ollama', model: 'm', publish: true, complete: async () => 'ok', ...fields });

let agent;
let registrar;

beforeEach(() => {
  agent = new FakeAgent();
});

afterEach(async () => {
  await registrar?.stop({ graceMs: 0 });
  agent.close();
});

function start(providers = [provider()], options = {}) {
  registrar = startRegistrar({ providers, socketPath: agent.socketPath, clientId: 'me', ...options });
  return registrar;
}

test('without an agent the start is quiet, says once that it waits, and connects when one comes', async () => {
  const lines = [];
  start(undefined, { logger: { info: (line) => lines.push(line), warn: assert.fail, error: assert.fail } });
  let waits = 0;
  registrar.on('status', ({ state }) => (waits += state === 'waiting'));
  await until('three attempts failed', () => waits >= 3);
  assert.equal(lines.length, 1);
  assert.match(lines[0], /No agent at .*agent\.sock yet: "mcprelay run" starts one\./);
  await agent.start();
  await statusOf(registrar, ({ state }) => state === 'connected');
});

test('the whole set is pushed as it is, and what is not opted in is not filtered', async () => {
  await agent.start();
  const full = { tier: 'fast', description: 'd', maxInFlight: 0, state: 'loading', stateDetail: 's', features: ['tools'], contextTokens: 8192 };
  start([provider(full), provider({ name: 'q', publish: undefined }), provider({ name: 'r', publish: 'yes' })]);
  const session = await agent.session();
  const [hello] = session.all('hello');
  assert.deepEqual([hello.client_id, hello.max_message_bytes], ['me', 33 * 1024 * 1024]);
  const [{ providers, generation }] = session.all('provider_snapshot');
  assert.equal(generation, 1);
  assert.deepEqual(providers.map((p) => [p.name, p.publish]), [['p', true], ['q', false], ['r', false]]);
  const { max_in_flight, state, state_detail, features, context_tokens } = providers[0];
  assert.deepEqual([max_in_flight, state, state_detail, features, context_tokens], [0, 'PROVIDER_STATE_LOADING', 's', ['tools'], 8192]);
  assert.equal(providers[1].max_in_flight, undefined);
});

test('the status tells the agent\'s link and the verdicts, refusals with their reason', async () => {
  await agent.start();
  start([provider(), provider({ name: 'q' })]);
  const session = await agent.session();
  session.judge(({ name }) => (name === 'p' ? { refused: 'the name is taken' } : 'not_opted_in'));
  agent.linkIs('backoff', 'mcpd is down', 5000);
  const status = await statusOf(registrar, ({ agent: link }) => link?.state === 'backoff');
  assert.deepEqual(status.providers, [
    { name: 'p', verdict: 'refused', reason: 'the name is taken' },
    { name: 'q', verdict: 'not_opted_in' },
  ]);
  assert.deepEqual(status.agent, { state: 'backoff', detail: 'mcpd is down', advice: '', nextAttemptMs: 5000 });
  assert.deepEqual([status.state, status.sessionId, status.agentVersion], ['connected', 's1', '0.0.0-fake']);
});

test('an update pushes the new set with a higher generation, and is pushed again after a reconnect', async () => {
  await agent.start();
  start();
  const first = await agent.session();
  registrar.update([provider({ name: 'new' })]);
  const isNew = ({ generation, providers }) => generation === 2 && providers[0].name === 'new';
  await first.hears('provider_snapshot', isNew);
  first.fail(grpc.status.UNAVAILABLE, 'stopping');
  await (await agent.session(1)).hears('provider_snapshot', isNew);
});

test('a withdrawn provider\'s running task goes on, a late offer for it is refused as retryable', async () => {
  await agent.start();
  let answer;
  start([provider({ complete: () => new Promise((resolve) => (answer = resolve)) })]);
  const session = await agent.session();
  const running = await agent.offer('p');
  await until('the provider runs', () => answer);
  registrar.update([]);
  const { error } = await agent.offerTo(session, 'p').answer;
  assert.deepEqual([error.code, error.retryable], ['provider_unavailable', true]);
  answer('done');
  assert.equal((await running.answer).text, 'done');
});

test('a lost agent aborts what ran, and the next one is found within a second', async () => {
  await agent.start();
  let aborted = false;
  const complete = (_options, signal) => new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject((aborted = true)));
  });
  start([provider({ complete })]);
  await agent.offer('p');
  await until('it runs', () => registrar.status.runningTasks === 1);
  agent.drop();
  await until('the provider is aborted', () => aborted);
  await agent.start();
  const restarted = performance.now();
  await agent.session(1);
  assert.ok(performance.now() - restarted < 1000);
  assert.equal(registrar.status.runningTasks, 0);
});

test('one that is replaced waits a minute and says why', async () => {
  await agent.start();
  start();
  (await agent.session()).fail(grpc.status.ABORTED, 'replaced');
  const status = await statusOf(registrar, ({ state }) => state === 'replaced');
  assert.deepEqual([status.detail, status.nextAttemptMs], ['replaced', 60_000]);
});

test('any other end is followed by another attempt: refusals, and a clean end', async () => {
  await agent.start();
  start();
  (await agent.session(0)).fail(grpc.status.PERMISSION_DENIED, 'wrong uid');
  (await agent.session(1)).fail(grpc.status.INVALID_ARGUMENT, 'bad hello');
  (await agent.session(2)).end();
  await agent.session(3);
});

test('a cancel fires the signal, and the task ends cancelled, once', async () => {
  await agent.start();
  let why;
  const stream = async function* (_options, signal) {
    yield 'a';
    await new Promise((resolve) => signal.addEventListener('abort', resolve));
    why = signal.reason.message;
    yield 'never seen';
  };
  start([provider({ stream })]);
  const task = await agent.offer('p', { stream: true });
  await task.hasPieces(1);
  task.cancel();
  assert.equal((await task.answer).outcome, 'cancelled');
  assert.equal(why, 'CANCEL_REASON_CALLER_GONE');
  task.cancel();
  await (await agent.offer('p')).answer;
  assert.deepEqual([task.ends.length, task.pieces.length], [1, 1]);
});

test('a task that is offered twice runs once', async () => {
  await agent.start();
  let runs = 0;
  let answer;
  start([provider({ complete: () => ((runs += 1), new Promise((resolve) => (answer = resolve))) })]);
  const session = await agent.session();
  const task = agent.offerTo(session, 'p', {}, { taskId: 'twice' });
  agent.offerTo(session, 'p', {}, { taskId: 'twice' });
  await agent.offerTo(session, 'unknown').answer;
  answer('x');
  await task.answer;
  assert.deepEqual([runs, task.ends.length], [1, 1]);
});

test('an agent that does not read stops the provider within a bound, and nothing is lost', async () => {
  await agent.start();
  const piece = 'x'.repeat(64 * 1024);
  let pulled = 0;
  let last = 2_000; // An end all the same, for a client that takes everything.
  const stream = async function* () {
    while (pulled < last) {
      pulled += 1;
      yield piece;
    }
  };
  start([provider({ stream })]);
  const session = await agent.session();
  session.pause();
  const task = agent.offerTo(session, 'p', { stream: true });
  let before = -1;
  let since = Date.now();
  await until('the provider is asked for nothing more', () => {
    if (pulled !== before) [before, since] = [pulled, Date.now()];
    return pulled > 0 && Date.now() - since > 300;
  });
  assert.ok(pulled < 200, `${pulled} pieces of 64 KiB were taken from the provider`);
  last = pulled + 5;
  session.resume();
  await task.answer;
  assert.equal(task.pieces.filter(({ text }) => text === piece).length, last);
});

test('stop() says goodbye, refuses new offers, lets the running task finish and closes', async () => {
  await agent.start();
  let answer;
  start([provider({ complete: () => new Promise((resolve) => (answer = resolve)) })]);
  const session = await agent.session();
  const running = await agent.offer('p');
  await until('it runs', () => answer);
  const stopped = registrar.stop({ graceMs: 9000, reason: 'update' });
  assert.equal(registrar.stop(), stopped, 'a second stop waits with the first');
  assert.deepEqual(await session.hears('drain'), { grace_ms: 9000, reason: 'update' });
  const { error } = await (await agent.offer('p')).answer;
  assert.deepEqual([error.code, error.retryable], ['provider_unavailable', true]);
  answer('last words');
  assert.equal((await running.answer).text, 'last words');
  await stopped;
  await until('the agent sees the end', () => session.ended);
  assert.equal(registrar.status.state, 'stopped');
  assert.equal(agent.sessions.length, 1);
});

test('stop() of a program at rest refuses an offer that crosses its goodbye', async () => {
  await agent.start();
  start();
  const session = await agent.session();
  const stopped = registrar.stop();
  const task = agent.offerTo(session, 'p');
  assert.equal(session.all('drain').length, 0, 'the agent has not heard the goodbye');
  await stopped;
  assert.deepEqual(task.ends.map(({ error }) => [error.code, error.retryable]), [['ERROR_CODE_PROVIDER_UNAVAILABLE', true]]);
});

test('stop() ends what outlasts the grace with an error that can be retried', async () => {
  await agent.start();
  const complete = (_options, signal) => new Promise((_, reject) => signal.addEventListener('abort', reject));
  start([provider({ complete })]);
  const task = await agent.offer('p');
  await until('it runs', () => registrar.status.runningTasks === 1);
  await registrar.stop({ graceMs: 10 });
  const [{ error }] = task.ends;
  assert.deepEqual([error.code, error.retryable], ['ERROR_CODE_PROVIDER_UNAVAILABLE', true]);
});

test('stop() with a grace without end waits for the running task', async () => {
  await agent.start();
  let answer;
  start([provider({ complete: () => new Promise((resolve) => (answer = resolve)) })]);
  const session = await agent.session();
  const task = await agent.offer('p');
  await until('it runs', () => answer);
  const stopped = registrar.stop({ graceMs: Infinity });
  const { grace_ms } = await session.hears('drain');
  assert.equal(grace_ms, 2 ** 31 - 1, 'the most that a timer of Node\'s takes');
  answer('late');
  assert.equal((await task.answer).text, 'late');
  await stopped;
});

test('stop() before there ever was an agent, and while one says nothing, ends at once', async () => {
  await start().stop();
  assert.equal(registrar.status.state, 'stopped');
  agent.hang();
  await agent.start();
  start();
  await agent.session();
  await registrar.stop();
  await until('the agent sees the end', () => agent.sessions[0].ended);
});

test('a listener and a logger that throw do not disturb it', async () => {
  await agent.start();
  const fails = () => {
    throw new Error('broken');
  };
  start(undefined, { logger: { info: fails, error: fails } });
  registrar.on('status', fails);
  assert.equal((await (await agent.offer('p')).answer).text, 'ok');
});

test('an option that is missing, misspelt or of no use is refused at once, by name', () => {
  const refused = (options, words) => assert.throws(() => startRegistrar(options), (error) => error instanceof TypeError && words.test(error.message), String(words));
  refused(undefined, /needs an object with providers/);
  refused({ providers: [], sokcetPath: '/a' }, /no option "sokcetPath"; its options are providers, socketPath/);
  refused({ providers: [], socketPath: 'run/agent.sock' }, /"run\/agent.sock" is not an absolute path/);
  refused({ providers: [], socketPath: `/${'x'.repeat(200)}` }, /has 201 bytes; a socket's path has 10\d at most/);
  refused({ providers: [], socketPath: 5 }, /socketPath/);
  refused({ providers: [], clientId: '' }, /clientId/);
  refused({ providers: [], clientVersion: 'v'.repeat(129) }, /clientVersion has 129 bytes/);
  refused({ providers: [], maxMessageBytes: 0 }, /maxMessageBytes/);
  refused({ providers: [], logger: 'console' }, /logger/);
  refused({ providers: [provider({ maxInflight: 2 })] }, /provider "p" has a field "maxInflight"; "maxInFlight" is meant/);
  refused({ providers: [provider({ stream: 'yes' })] }, /a stream that is not a function/);
});

test('a socket path may be written as a target, and await using stops the registrar', async () => {
  await agent.start();
  start(undefined, { socketPath: `unix://${agent.socketPath}` });
  const session = await agent.session();
  await registrar[Symbol.asyncDispose]();
  assert.equal(registrar.status.state, 'stopped');
  await until('the agent sees the end', () => session.ended);
});

test('what is no provider is refused at once, by name', () => {
  assert.throws(() => startRegistrar({ providers: undefined }), TypeError);
  assert.throws(() => startRegistrar({ providers: [{ name: 'half' }] }), /provider "half" has no function complete/);
});

test('what would be taken for something else or keep the set from being pushed is refused, and the last set stays', async () => {
  await agent.start();
  agent.verdict = undefined;
  start();
  const session = await agent.session();
  for (const wrong of [{ state: 'busy' }, { state: 5 }, { features: 'tools' }, { maxInFlight: NaN }, { maxInFlight: null }, { contextTokens: '8k' }]) {
    assert.throws(() => registrar.update([provider(wrong)]), TypeError, JSON.stringify(wrong));
  }
  session.judge(() => 'published');
  const { providers } = await statusOf(registrar, (status) => status.providers.length === 1);
  assert.equal(providers[0].verdict, 'published');
});

test('a set that cannot be sent leaves the verdicts on the one before it', async () => {
  await agent.start();
  const lines = [];
  agent.verdict = undefined;
  start(undefined, { logger: { error: (line) => lines.push(line) } });
  const session = await agent.session();
  const unreadable = { toString: () => { throw new Error('no text'); } };
  registrar.update([provider({ tier: unreadable })]);
  assert.match(lines[0], /the providers cannot be pushed: no text/);
  session.judge(() => 'published');
  const { providers } = await statusOf(registrar, (status) => status.providers.length === 1);
  assert.equal(providers[0].verdict, 'published');
});

test('the default client id is the same at every start of one program, the version is the package\'s', async () => {
  await agent.start();
  start(undefined, { clientId: undefined });
  await agent.session();
  await registrar.stop();
  start(undefined, { clientId: undefined });
  await agent.session(1);
  const [{ client_id: first, client_version }, { client_id: second }] = agent.sessions.map((session) => session.all('hello')[0]);
  assert.equal(first, second);
  const { version } = createRequire(import.meta.url)('../package.json');
  assert.equal(client_version, `mcprelay-client/${version}`);
  assert.match(first, /^registrar\.test-[0-9a-f]{12}$/);
});

test('the CommonJS form is the same package, and a stopped registrar does not keep the process alive', () => {
  const dist = fileURLToPath(new URL('../dist/cjs/index.js', import.meta.url));
  assert.equal(typeof createRequire(import.meta.url)(dist).startRegistrar, 'function');
  const script = `require(${JSON.stringify(dist)}).startRegistrar({ providers: [], socketPath: '/nowhere.sock' }).stop()`;
  const { status, stderr } = spawnSync(process.execPath, ['-e', script], { timeout: 10_000, encoding: 'utf8' });
  assert.deepEqual([status, stderr], [0, '']);
});
