/** What is remembered of a streamed answer from one piece to the next. */
import { closingDelta, isEmpty, outputOf } from './answers.js';
import { JoinedText } from './joined.js';
import { ToolCallIndex } from './toolcalls.js';
import type { Piece } from './types.js';
import type { Output } from './wire.js';

export class PieceStream {
  /** No piece has said anything yet. */
  nothing = true;
  private readonly joined = new JoinedText();
  private readonly calls = new ToolCallIndex();
  private plain = false;
  private ended = false;
  private calledTools = false;

  next(piece: Piece): Output {
    const output = this.joined.piece(outputOf(piece, this.calls));
    const { delta, chunk_json: raw } = output;
    if (!delta && !raw) return output;
    this.nothing = false;
    // Raw pieces say themselves why they end.
    this.plain = delta !== undefined;
    if (!delta) return output;
    this.calledTools ||= delta.tool_calls.length > 0;
    // An answer ends once: what follows its end may say what it used.
    if (this.ended) delta.finish_reason = '';
    this.ended ||= delta.finish_reason !== '';
    return isEmpty(delta) ? {} : output;
  }

  /** The end that a plain answer is owed whose pieces did not say why they end. */
  closing(): Output | undefined {
    return this.plain && !this.ended ? closingDelta(this.calledTools) : undefined;
  }
}
