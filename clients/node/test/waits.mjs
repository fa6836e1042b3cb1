// Waits with a bound.
import { once } from 'node:events';

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

/** Resolves with the first status of the registrar, present or to come, that fits. */
export async function statusOf(registrar, fits) {
  const signal = AbortSignal.timeout(BOUND_MS);
  let { status } = registrar;
  while (!fits(status)) [status] = await once(registrar, 'status', { signal });
  return status;
}
