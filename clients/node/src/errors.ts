/** What a provider throws, as an error that keeps its meaning for the caller. */
import { uint32, type ErrorCode, type WireError } from './wire.js';

/** Longest message sent: a sentence for people, not a page that a proxy sent instead. */
const LONGEST_MESSAGE = 4_096;
/** Largest error body sent; above it the message has to do. */
const LARGEST_BODY_BYTES = 256 * 1024;

const BY_STATUS: Record<number, ErrorCode> = {
  401: 'ERROR_CODE_PROVIDER_AUTH',
  403: 'ERROR_CODE_PROVIDER_AUTH',
  404: 'ERROR_CODE_MODEL_NOT_FOUND',
  408: 'ERROR_CODE_TIMEOUT',
  425: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  429: 'ERROR_CODE_RATE_LIMITED',
  503: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  504: 'ERROR_CODE_TIMEOUT',
  529: 'ERROR_CODE_OVERLOADED',
};

/** OpenAI's words in `error.code` and `error.type`, and Node's in `code`. */
const BY_WORD: Record<string, ErrorCode> = {
  context_length_exceeded: 'ERROR_CODE_CONTEXT_LENGTH',
  exceed_context_size_error: 'ERROR_CODE_CONTEXT_LENGTH',
  content_filter: 'ERROR_CODE_CONTENT_FILTERED',
  content_policy_violation: 'ERROR_CODE_CONTENT_FILTERED',
  model_not_found: 'ERROR_CODE_MODEL_NOT_FOUND',
  rate_limit_exceeded: 'ERROR_CODE_RATE_LIMITED',
  ECONNREFUSED: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  ECONNRESET: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  ENOTFOUND: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  EAI_AGAIN: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  EHOSTUNREACH: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  EPIPE: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  UND_ERR_SOCKET: 'ERROR_CODE_PROVIDER_UNAVAILABLE',
  ETIMEDOUT: 'ERROR_CODE_TIMEOUT',
  UND_ERR_CONNECT_TIMEOUT: 'ERROR_CODE_TIMEOUT',
  UND_ERR_HEADERS_TIMEOUT: 'ERROR_CODE_TIMEOUT',
  UND_ERR_BODY_TIMEOUT: 'ERROR_CODE_TIMEOUT',
  TimeoutError: 'ERROR_CODE_TIMEOUT',
};

const PASSING: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERROR_CODE_RATE_LIMITED',
  'ERROR_CODE_OVERLOADED',
  'ERROR_CODE_PROVIDER_UNAVAILABLE',
  'ERROR_CODE_TIMEOUT',
]);

type Fields = Record<string, unknown>;

/** A failure of ours, with its code chosen. */
export class TaskError extends Error {
  constructor(
    readonly wireCode: ErrorCode,
    message: string,
  ) {
    super(message);
  }
}

/** Reads the shapes that SDKs throw (OpenAI's APIError, fetch's, axios's, Node's own); anything else is internal. */
export function wireErrorOf(thrown: unknown): WireError {
  try {
    return thrown instanceof TaskError ? plainError(thrown.wireCode, thrown.message) : readError(thrown);
  } catch {
    return plainError('ERROR_CODE_INTERNAL', 'The provider threw something that cannot be read.');
  }
}

export function plainError(code: ErrorCode, message: string): WireError {
  return { code, message: message.slice(0, LONGEST_MESSAGE), retryable: PASSING.has(code) };
}

function readError(thrown: unknown): WireError {
  const fields = fieldsOf(thrown);
  const status = statusOf(fields);
  const code = codeOf(fields, status);
  const error = plainError(code, messageOf(thrown, fields));
  const retryAfter = retryAfterMs(fields['headers'] ?? fieldsOf(fields['response'])['headers']);
  if (retryAfter !== undefined) error.retry_after_ms = retryAfter;
  // Refused credentials are this machine's fault: the caller must not read them as its own 401.
  if (status === undefined || code === 'ERROR_CODE_PROVIDER_AUTH') return error;
  error.http_status = status;
  error.retryable ||= status >= 500 && status !== 501;
  const body = bodyOf(fields['error']);
  if (body) error.body_json = body;
  return error;
}

function fieldsOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null ? (value as Fields) : {};
}

function statusOf(fields: Fields): number | undefined {
  const candidates = [fields['status'], fields['statusCode'], fieldsOf(fields['response'])['status']];
  return candidates.find((s): s is number => Number.isInteger(s) && (s as number) >= 400 && (s as number) <= 599);
}

function codeOf(fields: Fields, status: number | undefined): ErrorCode {
  const body = fieldsOf(fieldsOf(fields['error'])['error'] ?? fields['error']);
  const cause = fieldsOf(fields['cause']);
  const words = [fields['code'], body['code'], fields['type'], body['type'], cause['code'], fields['name']];
  for (const word of words) {
    if (typeof word === 'string' && Object.hasOwn(BY_WORD, word)) return BY_WORD[word]!;
  }
  if (status === undefined) return 'ERROR_CODE_INTERNAL';
  return BY_STATUS[status] ?? (status < 500 ? 'ERROR_CODE_INVALID_REQUEST' : 'ERROR_CODE_INTERNAL');
}

function messageOf(thrown: unknown, fields: Fields): string {
  const candidates = [thrown, fields['message'], fieldsOf(fields['error'])['message'], fields['error']];
  const said = candidates.find((text) => typeof text === 'string' && text !== '');
  return (said as string | undefined) ?? 'The provider failed without saying why.';
}

/** OpenAI's SDK gives the inside of the provider's `{"error": ...}`; others the whole. */
function bodyOf(error: unknown): Buffer | undefined {
  if (typeof error !== 'object' || error === null) return undefined;
  const body = Buffer.from(JSON.stringify('error' in error ? error : { error }));
  return body.length <= LARGEST_BODY_BYTES ? body : undefined;
}

function retryAfterMs(headers: unknown): number | undefined {
  const exact = Number(headerOf(headers, 'retry-after-ms') || NaN);
  if (exact >= 0) return uint32(exact);
  const text = headerOf(headers, 'retry-after');
  if (!text) return undefined;
  const seconds = Number(text);
  const ms = Number.isNaN(seconds) ? Date.parse(text) - Date.now() : seconds * 1000;
  return Number.isNaN(ms) ? undefined : uint32(ms);
}

function headerOf(headers: unknown, name: string): string | undefined {
  if (headers instanceof Headers) return headers.get(name) ?? undefined;
  const found = Object.entries(fieldsOf(headers)).find(([key]) => key.toLowerCase() === name);
  return found?.[1] === undefined ? undefined : String(found[1]);
}
