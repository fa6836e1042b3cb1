//! Reads a provider's event stream: in linear time, within bounds, and without copying a line that comes in one piece.

use bytes::{Bytes, BytesMut};

/// Longest line and longest event, in bytes. A chunk is some hundred bytes; a picture in one may take megabytes.
pub(in crate::provide) const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// What the stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::provide) enum Event {
    /// The data of one event.
    Data(Bytes),
    /// A comment: the server lives.
    Comment,
}

/// A line or an event is longer than [`MAX_EVENT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MAX_EVENT_BYTES} bytes")]
pub(in crate::provide) struct TooLong;

/// Turns pieces of input into events. Give it a piece with [`feed`](Self::feed), then ask [`next`](Self::next) until
/// it has no more.
#[derive(Debug, Default)]
pub(in crate::provide) struct Scanner {
    /// What is still to be scanned of the last piece.
    input: Bytes,
    /// The beginning of a line whose end has not come.
    partial: BytesMut,
    /// The first data line of the event under way.
    data: Option<Bytes>,
    /// All its data lines joined by line feeds, once there are several.
    joined: BytesMut,
    /// The last line ended with a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    /// Something has been read, so a byte-order mark can no longer come.
    begun: bool,
}

impl Scanner {
    /// Takes the next piece of input. The piece before it must have been used up.
    pub(in crate::provide) fn feed(&mut self, input: Bytes) {
        debug_assert!(self.input.is_empty(), "the piece before has not been used up");
        self.input = input;
    }

    /// The next event; `None` when more input is needed.
    pub(in crate::provide) fn next(&mut self) -> Result<Option<Event>, TooLong> {
        while let Some(line) = self.line()? {
            if let Some(event) = self.event(line)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// At the end of input: the data of an event whose empty line never came. A line without an end is dropped.
    pub(in crate::provide) fn finish(mut self) -> Option<Bytes> {
        self.end_of_event()
    }

    fn event(&mut self, line: Bytes) -> Result<Option<Event>, TooLong> {
        if line.is_empty() {
            return Ok(self.end_of_event().map(Event::Data));
        }
        if line.starts_with(b":") {
            return Ok(Some(Event::Comment));
        }
        if let Some(value) = value_of_data(&line) {
            self.append(value)?;
        }
        // Other fields (`event`, `id`, `retry`) say nothing here.
        Ok(None)
    }

    fn append(&mut self, value: Bytes) -> Result<(), TooLong> {
        let Some(first) = &self.data else {
            self.data = Some(value);
            return Ok(());
        };
        if self.joined.is_empty() {
            self.joined.extend_from_slice(first);
        }
        bounded(self.joined.len() + 1 + value.len())?;
        self.joined.extend_from_slice(b"\n");
        self.joined.extend_from_slice(&value);
        Ok(())
    }

    fn end_of_event(&mut self) -> Option<Bytes> {
        let first = self.data.take()?;
        Some(if self.joined.is_empty() { first } else { self.joined.split().freeze() })
    }

    fn line(&mut self) -> Result<Option<Bytes>, TooLong> {
        if self.after_return && !self.input.is_empty() {
            self.after_return = false;
            if self.input.starts_with(b"\n") {
                let _ = self.input.split_to(1);
            }
        }
        let Some(end) = memchr::memchr2(b'\n', b'\r', &self.input) else {
            let rest = std::mem::take(&mut self.input);
            bounded(self.partial.len() + rest.len())?;
            self.partial.extend_from_slice(&rest);
            return Ok(None);
        };
        bounded(self.partial.len() + end)?;
        let line = self.input.split_to(end);
        self.after_return = self.input.split_to(1).starts_with(b"\r");
        Ok(Some(self.whole(line)))
    }

    /// Puts what was kept of the line before its end.
    fn whole(&mut self, end: Bytes) -> Bytes {
        let mut line = if self.partial.is_empty() {
            end
        } else {
            self.partial.extend_from_slice(&end);
            self.partial.split().freeze()
        };
        if !std::mem::replace(&mut self.begun, true) && line.starts_with(b"\xEF\xBB\xBF") {
            let _ = line.split_to(3);
        }
        line
    }
}

/// The value of a `data` line, without the one space that may precede it.
fn value_of_data(line: &Bytes) -> Option<Bytes> {
    let value = line.strip_prefix(b"data")?;
    let value = match value {
        [] => value,
        [b':', b' ', value @ ..] | [b':', value @ ..] => value,
        _ => return None,
    };
    Some(line.slice(line.len() - value.len()..))
}

fn bounded(len: usize) -> Result<(), TooLong> {
    if len > MAX_EVENT_BYTES { Err(TooLong) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let (mut scanner, mut events) = (Scanner::default(), Vec::new());
        for piece in pieces {
            scanner.feed(Bytes::copy_from_slice(piece));
            while let Some(event) = scanner.next().unwrap() {
                events.push(event);
            }
        }
        events.extend(scanner.finish().map(Event::Data));
        events
    }

    fn data(text: &'static str) -> Event {
        Event::Data(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for ends in ["\n", "\r\n", "\r"] {
            let text = "data: a\n\n: hello\ndata:b\nid: 1\ndata:  c\n\ndata: [DONE]\n\n".replace('\n', ends);
            let expected = [data("a"), Event::Comment, data("b\n c"), data("[DONE]")];
            assert_eq!(scan([text.as_bytes()]), expected, "{ends:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(scan([b"\xEF\xBB\xBFdata: a\n\n".as_slice()]), [data("a")]);
    }

    #[test]
    fn a_line_that_never_ends_is_dropped_at_the_end_but_a_missing_empty_line_is_forgiven() {
        assert_eq!(scan([b"data: a\n\ndata: {\"cut".as_slice()]), [data("a")]);
        assert_eq!(scan([b"data: [DONE]\n".as_slice()]), [data("[DONE]")]);
    }

    #[test]
    fn a_line_in_one_piece_is_a_view_into_it() {
        let piece = Bytes::from_static(b"data: abc\n\n");
        let mut scanner = Scanner::default();
        scanner.feed(piece.clone());
        let Ok(Some(Event::Data(data))) = scanner.next() else { panic!("no event") };
        assert_eq!(data.as_ptr(), piece[6..].as_ptr());
    }

    #[test]
    fn a_line_without_end_stops_at_the_limit() {
        let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
        let mut scanner = Scanner::default();
        let fed = (0..8).take_while(|_| {
            scanner.feed(piece.clone());
            scanner.next().is_ok()
        });
        assert_eq!(fed.count(), 4);
    }

    #[test]
    fn many_short_data_lines_of_one_event_stop_at_the_limit() {
        let lines = Bytes::from("data: 0123456789\n".repeat(64 * 1024));
        let mut scanner = Scanner::default();
        let fed = (0..16).take_while(|_| {
            scanner.feed(lines.clone());
            scanner.next().is_ok()
        });
        assert!(fed.count() < 16);
    }

    proptest! {
        #[test]
        fn cutting_the_input_anywhere_changes_nothing(
            lines in prop::collection::vec("(data: ?[a-z\\[\\]]{0,9}|:[a-z]{0,3}|id: 1|)", 0..20),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r"]), 20),
            cuts in prop::collection::vec(1usize..7, 1..10),
        ) {
            let text: String = lines.iter().zip(&ends).flat_map(|(line, end)| [line.as_str(), *end]).collect();
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(scan(pieces), scan([text.as_bytes()]));
        }
    }
}
