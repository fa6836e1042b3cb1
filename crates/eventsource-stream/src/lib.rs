//! A drop-in for `eventsource-stream` 0.2: the same names over a parser that a hostile or odd server cannot
//! hurt. `[patch.crates-io]` puts it under an unmodified `reqwest-eventsource`.
//!
//! It parses as the HTML standard says (section "Server-sent events", "Interpreting an event stream"), with
//! these promises:
//!
//! - Time is linear in the bytes received, however they are cut into pieces.
//! - Memory is bounded: one event may take [`DEFAULT_EVENT_LIMIT`] bytes, or what [`limit_events`] or
//!   [`EventStream::set_event_limit`] says, and an id [`ID_LIMIT`] bytes. One byte more is an error, and the end
//!   of the stream; under [`limit_events`] it is the end of that event only, whose rest is read and dropped, unless
//!   it has no end within [`ENDLESS_FACTOR`] times the limit. What a large event needed is given back after it.
//! - No bytes make it fail, panic or wait: invalid UTF-8 becomes U+FFFD, one leading byte order mark is skipped,
//!   a carriage return ends a line at once.
//!
//! # The limit's error
//!
//! `reqwest-eventsource` matches on the three variants of [`EventStreamError`], so there can be no fourth. A
//! limit's error comes as [`EventStreamError::Parser`], hence as `reqwest_eventsource::Error::Parser`, with
//! nom's code `TooLarge`; nothing else ever does. [`too_large`] returns its sentence, which names the limit. What is kept of an
//! event that was dropped comes as a [`Signal`].
//!
//! # Other differences from the original
//!
//! - [`EventStreamError::Utf8`] never occurs.
//! - A transport error ends the stream: events after a gap would be glued together.
//! - The id given to [`EventStream::set_last_event_id`] is that of the events that bring none.
//! - A `retry` in an event without data comes with the next event that has some, instead of being lost.

mod limit;
mod lines;
mod parser;
mod signal;
mod skipped;
mod stream;

pub use limit::{LimitEvents, limit_events};
pub use parser::{DEFAULT_EVENT_LIMIT, Event, Item, Parser};
pub use signal::Signal;
pub use skipped::{BEGINNING, ENDING, ENDLESS_FACTOR, ID_LIMIT, Refused, TooLarge};
pub use stream::{EventStream, EventStreamError, Eventsource, too_large};
