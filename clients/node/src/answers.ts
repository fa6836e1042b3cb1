/** What providers return and yield, as messages of the bridge. */
import { TaskError } from './errors.js';
import type { Piece, Pieces, Plain, ToolCall, Usage } from './types.js';
import { uint32 } from './wire.js';
import type { Outcome, Output, WireDelta, WireToolCall, WireUsage } from './wire.js';

type Fields = Record<string, unknown>;

/** Whether an answer comes in pieces. A string and bytes are iterable too, and are not. */
export function isPieces(answer: unknown): answer is Pieces {
  if (typeof answer !== 'object' || answer === null || answer instanceof Uint8Array) return false;
  return Symbol.asyncIterator in answer || Symbol.iterator in answer;
}

/** One piece of a stream; nothing set is a sign of life. */
export function outputOf(piece: Piece): Output {
  if (piece === null || piece === undefined || piece === '') return {};
  if (typeof piece === 'string') return { delta: { ...EMPTY, content: piece } };
  if (typeof piece === 'object') {
    const raw = rawOf(piece);
    if (raw) return { chunk_json: raw };
    if (isPlain(piece)) return { delta: plainOf(piece as Plain) };
  }
  throw new TaskError('ERROR_CODE_INTERNAL', `The provider yielded ${nameOf(piece)}, which is no piece of an answer.`);
}

/** A whole answer. */
export function outcomeOf(answer: unknown): Outcome {
  if (typeof answer === 'string') return { result: { ...EMPTY, content: answer } };
  if (typeof answer === 'object' && answer !== null) {
    const usage = usageOf(answer);
    // A 200 with an error in it is an error all the same.
    if ('error' in answer && !('choices' in answer)) throw answer;
    const raw = rawOf(answer);
    if (raw) return { body_json: raw, usage };
    if (isPlain(answer)) return { result: plainOf(answer as Plain), usage };
  }
  throw new TaskError('ERROR_CODE_INTERNAL', `The provider returned ${nameOf(answer)}, which is no answer.`);
}

/** The token counts that an answer or a piece carries. */
export function usageOf(answer: unknown): WireUsage | undefined {
  const usage = typeof answer === 'object' && answer !== null ? (answer as { usage?: Usage }).usage : undefined;
  if (typeof usage !== 'object' || usage === null) return undefined;
  const input = countOf(usage.prompt_tokens ?? usage.input_tokens);
  const output = countOf(usage.completion_tokens ?? usage.output_tokens);
  if (input === undefined && output === undefined) return undefined;
  return { ...(input !== undefined && { input_tokens: input }), ...(output !== undefined && { output_tokens: output }) };
}

const EMPTY: WireDelta = { content: '', reasoning: '', tool_calls: [], finish_reason: '' };
const PLAIN_FIELDS = ['content', 'reasoning', 'reasoning_content', 'tool_calls', 'finish_reason', 'usage', 'role'];

/** The last delta of an answer whose pieces did not say why they end. */
export function closingDelta(calledTools: boolean): Output {
  return { delta: { ...EMPTY, finish_reason: calledTools ? 'tool_calls' : 'stop' } };
}

function isPlain(value: object): boolean {
  return PLAIN_FIELDS.some((field) => field in value);
}

/** The OpenAI JSON of a value that is one, untouched where the provider gave text. */
function rawOf(value: object): Buffer | undefined {
  if (value instanceof Uint8Array) return bytesOf(value);
  const { raw, choices, error } = value as Fields;
  if (typeof raw === 'string') return Buffer.from(raw);
  if (raw instanceof Uint8Array) return bytesOf(raw);
  return Array.isArray(choices) || error !== undefined ? Buffer.from(JSON.stringify(value)) : undefined;
}

function bytesOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function plainOf(delta: Plain): WireDelta {
  return {
    content: textOf(delta.content),
    reasoning: textOf(delta.reasoning ?? delta.reasoning_content),
    tool_calls: (delta.tool_calls ?? []).map(toolCallOf),
    finish_reason: textOf(delta.finish_reason),
  };
}

function toolCallOf(call: ToolCall, position: number): WireToolCall {
  return {
    index: call.index ?? position,
    id: textOf(call.id),
    name: textOf(call.function?.name ?? call.name),
    arguments: textOf(call.function?.arguments ?? call.arguments),
  };
}

/** Text as it is; anything else, such as arguments that were parsed already, as its JSON. */
function textOf(value: unknown): string {
  if (value === null || value === undefined) return '';
  return typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
}

/** The first half of a character that takes two: what a text ends with that was cut in the middle of an emoji. */
const CUT_OFF = /[\ud800-\udbff]$/;

/** Puts together again what a provider cut in the middle of a character: half of one waits for the next piece. */
export class JoinedText {
  private readonly halves = { content: '', reasoning: '' };

  piece(output: Output): Output {
    const { delta } = output;
    if (!delta) return output;
    const last = delta.finish_reason !== '';
    return { delta: { ...delta, content: this.next('content', delta, last), reasoning: this.next('reasoning', delta, last) } };
  }

  private next(field: 'content' | 'reasoning', delta: WireDelta, last: boolean): string {
    const text = this.halves[field] + delta[field];
    const whole = last ? text : text.replace(CUT_OFF, '');
    this.halves[field] = text.slice(whole.length);
    return whole;
  }
}

function countOf(value: unknown): number | undefined {
  return typeof value === 'number' ? uint32(value) : undefined;
}

function nameOf(value: unknown): string {
  if (value === null || value === undefined) return 'nothing';
  if (typeof value !== 'object') return `a ${typeof value}`;
  return `an object with the fields [${Object.keys(value).slice(0, 10).join(', ')}]`;
}
