// A scripted agent: a grpc-js server on a unix socket that does what the test says and keeps what it hears.
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const PROTO = fileURLToPath(new URL('../dist/bridge.proto', import.meta.url));
const OPTIONS = { keepCase: true, longs: String, enums: String, oneofs: true, defaults: true };
const { BridgeService } = grpc.loadPackageDefinition(loadSync(PROTO, OPTIONS)).mcprelay.bridge.v1;

/** Longest wait for something that should happen at once; it is reached by failing tests only. */
const BOUND_MS = 10_000;

/** Waits until `condition` gives something truthy, and gives that. */
export async function until(what, condition) {
  const deadline = Date.now() + BOUND_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited ${BOUND_MS} ms in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** One stream as the agent sees it. */
export class AgentSession {
  heard = [];
  offered = 0;
  ended = false;

  constructor(call, agent) {
    this.call = call;
    call.on('data', (message) => this.hear(message, agent));
    call.on('end', () => {
      this.ended = true;
      call.end();
    });
    call.on('cancelled', () => (this.ended = true));
    call.on('error', () => (this.ended = true));
  }

  hear(message, agent) {
    this.heard.push(message);
    if (message.hello && agent.welcomes) {
      this.say({ welcome: { session_id: 's1', agent_version: '9.9.9', ...agent.welcome } });
    }
  }

  say(message) {
    this.call.write(message);
  }

  /** The messages of one kind so far. */
  all(kind) {
    return this.heard.filter((message) => message.payload === kind).map((message) => message[kind]);
  }

  /** The first message of a kind that fits, now or soon. */
  hears(kind, fits = () => true) {
    return until(`the agent hears ${kind}`, () => this.all(kind).find(fits));
  }

  /** Offers a task and gives its id. */
  offer(body, { streaming = false, provider = 'p', trace = {}, id = `task-${++this.offered}` } = {}) {
    const request_json = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body));
    this.say({
      task_offer: {
        task_id: id, provider_name: provider, request_json, streaming, timeout_ms: 60_000, w3c_trace_context: trace,
      },
    });
    return id;
  }

  chunks(id) {
    return this.all('task_chunk').filter((chunk) => chunk.task_id === id);
  }

  ends(id) {
    return this.all('task_finished').filter((finished) => finished.task_id === id);
  }

  finished(id) {
    return this.hears('task_finished', (finished) => finished.task_id === id);
  }

  /** Ends the stream with a status, as the agent does for a fault of the whole session. */
  fail(code, details) {
    this.call.emit('error', { code, details });
  }

  /** Reads nothing more until `resume`. */
  pause() {
    this.call.pause();
  }

  resume() {
    this.call.resume();
  }
}

export class FakeAgent {
  sessions = [];
  welcomes = true;
  welcome = { max_message_bytes: 4 * 1024 * 1024, agent_status: { state: 'AGENT_STATE_ONLINE' } };
  dir = mkdtempSync(join(tmpdir(), 'bridge-'));
  socket = join(this.dir, 'agent.sock');

  async start() {
    this.server = new grpc.Server({ 'grpc.max_receive_message_length': -1 });
    this.server.addService(BridgeService.service, {
      Session: (call) => this.sessions.push(new AgentSession(call, this)),
      WatchStatus: (call) => call.end(),
      SetPaused: (_call, answer) => answer(null, {}),
    });
    await new Promise((resolve, reject) => {
      const done = (error) => (error ? reject(error) : resolve());
      this.server.bindAsync(`unix://${this.socket}`, grpc.ServerCredentials.createInsecure(), done);
    });
    return this;
  }

  /** The n-th session from 0, with its providers pushed. */
  async session(n = 0) {
    const session = await until(`session ${n} opens`, () => this.sessions[n]);
    await session.hears('hello');
    if (this.welcomes) await session.hears('provider_snapshot');
    return session;
  }

  /** Dies: every stream breaks and the socket goes. */
  kill() {
    this.server?.forceShutdown();
    rmSync(this.socket, { force: true });
  }

  close() {
    this.kill();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Resolves with the first status of the registrar, present or to come, that fits. */
export async function statusOf(registrar, fits) {
  const signal = AbortSignal.timeout(BOUND_MS);
  let { status } = registrar;
  while (!fits(status)) [status] = await once(registrar, 'status', { signal });
  return status;
}
