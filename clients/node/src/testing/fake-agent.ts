import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Server, ServerCredentials, status } from '@grpc/grpc-js';
import type { sendUnaryData, ServerDuplexStream, ServerWritableStream } from '@grpc/grpc-js';
import type { ChatBody } from '../chat-body.js';
import { asyncDispose } from '../dispose.js';
import { checkedSocketPath, targetOf } from '../socket.js';
import type { AgentState } from '../types.js';
import type { SessionResponse } from '../wire.js';
import { Changes } from './changes.js';
import { FakeSession, type Heard, type Judge, type PushedProvider } from './fake-session.js';
import type { FakeTask } from './fake-task.js';
import { SERVICE } from './service.js';

export interface FakeAgentOptions {
  /** Where it listens; by default a socket of its own in the folder for temporary files. */
  socketPath?: string;
  /** What becomes of each provider; by default one that is opted in is published. */
  verdict?: Judge;
  /** The state of its link to mcpd; "online" by default. */
  link?: AgentState;
  /** The largest message it says it takes, in bytes; 4 MiB by default. */
  maxMessageBytes?: number;
}

export interface OfferOptions {
  /** Whether the caller wants a stream; by default what the body's `stream` says. */
  streaming?: boolean;
  timeoutMs?: number;
  traceContext?: Record<string, string>;
  /** mcpd's id of the task; a new one by default. */
  taskId?: string;
}

/** A caller's body: parsed, or as its bytes. */
export type OfferBody = (Partial<ChatBody> & { readonly [field: string]: unknown }) | Buffer;

/** Starts an agent in this process, which does what a test says and keeps what it hears. No mcpd and no other program is needed. */
export async function startFakeAgent(options: FakeAgentOptions = {}): Promise<FakeAgent> {
  const agent = new FakeAgent(options);
  await agent.start();
  return agent;
}

/** The agent's side of the socket. Every method that waits does so for at most 10 s. */
export class FakeAgent {
  /** What a registrar is given as its `socketPath`. */
  readonly socketPath: string;
  /** Every session so far, the newest last. */
  readonly sessions: FakeSession[] = [];
  /** What becomes of the providers of the next set; `undefined` says nothing of them. */
  verdict: Judge | undefined;
  private readonly folder: string | undefined;
  private readonly changes = new Changes();
  private readonly welcome: SessionResponse;
  private server: Server | undefined;
  private silent = false;
  private offered = 0;
  private readonly watchers = new Set<ServerWritableStream<object, object>>();
  /** The names of the providers that were paused. */
  readonly paused = new Set<string>();
  /** When each of them ends by itself, RFC 3339, or empty. */
  private readonly pauseEnds = new Map<string, string>();
  /** What `usage()` gives, with the proto's names. */
  usage: object[] = [];

  constructor(options: FakeAgentOptions = {}) {
    this.folder = options.socketPath === undefined ? mkdtempSync(join(tmpdir(), 'fake-agent-')) : undefined;
    this.socketPath = checkedSocketPath(options.socketPath ?? join(this.folder!, 'agent.sock'));
    this.verdict = options.verdict ?? (({ publish }) => (publish ? 'published' : 'not_opted_in'));
    this.welcome = {
      welcome: {
        session_id: 's1',
        agent_version: VERSION,
        max_message_bytes: options.maxMessageBytes ?? 4 * 1024 * 1024,
        agent_status: { state: `AGENT_STATE_${(options.link ?? 'online').toUpperCase()}`, detail: '', advice: '' },
      },
    };
  }

  /** Listens, for the first time or after `drop()`. */
  async start(): Promise<void> {
    const server = new Server({ 'grpc.max_receive_message_length': -1 });
    server.addService(SERVICE, {
      Session: (call: ServerDuplexStream<Heard, SessionResponse>) => this.opened(call),
      WatchStatus: (call: ServerWritableStream<object, object>) => this.watched(call),
      SetPaused: (call: { request: PauseRequest }, answer: sendUnaryData<object>) => this.steered(call.request, answer),
      GetUsage: (_: object, answer: sendUnaryData<object>) => answer(null, { rows: this.usage }),
    });
    await new Promise<void>((resolve, reject) => {
      const bound = (error: Error | null) => (error ? reject(error) : resolve());
      server.bindAsync(targetOf(this.socketPath), ServerCredentials.createInsecure(), bound);
    });
    this.server = server;
  }

  /** The providers that the newest session pushed last. */
  get providers(): PushedProvider[] {
    return this.sessions.at(-1)?.providers ?? [];
  }

  /** The n-th session, from 0, once it has pushed its providers; by default the newest that is open, or else the next. */
  async session(n?: number): Promise<FakeSession> {
    const find = () => (n === undefined ? this.sessions.findLast(({ ended }) => !ended) : this.sessions[n]);
    const session = await this.changes.until(`session ${n ?? ''} opens`, find);
    await session.hears(this.silent ? 'hello' : 'provider_snapshot');
    return session;
  }

  /** Offers a task for a provider, as soon as a session has pushed it. */
  async offer(provider: string, body: OfferBody = {}, options: OfferOptions = {}): Promise<FakeTask> {
    const has = (session: FakeSession) => !session.ended && session.providers.some(({ name }) => name === provider);
    const session = await this.changes.until(`"${provider}" is pushed`, () => this.sessions.findLast(has));
    return this.offerTo(session, provider, body, options);
  }

  /** The same to one session, whether or not it has such a provider. */
  offerTo(session: FakeSession, provider: string, body: OfferBody = {}, options: OfferOptions = {}): FakeTask {
    const bytes = Buffer.isBuffer(body);
    const { taskId = `task-${(this.offered += 1)}`, timeoutMs = 60_000, traceContext = {} } = options;
    return session.offer(taskId, {
      provider,
      body: bytes ? body : Buffer.from(JSON.stringify({ model: provider, messages: [{ role: 'user', content: 'Hello.' }], ...body })),
      streaming: options.streaming ?? (!bytes && body['stream'] === true),
      timeoutMs,
      traceContext,
    });
  }

  /** Says goodbye to every session: the agent is going away, and running tasks may finish. */
  drain(graceMs = 30_000, reason = 'the agent is stopping'): void {
    for (const session of this.open()) session.send({ drain: { grace_ms: graceMs, reason } });
  }

  /** Tells every session the state of the link to mcpd. */
  linkIs(state: AgentState, detail = '', nextAttemptMs?: number): void {
    const status = { state: `AGENT_STATE_${state.toUpperCase()}`, detail, advice: '', ...(nextAttemptMs !== undefined && { next_attempt_ms: nextAttemptMs }) };
    for (const session of this.open()) session.send({ agent_status: status });
  }

  /** Answers no further Hello, as an agent that hangs. */
  hang(): void {
    this.silent = true;
  }

  /** Dies without a word: every stream breaks and the socket goes. `start()` brings it back. */
  drop(): void {
    this.server?.forceShutdown();
    this.server = undefined;
    rmSync(this.socketPath, { force: true });
  }

  /** Waits until something that a test looks for is there; it is looked for whenever the agent hears something. */
  until<T>(what: string, look: () => T | undefined | null | false): Promise<T> {
    return this.changes.until(what, look);
  }

  close(): void {
    this.drop();
    if (this.folder !== undefined) rmSync(this.folder, { recursive: true, force: true });
  }

  /** For `await using`: the same as `close()`. */
  async [asyncDispose](): Promise<void> {
    this.close();
  }

  private watched(call: ServerWritableStream<object, object>): void {
    this.watchers.add(call);
    call.on('cancelled', () => this.watchers.delete(call));
    call.write(this.status());
  }

  private steered({ provider_name: name, paused, until }: PauseRequest, answer: sendUnaryData<object>): void {
    const named = this.providers.map((provider) => provider.name).filter((known) => name === '' || known === name);
    if (name !== '' && named.length === 0) {
      return answer({ code: status.NOT_FOUND, details: `no provider named '${name}' was pushed` });
    }
    const changed = named.filter((known) => this.paused.has(known) !== paused);
    for (const known of changed) paused ? this.paused.add(known) : this.paused.delete(known);
    for (const known of named) this.pauseEnds.set(known, paused ? until : '');
    answer(null, { changed });
    for (const watcher of this.watchers) watcher.write(this.status());
  }

  private status(): object {
    const providers = this.sessions.at(-1)?.all('provider_snapshot').at(-1)?.providers ?? [];
    return {
      agent: this.welcome.welcome?.agent_status,
      agent_version: VERSION,
      pid: process.pid,
      providers: providers.map((provider) => ({ provider, verdict: provider.publish ? 'VERDICT_PUBLISHED' : 'VERDICT_NOT_OPTED_IN', paused: this.paused.has(provider.name), paused_until: this.pauseEnds.get(provider.name) ?? '' })),
      totals: {},
    };
  }

  private opened(call: ServerDuplexStream<Heard, SessionResponse>): void {
    const welcome = () => (this.silent ? undefined : this.welcome);
    this.sessions.push(new FakeSession(call, this.changes, { welcome, judge: () => this.verdict }));
    this.changes.happened();
  }

  private open(): FakeSession[] {
    return this.sessions.filter(({ ended }) => !ended);
  }
}

const VERSION = '0.0.0-fake';

interface PauseRequest {
  provider_name: string;
  paused: boolean;
  until: string;
}
