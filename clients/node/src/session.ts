/**
 * One stream to the agent, from Hello to its end; it is never used again after that.
 *
 *   opening --Welcome--> open --drain()--> draining --all tasks ended--> closed
 *      `-----------------`------ the stream ends (agent gone, replaced, refused) ----^
 */
import { Client, credentials, status as grpcStatus, type ClientDuplexStream, type StatusObject } from '@grpc/grpc-js';
import { logLineOf, plainError, TaskError, wireErrorOf } from './errors.js';
import { Gatherer } from './gather.js';
import { whyEnded } from './socket.js';
import { Task, type Outlet } from './task.js';
import type { Logger, Provider } from './types.js';
import { settledWithin } from './waiting.js';
import { decode, encode, pathOf } from './wire.js';
import type { ErrorCode, Outcome, Output, WireAgentStatus, WireProvider } from './wire.js';
import type { ProviderSnapshotResult, SessionRequest, SessionResponse, TaskOffer, Welcome } from './wire.js';

/** An agent that takes the connection but says nothing for this long is stuck; another attempt may find a new one. */
const WELCOME_MS = 10_000;
/** How long the stream stays open after our goodbye although nothing runs: an offer that crossed it is refused, not lost. */
const LINGER_MS = 100;
/** How long the agent may take to answer the half-close that ends a drained session. */
const CLOSE_MS = 1_000;
/** After the grace: as long as an aborted provider gets, and a little. */
const ABORTED_MS = 6_000;
/** Keep-alive both ways costs nothing on a unix socket and notices an agent that hangs. */
const KEEPALIVE = { time: 20_000, timeout: 10_000 };

export interface Snapshot {
  generation: number;
  providers: WireProvider[];
}

/** What a session needs of its program. */
export interface Host {
  target: string;
  hello: { client_id: string; client_version: string; max_message_bytes: number };
  log: Required<Logger>;
  snapshot(): Snapshot;
  provider(name: string): Provider | undefined;
  /** Something that the status shows is different now. */
  changed(): void;
}

/** How a stream ended. */
export interface SessionEnd {
  replaced: boolean;
  detail: string;
  /** From Welcome to the end; 0 without a Welcome. */
  livedMs: number;
}

export class Session implements Outlet {
  readonly ended: Promise<SessionEnd>;
  welcome: Welcome | undefined;
  agent: WireAgentStatus | undefined;
  verdicts: ProviderSnapshotResult['verdicts'] = [];

  private readonly client: Client;
  private readonly call: ClientDuplexStream<Buffer, SessionResponse>;
  private readonly tasks = new Map<string, { task: Task; done: Promise<void> }>();
  private readonly gatherer = new Gatherer(
    (chunk) => this.send({ task_chunk: chunk }),
    (taskId, error) => this.tasks.get(taskId)?.task.abort('a message was not sent', { error: wireErrorOf(error) }),
  );
  private over = false;
  private draining = false;
  private gate: { opened: Promise<void>; open: () => void } | undefined;
  private readonly late: NodeJS.Timeout;
  private welcomedAt = 0;
  /** The generation of the last set that was sent. */
  private pushed = 0;
  private closedBecause = '';

  constructor(private readonly host: Host) {
    this.client = new Client(host.target, credentials.createInsecure(), channelOptions(host.hello.max_message_bytes));
    // Messages are encoded by us: their size is known before they are sent, and a bad one fails its task, not the stream.
    this.call = this.client.makeBidiStreamRequest(pathOf('Session'), (bytes: Buffer) => bytes, decode);
    this.ended = new Promise((resolve) => this.call.on('status', (status) => resolve(this.end(status))));
    this.call.on('error', () => {}); // The status says the same, and always comes.
    this.call.on('drain', () => this.openGate());
    this.call.on('data', (message) => this.receive(message));
    this.send({ hello: host.hello });
    this.late = setTimeout(() => this.close('The agent took the connection and then said nothing.'), WELCOME_MS);
  }

  get runningTasks(): number {
    return this.tasks.size;
  }

  /** Sends the whole set; without a Welcome it waits for that. */
  pushProviders(): void {
    if (!this.welcome || this.over) return;
    try {
      const snapshot = this.host.snapshot();
      this.send({ provider_snapshot: snapshot });
      this.pushed = snapshot.generation;
    } catch (error) {
      this.host.log.error(`the providers cannot be pushed: ${(error as Error).message}`);
    }
  }

  chunk(taskId: string, output: Output): void {
    this.gatherer.add(taskId, output);
  }

  finish(taskId: string, outcome: Outcome): void {
    this.gatherer.flush(taskId);
    this.send({ task_finished: { task_id: taskId, ...outcome } });
  }

  full(): Promise<void> | undefined {
    return this.gate?.opened;
  }

  /** The orderly goodbye: no further tasks, running ones have `graceMs`, then the stream ends. */
  async drain(graceMs: number, reason: string): Promise<void> {
    if (!this.welcome) return this.close(reason);
    this.draining = true;
    this.send({ drain: { grace_ms: graceMs, reason } });
    const lingered = settledWithin(LINGER_MS, this.ended);
    if (!(await this.idleWithin(graceMs))) {
      for (const { task } of this.tasks.values()) task.abort(reason, refusal('PROVIDER_UNAVAILABLE', reason));
      await this.idleWithin(ABORTED_MS);
    }
    await lingered;
    this.call.end();
    await settledWithin(CLOSE_MS, this.ended);
    this.close(reason);
  }

  private idleWithin(ms: number): Promise<boolean> {
    const idle = Promise.all([...this.tasks.values()].map(({ done }) => done));
    return settledWithin(ms, Promise.race([idle, this.ended]));
  }

  private close(why: string): void {
    this.closedBecause = why;
    this.call.cancel();
  }

  private send(request: SessionRequest): void {
    if (this.over) return;
    const bytes = encode(request);
    const limit = this.welcome?.max_message_bytes || Infinity;
    if (bytes.length > limit) {
      throw new TaskError('ERROR_CODE_INTERNAL', `A message of ${bytes.length} bytes is over the agent's limit of ${limit}.`);
    }
    if (!this.call.write(bytes)) this.closeGate();
  }

  private closeGate(): void {
    if (this.gate) return;
    let open = () => {};
    const opened = new Promise<void>((resolve) => (open = resolve));
    this.gate = { opened, open };
  }

  private openGate(): void {
    this.gate?.open();
    this.gate = undefined;
  }

  private receive(message: SessionResponse): void {
    const { welcome, provider_snapshot_result: result, task_offer: offer, task_cancel: cancel, drain } = message;
    if (welcome) this.begin(welcome);
    else if (offer) this.take(offer);
    else if (cancel) this.tasks.get(cancel.task_id)?.task.cancel(cancel.reason);
    else if (result) this.judged(result);
    else if (message.agent_status) this.agentIs(message.agent_status);
    else if (drain) this.host.log.info(`the agent is going away: ${drain.reason}`);
  }

  private begin(welcome: Welcome): void {
    clearTimeout(this.late);
    this.welcome = welcome;
    this.welcomedAt = performance.now();
    this.agent = welcome.agent_status ?? undefined;
    this.pushProviders();
    this.host.changed();
  }

  private judged(result: ProviderSnapshotResult): void {
    // A verdict on a set that has been replaced meanwhile would name the wrong providers.
    if (result.generation !== this.pushed) return;
    this.verdicts = result.verdicts;
    for (const { name, error } of result.verdicts) {
      if (error) this.host.log.warn(`provider "${name}" is refused: ${error.message}`);
    }
    this.host.changed();
  }

  private agentIs(status: WireAgentStatus): void {
    this.agent = status;
    this.host.changed();
  }

  private take(offer: TaskOffer): void {
    const id = offer.task_id;
    if (this.tasks.has(id)) return this.host.log.warn(`task ${id} is offered twice; it runs once`);
    if (this.draining) return this.finish(id, refusal('PROVIDER_UNAVAILABLE', 'This program is stopping.'));
    const provider = this.host.provider(offer.provider_name);
    if (!provider) {
      return this.finish(id, refusal('PROVIDER_UNAVAILABLE', `The provider "${offer.provider_name}" is withdrawn.`));
    }
    const task = new Task(offer, provider, this);
    this.tasks.set(id, { task, done: this.running(id, task) });
  }

  private async running(id: string, task: Task): Promise<void> {
    const outcome = await task.run();
    this.tasks.delete(id);
    const { error } = outcome;
    if (error) this.host.log.warn(`task ${id} failed: ${logLineOf(error)}`);
    else this.host.log.debug(`task ${id} ${outcome.cancelled ? 'was cancelled' : 'is done'}`);
  }

  private end(status: StatusObject): SessionEnd {
    this.over = true;
    clearTimeout(this.late);
    this.openGate();
    const lost = 'The session with the agent ended.';
    for (const { task } of this.tasks.values()) task.abort(lost, refusal('PROVIDER_UNAVAILABLE', lost));
    this.client.close();
    return {
      replaced: status.code === grpcStatus.ABORTED,
      detail: this.closedBecause || whyEnded(status.details, this.host.target),
      livedMs: this.welcome ? performance.now() - this.welcomedAt : 0,
    };
  }
}

function refusal(code: 'PROVIDER_UNAVAILABLE', message: string): Outcome {
  return { error: plainError(`ERROR_CODE_${code}` satisfies ErrorCode, message) };
}

function channelOptions(maxMessageBytes: number): Record<string, number> {
  return {
    'grpc.max_receive_message_length': maxMessageBytes,
    'grpc.max_send_message_length': -1, // Checked by us against what the agent's Welcome says.
    // Every session is a new channel with a connection of its own, so grpc-js's backoff, which grows to 120 s, is never
    // between us and an agent that is back. The two settings bound it all the same.
    'grpc.use_local_subchannel_pool': 1,
    // A session is never tried again by grpc-js, which would keep each message for that.
    'grpc.enable_retries': 0,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 5_000,
    'grpc.keepalive_time_ms': KEEPALIVE.time,
    'grpc.keepalive_timeout_ms': KEEPALIVE.timeout,
  };
}
