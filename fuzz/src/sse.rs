//! Bytes of the control channel: however they are cut, the same events come out, within the limit.
//!
//! An input is a limit (one byte, 255 is the usual one), a seed for the cuts (one byte), and the stream.

use eventsource_stream::{DEFAULT_EVENT_LIMIT, Event, ID_LIMIT, Parser, TooLarge};

/// The longest piece that a stream is cut into, in bytes: short, so that a short input has many cuts.
const LONGEST_PIECE: usize = 12;

/// Reads the stream whole and in pieces.
pub fn check(data: &[u8]) {
    let [limit, seed, stream @ ..] = data else { return };
    let limit = if *limit == u8::MAX { DEFAULT_EVENT_LIMIT } else { usize::from(*limit) };
    let whole = read([stream], limit);
    whole.0.iter().for_each(|event| check_event(event, limit));
    assert_eq!(read(pieces(stream, u64::from(*seed)), limit), whole, "the cuts make a difference");
}

fn check_event(event: &Event, limit: usize) {
    // The type of an event without one is not received.
    let named = if event.event == "message" { 0 } else { event.event.len() };
    assert!(event.data.len() + named <= limit && event.id.len() <= ID_LIMIT, "over the limit: {event:?}");
    assert!(!event.id.contains('\0') && !event.event.contains(['\r', '\n']), "not a line: {event:?}");
}

/// The events of a stream, and the error that ended it.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> (Vec<Event>, Option<TooLarge>) {
    let (mut parser, mut events) = (Parser::new(limit), Vec::new());
    for piece in pieces {
        parser.push(piece);
        loop {
            match parser.next_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

fn pieces(mut stream: &[u8], seed: u64) -> Vec<&[u8]> {
    let (mut rng, mut pieces) = (fastrand::Rng::with_seed(seed), Vec::new());
    while !stream.is_empty() {
        let (piece, rest) = stream.split_at(rng.usize(0..=LONGEST_PIECE).min(stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces
}
