//! Objects that are written in the usual way: no name with escapes, each name that matters once at most.
//!
//! Serde looks at a value once for its end, once more for UTF-8, and again for what is in it. So whoever wants serde's judgement reads
//! with this first, and lets serde judge whatever is not usual, errors included. What this takes it must read as serde does: the tests
//! of those who use it compare both.

use super::{
    Malformed,
    scan::{Scanner, Span},
};

/// Says of a text that is not usual, but perhaps good, that serde has to read it.
pub(crate) const UNUSUAL: Malformed = Malformed::NotJson;

/// The names that were there; each is a bit.
#[derive(Default)]
pub(crate) struct Names(u32);

impl Names {
    /// Takes a name, which must be there for the first time.
    pub(crate) fn first(&mut self, bit: u32) -> Result<(), Malformed> {
        let before = self.0;
        self.0 |= bit;
        if before == self.0 { Err(UNUSUAL) } else { Ok(()) }
    }

    /// Whether all of these names were there.
    pub(crate) fn has(&self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

/// Passes a member that does not matter.
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

/// Passes a null, if that is what comes next.
pub(crate) fn null(scan: &mut Scanner<'_>) -> Result<bool, Malformed> {
    let null = scan.peek()? == b'n';
    if null {
        scan.skip()?;
    }
    Ok(null)
}
