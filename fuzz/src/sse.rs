//! Bytes of the control channel: however they are cut, the same events come out, within the limit.
//!
//! Each stream is read twice: until an event over the limit, and with such events skipped.
//!
//! An input is a limit (one byte, 255 is the usual one), a seed for the cuts (one byte), and the stream.

use eventsource_stream::{BEGINNING, DEFAULT_EVENT_LIMIT, ENDING, Event, ID_LIMIT, Parser, TooLarge};

/// The longest piece that a stream is cut into, in bytes: short, so that a short input has many cuts.
const LONGEST_PIECE: usize = 12;

/// Reads the stream whole and in pieces.
pub fn check(data: &[u8]) {
    let [limit, seed, stream @ ..] = data else { return };
    let limit = if *limit == u8::MAX { DEFAULT_EVENT_LIMIT } else { usize::from(*limit) };
    for skips in [false, true] {
        let whole = read([stream], limit, skips);
        whole.iter().flatten().for_each(|event| check_event(event, limit));
        assert_eq!(read(pieces(stream, u64::from(*seed)), limit, skips), whole, "the cuts make a difference");
    }
}

fn check_event(event: &Event, limit: usize) {
    // The type of an event without one is not received.
    let named = if event.event == "message" { 0 } else { event.event.len() };
    assert!(event.data.len() + named <= limit && event.id.len() <= ID_LIMIT, "over the limit: {event:?}");
    assert!(!event.id.contains('\0') && !event.event.contains(['\r', '\n']), "not a line: {event:?}");
}

/// The events of a stream and the errors for those over the limit, until the end.
fn read<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limit: usize,
    skips: bool,
) -> Vec<Result<Event, TooLarge>> {
    let (mut parser, mut items) = (Parser::new(limit), Vec::new());
    if skips {
        parser.skip_oversized();
    }
    for piece in pieces {
        parser.push(piece);
        while let Some(item) = parser.next_event().transpose() {
            let over = item.as_ref().is_err_and(|why| parser.is_over(*why));
            check_refused(&mut parser);
            items.push(item);
            if over {
                return items;
            }
        }
    }
    items
}

fn check_refused(parser: &mut Parser) {
    // U+FFFD takes three bytes where one was received.
    if let Some(refused) = parser.take_refused() {
        assert!(
            refused.beginning.len() <= 3 * BEGINNING && refused.ending.len() <= 3 * ENDING,
            "{refused:?}"
        );
    }
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
