//! The messages that wait for a client to read them, bounded in number and in bytes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::pb::{SessionResponse, session_response::Payload};

/// Messages that may wait for a client that does not read. A client that lets more pile up is as good as gone.
const MESSAGES: usize = 1024;
/// Places that must be free for a client to be told that it sends output of unknown tasks: a flood of such output must neither take the
/// room of messages that matter nor end the session.
const SPARE_MESSAGES: usize = MESSAGES / 2;
/// Bytes that may wait for it: verdicts repeat texts that the client chose, so that even a few messages can be large. The verdicts on the
/// largest snapshot take about half of this.
const MAX_UNREAD_BYTES: usize = 8 << 20;

/// One message to the client, or the status that ends the stream.
type Outbound = Result<SessionResponse, Status>;

/// The agent's end. Nothing here blocks.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    messages: mpsc::Sender<Outbound>,
    unread: Arc<AtomicUsize>,
}

/// The client has let too much pile up.
#[derive(Debug)]
pub(super) struct NotReading;

impl Sender {
    /// Sends a message; for a client that is gone it is dropped.
    pub(super) fn send(&self, payload: Payload) -> Result<(), NotReading> {
        let message = SessionResponse { payload: Some(payload) };
        let bytes = weight(&message);
        if self.unread.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_UNREAD_BYTES {
            return Err(NotReading);
        }
        match self.messages.try_send(Ok(message)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NotReading),
        }
    }

    /// Whether there is room for messages that are not essential.
    pub(super) fn has_spare_room(&self) -> bool {
        self.messages.capacity() > SPARE_MESSAGES
            && self.unread.load(Ordering::Relaxed) < MAX_UNREAD_BYTES / 2
    }
}

/// The place that is reserved for the status that ends the stream: a client that has let all others fill up must see it too.
#[derive(Debug)]
pub(super) struct LastPlace(mpsc::OwnedPermit<Outbound>);

impl LastPlace {
    /// Ends the stream with a status. A client that is gone does not see it.
    pub(super) fn end(self, status: Status) {
        self.0.send(Err(status));
    }
}

/// The client's end.
#[derive(Debug)]
pub struct Receiver {
    messages: ReceiverStream<Outbound>,
    unread: Arc<AtomicUsize>,
}

impl Stream for Receiver {
    type Item = Outbound;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Outbound>> {
        let next = Pin::new(&mut self.messages).poll_next(context);
        if let Poll::Ready(Some(Ok(message))) = &next {
            self.unread.fetch_sub(weight(message), Ordering::Relaxed);
        }
        next
    }
}

/// Both ends of the queue from a session to its client.
pub(super) fn channel() -> (Sender, LastPlace, Receiver) {
    let (messages, receiver) = mpsc::channel(MESSAGES + 1);
    let last = LastPlace(messages.clone().try_reserve_owned().expect("a new queue has room"));
    let unread = Arc::<AtomicUsize>::default();
    let receiver = Receiver { messages: ReceiverStream::new(receiver), unread: Arc::clone(&unread) };
    (Sender { messages, unread }, last, receiver)
}

/// How many bytes a message counts. An offer counts none, because its task is held by the agent anyway, and counted there.
fn weight(message: &SessionResponse) -> usize {
    match &message.payload {
        Some(Payload::TaskOffer(_)) => 0,
        _ => message.encoded_len(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::pb::{AgentStatus, TaskOffer};

    fn status(detail: usize) -> Payload {
        Payload::AgentStatus(AgentStatus { detail: "x".repeat(detail), ..AgentStatus::default() })
    }

    /// How many of these messages the agent can send to a client that does not read.
    fn sent(sender: &Sender, payload: &Payload) -> usize {
        (0..2 * MESSAGES).take_while(|_| sender.send(payload.clone()).is_ok()).count()
    }

    #[test]
    fn a_client_that_does_not_read_has_so_many_messages_waiting_and_still_sees_why_the_stream_ends() {
        let (sender, last, mut receiver) = channel();
        assert_eq!(sent(&sender, &status(0)), MESSAGES);
        last.end(Status::resource_exhausted("it does not read"));
        let mut read = || receiver.next().now_or_never().flatten();
        assert!((0..MESSAGES).all(|_| matches!(read(), Some(Ok(_)))));
        assert!(matches!(read(), Some(Err(_))));
    }

    #[test]
    fn the_bytes_that_wait_are_bounded_but_for_offers_which_are_counted_elsewhere() {
        let (sender, _last, _receiver) = channel();
        let request_json = vec![b'x'; 1 << 20].into();
        let offer = Payload::TaskOffer(TaskOffer { request_json, ..TaskOffer::default() });
        assert!((0..16).all(|_| sender.send(offer.clone()).is_ok()));
        let (text, most) = (1 << 20, MAX_UNREAD_BYTES >> 20);
        assert_eq!(sent(&sender, &status(text)), most - 1, "a message has more than its text");
    }

    #[test]
    fn what_was_read_does_not_wait_any_more() {
        let (sender, _last, mut receiver) = channel();
        for _ in 0..2 * MESSAGES {
            sender.send(status(16 << 10)).expect("there is room");
            assert!(receiver.next().now_or_never().flatten().is_some());
        }
    }
}
