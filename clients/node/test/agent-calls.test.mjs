// Watching the agent and steering its providers.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { AgentError, pause, resume, startRegistrar, usage, watchAgent } from '../dist/esm/index.js';
import { startFakeAgent } from '../dist/esm/testing/index.js';

const provider = (name) => ({ name, type: 't', model: 'm', publish: true, complete: async () => 'ok' });

let agent;
let registrar;

before(async () => {
  agent = await startFakeAgent();
  registrar = startRegistrar({ socketPath: agent.socketPath, providers: [provider('a'), provider('b')] });
  await agent.session();
});

after(async () => {
  await registrar.stop();
  agent.close();
});

const here = () => ({ socketPath: agent.socketPath });
const isOff = (code, words) => (error) => error instanceof AgentError && error.code === code && words.test(error.message);

test('the status comes at once and again when it changes, until the loop is left', async () => {
  const seen = [];
  for await (const status of watchAgent(here())) {
    seen.push(status.providers.map(({ provider: { name, state }, verdict, paused }) => [name, state, verdict, paused]));
    if (seen.length === 1) assert.deepEqual([status.agent.state, status.pid], ['online', process.pid]);
    if (seen.length === 1) assert.deepEqual(await pause('b', here()), ['b']);
    else break;
  }
  const row = (name, paused) => [name, 'ready', 'published', paused];
  assert.deepEqual(seen, [[row('a', false), row('b', false)], [row('a', false), row('b', true)]]);
  assert.deepEqual(await pause(undefined, here()), ['a']);
  assert.deepEqual(await resume(undefined, here()), ['a', 'b']);
});

test('a pause may end by itself, and the status says when', async () => {
  const before = Date.now();
  assert.deepEqual(await pause('a', { ...here(), for: 60_000 }), ['a']);
  for await (const { providers } of watchAgent(here())) {
    const until = Date.parse(providers[0].pausedUntil) - before;
    assert.ok(until >= 60_000 && until < 120_000, providers[0].pausedUntil);
    break;
  }
  assert.deepEqual(await resume('a', here()), ['a']);
  await assert.rejects(pause('a', { ...here(), for: '1h' }), /number of milliseconds/);
});

test('usage comes in JavaScript names', async () => {
  agent.usage = [{ key: 'alice', tasks_ok: 3, input_tokens: 2 ** 40, inference_seconds: 1.5 }];
  const [row] = await usage({ ...here(), by: 'llm', days: 7 });
  assert.deepEqual([row.key, row.tasksOk, row.inputTokens, row.tasksFailed, row.inferenceSeconds], ['alice', 3, 2 ** 40, 0, 1.5]);
  await assert.rejects(usage({ ...here(), by: 'week' }), /"caller", "llm" or "day"/);
});

test('sharing rules are pushed as they stand in config.json, and what is not understood is refused', async () => {
  const rules = [{ hours: ['Sat-Sun'], onBattery: null }, { onBattery: false, whenIdleFor: '10m' }];
  registrar.update([{ ...provider('a'), sharing: rules }, provider('b')]);
  for await (const { providers } of watchAgent(here())) {
    const { sharing } = providers[0].provider;
    if (sharing.length === 0) continue;
    assert.deepEqual(sharing, [{ hours: ['Sat-Sun'] }, { hours: [], onBattery: false, whenIdleForMs: 600_000 }]);
    break;
  }
  const refused = (sharing) => assert.throws(() => registrar.update([{ ...provider('a'), sharing }]), /has a? ?sharing/);
  for (const sharing of [{ hours: [] }, { hours: 'Sat-Sun' }, { onBattery: 'no' }, { whenIdleFor: 'soon' }, 7]) refused(sharing);
});

test('a name that nobody has pushed, and an agent that is not there, are errors that say so', async () => {
  await assert.rejects(pause('nobody', here()), isOff(5, /no provider named 'nobody'/));
  const nowhere = { socketPath: '/nowhere/agent.sock' };
  await assert.rejects(resume('a', nowhere), isOff(14, /No agent at \/nowhere\/agent\.sock yet/));
  await assert.rejects(watchAgent(nowhere).next(), isOff(14, /No agent at/));
});

test('a signal ends the watching with its reason', async () => {
  const gone = new AbortController();
  const statuses = watchAgent({ ...here(), signal: gone.signal });
  await statuses.next();
  gone.abort(new Error('seen enough'));
  await assert.rejects(statuses.next(), /seen enough/);
});

test('an option that does not exist is refused', async () => {
  await assert.rejects(pause('a', { sokcetPath: '/a' }), /pause\(\) has no option "sokcetPath"/);
  assert.throws(() => watchAgent({ socketPath: 'relative' }), /not an absolute path/);
});

test('the agent that goes away ends the watching with an error', async () => {
  const other = await startFakeAgent();
  const statuses = watchAgent({ socketPath: other.socketPath });
  await statuses.next();
  other.drop();
  await assert.rejects(statuses.next(), AgentError);
  await other[Symbol.asyncDispose]();
});
