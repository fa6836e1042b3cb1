//! The limit of a stream that somebody else constructs.
//!
//! `reqwest-eventsource` makes its [`EventStream`](crate::EventStream) inside its own `poll_next`, where nobody can
//! configure it. So the limit is in a thread-local during each poll: unlike a process-wide setting, this allows
//! several agents with different limits in one process, as tests need it. What such a stream says beside its
//! events comes as events, too: see [`Signal`](crate::Signal).

use futures_core::Stream;
use pin_project_lite::pin_project;
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

thread_local! {
    static LIMIT: Cell<Option<usize>> = const { Cell::new(None) };
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
    }
}

/// Passes `inner` on, and gives every [`EventStream`](crate::EventStream) that `inner` makes while it is
/// polled the limit of `bytes` for one event. An event over it is dropped, and the stream goes on. Among the events are
/// [`Signal`](crate::Signal)s. Made for `reqwest_eventsource::EventSource`:
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
    LimitEvents { inner, bytes }
}

/// Puts the limit of the surroundings back, also when a poll panics.
struct Restore(Option<usize>);

impl Drop for Restore {
    fn drop(&mut self) {
        LIMIT.set(self.0);
    }
}

impl<S: Stream> Stream for LimitEvents<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        let _restore = Restore(LIMIT.replace(Some(*this.bytes)));
        this.inner.poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Signal;
    use futures_util::{FutureExt, StreamExt, stream};

    /// The limit seen from inside a poll.
    fn seen() -> impl Stream<Item = Option<usize>> + Unpin {
        stream::repeat_with(current_limit)
    }

    #[test]
    fn comments_and_mere_bytes_are_told_from_events() {
        let pieces = stream::iter([Ok::<_, ()>(": ping\n\n"), Ok(""), Ok("da"), Ok("ta: x\n\ndata:y\n\n")]);
        // The stream is made where the limit holds, as `reqwest-eventsource` makes it.
        let made = stream::once(async { pieces }).flat_map(crate::EventStream::new);
        let events = limit_events(Box::pin(made), 100).collect::<Vec<_>>().now_or_never().expect("ready");
        let said: Vec<_> = events.into_iter().map(|event| event.expect("no error")).collect();
        let signals: Vec<_> = said.iter().map(Signal::of).collect();
        assert_eq!(signals, [Some(Signal::Comment), Some(Signal::Bytes), None, None]);
        assert_eq!((said[2].data.as_str(), said[3].data.as_str()), ("x", "y"));
    }

    #[test]
    fn a_stream_that_begins_as_something_compressed_is_told_from_text() {
        let no_text = |first: &'static [u8]| {
            let pieces = stream::iter([Ok::<_, ()>(first)]);
            let made = stream::once(async { pieces }).flat_map(crate::EventStream::new);
            let first = limit_events(Box::pin(made), 100).next().now_or_never().expect("ready");
            first.is_some_and(|event| Signal::of(&event.expect("no error")) == Some(Signal::NoText))
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
