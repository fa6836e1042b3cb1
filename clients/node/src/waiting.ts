/** Waits with a bound. None keeps a timer or a listener after it is over. */

/** Whether `work` settled within `ms`. */
export function settledWithin(ms: number, work: Promise<unknown>): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), ms);
    const settled = () => {
      clearTimeout(timer);
      resolve(true);
    };
    work.then(settled, settled);
  });
}

/** Waits `ms`, or until the signal is aborted. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const over = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', over);
      resolve();
    };
    const timer = setTimeout(over, ms);
    signal.addEventListener('abort', over, { once: true });
  });
}

/** A bound on work that may be called off: it then has `graceMs` more. */
export class Bound {
  /** Settles when the work is called off. */
  readonly calledOff: Promise<void>;
  private readonly over: Promise<never>;
  private resolveCalledOff!: () => void;
  private rejectOver!: (why: unknown) => void;
  private timer: NodeJS.Timeout | undefined;

  constructor(private readonly graceMs: number) {
    this.calledOff = new Promise((resolve) => (this.resolveCalledOff = resolve));
    this.over = new Promise((_, reject) => (this.rejectOver = reject));
    this.over.catch(() => {}); // Nobody may be waiting.
  }

  /**
   * What `work` gives, or a rejection with the reason once the grace is over. For a few pieces of work, not for many: each
   * is remembered as long as the bound is.
   */
  of<T>(work: T | PromiseLike<T>): Promise<T> {
    return Promise.race([work, this.over]);
  }

  callOff(why: unknown): void {
    this.resolveCalledOff();
    this.timer ??= setTimeout(() => this.rejectOver(why), this.graceMs);
  }

  /** There is no more work. */
  release(): void {
    clearTimeout(this.timer);
  }
}
