/** First wait after a lost session: an agent that restarts is back within a second. */
const FIRST_MS = 100;
/** Longest wait: half of the 10 s for which the agent keeps a lost session's providers listed. */
const LONGEST_MS = 5_000;
/** A session that lived this long starts the waits over; one that ends sooner may end at once again. */
const PROVEN_MS = 1_000;
/** Wait after another program took our client id over: two of one id must not throw each other out all day. */
export const REPLACED_MS = 60_000;

/** The waits between sessions: 100 ms doubling to 5 s, each shortened by up to half so that clients do not march in step. */
export class Backoff {
  private failures = 0;

  /** How long to wait after a session that lived `livedMs` (0 if it never began). */
  next(livedMs: number, random: number = Math.random()): number {
    if (livedMs >= PROVEN_MS) this.failures = 0;
    const full = Math.min(FIRST_MS * 2 ** Math.min(this.failures, 16), LONGEST_MS);
    this.failures += 1;
    return Math.round(full * (1 - random / 2));
  }
}
