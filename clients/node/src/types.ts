import type { ChatBody } from './chat-body.js';
import type { Content } from './messages.js';

/** One LLM that this program can run inferences on. */
export interface Provider {
  /** Unique in this program; the name of the virtual LLM that callers use. */
  name: string;
  /** The kind of server behind it: "ollama", "vllm", "openai", ... */
  type: string;
  /** The model it serves. */
  model: string;
  /** The owner's consent. Without it the provider is pushed and shown by `mcprelay status`, but never published. */
  publish?: boolean | undefined;
  /** The owner's rules for when it works for others, as config.json has them: `llm.sharing`, the entry's `sharing`, or both. */
  sharing?: Sharing | readonly Sharing[] | undefined;
  /** The owner's word for its class: "fast", "heavy". */
  tier?: string | undefined;
  /** For people. */
  description?: string | undefined;
  /** How many inferences may run at once; absent is the agent's setting, 0 is none now. */
  maxInFlight?: number | undefined;
  /** Whether it can work now; absent is "ready". Push a change with `registrar.update()`. */
  state?: 'ready' | 'loading' | 'unavailable' | undefined;
  /** Why it is in this state, for people. */
  stateDetail?: string | undefined;
  /** What it can do: "tools", "vision", ... */
  features?: string[] | undefined;
  /** Its context window in tokens, where known. */
  contextTokens?: number | undefined;
  /** The most tokens it gives in one answer, where known. */
  maxOutputTokens?: number | undefined;
  /**
   * Gives the whole answer. Serves plain tasks, and streaming ones where there is no `stream`.
   * What it throws reaches the caller: `status`, `code`, `headers['retry-after']` and `error` keep their meaning.
   */
  complete(options: CompletionOptions, signal: AbortSignal): Completion | Promise<Completion>;
  /** Gives the answer piece by piece. The next piece is only asked for when the agent can take it. */
  stream?(options: CompletionOptions, signal: AbortSignal): Pieces | Promise<Pieces>;
}

/** When a provider works for others. Whatever is set has to be fulfilled; the agent pauses the provider while it is not. */
export interface Sharing {
  /** In one of these windows of the machine's time zone: "Mon-Fri 18:00-08:00", "Sat-Sun", "22:00-06:00". */
  hours?: readonly string[] | null | undefined;
  /** False: not while the machine is on battery. */
  onBattery?: boolean | null | undefined;
  /** Only when nobody has used the machine for this long: "10m", or milliseconds. */
  whenIdleFor?: string | number | null | undefined;
}

/**
 * The caller's OpenAI chat-completions body, parsed, and with it what this task is. The latter are not enumerable, so
 * that `JSON.stringify(options)` and `{ ...options, model }` are the body alone. Fields that are not named in `ChatBody`
 * are in the object all the same.
 */
export interface CompletionOptions extends ChatBody, TaskFacts {}

/** What a task is, besides the caller's body. */
export interface TaskFacts {
  /** Aborted when nobody waits for the answer any more. */
  readonly signal: AbortSignal;
  /** W3C trace context headers, "traceparent" and "tracestate", for the call to the model; empty when tracing is off. */
  readonly traceContext: Readonly<Record<string, string>>;
  /** mcpd's id of the task, for logs. */
  readonly taskId: string;
  /** Time for the whole task in milliseconds, counted from the start of this call. */
  readonly timeoutMs: number;
  /** The caller's body, byte for byte. */
  readonly requestJson: Buffer;
}

/**
 * A whole answer: its text; its plain parts; a whole OpenAI `chat.completion` object; or that as JSON text, which goes out
 * byte for byte. A `complete` that returns pieces has streamed.
 */
export type Completion = string | Plain | OpenAIObject | Uint8Array | Raw | Pieces;

/** Pieces of an answer in order. `null` and `undefined` are signs of life that postpone the agent's deadlines. */
export type Pieces = AsyncIterable<Piece> | Iterable<Piece>;

/** Text; a plain delta; an OpenAI `chat.completion.chunk` object; or that as JSON text, which goes out byte for byte. */
export type Piece = string | Plain | OpenAIObject | Uint8Array | Raw | null | undefined;

/** JSON text of an OpenAI chunk or completion, sent byte for byte. (A bare string is text of the answer.) */
export interface Raw {
  raw: string | Uint8Array;
}

/** A whole OpenAI object: it is known by its `choices`. */
export interface OpenAIObject {
  choices: readonly unknown[];
}

/**
 * An answer, or a piece of one, in plain form, with names in JavaScript's spelling or OpenAI's. An OpenAI `message` and an
 * OpenAI `delta` are two. A field that is not here is an error, not lost.
 */
export interface Plain {
  content?: Content;
  reasoning?: string | null | undefined;
  reasoningContent?: string | null | undefined;
  reasoning_content?: string | null | undefined;
  toolCalls?: readonly ToolCall[] | null | undefined;
  tool_calls?: readonly ToolCall[] | null | undefined;
  /** "stop", "length", "tool_calls", "content_filter"; only on the last piece. */
  finishReason?: string | null | undefined;
  finish_reason?: string | null | undefined;
  /** As the provider counted; never estimated. */
  usage?: Usage | null | undefined;
  /** Says nothing; an OpenAI message has it. */
  role?: string | null | undefined;
  /** `null` and `undefined` are none; anything else ends the task. */
  error?: unknown;
  /** Names that answers have elsewhere, so that the compiler tells what the program would otherwise tell only when it runs. */
  text?: never;
  message?: never;
  response?: never;
  output?: never;
  tool_call?: never;
  toolCall?: never;
  stop_reason?: never;
  stopReason?: never;
}

/** A tool call or a piece of one, in OpenAI's shape or flat. */
export interface ToolCall {
  /**
   * Which of the answer's calls this is; in pieces only. Without one, another id begins another call, and so does a name
   * without an id.
   */
  index?: number | undefined;
  id?: string | null | undefined;
  type?: string | null | undefined;
  function?: { name?: string | null | undefined; arguments?: unknown } | undefined;
  name?: string | null | undefined;
  /** JSON text, or what it says. */
  arguments?: unknown;
  /** Names of the same in other APIs. */
  args?: never;
  input?: never;
}

/** Tokens, in any naming. */
export interface Usage {
  promptTokens?: number | null | undefined;
  completionTokens?: number | null | undefined;
  prompt_tokens?: number | null | undefined;
  completion_tokens?: number | null | undefined;
  inputTokens?: number | null | undefined;
  outputTokens?: number | null | undefined;
  input_tokens?: number | null | undefined;
  output_tokens?: number | null | undefined;
}

/** Where log lines go; `console` is one. */
export interface Logger {
  debug?(message: string): void;
  info?(message: string): void;
  warn?(message: string): void;
  error?(message: string): void;
}

export interface RegistrarOptions {
  /** The whole set. Nothing is filtered here: what is not opted in is pushed with `publish` false. */
  providers: readonly Provider[];
  /** The agent's socket: an absolute path or `unix:///path`; by default `~/.mcpctl/mcprelay.sock`. */
  socketPath?: string | undefined;
  /**
   * Stable per installation, different for every program on one agent: a second session with the same id replaces the
   * first. By default made from the main script's path.
   */
  clientId?: string | undefined;
  /** For people who read `mcprelay status`: "mcplocal/1.4.0". */
  clientVersion?: string | undefined;
  /** Silent by default. */
  logger?: Logger | undefined;
  /** The largest request this program takes, in bytes; a caller whose request is larger gets 413. 33 MiB by default. */
  maxMessageBytes?: number | undefined;
}

export interface StopOptions {
  /** How long running tasks may go on, in milliseconds; 30 s by default. */
  graceMs?: number | undefined;
  /** For people who read the agent's log. */
  reason?: string | undefined;
}

/** Where the registrar stands. */
export interface RegistrarStatus {
  state: RegistrarState;
  /** Why, for people; may be empty. */
  detail: string;
  /** In how many milliseconds the next attempt is made; in the states "waiting" and "replaced" only. */
  nextAttemptMs?: number;
  /** The agent's name for this session; while connected. */
  sessionId?: string;
  agentVersion?: string;
  /** The agent's own link to mcpd; while connected. */
  agent?: AgentLink;
  /** What became of each provider of the last set; while connected. */
  providers: ProviderVerdict[];
  /** Tasks under way. */
  runningTasks: number;
}

/** "replaced": another program has taken over this client id; the next attempt is a minute away. */
export type RegistrarState = 'connecting' | 'connected' | 'waiting' | 'replaced' | 'stopping' | 'stopped';

/** The agent's link to mcpd. "idle": nothing is opted in, so nothing is called. */
export type AgentState = 'no_credentials' | 'idle' | 'connecting' | 'online' | 'backoff' | 'refused' | 'draining';

export interface AgentLink {
  state: AgentState;
  /** Why, for people; may be empty. */
  detail: string;
  /** What to do about it, for people; may be empty. */
  advice: string;
  /** In how many milliseconds the agent tries again, where it waits. */
  nextAttemptMs?: number;
}

/** "standing_by": another program serves under this name; this one takes over when that one goes. */
export type Verdict = 'published' | 'not_opted_in' | 'standing_by' | 'refused';

export interface ProviderVerdict {
  name: string;
  verdict: Verdict;
  /** Why it was refused. */
  reason?: string;
}
