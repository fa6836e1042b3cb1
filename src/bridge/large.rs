//! Large messages take turns.
//!
//! A message is collected completely before it is decoded, and 64 sessions that each collect 33 MiB would hold 2 GiB. Therefore only a few
//! messages larger than [`LARGE`] are collected at a time; the others wait at their senders, which HTTP/2's flow control holds back. Small
//! messages never wait. A turn that takes too long ends its stream, so that nobody keeps the others waiting.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};
use tokio_util::sync::PollSemaphore;
use tonic::Status;

/// Messages up to this many bytes are collected without a turn: even those of all sessions together are not much.
const LARGE: usize = 1 << 20;
/// How many large messages are collected at a time: at most 66 MiB, and as much again once they are decoded.
const TURNS: usize = 2;
/// How long a message's turn may take. A local program sends 33 MiB in a fraction of a second.
const TURN_TIME: Duration = Duration::from_secs(10);

/// The turns of one server.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TURNS)))
    }
}

impl Turns {
    /// Wraps a body so that its large messages wait for their turns.
    pub(super) fn take<B>(&self, body: B) -> InTurn<B> {
        let turns = PollSemaphore::new(Arc::clone(&self.0));
        InTurn { body, place: Place::default(), turns, waiting: None, turn: None }
    }
}

/// A stream of messages whose large ones wait for their turns.
#[derive(Debug)]
pub(super) struct InTurn<B> {
    body: B,
    place: Place,
    turns: PollSemaphore,
    /// The bytes with which a large message begins. They are passed on once it has its turn.
    waiting: Option<Frame<Bytes>>,
    turn: Option<(OwnedSemaphorePermit, Pin<Box<Sleep>>)>,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

impl<B> InTurn<B>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    /// Passes on what has waited, once there is a turn for it.
    fn begin(&mut self, context: &mut Context<'_>) -> Polled {
        let Some(permit) = ready!(self.turns.poll_acquire(context)) else { return Poll::Ready(None) };
        self.turn = Some((permit, Box::pin(tokio::time::sleep(TURN_TIME))));
        Poll::Ready(self.waiting.take().map(Ok))
    }

    /// Ends the stream if its turn is over; this is checked only while the sender is being waited for.
    fn late(&mut self, context: &mut Context<'_>) -> Polled {
        match &mut self.turn {
            Some((_, end)) => end.as_mut().poll(context).map(|()| {
                let message = format!("a message of more than {LARGE} bytes did not come within 10 s");
                Some(Err(Status::deadline_exceeded(message)))
            }),
            None => Poll::Pending,
        }
    }
}

impl<B> Body for InTurn<B>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        if self.waiting.is_some() {
            return self.begin(context);
        }
        // When more is asked for, every complete message has been taken.
        if !self.place.in_large() {
            self.turn = None;
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            return self.late(context);
        };
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let begins = data.is_some_and(|data| self.place.pass(data));
        // If a large message begins in the frame in which another ends, the turn continues, but its time starts anew.
        if let Some((_, end)) = self.turn.as_mut().filter(|_| begins) {
            end.as_mut().reset(Instant::now() + TURN_TIME);
        }
        match frame {
            Some(Ok(frame)) if self.place.in_large() && self.turn.is_none() => {
                self.waiting = Some(frame);
                self.begin(context)
            }
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }
}

/// The position of a stream in its sequence of messages.
#[derive(Debug, Default)]
struct Place {
    /// What has come of the next message's header: a flag, and the length in four bytes.
    header: Vec<u8>,
    /// Bytes of the present message that are still to come.
    left: usize,
    large: bool,
}

impl Place {
    /// Moves past the next bytes; returns whether a large message begins in them.
    fn pass(&mut self, mut data: &[u8]) -> bool {
        let mut begins = false;
        while let Some((first, rest)) = data.split_first() {
            if self.left > 0 {
                let passed = self.left.min(data.len());
                self.left -= passed;
                data = &data[passed..];
            } else {
                self.header.push(*first);
                data = rest;
                begins |= self.begin();
            }
        }
        begins
    }

    fn begin(&mut self) -> bool {
        let [_, a, b, c, d] = self.header[..] else { return false };
        self.left = u32::from_be_bytes([a, b, c, d]) as usize;
        self.large = self.left > LARGE;
        self.header.clear();
        self.large
    }

    /// Whether a large message has begun and not ended.
    fn in_large(&self) -> bool {
        self.large && self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::FutureExt as _;

    use super::*;

    /// What is before every message on the wire: a flag, and the length in four bytes.
    const HEADER: usize = 5;

    /// A body of frames; after the last one nothing comes any more.
    struct Script(VecDeque<Bytes>);

    impl Body for Script {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Polled {
            self.0.pop_front().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
        }
    }

    /// A message of this many bytes, in frames of HTTP/2's usual size; `sent` of them come.
    fn message(size: usize, sent: usize) -> VecDeque<Bytes> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(size).unwrap().to_be_bytes());
        bytes.extend(vec![7; sent]);
        bytes.chunks(16 << 10).map(Bytes::copy_from_slice).collect()
    }

    async fn next(body: &mut InTurn<Script>) -> Option<Result<usize, Status>> {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        frame.map(|frame| frame.map(|frame| frame.data_ref().map_or(0, Bytes::len)))
    }

    /// All that comes without waiting.
    fn all(body: &mut InTurn<Script>) -> usize {
        std::iter::from_fn(|| next(body).now_or_never()).map(|frame| frame.unwrap().unwrap()).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn of_three_large_messages_the_third_waits_until_one_has_been_taken() {
        let turns = Turns::default();
        let half = |size| turns.take(Script(message(size, size / 2)));
        let (mut first, mut second, mut third) = (half(2 * LARGE), half(2 * LARGE), half(2 * LARGE));
        assert_eq!(all(&mut first), LARGE + HEADER);
        assert_eq!(all(&mut second), LARGE + HEADER);
        assert_eq!(all(&mut third), 0, "not even its begin");
        let mut small = turns.take(Script(message(LARGE, LARGE)));
        assert_eq!(all(&mut small), LARGE + HEADER, "a small one does not wait");
        first.body.0 = [Bytes::from(vec![7; LARGE])].into();
        assert!(next(&mut first).await.is_some());
        assert_eq!(all(&mut third), 0, "the first one is whole and has still to be taken");
        assert_eq!(all(&mut first), 0);
        assert_eq!(all(&mut third), LARGE + HEADER);
        drop(second);
        let mut fourth = half(2 * LARGE);
        assert_eq!(all(&mut fourth), LARGE + HEADER, "a stream that ends gives up its turn");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_that_does_not_come_in_time_ends_its_stream() {
        let mut slow = Turns::default().take(Script(message(2 * LARGE, LARGE)));
        assert_eq!(all(&mut slow), LARGE + HEADER);
        let began = Instant::now();
        let status = next(&mut slow).await.expect("an end").expect_err("a reason");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
        assert_eq!(began.elapsed().as_secs(), TURN_TIME.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_that_begins_where_another_ends_has_its_own_time() {
        let mut two = Vec::from(message(2 * LARGE, 2 * LARGE)).concat();
        two.extend(Vec::from(message(2 * LARGE, LARGE)).concat());
        let frames = |bytes: &[u8]| bytes.chunks(16 << 10).map(Bytes::copy_from_slice).collect();
        let mut body = Turns::default().take(Script(frames(&two[..LARGE])));
        assert_eq!(all(&mut body), LARGE);
        tokio::time::advance(TURN_TIME - Duration::from_secs(1)).await;
        body.body.0 = frames(&two[LARGE..]);
        assert_eq!(all(&mut body), two.len() - LARGE);
        let began = Instant::now();
        next(&mut body).await.expect("an end").expect_err("the rest does not come");
        assert_eq!(began.elapsed().as_secs(), TURN_TIME.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_between_two_messages_has_all_the_time() {
        let mut idle = Turns::default().take(Script(message(2 * LARGE, 2 * LARGE)));
        assert_eq!(all(&mut idle), 2 * LARGE + HEADER);
        let for_ever = tokio::time::timeout(100 * TURN_TIME, next(&mut idle)).await;
        assert!(for_ever.is_err(), "nothing ends it");
    }

    #[test]
    fn the_place_is_known_whatever_the_frames_are() {
        let mut two = Vec::from(message(3, 3)).concat();
        two.extend(Vec::from(message(LARGE + 1, 9)).concat());
        for size in 1..=two.len() {
            let mut place = Place::default();
            for piece in two.chunks(size) {
                place.pass(piece);
            }
            assert_eq!((place.in_large(), place.left), (true, LARGE + 1 - 9), "in pieces of {size}");
        }
    }
}
