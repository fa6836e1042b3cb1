//! The original's public face: a stream of bytes becomes a stream of events.

use crate::limit::{count_comments, count_received, current_limit, keep_refused};
use crate::parser::{DEFAULT_EVENT_LIMIT, Event, Parser};
use crate::skipped::TooLarge;
use futures_core::Stream;
use nom::error::{Error as NomError, ErrorKind};
use pin_project_lite::pin_project;
use std::fmt;
use std::pin::Pin;
use std::string::FromUtf8Error;
use std::task::{Context, Poll, ready};

pin_project! {
    /// A stream of events. It ends with its source, after a transport error and after an event over the
    /// limit, which under [`limit_events`](crate::limit_events) is dropped instead; an event that its source left incomplete is dropped.
    pub struct EventStream<S> {
        #[pin]
        source: S,
        parser: Parser,
        ended: bool,
    }
}

impl<S> EventStream<S> {
    /// Events of `source`, under the limit of the [`limit_events`](crate::limit_events) around this call or
    /// else [`DEFAULT_EVENT_LIMIT`](crate::DEFAULT_EVENT_LIMIT).
    pub fn new(source: S) -> Self {
        let limit = current_limit();
        let mut parser = Parser::new(limit.unwrap_or(DEFAULT_EVENT_LIMIT));
        // Only there somebody hears of what is skipped; anybody else would take the gap for all that there is.
        if limit.is_some() {
            parser.skip_oversized();
        }
        Self { source, parser, ended: false }
    }

    /// Sets what one event may take, bytes; see [`Parser::new`] for what counts.
    pub fn set_event_limit(&mut self, bytes: usize) {
        self.parser.set_event_limit(bytes);
    }

    /// Sets the id that events carry until the server sends one: that of an earlier connection.
    pub fn set_last_event_id(&mut self, id: impl Into<String>) {
        self.parser.set_last_event_id(id.into());
    }

    /// The id of the last complete event, or the one that was set.
    pub fn last_event_id(&self) -> &str {
        self.parser.last_event_id()
    }
}

impl<S, B, E> Stream for EventStream<S>
where
    S: Stream<Item = Result<B, E>>,
    B: AsRef<[u8]>,
{
    type Item = Result<Event, EventStreamError<E>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        let last = loop {
            let next = this.parser.next_event();
            count_comments(this.parser.take_comments());
            match next {
                Ok(Some(event)) => return Poll::Ready(Some(Ok(event))),
                Ok(None) => {}
                Err(error) if this.parser.is_over(error) => break Some(Err(error.into())),
                Err(_) => {
                    this.parser.take_refused().into_iter().for_each(keep_refused);
                    // The error's variants all end the stream under `reqwest-eventsource`, so there is no item to say it with.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            match ready!(this.source.as_mut().poll_next(cx)) {
                Some(Ok(piece)) => {
                    count_received(piece.as_ref());
                    this.parser.push(piece.as_ref());
                }
                Some(Err(error)) => break Some(Err(EventStreamError::Transport(error))),
                None => break None,
            }
        };
        *this.ended = true;
        this.parser.abandon().into_iter().for_each(keep_refused);
        this.parser.discard();
        Poll::Ready(last)
    }
}

/// Why a stream of events ended early.
#[derive(Debug, PartialEq)]
pub enum EventStreamError<E> {
    /// Never occurs: invalid UTF-8 is decoded to U+FFFD. `reqwest-eventsource` names the variant.
    Utf8(FromUtf8Error),
    /// An event or an id over its limit; see [`too_large`].
    Parser(NomError<String>),
    /// The source's own error.
    Transport(E),
}

impl<E> From<TooLarge> for EventStreamError<E> {
    fn from(error: TooLarge) -> Self {
        Self::Parser(NomError::new(error.to_string(), ErrorKind::TooLarge))
    }
}

impl<E: fmt::Display> fmt::Display for EventStreamError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utf8(error) => write!(f, "UTF8 error: {error}"),
            Self::Parser(error) => write!(f, "Parse error: {}", error.input),
            Self::Transport(error) => write!(f, "Transport error: {error}"),
        }
    }
}

impl<E: fmt::Display + fmt::Debug> std::error::Error for EventStreamError<E> {}

/// The sentence of an error in [`EventStreamError::Parser`] or `reqwest_eventsource::Error::Parser` that
/// says that an event was over its limit, the limit included. None for any other nom error.
pub fn too_large(error: &NomError<String>) -> Option<&str> {
    (error.code == ErrorKind::TooLarge).then_some(error.input.as_str())
}

/// Turns streams of bytes into streams of events.
pub trait Eventsource: Sized {
    /// The events of this stream of bytes.
    fn eventsource(self) -> EventStream<Self>;
}

impl<S, B, E> Eventsource for S
where
    S: Stream<Item = Result<B, E>>,
    B: AsRef<[u8]>,
{
    fn eventsource(self) -> EventStream<Self> {
        EventStream::new(self)
    }
}
