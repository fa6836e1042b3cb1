/**
 * One offered task: calls the provider, sends what it gives, ends with exactly one outcome.
 *
 *   offer -> complete() or stream() -> pieces, each when the session can take it -> finish
 *                 `-- abort (caller gone, stopping, session lost): the signal fires, the provider gets a moment -> finish
 */
import { closingDelta, isPieces, JoinedText, outcomeOf, outputOf, usageOf } from './answers.js';
import { TaskError, wireErrorOf } from './errors.js';
import type { CompletionOptions, Piece, Pieces, Provider, TaskFacts } from './types.js';
import type { Outcome, Output, TaskOffer, WireUsage } from './wire.js';
import { unlessAborted } from './waiting.js';

/** A plain call gives no output for minutes; well within the agent's 5 min token deadlines this tells that it goes on. */
const SIGN_OF_LIFE_MS = 30_000;
/**
 * How long an aborted provider may take to stop. The agent counts the provider as busy until the task has ended, which is
 * true for one that ignores its signal; but a caller's slot must not hang on it for ever.
 */
const ABORT_GRACE_MS = 5_000;

/** Where a task's messages go. Both throw a TaskError for one that is over the agent's limit. */
export interface Outlet {
  chunk(taskId: string, output: Output): void;
  finish(taskId: string, outcome: Outcome): void;
  /** Set while the stream is full: settles when it takes more, or is over. */
  full(): Promise<void> | undefined;
}

export class Task {
  private readonly controller = new AbortController();
  private forced: Outcome | undefined;
  private usage: WireUsage | undefined;
  private readonly joined = new JoinedText();
  private ended = false;

  constructor(
    private readonly offer: TaskOffer,
    private readonly provider: Provider,
    private readonly outlet: Outlet,
  ) {}

  /** Never rejects; resolves with how the task ended. */
  async run(): Promise<Outcome> {
    try {
      const outcome = await this.answer();
      return this.finish(this.forced ?? outcome);
    } catch (thrown) {
      this.controller.abort(thrown);
      return this.finish(this.forced ?? { error: wireErrorOf(thrown) });
    }
  }

  /** Nobody waits any more. */
  cancel(reason: string): void {
    this.abort(reason, { cancelled: {} });
  }

  /** Stops the provider; the task ends with `outcome`, whatever the provider still gives. */
  abort(reason: string, outcome: Outcome): void {
    this.forced ??= outcome;
    this.controller.abort(new DOMException(reason, 'AbortError'));
  }

  private async answer(): Promise<Outcome> {
    const options = optionsOf(this.offer, this.controller.signal);
    const { provider, offer } = this;
    const inPieces = provider.stream !== undefined && offer.streaming;
    const answer = inPieces
      ? await this.bounded(provider.stream!(options, options.signal))
      : await this.withSignsOfLife(provider.complete(options, options.signal));
    return isPieces(answer) ? this.pump(answer) : outcomeOf(answer);
  }

  private bounded<T>(work: T | PromiseLike<T>): Promise<T> {
    return unlessAborted(Promise.resolve(work), this.controller.signal, ABORT_GRACE_MS);
  }

  private async withSignsOfLife<T>(work: T | PromiseLike<T>): Promise<T> {
    const timer = setInterval(() => this.outlet.chunk(this.offer.task_id, {}), SIGN_OF_LIFE_MS);
    try {
      return await this.bounded(work);
    } finally {
      clearInterval(timer);
    }
  }

  private async pump(pieces: Pieces): Promise<Outcome> {
    const iterator = iteratorOf(pieces);
    const ending = new Ending();
    try {
      for (;;) {
        await this.room();
        const step = await this.bounded(iterator.next());
        this.controller.signal.throwIfAborted();
        if (step.done) break;
        this.send(step.value, ending);
      }
    } catch (thrown) {
      await this.close(iterator, thrown);
      throw thrown;
    }
    return this.afterLast(ending);
  }

  /** Back-pressure: no piece is asked for that the stream cannot take. */
  private async room(): Promise<void> {
    const full = this.outlet.full();
    if (full) await unlessAborted(full, this.controller.signal, 0);
    this.controller.signal.throwIfAborted();
  }

  private send(piece: Piece, ending: Ending): void {
    const output = this.joined.piece(outputOf(piece));
    this.usage = usageOf(piece) ?? this.usage;
    ending.saw(output);
    this.outlet.chunk(this.offer.task_id, output);
  }

  private afterLast(ending: Ending): Outcome {
    if (ending.nothing) return outcomeOf('');
    const closing = ending.closing();
    if (closing) this.outlet.chunk(this.offer.task_id, closing);
    return {};
  }

  /** Lets the iterator clean up; one that never answers is left behind. */
  private async close(iterator: AnyIterator, why: unknown): Promise<void> {
    this.controller.abort(why);
    try {
      await this.bounded(iterator.return?.());
    } catch {
      // What ended the task is the error that counts.
    }
  }

  private finish(outcome: Outcome): Outcome {
    if (this.ended) return outcome;
    this.ended = true;
    try {
      this.outlet.finish(this.offer.task_id, this.usage ? { usage: this.usage, ...outcome } : outcome);
      return outcome;
    } catch (tooLarge) {
      const error = { error: wireErrorOf(tooLarge) };
      this.outlet.finish(this.offer.task_id, error);
      return error;
    }
  }
}

type AnyIterator = AsyncIterator<Piece> | Iterator<Piece>;

function iteratorOf(pieces: Pieces): AnyIterator {
  return Symbol.asyncIterator in pieces ? pieces[Symbol.asyncIterator]() : pieces[Symbol.iterator]();
}

/** Remembers of a stream what its end needs: plain pieces may leave out why they end, raw ones say it themselves. */
class Ending {
  nothing = true;
  private open = false;
  private calledTools = false;

  saw(output: Output): void {
    if (output.chunk_json || output.delta) this.nothing = false;
    if (!output.delta) return;
    this.open = output.delta.finish_reason === '';
    this.calledTools ||= output.delta.tool_calls.length > 0;
  }

  closing(): Output | undefined {
    return this.open ? closingDelta(this.calledTools) : undefined;
  }
}

function optionsOf(offer: TaskOffer, signal: AbortSignal): CompletionOptions {
  const body = parseBody(offer.request_json);
  const facts: TaskFacts = {
    signal,
    traceContext: offer.w3c_trace_context,
    taskId: offer.task_id,
    timeoutMs: offer.timeout_ms,
    requestJson: offer.request_json,
  };
  // Not enumerable: a provider may hand the options on as a JSON body.
  for (const [name, value] of Object.entries(facts)) Object.defineProperty(body, name, { value, enumerable: false });
  return body as CompletionOptions;
}

function parseBody(json: Buffer): object {
  let body: unknown;
  try {
    body = JSON.parse(json.toString('utf8'));
  } catch {
    throw new TaskError('ERROR_CODE_INVALID_REQUEST', 'The request body is not JSON.');
  }
  if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body;
  throw new TaskError('ERROR_CODE_INVALID_REQUEST', 'The request body is not a JSON object.');
}
