//! Feeds bytes to the drop-in, cut into pieces, through its public stream.

use eventsource_stream::{Event, EventStreamError, Eventsource, Parser, TooLarge};
use futures_util::{FutureExt, StreamExt, stream};
use std::convert::Infallible;

/// What a stream gave until its end.
pub(crate) type Outcome = Vec<Result<Event, EventStreamError<Infallible>>>;

/// The items of a stream whose bytes arrive as `pieces`, one event limited to `limit` bytes.
pub(crate) fn outcome_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> Outcome {
    let mut events = stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)).eventsource();
    events.set_event_limit(limit);
    events.collect().now_or_never().expect("a source that is always ready never makes the stream wait")
}

/// The items of a parser that skips events over the limit, what it kept of those included, until its end.
#[allow(dead_code, reason = "one of the tests that share this module uses it")]
pub(crate) fn skipping<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limit: usize,
) -> Vec<Result<Event, (TooLarge, String, String)>> {
    let (mut parser, mut items) = (Parser::new(limit), Vec::new());
    parser.skip_oversized();
    for piece in pieces {
        parser.push(piece);
        loop {
            match parser.next_event() {
                Ok(None) => break,
                Ok(Some(event)) => items.push(Ok(event)),
                Err(why) => {
                    let kept = parser.take_refused().map(|r| (r.event, r.beginning + "|" + &r.ending));
                    let (event, data) = kept.unwrap_or_default();
                    items.push(Err((why, event, data)));
                    if parser.is_over(why) {
                        return items;
                    }
                }
            }
        }
    }
    items
}
