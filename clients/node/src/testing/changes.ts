/** Longest wait for something that should happen at once; it is reached by failing tests only. */
const BOUND_MS = 10_000;
/** Kept from before anybody installs fake timers. */
const { setTimeout, clearTimeout } = globalThis;

/** Tells who waits that something has changed. */
export class Changes {
  private readonly waiting = new Set<() => void>();

  happened(): void {
    for (const look of this.waiting) look();
  }

  /** The first truthy value that `look` gives, now or after a change; a rejection that names `what` if there is none in 10 s. */
  until<T>(what: string, look: () => T | undefined | null | false): Promise<T> {
    return new Promise((resolve, reject) => {
      const over = (settle: () => void) => {
        clearTimeout(timer);
        this.waiting.delete(check);
        settle();
      };
      const check = () => {
        const found = look();
        if (found) over(() => resolve(found));
      };
      const late = () => over(() => reject(new Error(`waited ${BOUND_MS} ms in vain until ${what}`)));
      const timer = setTimeout(late, BOUND_MS);
      this.waiting.add(check);
      check();
    });
  }
}
