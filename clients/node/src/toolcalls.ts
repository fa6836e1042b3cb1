/** Tool calls in every shape that providers have them in. */
import { TaskError } from './errors.js';
import type { ToolCall } from './types.js';
import { uint32, wellFormed, type WireToolCall } from './wire.js';

/** Gives each call of a streamed answer its index, where the provider gives none: another id, or a name without one, begins another call. */
export class ToolCallIndex {
  private readonly byId = new Map<string, number>();
  private next = 0;
  private last = 0;

  of(call: ToolCall, id: string, name: string): number {
    const given = typeof call.index === 'number' ? uint32(call.index) : undefined;
    this.last = given ?? this.find(id, name);
    this.next = Math.max(this.next, this.last + 1);
    if (id) this.byId.set(id, this.last);
    return this.last;
  }

  private find(id: string, name: string): number {
    if (id) return this.byId.get(id) ?? this.next;
    return name ? this.next : this.last;
  }
}

const FIELDS = new Set(['index', 'id', 'type', 'function', 'name', 'arguments']);

/** One call, or a piece of one where there is an index of a stream's calls. */
export function toolCallOf(call: ToolCall, calls?: ToolCallIndex): WireToolCall {
  if (typeof call !== 'object' || call === null) throw new TaskError('ERROR_CODE_INTERNAL', 'The provider gave a tool call that is no object.');
  for (const field in call) {
    if (!FIELDS.has(field)) throw unknownField(field);
  }
  const id = text(call.id);
  const name = text(call.function?.name ?? call.name);
  const parts = { id, name, arguments: text(call.function?.arguments ?? call.arguments) };
  return calls ? { index: calls.of(call, id, name), ...parts } : parts;
}

function unknownField(field: string): TaskError {
  const say = 'id, name and arguments, or id and function: { name, arguments }';
  return new TaskError('ERROR_CODE_INTERNAL', `The provider gave a tool call with a field "${field}". Its fields are ${say}.`);
}

/** Text as it is; anything else, such as arguments that were parsed already, as its JSON. */
function text(value: unknown): string {
  if (value === null || value === undefined) return '';
  return wellFormed(typeof value === 'string' ? value : (JSON.stringify(value) ?? ''));
}
