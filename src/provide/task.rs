//! One offered task on the client's side: what a provider gets, where its output goes, and its exactly one end.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use prost::Message as _;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;

use super::wire;
use crate::{
    domain::{Delta, Failure, FailureCode, Outcome, Printable, Usage},
    pb::{self, task_chunk::Output as PbOutput},
};

/// How long a provider may take to react to a cancellation before its future is dropped: long enough to close a request
/// properly, short enough that a provider that ignores it does not hold the task's slot.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Something that runs inferences. It is called once per offered task, for many tasks at a time.
///
/// Declare the implementation with [`async_trait`](super::async_trait).
#[tonic::async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Runs one task. A streaming answer goes piece by piece to `chunks` and ends with [`Outcome::Complete`]; a whole answer is
    /// returned as [`Outcome::Body`] or [`Outcome::Result`]. Either works whether or not the caller wants a stream.
    ///
    /// When `cancel` fires nobody waits for the answer any more: return [`Outcome::Cancelled`] soon, or the future is
    /// dropped after 5 s. A [`Failure`] is what the caller gets.
    async fn run(&self, task: Task, chunks: Chunks, cancel: CancellationToken) -> Finished;
}

/// One inference to run.
#[derive(Clone, Debug)]
pub struct Task {
    /// mcpd's id of the task, for logs.
    pub id: String,
    /// The name of the provider that is asked, as it was pushed.
    pub provider: String,
    /// The OpenAI chat-completions body, exactly as mcpd sent it.
    pub request: Bytes,
    /// Whether the caller wants a stream.
    pub streaming: bool,
    /// Time left for the whole task, counted from its receipt. The agent watches it and cancels.
    pub timeout: Duration,
    /// W3C trace context to run under: `traceparent` and perhaps `tracestate`; empty when tracing is off.
    pub trace_context: BTreeMap<String, String>,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its end.
    pub outcome: Outcome,
    /// What it used, where the provider said so; never an estimate.
    pub usage: Option<Usage>,
}

impl From<Outcome> for Finished {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, usage: None }
    }
}

impl From<Failure> for Finished {
    fn from(failure: Failure) -> Self {
        Outcome::Failed(failure).into()
    }
}

impl Task {
    pub(super) fn from_offer(offer: pb::TaskOffer) -> Self {
        Self {
            id: offer.task_id,
            provider: offer.provider_name,
            request: offer.request_json,
            streaming: offer.streaming,
            timeout: Duration::from_millis(offer.timeout_ms.into()),
            trace_context: offer.w3c_trace_context,
        }
    }
}

/// Where the pieces of one task's output go, in order. Sending waits while the agent is slower than the provider.
#[derive(Clone, Debug)]
pub struct Chunks {
    task_id: Arc<str>,
    outgoing: mpsc::Sender<pb::SessionRequest>,
    max_message_bytes: usize,
}

/// Why a piece was not sent; returned from a provider with `?` it ends the task in the right way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The session with the agent is gone, and the task with it.
    #[error("the session with the agent has ended")]
    SessionEnded,
    /// The piece is larger than a message that the agent accepts.
    #[error("a piece of {len} bytes is more than the agent takes in one message ({max} bytes)")]
    TooLarge {
        /// The piece's size in bytes.
        len: usize,
        /// The agent's limit in bytes.
        max: usize,
    },
}

impl From<NotSent> for Finished {
    fn from(reason: NotSent) -> Self {
        match reason {
            NotSent::SessionEnded => Outcome::Cancelled.into(),
            NotSent::TooLarge { .. } => Failure::new(FailureCode::BadOutput, reason.to_string()).into(),
        }
    }
}

impl Chunks {
    pub(super) fn new(
        task_id: Arc<str>,
        outgoing: mpsc::Sender<pb::SessionRequest>,
        max_message_bytes: usize,
    ) -> Self {
        Self { task_id, outgoing, max_message_bytes }
    }

    /// Sends one OpenAI `chat.completion.chunk`, byte for byte as the provider gave it.
    ///
    /// # Errors
    /// If the session has ended, or the chunk is too large for the agent.
    pub async fn raw(&self, chunk_json: Bytes) -> Result<(), NotSent> {
        self.send(Some(PbOutput::ChunkJson(chunk_json))).await
    }

    /// Sends a plain piece, which the agent turns into an OpenAI chunk.
    ///
    /// # Errors
    /// If the session has ended, or the piece is too large for the agent.
    pub async fn delta(&self, delta: Delta) -> Result<(), NotSent> {
        self.send(Some(PbOutput::Delta(wire::delta(delta)))).await
    }

    /// Says that the provider is alive although it has no output yet: this postpones the agent's token deadlines.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn alive(&self) -> Result<(), NotSent> {
        self.send(None).await
    }

    /// The largest message the agent takes, in bytes.
    pub fn max_message_bytes(&self) -> usize {
        self.max_message_bytes
    }

    async fn send(&self, output: Option<PbOutput>) -> Result<(), NotSent> {
        let message = wire::chunk(&self.task_id, output);
        within(&message, self.max_message_bytes)?;
        // There is nearly always room, and then no need to wait.
        match self.outgoing.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => {
                self.outgoing.send(message).await.map_err(|_| NotSent::SessionEnded)
            }
            Err(TrySendError::Closed(_)) => Err(NotSent::SessionEnded),
        }
    }
}

/// Runs `task` on `provider` and sends its one end. Returns the task's id.
pub(super) async fn run(
    provider: Arc<dyn Provider>,
    task: Task,
    chunks: Chunks,
    cancel: CancellationToken,
) -> Arc<str> {
    let (id, outgoing, max) =
        (Arc::clone(&chunks.task_id), chunks.outgoing.clone(), chunks.max_message_bytes);
    let finished = end_of(provider.run(task, chunks, cancel.clone()), &cancel).await;
    tracing::debug!(task_id = %Printable(&id), outcome = outcome_word(&finished.outcome), "task ended");
    let mut message = wire::finished(&id, finished.outcome, finished.usage);
    if let Err(reason) = within(&message, max) {
        // An error that says so, instead of the end of the whole session.
        message = wire::finished(&id, Finished::from(reason).outcome, None);
    }
    // A closed channel means that the session is gone; the agent has ended the task itself.
    let _ = outgoing.send(message).await;
    id
}

/// The provider's end, or the one it owes when it panics or ignores its cancellation.
async fn end_of(running: impl Future<Output = Finished>, cancel: &CancellationToken) -> Finished {
    let overdue = async {
        cancel.cancelled().await;
        tokio::time::sleep(CANCEL_GRACE).await;
    };
    tokio::select! {
        biased;
        ended = AssertUnwindSafe(running).catch_unwind() => ended.unwrap_or_else(|_panic| {
            Failure::new(FailureCode::Internal, "the provider failed inside; its log says where").into()
        }),
        () = overdue => Outcome::Cancelled.into(),
    }
}

fn within(message: &pb::SessionRequest, max: usize) -> Result<(), NotSent> {
    match message.encoded_len() {
        len if len > max => Err(NotSent::TooLarge { len, max }),
        _ => Ok(()),
    }
}

fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Complete | Outcome::Body(_) | Outcome::Result(_) => "ok",
        Outcome::Failed(failure) => failure.code.as_str(),
        Outcome::Cancelled => "cancelled",
    }
}
