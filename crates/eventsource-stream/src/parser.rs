//! Lines to events, after the HTML standard; no I/O, so that tests and fuzzers can feed it bytes.

use crate::lines::Lines;
use std::fmt;
use std::time::Duration;

/// What one event may take, bytes, unless something else is set. Large enough for a completion request
/// with a few images inline, small enough to be held a few times over.
pub const DEFAULT_EVENT_LIMIT: usize = 32 * 1024 * 1024;

/// What an event's id may take, bytes. Every later event carries a copy of it, so a large id followed by many
/// tiny events would cost far more than the bytes received; nor does a longer one fit into the
/// `Last-Event-ID` header of most servers.
pub const ID_LIMIT: usize = 4 * 1024;

/// What is kept of the data of an event over its limit, bytes: an envelope's first fields, not its content.
pub const BEGINNING: usize = 4 * 1024;

/// The type of an event that names none.
const DEFAULT_TYPE: &str = "message";

/// UTF-8's byte order mark, which the standard's decoder skips once at the beginning.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// One event.
#[derive(Default, Debug, Eq, PartialEq, Clone)]
pub struct Event {
    /// The event's type; `message` if the server names none.
    pub event: String,
    /// The data; several `data` lines are joined with LF.
    pub data: String,
    /// The last id the server sent, with this event or before; empty if none.
    pub id: String,
    /// The reconnection time the server asked for since the event before.
    pub retry: Option<Duration>,
}

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
}

/// What came first of an event that was refused: for whoever has to answer it all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The event's type, as far as it had come.
    pub event: String,
    /// The beginning of its data, at most [`BEGINNING`] bytes; cut off anywhere.
    pub data: String,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { limit } => write!(f, "an event of the stream is over the limit of {limit} bytes"),
            Self::Id => write!(f, "an event id of the stream is over the limit of {ID_LIMIT} bytes"),
        }
    }
}

impl std::error::Error for TooLarge {}

/// Pieces of bytes in, events out. [`Parser::push`] a piece, then call [`Parser::next_event`] until it
/// has no more; in that order time is linear in the bytes pushed.
#[derive(Debug)]
pub struct Parser {
    lines: Lines,
    fields: Fields,
    refused: Option<Refused>,
}

impl Parser {
    /// A parser at the beginning of a stream. `event_limit` is what one event may take, bytes: its data so far,
    /// its type, and the line being received without its ending, whether a comment or a field, a byte order mark
    /// included: so the pieces make no difference to what is refused.
    pub fn new(event_limit: usize) -> Self {
        Self { lines: Lines::default(), fields: Fields::new(event_limit), refused: None }
    }

    /// Adds a piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.lines.push(piece);
    }

    /// The next whole event, or none until more is pushed. After an error the stream must be given up.
    ///
    /// # Errors
    /// If the event or its id is longer than the limit.
    pub fn next_event(&mut self) -> Result<Option<Event>, TooLarge> {
        while let Some(line) = self.lines.next() {
            match self.fields.take_line(line) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.refused = Some(self.fields.refused(line));
                    return Err(error);
                }
            }
        }
        if let Err(error) = self.fields.check_room(self.lines.unfinished()) {
            self.refused = Some(self.fields.refused(self.lines.unfinished_line()));
            return Err(error);
        }
        self.lines.settle();
        Ok(None)
    }

    /// The id that a reconnection should send: the last one whose event was complete.
    pub fn last_event_id(&self) -> &str {
        &self.fields.last_event_id
    }

    /// Starts from the id of an earlier connection.
    pub fn set_last_event_id(&mut self, id: String) {
        self.fields.last_event_id = id;
    }

    /// The beginning of the event that was over its limit, once.
    pub fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }

    /// Comments since this was last asked.
    pub(crate) fn take_comments(&mut self) -> u64 {
        std::mem::take(&mut self.fields.comments)
    }

    /// What one event may take from now on, bytes.
    pub fn set_event_limit(&mut self, bytes: usize) {
        self.fields.limit = bytes;
    }

    /// Frees everything but the last event id, at the stream's end.
    pub(crate) fn discard(&mut self) {
        self.lines = Lines::default();
        let last_event_id = std::mem::take(&mut self.fields.last_event_id);
        self.fields = Fields { last_event_id, ..Fields::new(self.fields.limit) };
    }
}

/// The event under construction and what outlives it.
#[derive(Debug)]
struct Fields {
    limit: usize,
    /// The first line, and with it a byte order mark, has been taken.
    begun: bool,
    event: String,
    /// None until a `data` line: an event without any is not dispatched, one with an empty line is.
    data: Option<String>,
    retry: Option<Duration>,
    /// An id that counts only once its event is complete.
    new_id: Option<String>,
    last_event_id: String,
    comments: u64,
}

impl Fields {
    fn new(limit: usize) -> Self {
        let (event, last_event_id) = (String::new(), String::new());
        Self { limit, begun: false, event, data: None, retry: None, new_id: None, last_event_id, comments: 0 }
    }

    /// Refuses a line of `line` bytes that the limit has no room for.
    fn check_room(&self, line: usize) -> Result<(), TooLarge> {
        if line > self.room_beside(self.event.len() + self.data_len()) {
            Err(self.too_large())
        } else {
            Ok(())
        }
    }

    /// What the limit leaves beside `held` bytes.
    fn room_beside(&self, held: usize) -> usize {
        self.limit.saturating_sub(held)
    }

    fn data_len(&self) -> usize {
        self.data.as_ref().map_or(0, String::len)
    }

    fn too_large(&self) -> TooLarge {
        TooLarge::Event { limit: self.limit }
    }

    /// Takes one line, and gives the event that it completes.
    fn take_line(&mut self, line: &[u8]) -> Result<Option<Event>, TooLarge> {
        self.check_room(line.len())?;
        let first = !std::mem::replace(&mut self.begun, true);
        let line = line.strip_prefix(BOM).filter(|_| first).unwrap_or(line);
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        self.comments += u64::from(line[0] == b':');
        let (name, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &b""[..]),
        };
        self.take_field(name, value.strip_prefix(b" ").unwrap_or(value))?;
        Ok(None)
    }

    /// Takes one field. A comment is a field with no name: ignored like any unknown one.
    fn take_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), TooLarge> {
        match name {
            b"data" => self.add_data(value)?,
            b"event" => {
                let room = self.room_beside(self.data_len());
                self.event = decode(value, room).ok_or(self.too_large())?;
            }
            b"id" if !value.contains(&0) => self.new_id = Some(decode(value, ID_LIMIT).ok_or(TooLarge::Id)?),
            b"retry" => self.retry = milliseconds(value).or(self.retry),
            _ => {}
        }
        Ok(())
    }

    /// The beginning of an event for which `line` was too much.
    fn refused(&self, line: &[u8]) -> Refused {
        let line = line.strip_prefix(b"data:").map(|value| value.strip_prefix(b" ").unwrap_or(value));
        let data = self.data.as_deref().map(str::as_bytes).or(line).unwrap_or_default();
        let data = String::from_utf8_lossy(&data[..data.len().min(BEGINNING)]).into_owned();
        Refused { event: self.event.clone(), data }
    }

    fn add_data(&mut self, value: &[u8]) -> Result<(), TooLarge> {
        let (room, too_large) = (self.room_beside(self.event.len()), self.too_large());
        // The LF goes before a further line, not behind each: a single large line then fits its allocation.
        let data = match &mut self.data {
            Some(data) => {
                data.push('\n');
                data
            }
            none => none.insert(String::new()),
        };
        if append_lossy(data, value, room) { Ok(()) } else { Err(too_large) }
    }

    /// Ends the event at a blank line.
    fn dispatch(&mut self) -> Option<Event> {
        let event = std::mem::take(&mut self.event);
        if let Some(id) = self.new_id.take() {
            self.last_event_id = id;
        }
        Some(Event {
            data: self.data.take()?,
            event: if event.is_empty() { DEFAULT_TYPE.to_owned() } else { event },
            id: self.last_event_id.clone(),
            retry: self.retry.take(),
        })
    }
}

/// A `retry` value: ASCII digits only. One that overflows is ignored like any other that makes no sense.
fn milliseconds(value: &[u8]) -> Option<Duration> {
    let digits = std::str::from_utf8(value).ok().filter(|_| value.iter().all(u8::is_ascii_digit))?;
    digits.parse().ok().map(Duration::from_millis)
}

/// The text of `bytes`, unless it takes more than `limit` bytes.
fn decode(bytes: &[u8], limit: usize) -> Option<String> {
    let mut text = String::new();
    append_lossy(&mut text, bytes, limit).then_some(text)
}

/// Appends `bytes` as the standard decodes them, U+FFFD for what is invalid, and says whether `text` stayed
/// within `limit` bytes. Checked on the way, since U+FFFD takes three bytes where one was received.
fn append_lossy(text: &mut String, bytes: &[u8], limit: usize) -> bool {
    // Nearly all that comes is valid, and to look for that alone takes a seventh of the time.
    if let Ok(valid) = std::str::from_utf8(bytes) {
        text.push_str(valid);
        return valid.is_empty() || text.len() <= limit;
    }
    bytes.utf8_chunks().all(|chunk| {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text.len() <= limit
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::KEPT_CAPACITY;

    /// What an HTTP/2 frame carries by default, bytes.
    const PIECE: usize = 16 * 1024;

    /// Feeds `size` bytes of one line that begins with `head`, then `tail`.
    fn feed(
        parser: &mut Parser,
        head: &[u8],
        size: usize,
        tail: &[u8],
        mut seen: impl FnMut(&Parser),
    ) -> usize {
        let body = vec![b'x'; PIECE];
        let pieces = std::iter::once(head).chain((0..size / PIECE).map(|_| &body[..])).chain([tail]);
        let mut events = 0;
        for piece in pieces {
            parser.push(piece);
            while parser.next_event().expect("within the limit").is_some() {
                events += 1;
            }
            seen(parser);
        }
        events
    }

    fn memory(parser: &Parser) -> usize {
        parser.lines.capacity() + parser.fields.data.as_ref().map_or(0, String::capacity)
    }

    #[test]
    fn the_work_on_a_line_at_the_limit_is_linear_in_its_bytes() {
        let size = DEFAULT_EVENT_LIMIT - PIECE;
        let mut parser = Parser::new(DEFAULT_EVENT_LIMIT);
        // Each byte is copied in once and searched once. Checked on the way, or a quadratic parser would take
        // minutes to fail.
        let linear = |parser: &Parser| assert!(parser.lines.work <= 2 * DEFAULT_EVENT_LIMIT);
        assert_eq!(feed(&mut parser, b"data:", size, b"\n\n", linear), 1);
    }

    #[test]
    fn the_work_on_many_short_lines_in_one_piece_is_linear_in_its_bytes() {
        let stream = b"data:1\r\n\r\n:c\r".repeat(20_000);
        let mut parser = Parser::new(DEFAULT_EVENT_LIMIT);
        for piece in stream.chunks(100_003) {
            parser.push(piece);
            while parser.next_event().expect("within the limit").is_some() {}
        }
        assert!(parser.lines.work <= 3 * stream.len(), "{} for {} bytes", parser.lines.work, stream.len());
    }

    #[test]
    fn memory_stays_within_the_limit_and_its_growth_and_is_given_back_after_the_event() {
        let limit = 4 * 1024 * 1024;
        let mut parser = Parser::new(limit);
        let mut peak = 0;
        let events =
            feed(&mut parser, b"data:", limit - PIECE, b"\n\n", |parser| peak = memory(parser).max(peak));
        assert_eq!(events, 1);
        assert!((limit - PIECE..=2 * limit).contains(&peak), "{peak}");
        assert!(memory(&parser) <= KEPT_CAPACITY, "{} kept", memory(&parser));
    }

    #[test]
    fn a_large_line_that_is_not_data_is_given_back_before_its_event_ends() {
        let mut parser = Parser::new(DEFAULT_EVENT_LIMIT);
        assert_eq!(feed(&mut parser, b":", 1024 * 1024, b"\ndata:1", |_| {}), 0);
        assert!(memory(&parser) <= KEPT_CAPACITY, "{} kept", memory(&parser));
    }

    #[test]
    fn the_memory_of_a_line_without_end_stops_at_the_limit() {
        let limit = 256 * 1024;
        let mut parser = Parser::new(limit);
        let refused = (0..).find_map(|_| {
            parser.push(&[b'x'; PIECE]);
            assert!(memory(&parser) <= 2 * limit + PIECE);
            parser.next_event().err()
        });
        assert_eq!(refused, Some(TooLarge::Event { limit }));
        parser.discard();
        assert_eq!(memory(&parser), 0);
    }
}
