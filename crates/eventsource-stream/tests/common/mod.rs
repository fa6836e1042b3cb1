//! Feeds bytes to the drop-in, cut into pieces, through its public stream.

use eventsource_stream::{Event, EventStreamError, Eventsource};
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
