//! Access to the limit of a stream that somebody else constructs, and to what it has received.
//!
//! `reqwest-eventsource` makes its [`EventStream`](crate::EventStream) inside its own `poll_next`, where nobody can
//! configure it. So the limit is in a thread-local during each poll: unlike a process-wide setting, this allows
//! several agents with different limits in one process, as tests need it.

use crate::skipped::Refused;
use futures_core::Stream;
use pin_project_lite::pin_project;
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

thread_local! {
    static LIMIT: Cell<Option<usize>> = const { Cell::new(None) };
    static RECEIVED: Cell<u64> = const { Cell::new(0) };
    static COMMENTS: Cell<u64> = const { Cell::new(0) };
    static UNTOUCHED: Cell<bool> = const { Cell::new(false) };
    static NO_TEXT: Cell<bool> = const { Cell::new(false) };
    static REFUSED: Cell<Option<Refused>> = const { Cell::new(None) };
}

/// Keeps what is known of an event over its limit, for the [`LimitEvents`] that polls its source.
pub(crate) fn keep_refused(refused: Refused) {
    REFUSED.set(Some(refused));
}

/// Counts bytes that came from a source, for the [`LimitEvents`] that polls it, and looks at the first ones.
pub(crate) fn count_received(piece: &[u8]) {
    if !piece.is_empty() && UNTOUCHED.replace(false) {
        NO_TEXT.set(!begins_as_text(piece));
    }
    RECEIVED.set(RECEIVED.get() + piece.len() as u64);
}

/// Whether bytes can be the beginning of a stream of events, which is text. Compressed ones begin with a magic number.
fn begins_as_text(piece: &[u8]) -> bool {
    let piece = piece.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(piece);
    piece.iter().take(2).all(|byte| matches!(byte, b'\t' | b'\r' | b'\n' | b' '..=b'~'))
}

/// Counts comments that a source brought, for the [`LimitEvents`] that polls it.
pub(crate) fn count_comments(comments: u64) {
    COMMENTS.set(COMMENTS.get() + comments);
}

/// What an event may take, bytes, in a stream that is made here and now, if a [`LimitEvents`] polls whoever makes it.
pub(crate) fn current_limit() -> Option<usize> {
    LIMIT.get()
}

pin_project! {
    /// See [`limit_events`].
    #[derive(Debug)]
    pub struct LimitEvents<S> {
        #[pin]
        inner: S,
        bytes: usize,
        received: u64,
        comments: u64,
        no_text: bool,
        refused: Option<Refused>,
    }
}

impl<S> LimitEvents<S> {
    /// What is kept of an event that was over its limit, once. To be asked after every poll: an event that was dropped makes
    /// the poll pending, with a wake, so there is one at most, and what comes after it has not been given yet.
    pub fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }

    /// Bytes that came so far, those of comments too.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the first bytes were none of a text: something on the way has compressed the stream.
    pub fn is_no_text(&self) -> bool {
        self.no_text
    }

    /// Comments that came so far: they are no events, and this is how a keep-alive comment is noticed.
    pub fn comments(&self) -> u64 {
        self.comments
    }
}

/// Passes `inner` on, and gives every [`EventStream`](crate::EventStream) that `inner` makes while it is
/// polled the limit of `bytes` for one event. An event over it is dropped, and the stream goes on. Made for `reqwest_eventsource::EventSource`:
///
/// ```
/// # fn connect(request: reqwest::RequestBuilder) -> Result<(), reqwest_eventsource::CannotCloneRequestError> {
/// let mut source = reqwest_eventsource::EventSource::new(request)?;
/// source.set_retry_policy(Box::new(reqwest_eventsource::retry::Never));
/// let events = eventsource_stream::limit_events(source, 1024 * 1024);
/// # drop(events);
/// # Ok(())
/// # }
/// ```
pub fn limit_events<S: Stream>(inner: S, bytes: usize) -> LimitEvents<S> {
    LimitEvents { inner, bytes, received: 0, comments: 0, no_text: false, refused: None }
}

/// Puts the limit and the counts of the surroundings back, also when a poll panics.
struct Restore(Option<usize>, u64, u64);

impl Drop for Restore {
    fn drop(&mut self) {
        LIMIT.set(self.0);
        RECEIVED.set(self.1);
        COMMENTS.set(self.2);
    }
}

impl<S: Stream> Stream for LimitEvents<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        let _restore = Restore(LIMIT.replace(Some(*this.bytes)), RECEIVED.replace(0), COMMENTS.replace(0));
        UNTOUCHED.set(*this.received == 0);
        let polled = this.inner.poll_next(cx);
        UNTOUCHED.set(false);
        *this.no_text |= NO_TEXT.take();
        *this.received += RECEIVED.get();
        *this.comments += COMMENTS.get();
        if let Some(refused) = REFUSED.take() {
            *this.refused = Some(refused);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt, stream};

    /// The limit seen from inside a poll.
    fn seen() -> impl Stream<Item = Option<usize>> + Unpin {
        stream::repeat_with(current_limit)
    }

    #[test]
    fn comments_count_as_received_and_are_told_from_events() {
        let pieces = stream::iter([Ok::<_, ()>(": ping\n\n"), Ok(":\ndata: x\n\n"), Ok("data:y\n\n")]);
        let mut events = limit_events(crate::EventStream::new(pieces), 100);
        assert!(events.next().now_or_never().flatten().is_some());
        assert_eq!((events.received(), events.comments()), (19, 2));
        assert!(events.next().now_or_never().flatten().is_some());
        assert_eq!((events.received(), events.comments()), (27, 2));
    }

    #[test]
    fn a_stream_that_begins_as_something_compressed_is_told_from_text() {
        let no_text = |first: &'static [u8]| {
            let pieces = stream::iter([Ok::<_, ()>(first)]).chain(stream::pending());
            let mut events = limit_events(crate::EventStream::new(pieces), 100);
            assert!(events.next().now_or_never().is_none());
            events.is_no_text()
        };
        for text in [&b": hello"[..], b"data: x", b"\n", b"\xEF\xBB\xBFevent:"] {
            assert!(!no_text(text), "{text:?}");
        }
        for compressed in [&b"\x1f\x8b\x08"[..], b"\x28\xb5\x2f\xfd", b"\x78\x9c", b"\x0b\x02\x80"] {
            assert!(no_text(compressed), "{compressed:?}");
        }
    }

    #[test]
    fn a_limit_holds_within_its_own_polls_only() {
        let mut outer = limit_events(limit_events(seen(), 1).zip(seen()), 2);
        assert_eq!(outer.next().now_or_never(), Some(Some((Some(1), Some(2)))));
        assert_eq!(current_limit(), None);
    }
}
