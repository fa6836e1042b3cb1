//! Where JSON values end.
//!
//! Positions are passed by value, so that they stay in registers, and nothing recurses: every body passes through here, at every hop, and
//! most of its bytes are looked at nowhere else.

use super::{Malformed, text};

/// Deepest nesting that is read: serde_json's own limit, so that what passes here can also be parsed further on.
pub(super) const MAX_DEPTH: u32 = 128;

const _: () = assert!(MAX_DEPTH <= u128::BITS, "`Open` keeps a bit for each level");

type Scan<T> = Result<T, Malformed>;

/// The first byte from `at` on that is not white space, and its position.
#[inline]
pub(super) fn next(text: &[u8], at: usize) -> Scan<(u8, usize)> {
    match text.get(at) {
        Some(&byte) if byte > b' ' => Ok((byte, at)),
        _ => next_behind_space(text, at),
    }
}

#[inline(never)]
fn next_behind_space(text: &[u8], mut at: usize) -> Scan<(u8, usize)> {
    while let Some(&byte) = text.get(at) {
        if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            return Ok((byte, at));
        }
        at += 1;
    }
    Err(Malformed::NotJson)
}

/// The position of the quote that ends the string whose text begins at `at`.
#[inline]
pub(super) fn closing_quote(text: &[u8], at: usize) -> Scan<usize> {
    text::closing_quote(text, at).ok_or(Malformed::NotJson)
}

/// The position after the value at `at`, which begins with `first` and is neither an object nor an array.
#[inline]
pub(super) fn scalar(text: &[u8], first: u8, at: usize) -> Scan<usize> {
    match first {
        b'"' => closing_quote(text, at + 1).map(|quote| quote + 1),
        b'n' => literal(text, at, b"null"),
        b't' => literal(text, at, b"true"),
        b'f' => literal(text, at, b"false"),
        _ => number(text, at),
    }
}

#[inline]
fn literal<const N: usize>(text: &[u8], at: usize, word: &[u8; N]) -> Scan<usize> {
    if text[at..].first_chunk() == Some(word) { Ok(at + N) } else { Err(Malformed::NotJson) }
}

fn number(text: &[u8], at: usize) -> Scan<usize> {
    let sign = usize::from(text.get(at) == Some(&b'-'));
    let mut at = at + sign;
    at = if text.get(at) == Some(&b'0') { at + 1 } else { digits(text, at)? };
    if text.get(at) == Some(&b'.') {
        at = digits(text, at + 1)?;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1 + usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        at = digits(text, at)?;
    }
    Ok(at)
}

#[inline]
fn digits(text: &[u8], start: usize) -> Scan<usize> {
    let mut at = start;
    while text.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    if at == start { Err(Malformed::NotJson) } else { Ok(at) }
}

/// The open objects and arrays around a position.
struct Open {
    /// A bit for each level within the value, the lowest for the innermost: whether it is an object.
    objects: u128,
    depth: u32,
    is_object: bool,
}

impl Open {
    #[inline]
    fn enter(&mut self, is_object: bool) -> Scan<()> {
        self.objects = self.objects << 1 | u128::from(is_object);
        self.is_object = is_object;
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(Malformed::TooDeep) } else { Ok(()) }
    }

    #[inline]
    fn leave(&mut self) {
        self.objects >>= 1;
        self.is_object = self.objects & 1 == 1;
        self.depth -= 1;
    }

    /// The byte that ends the innermost one.
    #[inline]
    fn closing(&self) -> u8 {
        if self.is_object { b'}' } else { b']' }
    }
}

/// The position after the object or array that begins at `at`, within `outside` others.
pub(super) fn nested(text: &[u8], at: usize, outside: u32) -> Scan<usize> {
    let mut open = Open { objects: 0, depth: outside, is_object: false };
    let (mut first, mut at) = next(text, at)?;
    loop {
        (first, at) = item(text, first, at, &open)?;
        if matches!(first, b'{' | b'[') {
            open.enter(first == b'{')?;
            (first, at) = next(text, at + 1)?;
            if first != open.closing() {
                continue;
            }
        } else {
            (first, at) = next(text, scalar(text, first, at)?)?;
        }
        while first == open.closing() {
            open.leave();
            if open.depth == outside {
                return Ok(at + 1);
            }
            (first, at) = next(text, at + 1)?;
        }
        if first != b',' {
            return Err(Malformed::NotJson);
        }
        (first, at) = next(text, at + 1)?;
    }
}

/// The beginning of the value of the item at `at`, which begins with `first`: if the item is an object's member, its name is skipped.
#[inline]
fn item(text: &[u8], first: u8, at: usize, open: &Open) -> Scan<(u8, usize)> {
    if !open.is_object {
        return Ok((first, at));
    }
    if first != b'"' {
        return Err(Malformed::NotJson);
    }
    let (colon, at) = next(text, closing_quote(text, at + 1)? + 1)?;
    if colon == b':' { next(text, at + 1) } else { Err(Malformed::NotJson) }
}
