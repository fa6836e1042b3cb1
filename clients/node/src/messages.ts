/** The text of a message, whichever way its content is written. */

type Part = { readonly type?: string | undefined; readonly text?: string | undefined; readonly refusal?: string | undefined };

/** The content of a message: text, or parts of it. */
export type Content = string | readonly (Part | object)[] | null | undefined;

/**
 * The text of a message: its content where that is a string, else the texts of its parts one after the other. Parts that
 * are not text, such as images, are left out.
 *
 * @throws TypeError where the content is neither.
 */
export function textOf(message: { readonly content?: Content }): string {
  const { content } = message;
  if (typeof content === 'string') return content;
  if (content === null || content === undefined) return '';
  if (!Array.isArray(content)) throw new TypeError('The content of a message is a string or an array of parts.');
  return (content as readonly Part[]).map((part) => part?.text ?? part?.refusal ?? '').join('');
}
