//! The fast path for objects that are written in the usual way: no name has escapes, and each name that matters occurs at most once.
//!
//! Serde goes over a value once to find its end, again to check UTF-8, and again to read what is in it. Code that needs serde's result
//! therefore tries this first, and leaves to serde whatever is not usual, including errors. What this accepts it must read as serde does;
//! the tests of its users compare the two.

use super::{
    Malformed,
    scan::{Scanner, Span},
};

/// Says that a text is not usual but perhaps valid, so that serde has to read it.
pub(crate) const UNUSUAL: Malformed = Malformed::NotJson;

/// The names that have occurred; each is a bit.
#[derive(Default)]
pub(crate) struct Names(u32);

impl Names {
    /// Notes a name, which must not have occurred before.
    pub(crate) fn first(&mut self, bit: u32) -> Result<(), Malformed> {
        let before = self.0;
        self.0 |= bit;
        if before == self.0 { Err(UNUSUAL) } else { Ok(()) }
    }

    /// Whether all of these names have occurred.
    pub(crate) fn has(&self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

/// Skips a member that does not matter.
pub(crate) fn other(scan: &mut Scanner<'_>, name: Span) -> Result<(), Malformed> {
    if scan.of(name).contains(&b'\\') {
        return Err(UNUSUAL);
    }
    scan.skip().map(drop)
}

/// Reads a string without escapes.
pub(crate) fn text<'a>(scan: &mut Scanner<'a>) -> Result<&'a str, Malformed> {
    let span = scan.string()?;
    let text = scan.text_of(span);
    if text.as_bytes().contains(&b'\\') { Err(UNUSUAL) } else { Ok(text) }
}

/// Reads a value as it is written.
pub(crate) fn value<'a>(scan: &mut Scanner<'a>) -> Result<&'a str, Malformed> {
    let span = scan.skip()?;
    Ok(scan.text_of(span))
}

/// Skips a null, if that is what comes next; returns whether it did.
pub(crate) fn null(scan: &mut Scanner<'_>) -> Result<bool, Malformed> {
    let null = scan.peek()? == b'n';
    if null {
        scan.skip()?;
    }
    Ok(null)
}
