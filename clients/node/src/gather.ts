/**
 * Pieces that are there at one moment go in one message: a message costs some 30 us, whatever is in it.
 *
 * A moment is over when JavaScript has nothing left that can run without an event from outside. So a piece that comes alone leaves
 * at once, and of a burst that was read from a socket in one go nothing waits for anything but the reading.
 */
import type { Output, TaskChunk } from './wire.js';

/** Most bytes that are gathered: beyond it a message's own cost is small, and a larger one would hold up other tasks. */
const MAX_GATHERED_BYTES = 64 * 1024;
/** What a piece has around its text, at most. */
const FRAME_BYTES = 32;
/** Kept from before anybody installs fake timers. */
const { nextTick } = process;

interface Batch {
  pieces: Output[];
  bytes: number;
}

export class Gatherer {
  private readonly batches = new Map<string, Batch>();

  /** `write` may throw; what it throws for a piece that is too large to be gathered reaches who added it. */
  constructor(
    private readonly write: (chunk: TaskChunk) => void,
    private readonly failed: (taskId: string, error: unknown) => void,
  ) {}

  /** Adds a piece, or a sign of life, which is not needed where there are pieces. */
  add(taskId: string, piece: Output): void {
    const bytes = bytesOf(piece);
    let batch = this.batches.get(taskId);
    if (batch && batch.bytes + bytes > MAX_GATHERED_BYTES) {
      this.flush(taskId);
      batch = undefined;
    }
    batch ??= this.begin(taskId);
    if (bytes === 0) return;
    batch.pieces.push(piece);
    batch.bytes += bytes;
    if (bytes > MAX_GATHERED_BYTES) this.flush(taskId);
  }

  /** Sends what waits of this task. */
  flush(taskId: string): void {
    const batch = this.batches.get(taskId);
    if (!batch) return;
    this.batches.delete(taskId);
    const [first, ...more] = batch.pieces;
    this.write({ task_id: taskId, ...first, more });
  }

  private begin(taskId: string): Batch {
    if (this.batches.size === 0) nextTick(() => this.flushAll());
    const batch = { pieces: [], bytes: 0 };
    this.batches.set(taskId, batch);
    return batch;
  }

  private flushAll(): void {
    for (const taskId of this.batches.keys()) {
      try {
        this.flush(taskId);
      } catch (error) {
        this.failed(taskId, error);
      }
    }
  }
}

/** How many bytes a piece has in a message, rounded up; a sign of life has none. */
function bytesOf({ chunk_json: json, delta }: Output): number {
  if (json) return json.length + FRAME_BYTES;
  if (!delta) return 0;
  let bytes = Buffer.byteLength(delta.content) + Buffer.byteLength(delta.reasoning) + 2 * FRAME_BYTES;
  for (const { id, name, arguments: text } of delta.tool_calls) {
    bytes += Buffer.byteLength(id) + Buffer.byteLength(name) + Buffer.byteLength(text) + FRAME_BYTES;
  }
  return bytes;
}
