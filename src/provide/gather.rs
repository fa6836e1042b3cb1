//! Pieces that wait for the connection at one moment go in one message.
//!
//! Nothing waits for more to come: the first piece leaves as soon as the connection takes it, and those that came meanwhile follow together.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::Stream;

use crate::pb::{
    Piece, SessionRequest, TaskChunk, piece::Output as More, session_request::Payload,
    task_chunk::Output as First,
};

/// Most bytes that are gathered into one message. Beyond this the cost of a message is lost in that of its bytes, and a larger one would
/// hold up the other tasks of the session.
const MAX_GATHERED_BYTES: usize = 64 << 10;

/// The messages of a session in their order, with neighbours of one task gathered.
#[derive(Debug)]
pub(super) struct Gathered {
    messages: mpsc::Receiver<SessionRequest>,
    /// Taken from the queue, and not part of the message before it.
    next: Option<SessionRequest>,
}

impl Gathered {
    pub(super) fn new(messages: mpsc::Receiver<SessionRequest>) -> Self {
        Self { messages, next: None }
    }

    /// Adds what waits already, as long as it is output of the same task.
    fn add_waiting(&mut self, first: &mut TaskChunk) {
        let mut bytes = first.encoded_len();
        while let Ok(message) = self.messages.try_recv() {
            bytes += message.encoded_len();
            match message.payload {
                Some(Payload::TaskChunk(TaskChunk { task_id, output: Some(output), .. }))
                    if task_id == first.task_id && bytes <= MAX_GATHERED_BYTES =>
                {
                    first.more.push(Piece { output: Some(further(output)) });
                }
                payload => {
                    self.next = Some(SessionRequest { payload });
                    return;
                }
            }
        }
    }
}

impl Stream for Gathered {
    type Item = SessionRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SessionRequest>> {
        let message = match self.next.take() {
            Some(message) => Some(message),
            None => ready!(self.messages.poll_recv(context)),
        };
        Poll::Ready(message.map(|mut message| {
            if let Some(Payload::TaskChunk(first @ TaskChunk { output: Some(_), .. })) = &mut message.payload
            {
                self.add_waiting(first);
            }
            message
        }))
    }
}

fn further(output: First) -> More {
    match output {
        First::ChunkJson(json) => More::ChunkJson(json),
        First::Delta(delta) => More::Delta(delta),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::provide::wire;

    fn piece(task: &str, json: &[u8]) -> SessionRequest {
        wire::chunk(task, Some(First::ChunkJson(json.to_vec().into())))
    }

    fn end(task: &str) -> SessionRequest {
        wire::finished(task, crate::domain::Outcome::Complete, None)
    }

    /// What leaves when all of this waits: each message's task and the sizes of its pieces; an end has none.
    fn left(messages: Vec<SessionRequest>) -> Vec<(String, Vec<usize>)> {
        let (sender, receiver) = mpsc::channel(messages.len());
        for message in messages {
            sender.try_send(message).expect("there is room");
        }
        drop(sender);
        let messages: Vec<_> = Gathered::new(receiver).collect().now_or_never().expect("all of it waits");
        messages.into_iter().map(|message| of(message.payload.expect("a payload"))).collect()
    }

    fn of(payload: Payload) -> (String, Vec<usize>) {
        match payload {
            Payload::TaskChunk(chunk) => {
                let first = chunk.output.map(further).into_iter();
                let pieces = first.chain(chunk.more.into_iter().filter_map(|piece| piece.output));
                let size = |output| match output {
                    More::ChunkJson(json) => json.len(),
                    More::Delta(delta) => delta.content.len(),
                };
                (chunk.task_id, pieces.map(size).collect())
            }
            Payload::TaskFinished(end) => (end.task_id, vec![]),
            other => panic!("{other:?} was not sent"),
        }
    }

    #[test]
    fn pieces_of_one_task_that_wait_together_leave_in_one_message_in_their_order() {
        let messages = vec![piece("a", b"1"), piece("a", b"22"), piece("a", b"333"), end("a")];
        assert_eq!(left(messages), [("a".into(), vec![1, 2, 3]), ("a".into(), vec![])]);
    }

    #[test]
    fn messages_of_other_tasks_and_signs_of_life_keep_their_place() {
        let alive = wire::chunk("a", None);
        let messages = vec![piece("a", b"1"), piece("b", b"22"), piece("b", b"1"), alive, piece("a", b"1")];
        let expected = [("a", vec![1]), ("b", vec![2, 1]), ("a", vec![]), ("a", vec![1])];
        assert_eq!(left(messages), expected.map(|(task, sizes)| (task.to_owned(), sizes)));
    }

    #[test]
    fn a_message_grows_to_its_limit_and_a_larger_piece_goes_alone() {
        let half = vec![b'x'; MAX_GATHERED_BYTES / 2 - 100];
        let large = vec![b'x'; 2 * MAX_GATHERED_BYTES];
        let messages = [&half, &half, &half, &large, &half].map(|json| piece("a", json)).to_vec();
        let sizes: Vec<_> = left(messages).into_iter().map(|(_, sizes)| sizes).collect();
        let (half, large) = (half.len(), large.len());
        assert_eq!(sizes, [vec![half, half], vec![half], vec![large], vec![half]]);
    }

    #[tokio::test]
    async fn a_piece_that_is_alone_does_not_wait_for_others() {
        let (sender, receiver) = mpsc::channel(1);
        let mut gathered = Gathered::new(receiver);
        sender.send(piece("a", b"1")).await.expect("it is read");
        assert_eq!(gathered.next().now_or_never().flatten(), Some(piece("a", b"1")));
        assert!(gathered.next().now_or_never().is_none(), "nothing else has come");
    }
}
