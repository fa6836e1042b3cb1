/** What providers return and yield, as messages of the bridge. */
import { TaskError } from './errors.js';
import { textOf } from './messages.js';
import type { Piece, Pieces, Plain, Usage } from './types.js';
import { toolCallOf, type ToolCallIndex } from './toolcalls.js';
import { uint32, wellFormed } from './wire.js';
import type { Outcome, Output, WireDelta, WireUsage } from './wire.js';

type Fields = Record<string, unknown>;

/** Whether an answer comes in pieces. A string and bytes are iterable too, and are not. */
export function isPieces(answer: unknown): answer is Pieces {
  if (typeof answer !== 'object' || answer === null || answer instanceof Uint8Array) return false;
  return Symbol.asyncIterator in answer || Symbol.iterator in answer;
}

/** One piece of a stream; nothing set is a sign of life. */
export function outputOf(piece: Piece, calls: ToolCallIndex): Output {
  if (typeof piece === 'string') return piece === '' ? {} : { delta: { ...EMPTY, content: piece } };
  if (piece === null || piece === undefined) return {};
  if (typeof piece !== 'object') throw notAnAnswer('yielded', piece, 'is no piece of an answer');
  throwIfError(piece);
  const raw = rawOf(piece);
  if (raw) return { chunk_json: raw };
  const delta = plainOf('yielded', piece as Plain, calls);
  return isEmpty(delta) ? {} : { delta };
}

/** A whole answer. */
export function outcomeOf(answer: unknown): Outcome {
  if (typeof answer === 'string') return { result: { ...EMPTY, content: wellFormed(answer) } };
  if (typeof answer !== 'object' || answer === null) throw notAnAnswer('returned', answer, 'is no answer');
  throwIfError(answer);
  const usage = usageOf(answer);
  const raw = rawOf(answer);
  if (raw) return { body_json: raw, usage };
  const result = plainOf('returned', answer as Plain);
  return { result: { ...result, content: wellFormed(result.content), reasoning: wellFormed(result.reasoning) }, usage };
}

/** The token counts that an answer or a piece carries. */
export function usageOf(answer: unknown): WireUsage | undefined {
  const usage = typeof answer === 'object' && answer !== null ? (answer as { usage?: Usage }).usage : undefined;
  if (typeof usage !== 'object' || usage === null) return undefined;
  const input = countOf(usage.prompt_tokens ?? usage.promptTokens ?? usage.input_tokens ?? usage.inputTokens);
  const output = countOf(usage.completion_tokens ?? usage.completionTokens ?? usage.output_tokens ?? usage.outputTokens);
  if (input === undefined && output === undefined) return undefined;
  return { ...(input !== undefined && { input_tokens: input }), ...(output !== undefined && { output_tokens: output }) };
}

const EMPTY: WireDelta = { content: '', reasoning: '', tool_calls: [], finish_reason: '' };

/** The last delta of an answer whose pieces did not say why they end. */
export function closingDelta(calledTools: boolean): Output {
  return { delta: { ...EMPTY, finish_reason: calledTools ? 'tool_calls' : 'stop' } };
}

/** Whether a delta says nothing. */
export function isEmpty(delta: WireDelta): boolean {
  return !delta.content && !delta.reasoning && !delta.finish_reason && delta.tool_calls.length === 0;
}

/** A 200 with an error in it is an error all the same; an empty error beside an answer is none. */
function throwIfError(answer: object): void {
  const { error, choices, object } = answer as Fields;
  const answers = Array.isArray(choices) && choices.length > 0;
  if (!answers && (saysSomething(error) || object === 'error')) throw answer;
}

function saysSomething(error: unknown): boolean {
  if (typeof error !== 'object' || error === null) return Boolean(error);
  return error instanceof Error || Object.values(error).some(Boolean);
}

/** The OpenAI JSON of a value that is one, untouched where the provider gave text. */
function rawOf(value: object): Buffer | undefined {
  if (value instanceof Uint8Array) return bytesOf(value);
  const { raw, choices } = value as Fields;
  if (typeof raw === 'string') return Buffer.from(raw);
  if (raw instanceof Uint8Array) return bytesOf(raw);
  return Array.isArray(choices) ? Buffer.from(JSON.stringify(value)) : undefined;
}

function bytesOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The fields of an answer in plain form, in both spellings; `role` and the like say nothing and are let through. */
const FIELDS = new Set([
  'content', 'reasoning', 'reasoning_content', 'reasoningContent', 'tool_calls', 'toolCalls',
  'finish_reason', 'finishReason', 'usage', 'error', 'role',
]);
/** The fields of an answer, which an object must have one of. */
const ANSWERS = [...FIELDS].filter((field) => field !== 'error' && field !== 'role');

function plainOf(how: 'returned' | 'yielded', answer: Plain, calls?: ToolCallIndex): WireDelta {
  for (const field in answer) {
    if (!FIELDS.has(field) && !saysNothing((answer as Fields)[field])) throw unknownField(how, field);
  }
  if (!ANSWERS.some((field) => field in answer)) throw notAnAnswer(how, answer, 'says nothing');
  checkUsage(how, answer.usage);
  const toolCalls = answer.tool_calls ?? answer.toolCalls ?? [];
  if (!Array.isArray(toolCalls)) throw notAnAnswer(how, toolCalls, 'is no array of tool calls');
  return {
    content: textOf(answer),
    reasoning: string(how, 'reasoning', answer.reasoning ?? answer.reasoning_content ?? answer.reasoningContent),
    tool_calls: toolCalls.map((call) => toolCallOf(call, calls)),
    finish_reason: finishReason(string(how, 'finishReason', answer.finish_reason ?? answer.finishReason)),
  };
}

/** Some servers write that there is no reason yet as text. */
function finishReason(text: string): string {
  return text === 'null' ? '' : wellFormed(text);
}

function string(how: string, field: string, value: unknown): string {
  if (value === null || value === undefined) return '';
  if (typeof value === 'string') return value;
  throw new TaskError('ERROR_CODE_INTERNAL', `The provider ${how} ${nameOf(value)} as "${field}", which is a string.`);
}

function saysNothing(value: unknown): boolean {
  return value === null || value === undefined || (Array.isArray(value) && value.length === 0);
}

/** Counts under names that nobody knows would be lost without a word. */
function checkUsage(how: string, usage: Usage | null | undefined): void {
  if (saysNothing(usage) || usageOf({ usage })) return;
  const fields = typeof usage === 'object' ? Object.keys(usage as object) : [];
  const known = fields.every((field) => saysNothing((usage as Fields)[field]));
  if (typeof usage === 'object' && known) return;
  throw new TaskError('ERROR_CODE_INTERNAL', `The provider ${how} a usage with neither promptTokens nor completionTokens in it.`);
}

function unknownField(how: string, field: string): TaskError {
  const say = 'content, reasoning, toolCalls, finishReason and usage; more can be said in a whole OpenAI object only';
  return new TaskError('ERROR_CODE_INTERNAL', `The provider ${how} an answer with a field "${field}". Its fields are ${say}.`);
}

function notAnAnswer(how: string, value: unknown, what: string): TaskError {
  return new TaskError('ERROR_CODE_INTERNAL', `The provider ${how} ${nameOf(value)}, which ${what}.`);
}

function countOf(value: unknown): number | undefined {
  return typeof value === 'number' ? uint32(value) : undefined;
}

function nameOf(value: unknown): string {
  if (value === null || value === undefined) return 'nothing';
  if (typeof value !== 'object') return `a ${typeof value}`;
  if (Array.isArray(value)) return 'an array';
  return `an object with the fields [${Object.keys(value).slice(0, 10).join(', ')}]`;
}
