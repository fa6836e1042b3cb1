// `startFakeMcpd` and `startAgent`, as a test of somebody's own uses them.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { installed, folder, run, script } from './project.mjs';

const config = { llm: { providers: [{ name: 'echo', type: 'echo', model: 'echo-1', publish: true }] } };
let made;
let programs;

before(async (t) => {
  made = await installed(t);
  programs = createRequire(join(made, 'index.js'))('@mcpctl/mcprelay');
});

async function infer(mcpd, name) {
  const headers = { authorization: `Bearer ${mcpd.token}` };
  const body = JSON.stringify({ messages: [{ role: 'user', content: 'Say hello.' }] });
  return fetch(`${mcpd.url}/api/v1/llms/${name}/infer`, { method: 'POST', headers, body });
}

test('an agent serves a fake mcpd, through a fault, and the verdict is good', async (t) => {
  const mcpd = await programs.startFakeMcpd({ profile: 'given', expectTasks: 2 });
  t.after(() => mcpd.stop());
  // Of whoever runs the tests; another agent's.
  process.env.MCPRELAY_SOCKET = '/nonexistent/socket';
  t.after(() => delete process.env.MCPRELAY_SOCKET);
  const agent = await programs.startAgent({ mcpd, config, provide: true });
  await agent.online();
  assert.equal((await infer(mcpd, 'echo')).status, 200);
  assert.deepEqual((await mcpd.verdict()).violations.map(({ rule }) => rule), ['fewer-tasks']);
  await mcpd.fault('lose-reply,call=result', { kind: 'delay', call: 'result', by: '1ms' });
  assert.equal((await infer(mcpd, 'echo')).status, 200);
  const verdict = await mcpd.verdict();
  assert.deepEqual([verdict.ok, verdict.counts.tasks], [true, 2], JSON.stringify(verdict));
  assert.ok((await mcpd.journal()).entries.some(({ kind }) => kind === 'fault'));
  assert.equal((await mcpd.state()).llms[0].name, 'echo');
  await mcpd.clearFaults();

  assert.deepEqual(await agent.stop(), { code: 0, signal: null });
  assert.ok(!existsSync(agent.home), 'the temporary home is gone');
});

test('both are disposable', async () => {
  const mcpd = await programs.startFakeMcpd();
  const agent = await programs.startAgent({ mcpd });
  await agent[Symbol.asyncDispose]();
  await mcpd[Symbol.asyncDispose]();
  assert.equal((await agent.exited).code, 0);
  assert.equal((await mcpd.exited).code, 0);
});

test('what does not start says why', async (t) => {
  await assert.rejects(programs.startFakeMcpd({ args: ['--nonsense'] }), /exit code 2:[^]*--nonsense/);
  await assert.rejects(programs.startFakeMcpd({ faults: ['nonsense'] }), /exit code 2/);
  const mcpd = await programs.startFakeMcpd();
  t.after(() => mcpd.stop());
  await assert.rejects(programs.startAgent({ mcpd, args: ['--nonsense'] }), /exit code 2:[^]*--nonsense/);
  await assert.rejects(programs.startAgent({ mcpd, config: {}, home: '/nonexistent' }), /ENOENT/);
  await assert.rejects(programs.startFakeMcpd({ profil: 'given' }), /knows no option profil/);
  await assert.rejects(mcpd.fault('nonsense'), /400/);
});

test('what is never ready is ended', async (t) => {
  const at = folder(t);
  const env = { FAKE_MCPD_BINARY: script(at, 'deaf', 'console.error("deaf"); setInterval(() => {}, 1e6)') };
  await assert.rejects(programs.startFakeMcpd({ env, startTimeoutMs: 300 }), /not ready after 300 ms/);
});

test('an agent that cannot come online says why at once', async (t) => {
  const mcpd = await programs.startFakeMcpd();
  const agent = await programs.startAgent({ mcpd: { url: mcpd.url, token: 'wrong' }, config: {}, provide: true });
  t.after(async () => { await agent.stop(); await mcpd.stop(); });
  await assert.rejects(agent.online({ timeoutMs: 1000 }), /is not online:/);
});

test('what was started does not outlive the program that started it', async () => {
  const text = `require('@mcpctl/mcprelay').startFakeMcpd().then(({ url }) => { console.log(url); process.exit(0); })`;
  const { out, code } = await run(made, {}, process.execPath, '-e', text);
  assert.equal(code, 0, out);
  await assert.rejects(fetch(out.trim()), /fetch failed/);
});

test('an ESM import has the same names', async () => {
  const text = `import { binaryPath, startAgent, startFakeMcpd, ProgramNotFoundError } from '@mcpctl/mcprelay';
    console.log(binaryPath('mcprelay'), typeof startAgent, typeof startFakeMcpd, ProgramNotFoundError.name)`;
  const { out } = await run(made, {}, process.execPath, '--input-type=module', '-e', text);
  assert.match(out, /bin\/mcprelay function function ProgramNotFoundError/);
});
