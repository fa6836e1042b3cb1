/** Puts together again what a provider cut in the middle of a character: half of one waits for the next piece. */
import { wellFormed, type Output, type WireDelta } from './wire.js';

export class JoinedText {
  private readonly halves = { content: '', reasoning: '' };

  /** The piece with whole characters only. The last one has all that is left. */
  piece(output: Output): Output {
    const { delta } = output;
    if (!delta) return output;
    delta.content = this.next('content', delta);
    delta.reasoning = this.next('reasoning', delta);
    return output;
  }

  private next(field: 'content' | 'reasoning', delta: WireDelta): string {
    const text = this.halves[field] + delta[field];
    if (text === '') return text;
    const cut = delta.finish_reason === '' && isFirstHalf(text.charCodeAt(text.length - 1));
    this.halves[field] = cut ? text.slice(-1) : '';
    return wellFormed(cut ? text.slice(0, -1) : text);
  }
}

/** The first of the two halves of a character outside the basic plane, such as an emoji. */
function isFirstHalf(unit: number): boolean {
  return unit >= 0xd800 && unit <= 0xdbff;
}
