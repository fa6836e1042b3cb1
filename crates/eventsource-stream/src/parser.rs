//! Lines to events, after the HTML standard; no I/O, so that tests and fuzzers can feed it bytes.

use crate::lines::{Line, Lines};
use crate::skipped::{BEGINNING, ENDLESS_FACTOR, ID_LIMIT, Refused, Skipped, TooLarge};
use std::time::Duration;

/// What one event may take, bytes, unless something else is set. Large enough for a completion request
/// with a few images inline, small enough to be held a few times over.
pub const DEFAULT_EVENT_LIMIT: usize = 32 * 1024 * 1024;

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

/// What a stream says, in the order of its lines.
#[derive(Debug, Eq, PartialEq, Clone)]
pub enum Item {
    /// A whole event.
    Event(Event),
    /// A comment line, which may be a keep-alive.
    Comment,
    /// A field that the standard does not have; readers of the standard ignore it.
    Field {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// Pieces of bytes in, events out. [`Parser::push`] a piece, then call [`Parser::next_event`] until it
/// has no more; in that order time is linear in the bytes pushed.
#[derive(Debug)]
pub struct Parser {
    lines: Lines,
    fields: Fields,
}

impl Parser {
    /// A parser at the beginning of a stream. `event_limit` is what one event may take, bytes: its data so far,
    /// its type, and the line being received without its ending, whether a comment or a field, a byte order mark
    /// included: so the pieces make no difference to what is refused.
    pub fn new(event_limit: usize) -> Self {
        Self { lines: Lines::default(), fields: Fields::new(event_limit) }
    }

    /// Adds a piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.lines.push(piece);
    }

    /// From now on the rest of an event over its limit is read and dropped, instead of nothing being read after it: the error
    /// comes at the event's end, and the next event after it. Fields that are no part of an event, comments too, are dropped
    /// without an error. An event without end is an error after all, and the stream's end.
    pub fn skip_oversized(&mut self) {
        self.fields.skips = true;
    }

    /// The next item, or none until more is pushed. After an error for which [`Parser::is_over`], the stream must be given up.
    ///
    /// # Errors
    /// If an event or its id is longer than the limit.
    pub fn next_item(&mut self) -> Result<Option<Item>, TooLarge> {
        while let Some(line) = self.lines.next() {
            match self.fields.take(line) {
                Ok(None) => {}
                taken => return taken,
            }
        }
        let over = self.fields.check_unfinished(self.lines.unfinished())?;
        self.lines.settle();
        if over {
            self.lines.cut();
        }
        Ok(None)
    }

    /// The next whole event; what else the stream says is passed over.
    ///
    /// # Errors
    /// As [`Parser::next_item`].
    pub fn next_event(&mut self) -> Result<Option<Event>, TooLarge> {
        loop {
            match self.next_item()? {
                Some(Item::Event(event)) => return Ok(Some(event)),
                Some(Item::Comment | Item::Field { .. }) => {}
                None => return Ok(None),
            }
        }
    }

    /// At the end of the input: the item that lacks its blank line, or even the end of its last line. The standard drops
    /// it; whoever knows from its content that it is whole need not.
    pub fn finish(&mut self) -> Option<Item> {
        let line = self.lines.unfinished();
        if self.fields.skipped.is_some() || self.fields.check_room(line.len()).is_err() {
            return None;
        }
        if !line.is_empty() {
            let head = self.fields.without_bom(line.head());
            match self.fields.take_line(head) {
                Ok(None) => {}
                Ok(item) => return item,
                Err(_) => return None,
            }
        }
        self.fields.dispatch().map(Item::Event)
    }

    /// Whether nothing can be read after the error `why`.
    pub fn is_over(&self, why: TooLarge) -> bool {
        !self.fields.skips || matches!(why, TooLarge::Endless { .. })
    }

    /// The id that a reconnection should send: the last one whose event was complete.
    pub fn last_event_id(&self) -> &str {
        &self.fields.last_event_id
    }

    /// Starts from the id of an earlier connection.
    pub fn set_last_event_id(&mut self, id: String) {
        self.fields.last_event_id = id;
    }

    /// What is kept of the event that was skipped, once: after an error.
    pub fn take_refused(&mut self) -> Option<Refused> {
        self.fields.refused.take()
    }

    /// What is kept of the event being skipped, when the stream ends before it.
    pub(crate) fn abandon(&mut self) -> Option<Refused> {
        self.fields.abandon(self.lines.unfinished())
    }

    /// What one event may take from now on, bytes.
    pub fn set_event_limit(&mut self, bytes: usize) {
        self.fields.limit = bytes;
    }

    /// Frees everything but the last event id, at the stream's end.
    pub(crate) fn discard(&mut self) {
        self.lines = Lines::default();
        let last_event_id = std::mem::take(&mut self.fields.last_event_id);
        let skips = self.fields.skips;
        self.fields = Fields { last_event_id, skips, ..Fields::new(self.fields.limit) };
    }
}

/// The event under construction and what outlives it.
#[derive(Debug)]
struct Fields {
    limit: usize,
    /// See [`Parser::skip_oversized`].
    skips: bool,
    skipped: Option<Skipped>,
    refused: Option<Refused>,
    /// The first line, and with it a byte order mark, has been taken.
    begun: bool,
    event: String,
    /// None until a `data` line: an event without any is not dispatched, one with an empty line is.
    data: Option<String>,
    retry: Option<Duration>,
    /// An id that counts only once its event is complete.
    new_id: Option<String>,
    last_event_id: String,
}

impl Fields {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            skips: false,
            skipped: None,
            refused: None,
            begun: false,
            event: String::new(),
            data: None,
            retry: None,
            new_id: None,
            last_event_id: String::new(),
        }
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
    fn take(&mut self, line: Line<'_>) -> Result<Option<Item>, TooLarge> {
        let room = self.check_room(line.len());
        self.check_end(line)?;
        let head = self.without_bom(line.head());
        if self.skipped.is_none() {
            match room.and_then(|()| self.take_line(head)) {
                Err(why) if self.skips && is_part_of_event(field(head).0) => {
                    self.skipped = Some(Skipped::new(why, self.data.take()));
                }
                Err(_) if self.skips => return Ok(comment(head)),
                taken => return taken,
            }
        }
        self.skip_line(head, line)
    }

    /// Skips one line of an event over its limit; the error comes at the event's end.
    fn skip_line(&mut self, head: &[u8], line: Line<'_>) -> Result<Option<Item>, TooLarge> {
        let Some(skipped) = &mut self.skipped else { return Ok(None) };
        if line.is_empty() {
            self.refused = self.refuse(true);
            return self.refused.as_ref().map_or(Ok(None), |refused| Err(refused.why));
        }
        skipped.bytes += line.len();
        match field(head) {
            (b"data", value) => skipped.add(value, line),
            // A type that is cut here is longer than any that a reader knows.
            (b"event", value) => self.event = lossy(&value[..value.len().min(BEGINNING)]),
            _ => {}
        }
        Ok(comment(head))
    }

    /// Ends the event being skipped, if there is one. Its id does not count.
    fn refuse(&mut self, ended: bool) -> Option<Refused> {
        let skipped = self.skipped.take()?;
        self.new_id = None;
        Some(skipped.refused(std::mem::take(&mut self.event), ended))
    }

    /// Ends the event being skipped with an unfinished line.
    fn abandon(&mut self, line: Line<'_>) -> Option<Refused> {
        if self.skips && !line.is_empty() && self.check_room(line.len()).is_err() {
            let head = self.without_bom(line.head());
            if self.skipped.is_none() && is_part_of_event(field(head).0) {
                self.skipped = Some(Skipped::new(self.too_large(), self.data.take()));
            }
            let _ = self.skip_line(head, line);
        }
        self.refuse(false)
    }

    /// Whether a line that has not ended need not be kept whole.
    fn check_unfinished(&self, line: Line<'_>) -> Result<bool, TooLarge> {
        self.check_end(line)?;
        match self.check_room(line.len()) {
            Err(why) if !self.skips => Err(why),
            room => Ok(room.is_err() || self.skipped.is_some()),
        }
    }

    /// Refuses what has no end within [`ENDLESS_FACTOR`] times the limit.
    fn check_end(&self, line: Line<'_>) -> Result<(), TooLarge> {
        let bytes = self.skipped.as_ref().map_or(0, |skipped| skipped.bytes) + line.len();
        if self.skips && bytes > self.limit.saturating_mul(ENDLESS_FACTOR) {
            return Err(TooLarge::Endless { limit: self.limit });
        }
        Ok(())
    }

    fn without_bom<'a>(&mut self, line: &'a [u8]) -> &'a [u8] {
        let first = !std::mem::replace(&mut self.begun, true);
        line.strip_prefix(BOM).filter(|_| first).unwrap_or(line)
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<Item>, TooLarge> {
        if line.is_empty() {
            return Ok(self.dispatch().map(Item::Event));
        }
        let (name, value) = field(line);
        self.take_field(name, value)
    }

    /// Takes one field. A comment is a field with no name.
    fn take_field(&mut self, name: &[u8], value: &[u8]) -> Result<Option<Item>, TooLarge> {
        match name {
            b"" => return Ok(Some(Item::Comment)),
            b"data" => self.add_data(value)?,
            b"event" => {
                let room = self.room_beside(self.data_len());
                self.event = decode(value, room).ok_or(self.too_large())?;
            }
            b"id" if !value.contains(&0) => self.new_id = Some(decode(value, ID_LIMIT).ok_or(TooLarge::Id)?),
            b"retry" => self.retry = milliseconds(value).or(self.retry),
            b"id" => {}
            _ => return Ok(Some(Item::Field { name: lossy(name), value: lossy(value) })),
        }
        Ok(None)
    }

    fn add_data(&mut self, value: &[u8]) -> Result<(), TooLarge> {
        let (room, too_large) = (self.room_beside(self.event.len()), self.too_large());
        let before = self.data.as_ref().map(String::len);
        // The LF goes before a further line, not behind each: a single large line then fits its allocation.
        let data = match &mut self.data {
            Some(data) => {
                data.push('\n');
                data
            }
            none => none.insert(String::new()),
        };
        if append_lossy(data, value, room) {
            return Ok(());
        }
        // What does not fit is no part of what is kept.
        match before {
            Some(before) => data.truncate(before),
            None => self.data = None,
        }
        Err(too_large)
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

/// The item that a line is whose content does not matter.
fn comment(line: &[u8]) -> Option<Item> {
    line.starts_with(b":").then_some(Item::Comment)
}

/// A line's name and value.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..])),
        None => (line, b""),
    }
}

/// Whether an event would be another one without its field of this name.
fn is_part_of_event(name: &[u8]) -> bool {
    matches!(name, b"data" | b"event" | b"id")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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
mod tests;
