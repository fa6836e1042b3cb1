/** The bridge's messages as they are read and written. Field names are the proto's own. */
import protobuf from 'protobufjs';
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
  /** Not sent: what only the owner of this machine may read. */
  ownerOnly?: string;
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

/** A piece of output, of one kind; neither is a sign of life. */
export interface Output {
  chunk_json?: Buffer;
  delta?: WireDelta;
}

/** Pieces of one task's output in their order; none is a sign of life. */
export interface TaskChunk extends Output {
  task_id: string;
  more?: Output[];
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
  sharing?: WireSharing[];
}

export interface WireSharing {
  hours: string[];
  on_battery?: boolean;
  when_idle_for_ms?: number;
}

export type SessionRequest =
  | { hello: { client_id: string; client_version: string; max_message_bytes: number } }
  | { provider_snapshot: { generation: number; providers: WireProvider[] } }
  | { task_chunk: TaskChunk }
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

export interface WireAgentStatus {
  state: string;
  detail: string;
  advice: string;
  next_attempt_ms?: number;
}

export interface Welcome {
  session_id: string;
  agent_version: string;
  max_message_bytes: number;
  agent_status: WireAgentStatus | null;
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
  agent_status?: WireAgentStatus;
  drain?: { grace_ms: number; reason: string };
}

const PACKAGE = 'mcprelay.bridge.v1';
const root = protobuf.Root.fromJSON(bridge as protobuf.INamespace);
const read: protobuf.IConversionOptions = { longs: String, enums: String, defaults: true, oneofs: true };

/** How one message type is read from bytes and written to them. */
export interface Codec<T> {
  encode(message: T): Buffer;
  decode(bytes: Uint8Array): T;
}

/** The codec of a message of the bridge; `Codec.encode` takes enum values by name. */
export function codecOf<T extends object = object>(name: string): Codec<T> {
  const type = root.lookupType(`${PACKAGE}.${name}`);
  return {
    encode: (message) => type.encode(type.fromObject(message)).finish() as Buffer,
    decode: (bytes) => type.toObject(type.decode(bytes), read) as T,
  };
}

/** The path of one of the bridge's calls. */
export function pathOf(call: string): string {
  return `/${PACKAGE}.BridgeService/${call}`;
}

const request = root.lookupType(`${PACKAGE}.SessionRequest`);
const requests = codecOf<SessionRequest>('SessionRequest');

export const decode = codecOf<SessionResponse>('SessionResponse').decode;

export function encode(message: SessionRequest): Buffer {
  // Output has no enums and is made by us, so that it needs neither a check nor a copy.
  return 'task_chunk' in message ? (request.encode(message).finish() as Buffer) : requests.encode(message);
}

/** The text with U+FFFD for every half of a character, as JSON and HTTP would have it: protobuf has no way to write one. */
export function wellFormed(text: string): string {
  return (text as string & { toWellFormed(): string }).toWellFormed();
}

/** The nearest number that a uint32 field holds; protobufjs would wrap -1 and Infinity around. */
export function uint32(value: number): number {
  return Math.min(Math.max(Math.round(value) || 0, 0), 0xffff_ffff);
}
