import type { Outcome, Output, WireDelta, WireError, WireToolCall } from '../wire.js';
import type { Changes } from './changes.js';

/** A task's one end as it is on the wire. */
export interface WireEnd extends Outcome {
  task_id: string;
}

/** A tool call that a provider answered with. */
export interface FakeToolCall {
  id: string;
  name: string;
  /** JSON text. */
  arguments: string;
}

/** One piece of a streamed answer: an OpenAI chunk as its JSON text, or a plain one. */
export type FakePiece =
  | { raw: string }
  | { text: string; reasoning: string; toolCalls: (FakeToolCall & { index: number })[]; finishReason: string };

/** Why a task failed, as the agent reads it. */
export interface FakeError {
  /** "provider_unavailable", "rate_limited", ...; the proto's ErrorCode in small letters. */
  code: string;
  message: string;
  retryable: boolean;
  status?: number;
  retryAfterMs?: number;
  /** The error body in OpenAI's shape, parsed. */
  body?: unknown;
}

/** What a task was answered. */
export interface FakeAnswer {
  outcome: 'completed' | 'failed' | 'cancelled';
  /** The text of the whole answer, whichever way it was given. */
  text: string;
  reasoning: string;
  toolCalls: FakeToolCall[];
  /** Empty where the provider gave none. */
  finishReason: string;
  usage?: { promptTokens?: number; completionTokens?: number };
  /** The pieces of a streamed answer, in their order. */
  pieces: FakePiece[];
  /** The JSON text of a whole OpenAI object that was given as the answer. */
  raw?: string;
  error?: FakeError;
}

/** One offered task. */
export class FakeTask {
  /** Every message of output: most have one piece, those of a burst have several, and a sign of life has none. */
  readonly messages: Output[][] = [];
  /** Every end that came; a program that keeps to the protocol sends one. */
  readonly ends: WireEnd[] = [];

  constructor(
    readonly id: string,
    private readonly changes: Changes,
    private readonly stop: (id: string, reason: string) => void,
  ) {}

  /** The pieces so far. */
  get pieces(): FakePiece[] {
    return this.messages.flat().map(pieceOf);
  }

  /** What it is answered; settles with its end. */
  get answer(): Promise<FakeAnswer> {
    const ended = this.changes.until(`task ${this.id} ends`, () => this.ends[0]);
    return ended.then((end) => answerOf(end, this.pieces));
  }

  /** Waits until so many pieces have come, and gives them. */
  async hasPieces(count: number): Promise<FakePiece[]> {
    await this.changes.until(`task ${this.id} has ${count} pieces`, () => this.pieces.length >= count);
    return this.pieces;
  }

  /** Asks the program to stop, as for a caller who has gone. */
  cancel(reason: 'caller_gone' | 'deadline' | 'upstream_lost' | 'shutdown' = 'caller_gone'): void {
    this.stop(this.id, `CANCEL_REASON_${reason.toUpperCase()}`);
  }
}

function pieceOf({ chunk_json: raw, delta }: Output): FakePiece {
  if (raw?.length || !delta) return { raw: String(raw) };
  const toolCalls = delta.tool_calls.map((call) => ({ index: call.index ?? 0, ...callOf(call) }));
  return { text: delta.content, reasoning: delta.reasoning, toolCalls, finishReason: delta.finish_reason };
}

function callOf({ id, name, arguments: text }: WireToolCall): FakeToolCall {
  return { id, name, arguments: text };
}

function answerOf(end: WireEnd, pieces: FakePiece[]): FakeAnswer {
  const raw = end.body_json ? String(end.body_json) : undefined;
  const parts = raw !== undefined ? [openAIPart(raw)] : end.result ? [plainPart(end.result)] : pieces.map(partOf);
  const { input_tokens: promptTokens, output_tokens: completionTokens } = end.usage ?? {};
  return {
    outcome: end.error ? 'failed' : end.cancelled ? 'cancelled' : 'completed',
    text: parts.map(({ text }) => text).join(''),
    reasoning: parts.map(({ reasoning }) => reasoning).join(''),
    toolCalls: joined(parts.flatMap(({ toolCalls }) => toolCalls)),
    finishReason: parts.find(({ finishReason }) => finishReason)?.finishReason ?? '',
    ...(end.usage && { usage: { ...(promptTokens !== undefined && { promptTokens }), ...(completionTokens !== undefined && { completionTokens }) } }),
    pieces,
    ...(raw !== undefined && { raw }),
    ...(end.error && { error: errorOf(end.error) }),
  };
}

type Part = Exclude<FakePiece, { raw: string }>;

function partOf(piece: FakePiece): Part {
  return 'raw' in piece ? openAIPart(piece.raw) : piece;
}

function plainPart(result: WireDelta): Part {
  const toolCalls = result.tool_calls.map((call, index) => ({ index, ...callOf(call) }));
  return { text: result.content, reasoning: result.reasoning, toolCalls, finishReason: result.finish_reason };
}

interface OpenAICall {
  index?: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

/** The first choice of an OpenAI object; what cannot be read says nothing. */
function openAIPart(json: string): Part {
  const choice = (parsed(json) as { choices?: { message?: Message; delta?: Message; finish_reason?: string }[] } | undefined)?.choices?.[0];
  const message = choice?.message ?? choice?.delta ?? {};
  const toolCalls = (message.tool_calls ?? []).map(({ index, id, function: called }: OpenAICall, position: number) => {
    return { index: index ?? position, id: id ?? '', name: called?.name ?? '', arguments: called?.arguments ?? '' };
  });
  const reasoning = message.reasoning_content ?? message.reasoning ?? '';
  return { text: message.content ?? '', reasoning, toolCalls, finishReason: choice?.finish_reason ?? '' };
}

interface Message {
  content?: string | null;
  reasoning?: string;
  reasoning_content?: string;
  tool_calls?: OpenAICall[];
}

function joined(pieces: (FakeToolCall & { index: number })[]): FakeToolCall[] {
  const calls = new Map<number, FakeToolCall>();
  for (const { index, id, name, arguments: text } of pieces) {
    const call = calls.get(index) ?? { id: '', name: '', arguments: '' };
    calls.set(index, { id: call.id || id, name: call.name || name, arguments: call.arguments + text });
  }
  return [...calls.entries()].sort(([a], [b]) => a - b).map(([, call]) => call);
}

function errorOf(error: WireError): FakeError {
  return {
    code: error.code.replace('ERROR_CODE_', '').toLowerCase(),
    message: error.message,
    retryable: error.retryable,
    ...(error.http_status !== undefined && { status: error.http_status }),
    ...(error.retry_after_ms !== undefined && { retryAfterMs: error.retry_after_ms }),
    ...(error.body_json?.length && { body: parsed(String(error.body_json)) }),
  };
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}
