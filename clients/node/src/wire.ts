/** The bridge's messages as proto-loader reads and writes them. Field names are the proto's own. */
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js';
import { fromJSON } from '@grpc/proto-loader';
import { bridge } from './generated/bridge.js';

export type ErrorCode =
  | 'ERROR_CODE_INVALID_REQUEST'
  | 'ERROR_CODE_MODEL_NOT_FOUND'
  | 'ERROR_CODE_PROVIDER_AUTH'
  | 'ERROR_CODE_RATE_LIMITED'
  | 'ERROR_CODE_OVERLOADED'
  | 'ERROR_CODE_PROVIDER_UNAVAILABLE'
  | 'ERROR_CODE_TIMEOUT'
  | 'ERROR_CODE_CONTEXT_LENGTH'
  | 'ERROR_CODE_CONTENT_FILTERED'
  | 'ERROR_CODE_INTERNAL';

export interface WireError {
  code: ErrorCode;
  message: string;
  retryable: boolean;
  retry_after_ms?: number;
  http_status?: number;
  body_json?: Buffer;
}

export interface WireToolCall {
  index?: number;
  id: string;
  name: string;
  arguments: string;
}

export interface WireDelta {
  content: string;
  reasoning: string;
  tool_calls: WireToolCall[];
  finish_reason: string;
}

export interface WireUsage {
  input_tokens?: number;
  output_tokens?: number;
}

/** A piece of output; neither is a sign of life. */
export interface Output {
  chunk_json?: Buffer;
  delta?: WireDelta;
}

/** How a task ended; nothing set is success after chunks. */
export interface Outcome {
  body_json?: Buffer;
  result?: WireDelta;
  error?: WireError;
  cancelled?: Record<string, never>;
  usage?: WireUsage | undefined;
}

export interface WireProvider {
  name: string;
  type: string;
  model: string;
  tier: string;
  description: string;
  publish: boolean;
  max_in_flight?: number;
  state: string;
  state_detail: string;
  features: string[];
  context_tokens?: number;
  max_output_tokens?: number;
}

export type SessionRequest =
  | { hello: { client_id: string; client_version: string; max_message_bytes: number } }
  | { provider_snapshot: { generation: number; providers: WireProvider[] } }
  | { task_chunk: { task_id: string } & Output }
  | { task_finished: { task_id: string } & Outcome }
  | { drain: { grace_ms: number; reason: string } };

export interface TaskOffer {
  task_id: string;
  provider_name: string;
  request_json: Buffer;
  streaming: boolean;
  timeout_ms: number;
  w3c_trace_context: Record<string, string>;
}

export interface AgentStatus {
  state: string;
  detail: string;
  next_attempt_ms?: number;
}

export interface Welcome {
  session_id: string;
  agent_version: string;
  max_message_bytes: number;
  agent_status: AgentStatus | null;
}

export interface ProviderSnapshotResult {
  generation: number;
  verdicts: { name: string; verdict: string; error: { message: string } | null }[];
}

/** One message from the agent; a payload of a newer agent leaves all of them unset. */
export interface SessionResponse {
  welcome?: Welcome;
  provider_snapshot_result?: ProviderSnapshotResult;
  task_offer?: TaskOffer;
  task_cancel?: { task_id: string; reason: string };
  agent_status?: AgentStatus;
  drain?: { grace_ms: number; reason: string };
}

const definition = fromJSON(bridge as Parameters<typeof fromJSON>[0], {
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
  defaults: true,
});
const service = definition['mcprelay.bridge.v1.BridgeService'] as unknown as ServiceDefinition;
const session = service['Session'] as MethodDefinition<SessionRequest, SessionResponse>;

export const SESSION_PATH = session.path;
export const decode: (bytes: Buffer) => SessionResponse = session.responseDeserialize;

/** Half of a character. protobufjs would write it as bytes that are no UTF-8, for which the agent has to end the whole session. */
const HALF = /\p{Surrogate}/gu;

export function encode(message: SessionRequest): Buffer {
  return session.requestSerialize(wellFormed(message));
}

/** The same with U+FFFD for every half of a character, as JSON and HTTP would have it. */
function wellFormed<T>(value: T): T {
  if (typeof value === 'string') return value.replace(HALF, '\ufffd') as T;
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return value;
  if (Array.isArray(value)) return value.map(wellFormed) as T;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [name, wellFormed(field)])) as T;
}

/** "online" of "AGENT_STATE_ONLINE"; a value of a newer agent, which is a number, as it is. */
export function enumWord(value: string, prefix: string): string {
  const text = String(value);
  return text.startsWith(prefix) ? text.slice(prefix.length).toLowerCase() : text;
}

/** The nearest number that a uint32 field holds; protobufjs would wrap -1 and Infinity around. */
export function uint32(value: number): number {
  return Math.min(Math.max(Math.round(value) || 0, 0), 0xffff_ffff);
}
