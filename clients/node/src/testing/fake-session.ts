import type { ServerDuplexStream, status as grpcStatus } from '@grpc/grpc-js';
import type { Verdict } from '../types.js';
import type { SessionResponse, TaskChunk, WireProvider } from '../wire.js';
import type { Changes } from './changes.js';
import { FakeTask, type WireEnd } from './fake-task.js';

/** A provider as the program pushed it. */
export interface PushedProvider {
  name: string;
  type: string;
  model: string;
  publish: boolean;
  tier: string;
  description: string;
  /** Absent where the agent's setting counts. */
  maxInFlight?: number;
  state: 'ready' | 'loading' | 'unavailable';
  stateDetail: string;
  features: string[];
  contextTokens?: number;
  maxOutputTokens?: number;
}

/** What becomes of a provider. */
export type Judge = (provider: PushedProvider) => Verdict | { refused: string };

/** One message from the program, as it is on the wire: its `payload` names the field that is set. */
export interface Heard {
  payload: string;
  hello?: { client_id: string; client_version: string; max_message_bytes: number };
  provider_snapshot?: { generation: number; providers: WireProvider[] };
  task_chunk?: TaskChunk & { output?: 'chunk_json' | 'delta'; more: NonNullable<TaskChunk['more']> };
  task_finished?: WireEnd & { outcome?: 'body_json' | 'result' | 'error' | 'cancelled' };
  drain?: { grace_ms: number; reason: string };
}

/** One stream as the agent sees it. */
export class FakeSession {
  /** Every message from the program, in order. */
  readonly heard: Heard[] = [];
  readonly tasks = new Map<string, FakeTask>();
  /** The stream has ended, from whichever side. */
  ended = false;
  private generation = 0;

  constructor(
    private readonly call: ServerDuplexStream<Heard, SessionResponse>,
    private readonly changes: Changes,
    private readonly answers: { welcome(): SessionResponse | undefined; judge(): Judge | undefined },
  ) {
    call.on('data', (message: Heard) => this.hear(message));
    call.on('end', () => {
      this.over();
      call.end();
    });
    for (const event of ['cancelled', 'error']) call.on(event, () => this.over());
  }

  /** What the program pushed last. */
  get providers(): PushedProvider[] {
    return (this.all('provider_snapshot').at(-1)?.providers ?? []).map(pushed);
  }

  /** What the program said when it connected. */
  get client(): { id: string; version: string } {
    const [hello] = this.all('hello');
    return { id: hello?.client_id ?? '', version: hello?.client_version ?? '' };
  }

  /** Sends any message, in the names of the proto. */
  send(message: SessionResponse): void {
    this.call.write(message);
  }

  /** Gives every provider of the last set its verdict. */
  judge(judge: Judge): void {
    const verdicts = this.providers.map((provider) => {
      const verdict = judge(provider);
      const refused = typeof verdict === 'object';
      const word = refused ? 'refused' : verdict;
      return { name: provider.name, verdict: `VERDICT_${word.toUpperCase()}`, error: refused ? { message: verdict.refused } : null };
    });
    this.send({ provider_snapshot_result: { generation: this.generation, verdicts } });
  }

  /** Offers a task; the same id twice is one task. */
  offer(id: string, offer: { provider: string; body: Buffer; streaming: boolean; timeoutMs: number; traceContext: Record<string, string> }): FakeTask {
    const task = this.tasks.get(id) ?? new FakeTask(id, this.changes, (task_id, reason) => this.send({ task_cancel: { task_id, reason } }));
    this.tasks.set(id, task);
    this.send({
      task_offer: {
        task_id: id, provider_name: offer.provider, request_json: offer.body, streaming: offer.streaming,
        timeout_ms: offer.timeoutMs, w3c_trace_context: offer.traceContext,
      },
    });
    return task;
  }

  /** Ends the stream with a status, as the agent does for a fault of the whole session. */
  fail(code: grpcStatus, details: string): void {
    this.call.emit('error', { code, details });
  }

  /** Ends the stream without a word. */
  end(): void {
    this.call.end();
  }

  /** Reads nothing more until `resume()`, as an agent that is too slow. */
  pause(): void {
    this.call.pause();
  }

  resume(): void {
    this.call.resume();
  }

  /** The messages of one kind so far. */
  all<K extends Exclude<keyof Heard, 'payload'>>(kind: K): NonNullable<Heard[K]>[] {
    return this.heard.filter(({ payload }) => payload === kind).map((message) => message[kind]!);
  }

  /** The first message of a kind that fits, past or to come. */
  hears<K extends Exclude<keyof Heard, 'payload'>>(kind: K, fits: (message: NonNullable<Heard[K]>) => boolean = () => true): Promise<NonNullable<Heard[K]>> {
    return this.changes.until(`the agent hears ${kind}`, () => this.all(kind).find(fits));
  }

  private hear(message: Heard): void {
    this.heard.push(message);
    const { hello, provider_snapshot: snapshot, task_chunk: chunk, task_finished: end } = message;
    if (hello) this.welcome();
    if (snapshot) this.pushed(snapshot.generation);
    if (chunk) this.tasks.get(chunk.task_id)?.messages.push(chunk.output ? [chunk, ...chunk.more] : []);
    if (end) this.tasks.get(end.task_id)?.ends.push(end);
    this.changes.happened();
  }

  private welcome(): void {
    const welcome = this.answers.welcome();
    if (welcome) this.send(welcome);
  }

  private pushed(generation: number): void {
    this.generation = generation;
    const judge = this.answers.judge();
    if (judge) this.judge(judge);
  }

  private over(): void {
    this.ended = true;
    this.changes.happened();
  }
}

function pushed(provider: WireProvider): PushedProvider {
  const { name, type, model, publish, tier, description, features, state_detail: stateDetail } = provider;
  return {
    name, type, model, publish, tier, description, stateDetail, features,
    state: provider.state.replace('PROVIDER_STATE_', '').toLowerCase() as PushedProvider['state'],
    ...(provider.max_in_flight !== undefined && { maxInFlight: provider.max_in_flight }),
    ...(provider.context_tokens !== undefined && { contextTokens: provider.context_tokens }),
    ...(provider.max_output_tokens !== undefined && { maxOutputTokens: provider.max_output_tokens }),
  };
}
