//! The original's public face: a stream of bytes becomes a stream of events.

use crate::limit::current_limit;
use crate::parser::{DEFAULT_EVENT_LIMIT, Event, Item, Parser};
use crate::signal::Signal;
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
    pub struct EventStream<S: Stream> {
        #[pin]
        source: S,
        parser: Parser,
        // Whether what is no event is told as a [`Signal`].
        signals: bool,
        // A piece came, and nothing in it was told yet.
        quiet: bool,
        // No byte has come yet.
        untouched: bool,
        end: Option<End<S::Item>>,
    }
}

/// Why nothing more is read.
enum End<I> {
    /// The source has ended, or failed with this item.
    Source(Option<I>),
    TooLarge(TooLarge),
    Told,
}

impl<S: Stream> EventStream<S> {
    /// Events of `source`, under the limit of the [`limit_events`](crate::limit_events) around this call or
    /// else [`DEFAULT_EVENT_LIMIT`](crate::DEFAULT_EVENT_LIMIT).
    pub fn new(source: S) -> Self {
        let limit = current_limit();
        let mut parser = Parser::new(limit.unwrap_or(DEFAULT_EVENT_LIMIT));
        // Only there somebody hears of what is skipped; anybody else would take the gap for all that there is.
        if limit.is_some() {
            parser.skip_oversized();
        }
        Self { source, parser, signals: limit.is_some(), quiet: false, untouched: true, end: None }
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
        while this.end.is_none() {
            let told = match this.parser.next_item() {
                Ok(Some(Item::Event(event))) => Some(event),
                Ok(Some(Item::Comment)) if *this.signals => Some(Signal::Comment.into_event()),
                Ok(Some(Item::Comment | Item::Field { .. })) => continue,
                Ok(None) => this.quiet.then(|| Signal::Bytes.into_event()),
                Err(why) if this.parser.is_over(why) => {
                    *this.end = Some(End::TooLarge(why));
                    break;
                }
                Err(_) => this.parser.take_refused().map(|refused| Signal::Oversized(refused).into_event()),
            };
            *this.quiet = false;
            if let Some(event) = told {
                return Poll::Ready(Some(Ok(event)));
            }
            match ready!(this.source.as_mut().poll_next(cx)) {
                // The end of an HTTP/2 stream may come as one; it is no byte of the server's.
                Some(Ok(piece)) if piece.as_ref().is_empty() => {}
                Some(Ok(piece)) => {
                    if std::mem::replace(this.untouched, false)
                        && *this.signals
                        && !begins_as_text(piece.as_ref())
                    {
                        *this.end = Some(End::Source(None));
                        return Poll::Ready(Some(Ok(Signal::NoText.into_event())));
                    }
                    *this.quiet = *this.signals;
                    this.parser.push(piece.as_ref());
                }
                last => *this.end = Some(End::Source(last)),
            }
        }
        let refused = this.parser.abandon();
        this.parser.discard();
        if let Some(refused) = refused.filter(|_| *this.signals) {
            return Poll::Ready(Some(Ok(Signal::Oversized(refused).into_event())));
        }
        Poll::Ready(match this.end.replace(End::Told) {
            Some(End::Source(Some(Err(error)))) => Some(Err(EventStreamError::Transport(error))),
            Some(End::TooLarge(why)) => Some(Err(why.into())),
            Some(End::Source(_) | End::Told) | None => None,
        })
    }
}

/// Whether bytes can be the beginning of a stream of events, which is text. Compressed ones begin with a magic number.
fn begins_as_text(piece: &[u8]) -> bool {
    let piece = piece.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(piece);
    piece.iter().take(2).all(|byte| matches!(byte, b'\t' | b'\r' | b'\n' | b' '..=b'~'))
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
pub trait Eventsource: Stream + Sized {
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
