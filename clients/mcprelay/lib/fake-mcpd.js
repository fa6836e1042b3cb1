// `startFakeMcpd`: an mcpd for a test, on a free port of this machine.
'use strict';
const { randomUUID } = require('node:crypto');
const { once } = require('node:events');
const { Program, asyncDispose, checkOptions } = require('./program.js');

const OPTIONS = ['profile', 'token', 'faults', 'seed', 'expectTasks', 'args', 'env', 'startTimeoutMs'];
const START_TIMEOUT_MS = 10_000;
const STOP_GRACE_MS = 5_000;

async function startFakeMcpd(options = {}) {
  checkOptions('startFakeMcpd', options, OPTIONS);
  const token = options.token ?? randomUUID();
  const args = ['--listen', '127.0.0.1:0', ...flags(options), ...(options.args ?? [])];
  const env = { ...process.env, ...options.env, FAKE_MCPD_TOKEN: token };
  const program = new Program('fake-mcpd', args, env);
  const [line] = await program.until(once(program.output, 'line'), options.startTimeoutMs ?? START_TIMEOUT_MS);
  return new FakeMcpd(program, line.split(' ').at(-1), token);
}

function flags({ profile, faults = [], seed, expectTasks }) {
  const given = Object.entries({ profile, seed, 'expect-tasks': expectTasks });
  const named = given.filter(([, value]) => value !== undefined).map(([name, value]) => `--${name}=${value}`);
  return [...named, ...faults.map((fault) => `--fault=${fault}`)];
}

class FakeMcpd {
  #program;

  constructor(program, url, token) {
    this.#program = program;
    this.url = url;
    this.token = token;
    this.pid = program.child.pid;
    this.exited = program.exited;
  }

  log() {
    return this.#program.log();
  }

  verdict() {
    return this.#call('verdict');
  }

  state() {
    return this.#call('state');
  }

  journal(since = 0) {
    return this.#call(`journal?since=${since}`);
  }

  async fault(...faults) {
    await this.#call('faults', { method: 'POST', body: faults.length === 1 ? text(faults[0]) : JSON.stringify(faults) });
  }

  async clearFaults() {
    await this.#call('faults', { method: 'DELETE' });
  }

  stop() {
    return this.#program.stop('SIGTERM', STOP_GRACE_MS);
  }

  [asyncDispose]() {
    return this.stop().then(() => undefined);
  }

  async #call(path, request) {
    const answer = await fetch(`${this.url}/_fake/${path}`, request);
    const body = await answer.text();
    if (!answer.ok) throw new Error(`fake-mcpd: ${answer.status} for ${path}: ${body}`);
    return body ? JSON.parse(body) : undefined;
  }
}

function text(fault) {
  return typeof fault === 'string' ? fault : JSON.stringify(fault);
}

module.exports = { startFakeMcpd };
