// A launcher is its program: arguments, streams, exit codes, signals.
import assert from 'node:assert/strict';
import test from 'node:test';
import { folder, run, script, start } from './project.mjs';

const LAUNCHER = new URL('../../../clients/mcprelay/bin/mcprelay.js', import.meta.url).pathname;
/** Says which signals come; ends at SIGTERM. */
const LISTENER = `
  const seen = [];
  for (const signal of ['SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR2']) {
    process.on(signal, () => { seen.push(signal); console.log('got ' + signal); });
  }
  process.on('SIGTERM', () => { console.log('all: ' + seen); process.exit(7); });
  setInterval(() => {}, 1e6);
  console.log('ready');`;

function launched(t, text) {
  const at = folder(t);
  return [at, { MCPRELAY_BINARY: script(at, 'program', text) }];
}

test('the exit code and the streams are those of the program', async (t) => {
  const [at, env] = launched(t, "process.stdin.on('data', (data) => console.log(`read ${data}`)).on('end', () => process.exit(3))");
  const { child, ended } = start(at, env, process.execPath, LAUNCHER);
  child.stdin.end('a line');
  assert.deepEqual(await ended, { code: 3, signal: null, out: 'read a line\n' });
});

test('signals reach the program', async (t) => {
  const { child, said, ended } = start(...launched(t, LISTENER), process.execPath, LAUNCHER);
  await said('ready');
  for (const signal of ['SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR2']) {
    child.kill(signal);
    await said(`got ${signal}`);
  }
  child.kill('SIGTERM');
  const { code, out } = await ended;
  assert.equal(code, 7);
  assert.match(out, /all: SIGINT,SIGHUP,SIGQUIT,SIGUSR2\n/);
});

test('Ctrl-C at a terminal reaches the program once, for a second one means "at once"', async (t) => {
  const terminal = ['python3', '-c', 'import pty, sys; pty.spawn(sys.argv[1:])'];
  const launcher = [process.execPath, '-e', `console.log('pid ' + process.pid); require('${LAUNCHER}')`];
  const { child, said, all, ended } = start(...launched(t, LISTENER), ...terminal, ...launcher);
  await said('ready');
  child.stdin.write('\x03');
  await said('got SIGINT');
  // The launcher has had its SIGINT before this one.
  const pid = Number(/pid (\d+)/.exec(all())[1]);
  process.kill(pid, 'SIGTERM');
  assert.match((await ended).out, /all: SIGINT\r?\n/);
});

test('a program that a signal ended looks so', async (t) => {
  for (const signal of ['SIGKILL', 'SIGTERM', 'SIGABRT']) {
    const end = await run(...launched(t, `process.kill(process.pid, '${signal}'); setInterval(() => {}, 1e6)`), process.execPath, LAUNCHER);
    assert.equal(end.signal, signal, end.out);
  }
});
