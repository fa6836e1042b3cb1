//! JSON strings: escaping, and reading their escaped form in place.

use bytes::Bytes;

const ONES: u64 = u64::MAX / 0xff;
const HIGHS: u64 = ONES << 7;
/// How many bytes are checked inline, without a call: more than most names have, and more than there are from quote to quote in a chunk.
const BLOCK: usize = 16;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `text` as it stands between the quotes of a JSON string.
pub fn escape_into(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let run = append_run(out, rest);
        let Some(&byte) = rest.get(run) else { return };
        append_escape(out, byte);
        rest = &rest[run + 1..];
    }
}

/// Appends what comes before the first byte that must be escaped; returns how long that is.
#[inline]
fn append_run(out: &mut Vec<u8>, text: &[u8]) -> usize {
    if let Some(block) = text.first_chunk() {
        let run = plain_run_in(block);
        // JSON in JSON has a quote every few bytes. The whole block is copied, which takes one instruction, and then cut. There is
        // room for it, because the escaped text is never shorter than `text`.
        let len = out.len() + run;
        out.extend_from_slice(block);
        out.truncate(len);
        if run < BLOCK {
            return run;
        }
        let more = plain_run(&text[BLOCK..]);
        out.extend_from_slice(&text[BLOCK..BLOCK + more]);
        return BLOCK + more;
    }
    let run = short_run(text);
    out.extend_from_slice(&text[..run]);
    run
}

#[inline]
fn append_escape(out: &mut Vec<u8>, byte: u8) {
    match short_escape(byte) {
        Some(letter) => out.extend_from_slice(&[b'\\', letter]),
        None => {
            let digits = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
        }
    }
}

/// How long `text` is once it is escaped, in bytes.
pub fn escaped_len(text: &[u8]) -> usize {
    let controls = count(text, |b| b < 0x20);
    let long = if controls == 0 { 0 } else { count(text, |b| b < 0x20 && short_escape(b).is_none()) };
    text.len() + count(text, |b| b == b'"' || b == b'\\') + controls + 4 * long
}

/// Counts in a byte, which the compiler turns into one instruction for many bytes.
fn count(text: &[u8], is: impl Fn(u8) -> bool) -> usize {
    text.chunks(255).map(|some| usize::from(some.iter().map(|b| u8::from(is(*b))).sum::<u8>())).sum()
}

/// `head`, then `text` escaped, then `tail`, in one allocation of the exact size.
pub fn wrap_escaped(head: &[u8], text: &[u8], tail: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(head.len() + escaped_len(text) + tail.len());
    out.extend_from_slice(head);
    escape_into(&mut out, text);
    out.extend_from_slice(tail);
    out.into()
}

/// Appends `text` as a whole JSON string, quotes included.
pub fn quote_into(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape_into(out, text.as_bytes());
    out.push(b'"');
}

/// Begins a member of the object that is being written; `name` is in its escaped form.
pub(crate) fn member(out: &mut Vec<u8>, name: &[u8]) {
    // No JSON value ends with an opening brace, so one means that this is the first member.
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    around(out, b'"', name, b'"');
    out.push(b':');
}

/// Appends `inner` between two bytes.
pub(crate) fn around(out: &mut Vec<u8>, open: u8, inner: &[u8], close: u8) {
    out.push(open);
    out.extend_from_slice(inner);
    out.push(close);
}

/// The text whose escaped form is `body`, cut to at most `limit` bytes; `None` if it contains half a surrogate pair.
pub(crate) fn unescape(body: &[u8], limit: usize) -> Option<String> {
    unescape_text(std::str::from_utf8(body).ok()?, limit)
}

/// The same for a body that is known to be UTF-8.
pub(crate) fn unescape_text(body: &str, limit: usize) -> Option<String> {
    if !body.as_bytes().contains(&b'\\') {
        return Some(body[..body.floor_char_boundary(limit)].to_owned());
    }
    let mut text = serde_json::from_str::<String>(&["\"", body, "\""].concat()).ok()?;
    text.truncate(text.floor_char_boundary(limit));
    Some(text)
}

/// How far a string's escaped form extends from the start of `bytes`: to the quote that ends it, or to the end. `None` if it has a control
/// character or an escape that JSON does not know. The caller has to check for UTF-8.
pub(crate) fn body_len(bytes: &[u8]) -> Option<usize> {
    body_len_from(bytes, 0)
}

/// The same, if nothing of interest comes before `at`.
fn body_len_from(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += plain_run(&bytes[at..]);
        match bytes.get(at) {
            None | Some(b'"') => return Some(at),
            Some(b'\\') => at += escape_len(&bytes[at + 1..])?,
            Some(_) => return None,
        }
    }
}

/// The position of the quote that ends the string whose escaped form begins at `at`. `None` as for [`body_len`], and if there is no quote.
#[inline]
pub(crate) fn closing_quote(bytes: &[u8], at: usize) -> Option<usize> {
    // Most strings are short names. They are handled here, without a call and without registers to save.
    let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk) else { return far_quote(bytes, at, 0) };
    let run = plain_run_in(block);
    if run < BLOCK && block[run] == b'"' { Some(at + run) } else { far_quote(bytes, at, run) }
}

#[inline(never)]
fn far_quote(bytes: &[u8], at: usize, seen: usize) -> Option<usize> {
    let place = at + body_len_from(&bytes[at..], seen)?;
    (place < bytes.len()).then_some(place)
}

/// Whether `bytes` may stand between the quotes of a JSON string.
pub(crate) fn is_body(bytes: &[u8]) -> bool {
    body_len(bytes) == Some(bytes.len()) && std::str::from_utf8(bytes).is_ok()
}

fn escape_len(after_backslash: &[u8]) -> Option<usize> {
    match after_backslash {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => Some(2),
        [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|h| h.is_ascii_hexdigit()) => Some(6),
        _ => None,
    }
}

fn short_escape(byte: u8) -> Option<u8> {
    match byte {
        b'"' | b'\\' => Some(byte),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        0x08 => Some(b'b'),
        0x0c => Some(b'f'),
        _ => None,
    }
}

/// How many bytes come before the first that a JSON string must escape. It takes a block at a time, because every relayed byte passes
/// through here.
fn plain_run(bytes: &[u8]) -> usize {
    let (blocks, rest) = bytes.as_chunks();
    for (i, block) in blocks.iter().enumerate() {
        let run = plain_run_in(block);
        if run < BLOCK {
            return i * BLOCK + run;
        }
    }
    blocks.len() * BLOCK + short_run(rest)
}

/// The same for less than a block.
#[inline]
fn short_run(bytes: &[u8]) -> usize {
    let bytewise = |bytes: &[u8]| bytes.iter().take_while(|&&b| b >= 0x20 && b != b'"' && b != b'\\').count();
    let Some((word, rest)) = bytes.split_first_chunk() else { return bytewise(bytes) };
    let found = specials(u64::from_le_bytes(*word));
    if found == 0 { 8 + bytewise(rest) } else { (found.trailing_zeros() / 8) as usize }
}

/// The same for one block.
#[inline]
fn plain_run_in(block: &[u8; BLOCK]) -> usize {
    let block = u128::from_le_bytes(*block);
    let low = specials(block as u64);
    if low != 0 {
        return (low.trailing_zeros() / 8) as usize;
    }
    let high = specials((block >> 64) as u64);
    if high == 0 { BLOCK } else { 8 + (high.trailing_zeros() / 8) as usize }
}

/// The high bit of each byte that is a control, a quote or a backslash. Only the lowest one is exact: a borrow may mark
/// bytes above it.
#[inline]
fn specials(word: u64) -> u64 {
    let zero = |w: u64| w.wrapping_sub(ONES) & !w;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\'))) | control) & HIGHS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn escaping_is_what_json_parsers_read_back(text in r#"\PC*|([a-zé]{0,40}["\\\n\x01]){0,6}[a-z]{0,20}|.*"#) {
            let wrapped = wrap_escaped(b"\"", text.as_bytes(), b"\"");
            prop_assert_eq!(wrapped.len(), escaped_len(text.as_bytes()) + 2);
            prop_assert_eq!(serde_json::from_slice::<String>(&wrapped).ok(), Some(text));
        }

        #[test]
        fn a_body_is_what_json_parsers_take_between_quotes(text in r#"([a-z\\"u0-9\n\x01é/]|\\\\u[0-9a-f]{3,5}){0,40}"#) {
            let quoted = format!("\"{text}\"");
            // Skipping a string does not look for whole surrogate pairs, and neither does joining two halves.
            let valid = serde_json::from_str::<serde::de::IgnoredAny>(&quoted).is_ok();
            prop_assert_eq!(is_body(text.as_bytes()), valid);
        }

        #[test]
        fn a_string_ends_at_the_quote_that_json_parsers_take_for_its_end(text in r#"([a-z\\u0-9\n\x01é/]|\\\\[u"n\\]){0,30}(".{0,20})?"#) {
            let quoted = format!("\"{text}");
            let mut values = serde_json::Deserializer::from_str(&quoted).into_iter::<serde::de::IgnoredAny>();
            let end = values.next().is_some_and(|value| value.is_ok()).then(|| values.byte_offset() - 1);
            prop_assert_eq!(closing_quote(quoted.as_bytes(), 1), end);
        }

        #[test]
        fn a_run_ends_before_the_first_byte_that_must_be_escaped(plain in "[a-z é]{0,70}", tail: Vec<u8>) {
            let text = [plain.as_bytes(), &tail].concat();
            let first = text.iter().position(|b| *b < 0x20 || *b == b'"' || *b == b'\\').unwrap_or(text.len());
            prop_assert_eq!(plain_run(&text), first);
        }
    }

    #[test]
    fn every_control_character_is_escaped_in_its_shortest_form() {
        let all: Vec<u8> = (0..0x20).chain(*b"\"\\/\x7f").collect();
        let escaped = wrap_escaped(b"", &all, b"");
        let expected = serde_json::to_string(std::str::from_utf8(&all).expect("ASCII")).expect("it is text");
        assert_eq!(escaped, expected[1..expected.len() - 1]);
    }

    #[test]
    fn a_text_is_cut_between_characters_and_half_a_pair_is_none() {
        assert_eq!(unescape(r"a\u00e9".as_bytes(), 9).as_deref(), Some("aé"));
        assert_eq!(unescape("aé".as_bytes(), 2).as_deref(), Some("a"));
        assert_eq!(unescape(br"\ud83d", 9), None);
    }
}
