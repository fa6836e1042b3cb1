/** What a provider throws, as an error that keeps its meaning for the caller. */
import { uint32, wellFormed, type ErrorCode, type WireError } from './wire.js';

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

/** OpenAI's words in `error.code` and `error.type`, and the names of JavaScript's own errors. */
const BY_WORD: Record<string, ErrorCode> = {
  context_length_exceeded: 'ERROR_CODE_CONTEXT_LENGTH',
  exceed_context_size_error: 'ERROR_CODE_CONTEXT_LENGTH',
  content_filter: 'ERROR_CODE_CONTENT_FILTERED',
  content_policy_violation: 'ERROR_CODE_CONTENT_FILTERED',
  model_not_found: 'ERROR_CODE_MODEL_NOT_FOUND',
  rate_limit_exceeded: 'ERROR_CODE_RATE_LIMITED',
  TimeoutError: 'ERROR_CODE_TIMEOUT',
};

/** Node's and undici's codes for a server that cannot be reached or that broke off. */
const UNREACHABLE: ReadonlySet<string> = new Set([
  'ECONNREFUSED', 'ECONNRESET', 'ECONNABORTED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'EHOSTDOWN', 'ENETUNREACH',
  'ENETDOWN', 'EPIPE', 'UND_ERR_SOCKET', 'UND_ERR_CLOSED',
]);
/** The same for one that is too slow. */
const TOO_SLOW: ReadonlySet<string> = new Set([
  'ETIMEDOUT', 'UND_ERR_CONNECT_TIMEOUT', 'UND_ERR_HEADERS_TIMEOUT', 'UND_ERR_BODY_TIMEOUT',
]);
/** How many causes of causes are looked at: fetch has one, an SDK around it two. */
const DEEPEST_CAUSE = 6;

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
  return { code, message: wellFormed(message.slice(0, LONGEST_MESSAGE)), retryable: PASSING.has(code) };
}

/** What the provider threw, for this program's own log: the caller is not told everything. */
export function logLineOf(error: WireError): string {
  return `${error.code} ${error.message}${error.ownerOnly ? ` (${error.ownerOnly})` : ''}`;
}

function readError(thrown: unknown): WireError {
  const fields = fieldsOf(thrown);
  const causes = causesOf(thrown);
  const status = statusOf(fields);
  const said = messageOf(thrown, fields);
  const code = codeOf(causes, status);
  // Refused credentials are this machine's fault: the caller must not read them as its own 401, nor the key that is quoted.
  if (code === 'ERROR_CODE_PROVIDER_AUTH') return hidden(code, `The model's server refused this machine's credentials (${status}).`, said);
  const broken = status === undefined && networkCodeOf(causes);
  if (broken) return hidden(code, networkMessage(broken), whole(causes));
  if (status === undefined && isSystemError(fields)) return hidden(code, `The provider failed with ${String(fields['code'])}.`, said);
  const error = plainError(code, said);
  const retryAfter = retryAfterMs(fields['headers'] ?? fieldsOf(fields['response'])['headers']);
  if (retryAfter !== undefined) error.retry_after_ms = retryAfter;
  if (status === undefined) return error;
  error.http_status = status;
  error.retryable ||= status >= 500 && status !== 501;
  const body = bodyOf(fields['error']);
  if (body) error.body_json = body;
  return error;
}

/** An error whose own words are for the owner of this machine: they may name its addresses, files and keys. */
function hidden(code: ErrorCode, message: string, said: string): WireError {
  return { ...plainError(code, message), ownerOnly: said };
}

function networkMessage(code: string): string {
  return TOO_SLOW.has(code) ? `The model's server did not answer in time (${code}).` : `The model's server cannot be reached (${code}).`;
}

/** Node's own errors of files and sockets name paths and addresses. */
function isSystemError(fields: Fields): boolean {
  return typeof fields['syscall'] === 'string' && typeof fields['code'] === 'string';
}

/** What was thrown, its cause, the cause's cause; and where several attempts failed, the first one's error. */
function causesOf(thrown: unknown): Fields[] {
  const causes: Fields[] = [];
  let next: unknown = thrown;
  while (typeof next === 'object' && next !== null && causes.length < DEEPEST_CAUSE) {
    const fields = next as Fields;
    causes.push(fields);
    next = fields['cause'] ?? (Array.isArray(fields['errors']) ? fields['errors'][0] : undefined);
  }
  return causes;
}

function networkCodeOf(causes: Fields[]): string | undefined {
  const codes = causes.map((cause) => cause['code']);
  return codes.find((code): code is string => UNREACHABLE.has(code as string) || TOO_SLOW.has(code as string));
}

function whole(causes: Fields[]): string {
  return causes.map((cause) => cause['message']).filter((text) => typeof text === 'string' && text !== '').join(': ');
}

function fieldsOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null ? (value as Fields) : {};
}

function statusOf(fields: Fields): number | undefined {
  const candidates = [fields['status'], fields['statusCode'], fieldsOf(fields['response'])['status']];
  return candidates.find((s): s is number => Number.isInteger(s) && (s as number) >= 400 && (s as number) <= 599);
}

function codeOf(causes: Fields[], status: number | undefined): ErrorCode {
  const fields = causes[0] ?? {};
  const body = fieldsOf(fieldsOf(fields['error'])['error'] ?? fields['error']);
  for (const word of [fields['code'], body['code'], fields['type'], body['type'], fields['name']]) {
    if (typeof word === 'string' && Object.hasOwn(BY_WORD, word)) return BY_WORD[word]!;
  }
  if (status !== undefined) return BY_STATUS[status] ?? (status < 500 ? 'ERROR_CODE_INVALID_REQUEST' : 'ERROR_CODE_INTERNAL');
  const broken = networkCodeOf(causes);
  if (broken === undefined) return 'ERROR_CODE_INTERNAL';
  return TOO_SLOW.has(broken) ? 'ERROR_CODE_TIMEOUT' : 'ERROR_CODE_PROVIDER_UNAVAILABLE';
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
