/** A task's body, parsed, and with it what the task is. */
import { TaskError } from './errors.js';
import type { CompletionOptions, TaskFacts } from './types.js';
import type { TaskOffer } from './wire.js';

export function optionsOf(offer: TaskOffer, signal: AbortSignal): CompletionOptions {
  return withFacts(parseBody(offer.request_json), {
    signal,
    traceContext: offer.w3c_trace_context,
    taskId: offer.task_id,
    timeoutMs: offer.timeout_ms,
    requestJson: offer.request_json,
  });
}

/** Adds the facts so that they are not enumerable: a provider may hand the options on as a JSON body. */
export function withFacts(body: object, facts: TaskFacts): CompletionOptions {
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
