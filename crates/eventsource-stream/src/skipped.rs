//! An event over its limit: its rest is read and dropped, and little is kept for whoever has to answer it all the same.

use crate::lines::Line;
use std::fmt;

/// What is kept of the beginning of the data of an event over its limit, bytes: an envelope's first fields, not its content.
pub const BEGINNING: usize = 4 * 1024;

/// What is kept of the end of that data, bytes: the fields behind the content.
pub const ENDING: usize = 4 * 1024;

/// What an event's id may take, bytes. Every later event carries a copy of it, so a large id followed by many
/// tiny events would cost far more than the bytes received; nor does a longer one fit into the
/// `Last-Event-ID` header of most servers.
pub const ID_LIMIT: usize = 4 * 1024;

/// How many times its limit an event may take until the stream is given up. Large enough for whatever an honest server sends by
/// mistake; a server that never ends its event makes the stream deaf, and has to be left at some time.
pub const ENDLESS_FACTOR: usize = 64;

/// Why an event was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLarge {
    /// An event's data, its type and the line being received take more than `limit` bytes together.
    Event {
        /// The limit, bytes.
        limit: usize,
    },
    /// An id takes more than [`ID_LIMIT`] bytes.
    Id,
    /// An event over the limit of `limit` bytes has no end after [`ENDLESS_FACTOR`] times as many.
    Endless {
        /// The limit, bytes.
        limit: usize,
    },
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { limit } => write!(f, "an event of the stream is over the limit of {limit} bytes"),
            Self::Id => write!(f, "an event id of the stream is over the limit of {ID_LIMIT} bytes"),
            Self::Endless { limit } => write!(
                f,
                "an event of the stream is over the limit of {limit} bytes and has no end after {ENDLESS_FACTOR} times as many"
            ),
        }
    }
}

impl std::error::Error for TooLarge {}

/// What is kept of an event that was refused: for whoever has to answer it all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: TooLarge,
    /// The event's type, as far as it had come.
    pub event: String,
    /// The beginning of its data, at most [`BEGINNING`] bytes; cut off anywhere.
    pub beginning: String,
    /// What its data ends with, at most [`ENDING`] bytes, begun anywhere. Empty if the stream ended before the event did.
    pub ending: String,
    /// Bytes received of it.
    pub bytes: usize,
}

/// An event that is being skipped.
#[derive(Debug)]
pub(crate) struct Skipped {
    why: TooLarge,
    beginning: Vec<u8>,
    /// Up to twice [`ENDING`], so that the time for moving it stays linear.
    ending: Vec<u8>,
    any_data: bool,
    pub(crate) bytes: usize,
}

impl Skipped {
    /// Begins to skip an event that has `data` so far.
    pub(crate) fn new(why: TooLarge, data: Option<String>) -> Self {
        let (beginning, ending) = (Vec::new(), Vec::new());
        let mut skipped = Self { why, beginning, ending, any_data: false, bytes: 0 };
        if let Some(data) = data {
            skipped.bytes = data.len();
            skipped.keep(data.as_bytes(), data.as_bytes());
        }
        skipped
    }

    /// Takes the `value` of a `data` line, as far as it is in the line's head.
    pub(crate) fn add(&mut self, value: &[u8], line: Line<'_>) {
        self.keep(value, line.tail(value));
    }

    fn keep(&mut self, head: &[u8], tail: &[u8]) {
        if std::mem::replace(&mut self.any_data, true) {
            self.begin(b"\n");
            self.ending.push(b'\n');
        }
        self.begin(head);
        self.ending.extend_from_slice(last(tail));
        if self.ending.len() > 2 * ENDING {
            self.ending.drain(..self.ending.len() - ENDING);
        }
    }

    fn begin(&mut self, bytes: &[u8]) {
        let room = BEGINNING - self.beginning.len();
        self.beginning.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    pub(crate) fn refused(self, event: String, ended: bool) -> Refused {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Refused {
            why: self.why,
            event,
            beginning: text(&self.beginning),
            ending: if ended { text(last(&self.ending)) } else { String::new() },
            bytes: self.bytes,
        }
    }
}

fn last(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.len().saturating_sub(ENDING)..]
}
