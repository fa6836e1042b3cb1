import type { ChatBody } from '../chat-body.js';
import { withFacts } from '../completion-options.js';
import type { CompletionOptions, TaskFacts } from '../types.js';

/** A caller's body, any part of it, and any of the facts of a task. */
export type TestOptions = Partial<ChatBody> & Partial<TaskFacts> & { readonly [field: string]: unknown };

/**
 * Options to call a provider's `complete` or `stream` with, as the package makes them of a caller's request. Without
 * `messages` there is one that says "Hello."; the signal is one that never fires.
 */
export function testOptions(options: TestOptions = {}): CompletionOptions {
  const { signal, traceContext, taskId, timeoutMs, requestJson, ...given } = options;
  const body = { model: 'test', messages: [{ role: 'user', content: 'Hello.' }], ...given };
  return withFacts(body, {
    signal: signal ?? new AbortController().signal,
    traceContext: traceContext ?? {},
    taskId: taskId ?? 'test-task',
    timeoutMs: timeoutMs ?? 600_000,
    requestJson: requestJson ?? Buffer.from(JSON.stringify(body)),
  });
}
