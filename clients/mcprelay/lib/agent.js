// `startAgent`: the agent as a child of this process.
'use strict';
const { mkdtemp, rm, writeFile } = require('node:fs/promises');
const { connect } = require('node:net');
const { homedir, tmpdir } = require('node:os');
const { join } = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const { PROGRAMS } = require('./binary.js');
const { Program, asyncDispose, checkOptions } = require('./program.js');

const OPTIONS = ['mcpd', 'home', 'config', 'provide', 'args', 'env', 'startTimeoutMs'];
const START_TIMEOUT_MS = 10_000;
const ONLINE_TIMEOUT_MS = 20_000;
const PROBE_MS = 20;
/** Longer than the 120 s of --drain-timeout, so that tasks under way end by themselves. */
const STOP_GRACE_MS = 150_000;

async function startAgent(options = {}) {
  checkOptions('startAgent', options, OPTIONS);
  const { mcpd, config, provide, args = [] } = options;
  const temporary = mcpd && !options.home ? await mkdtemp(join(tmpdir(), 'mcprelay-')) : undefined;
  const env = environment(options);
  const home = options.home ?? temporary ?? env.MCPRELAY_HOME ?? join(homedir(), '.mcpctl');
  if (config) await writeFile(join(home, 'config.json'), JSON.stringify(config), { mode: 0o600 });
  // A socket of the caller's environment would be another agent's.
  const socketPath = env.MCPRELAY_SOCKET || join(home, 'mcprelay.sock');
  const forget = () => temporary && rm(temporary, { recursive: true, force: true });
  try {
    const program = new Program('mcprelay', ['run', '--home', home, ...(provide ? ['--provide'] : []), ...args], env);
    await program.until(served(socketPath, program.exited), options.startTimeoutMs ?? START_TIMEOUT_MS);
    return new Agent(program, { home, socketPath, env, forget });
  } catch (error) {
    await forget();
    throw error;
  }
}

/** With an `mcpd` of a test, the settings of whoever runs it do not count. */
function environment({ mcpd, env }) {
  if (!mcpd) return { ...process.env, ...env };
  const foreign = (name) => name.startsWith('MCPRELAY_') && name !== PROGRAMS.mcprelay;
  const kept = Object.fromEntries(Object.entries(process.env).filter(([name]) => !foreign(name)));
  return { ...kept, MCPRELAY_MCPD_URL: mcpd.url, MCPRELAY_TOKEN: mcpd.token, ...env };
}

/** Until the socket takes connections, or the agent is over. */
async function served(path, exited) {
  let over = false;
  exited.then(() => { over = true; });
  while (!over && !(await takesConnections(path))) await sleep(PROBE_MS);
}

function takesConnections(path) {
  return new Promise((resolve) => {
    const socket = connect(path, () => { socket.destroy(); resolve(true); });
    socket.once('error', () => resolve(false));
  });
}

class Agent {
  #program;
  #deps;

  constructor(program, deps) {
    this.#program = program;
    this.#deps = deps;
    this.home = deps.home;
    this.socketPath = deps.socketPath;
    this.pid = program.child.pid;
    this.exited = program.exited;
  }

  log() {
    return this.#program.log();
  }

  /** Waits until mcpd lists a provider of it; fails at once, with the reason, where waiting is useless. */
  async online({ timeoutMs = ONLINE_TIMEOUT_MS } = {}) {
    const args = ['status', '--wait', 'online', '--timeout', `${timeoutMs}ms`, '--socket', this.socketPath];
    const status = new Program('mcprelay', args, this.#deps.env);
    const { code } = await status.exited;
    if (code !== 0) throw new Error(`the agent is not online:\n${status.log()}\n${this.log()}`);
  }

  async stop({ graceMs = STOP_GRACE_MS } = {}) {
    const ended = await this.#program.stop('SIGTERM', graceMs);
    await this.#deps.forget();
    return ended;
  }

  [asyncDispose]() {
    return this.stop().then(() => undefined);
  }
}

module.exports = { startAgent };
