/**
 * One offered task: calls the provider, sends what it gives, ends with exactly one outcome.
 *
 *   offer -> complete() or stream() -> pieces, each when the session can take it -> finish
 *                 `-- abort (caller gone, stopping, session lost): the signal fires, the provider gets a moment -> finish
 */
import { isPieces, outcomeOf, usageOf } from './answers.js';
import { optionsOf } from './completion-options.js';
import { wireErrorOf } from './errors.js';
import { PieceStream } from './piece-stream.js';
import type { Piece, Pieces, Provider } from './types.js';
import { Bound } from './waiting.js';
import type { Outcome, Output, TaskOffer, WireUsage } from './wire.js';

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
  private ended = false;
  private readonly bound = new Bound(ABORT_GRACE_MS);

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
      this.stop(thrown);
      return this.finish(this.forced ?? { error: wireErrorOf(thrown) });
    }
  }

  /** Nobody waits any more. */
  cancel(reason: string): void {
    this.abort(reason, { cancelled: {} });
  }

  /** Stops the provider; the task ends with `outcome`, whatever the provider still gives. */
  abort(reason: string, outcome: Outcome): void {
    if (this.ended) return;
    this.forced ??= outcome;
    this.stop(new DOMException(reason, 'AbortError'));
  }

  private stop(why: unknown): void {
    this.controller.abort(why);
    this.bound.callOff(why);
  }

  private async answer(): Promise<Outcome> {
    const { provider, offer } = this;
    const { signal } = this.controller;
    const options = optionsOf(offer, signal);
    const inPieces = provider.stream !== undefined && offer.streaming;
    const answer = inPieces
      ? await this.bound.of(provider.stream!(options, signal))
      : await this.withSignsOfLife(provider.complete(options, signal));
    return isPieces(answer) ? this.relay(iteratorOf(answer)) : outcomeOf(answer);
  }

  private async withSignsOfLife<T>(work: T | PromiseLike<T>): Promise<T> {
    const timer = setInterval(() => this.outlet.chunk(this.offer.task_id, {}), SIGN_OF_LIFE_MS);
    try {
      return await this.bound.of(work);
    } finally {
      clearInterval(timer);
    }
  }

  private async relay(iterator: AnyIterator): Promise<Outcome> {
    try {
      // One bound for all the pieces: a bound for each would cost more than the piece.
      return await this.bound.of(this.pump(iterator));
    } catch (thrown) {
      this.stop(thrown);
      // The iterator may clean up. One that never answers is left behind, and what ended the task is the error that counts.
      await this.bound.of(closed(iterator)).catch(() => {});
      throw thrown;
    }
  }

  private async pump(iterator: AnyIterator): Promise<Outcome> {
    const stream = new PieceStream();
    for (;;) {
      // Back-pressure: no piece is asked for that the session cannot take.
      const full = this.outlet.full();
      if (full) await Promise.race([full, this.bound.calledOff]);
      this.controller.signal.throwIfAborted();
      const next = iterator.next();
      const { done, value } = isPromise(next) ? await next : next;
      this.controller.signal.throwIfAborted();
      if (done) break;
      this.send(stream.next(value), value);
    }
    return this.afterLast(stream);
  }

  private send(output: Output, piece: Piece): void {
    this.usage = usageOf(piece) ?? this.usage;
    this.outlet.chunk(this.offer.task_id, output);
  }

  private afterLast(stream: PieceStream): Outcome {
    if (stream.nothing) return outcomeOf('');
    const closing = stream.closing();
    if (closing) this.outlet.chunk(this.offer.task_id, closing);
    return {};
  }

  private finish(outcome: Outcome): Outcome {
    if (this.ended) return outcome;
    this.ended = true;
    this.bound.release();
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

/** An iterator that is not asynchronous has its next piece ready, and nobody else has to wait for their turn. */
function isPromise<T>(value: T | PromiseLike<T>): value is PromiseLike<T> {
  return typeof (value as PromiseLike<T>).then === 'function';
}

async function closed(iterator: AnyIterator): Promise<void> {
  await iterator.return?.();
}
