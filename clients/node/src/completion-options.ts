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

/** Adds the facts so that they are not the body's own: a provider may hand the options on as a JSON body. */
export function withFacts(body: object, facts: TaskFacts): CompletionOptions {
  const options = new Options(facts);
  for (const field of Object.keys(body)) {
    // A field of the caller's neither hides a fact of the task nor takes all of them away.
    if (!HIDING.has(field)) (options as unknown as Fields)[field] = (body as Fields)[field];
  }
  return options as unknown as CompletionOptions;
}

type Fields = Record<string, unknown>;

const HIDING: ReadonlySet<string> = new Set(['signal', 'traceContext', 'taskId', 'timeoutMs', 'requestJson', '__proto__']);

/** What a body inherits: getters of a class, because properties that are defined one by one cost more than the rest of a task. */
class Options implements TaskFacts {
  readonly #facts: TaskFacts;

  constructor(facts: TaskFacts) {
    this.#facts = facts;
  }

  get signal(): AbortSignal {
    return this.#facts.signal;
  }

  get traceContext(): Readonly<Record<string, string>> {
    return this.#facts.traceContext;
  }

  get taskId(): string {
    return this.#facts.taskId;
  }

  get timeoutMs(): number {
    return this.#facts.timeoutMs;
  }

  get requestJson(): Buffer {
    return this.#facts.requestJson;
  }
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
