// The real programs, and what tests do with them: start, ask as a caller would, wait with a bound, stop.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const TOKEN = 'test-token';
/** Longest wait for something that takes well under a second when all is well; reached by failing tests only. */
const BOUND_MS = 15_000;
/** Lines of each program's log that a failed wait shows. */
const LOG_TAIL = 15;

const programs = new Set();

function fromEnvironment(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: start the tests with tests/node/run.sh`);
  return value;
}

/** The repository, for its proto and its guides. */
export const REPO = fromEnvironment('MCPRELAY_REPO');

/** Waits until `condition` gives something truthy, and gives that; otherwise fails with the programs' last words. */
export async function until(what, condition, boundMs = BOUND_MS) {
  const deadline = Date.now() + boundMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited ${boundMs} ms in vain until ${what}\n${lastWords()}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function lastWords() {
  return [...programs].map(({ name, lines }) => `--- ${name}\n${lines.slice(-LOG_TAIL).join('\n')}`).join('\n');
}

/** One of the programs under test. */
export class Program {
  lines = [];

  constructor(name, command, args, env = {}) {
    this.name = name;
    this.process = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    this.exited = once(this.process, 'exit').then(([code, signal]) => ({ code, signal }));
    for (const output of [this.process.stdout, this.process.stderr]) {
      createInterface({ input: output }).on('line', (line) => this.lines.push(line));
    }
    programs.add(this);
  }

  signal(name) {
    this.process.kill(name);
  }

  /** Ends it, kindly at first, and gives how it exited. */
  async stop(signal = 'SIGTERM') {
    this.signal('SIGCONT');
    this.signal(signal);
    const late = setTimeout(() => this.signal('SIGKILL'), BOUND_MS);
    const exit = await this.exited;
    clearTimeout(late);
    programs.delete(this);
    return exit;
  }
}

/** Ends whatever still runs: a failed test must not leave programs that keep the tests' own process alive. */
export async function stopAll() {
  await Promise.all([...programs].map((program) => program.stop()));
}

/** fake-mcpd, and the callers' side of it. */
export class Mcpd extends Program {
  static async start() {
    const mcpd = new Mcpd('fake-mcpd', fromEnvironment('FAKE_MCPD_BIN'), ['--listen', '127.0.0.1:0', '--token', TOKEN]);
    const address = await until('fake-mcpd listens', () => /listening on (http:\S+)/.exec(mcpd.lines[0] ?? ''));
    mcpd.url = address[1];
    return mcpd;
  }

  headers(extra) {
    return { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json', ...extra };
  }

  /** The rows of mcpd's list whose names begin like this. */
  async llms(prefix = '') {
    const response = await fetch(`${this.url}/api/v1/llms`, { headers: this.headers() });
    return (await response.json()).filter(({ name }) => name.startsWith(prefix));
  }

  row(name, status) {
    return until(`mcpd lists ${name} as ${status}`, async () => {
      return (await this.llms()).find((row) => row.name === name && row.status === status);
    });
  }

  /** One inference, as a caller makes it. */
  infer(name, { body = {}, headers, signal } = {}) {
    return fetch(`${this.url}/api/v1/llms/${encodeURIComponent(name)}/infer`, {
      method: 'POST',
      headers: this.headers(headers),
      body: JSON.stringify({ model: name, messages: [{ role: 'user', content: 'hi' }], ...body }),
      signal,
    });
  }

  /** A plain inference: its status, headers and body. */
  async plain(name, options) {
    const response = await this.infer(name, options);
    return { status: response.status, headers: response.headers, body: await response.json() };
  }

  /** The text of the answer to a plain inference that must succeed. */
  async answer(name) {
    const { status, body } = await this.plain(name);
    if (status !== 200) throw new Error(`infer gave ${status}: ${JSON.stringify(body)}\n${lastWords()}`);
    return body.choices[0].message.content;
  }

  /** A streamed inference: the texts of its events, as they come. */
  async *events(name, options = {}) {
    const response = await this.infer(name, { ...options, body: { ...options.body, stream: true } });
    if (!response.ok) throw new Error(`infer gave ${response.status}: ${await response.text()}\n${lastWords()}`);
    let rest = '';
    for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
      const events = (rest + text).split('\n\n');
      rest = events.pop();
      for (const event of events) if (event.startsWith('data:')) yield event.slice(5).trimStart();
    }
  }

  /** A streamed inference to its end: the events before [DONE]. */
  async streamed(name, options) {
    const events = [];
    for await (const event of this.events(name, options)) events.push(event);
    const last = events.pop();
    if (last !== '[DONE]') throw new Error(`the stream ended with ${last} instead of [DONE]\n${lastWords()}`);
    return events;
  }
}

/** The text of a streamed answer. */
export function contentOf(events) {
  return events.map((event) => JSON.parse(event).choices[0]?.delta?.content ?? '').join('');
}

/** A home for an agent: credentials for this mcpd, and the place of the socket. */
export function newHome(mcpd) {
  const root = mkdtempSync(join(tmpdir(), 'mcprelay-'));
  const home = join(root, '.mcpctl');
  mkdirSync(home, { mode: 0o700 });
  const credentials = JSON.stringify({ mcpdUrl: mcpd.url, token: TOKEN });
  writeFileSync(join(home, 'credentials'), credentials, { mode: 0o600 });
  return { root, home, socket: join(home, 'mcprelay.sock'), remove: () => rmSync(root, { recursive: true, force: true }) };
}

/** The agent, `mcprelay run`, in a home. */
export function startAgent({ home }, env) {
  return new Program('mcprelay', fromEnvironment('MCPRELAY_BIN'), ['run', '--home', home], env);
}
