//! One stream of the bridge: a reader that takes what the local program says, and a handle through which the agent speaks.
//!
//! The two share the table of the session's tasks. The agent adds a task when it offers it; the reader finds the sink for a chunk in the
//! table without asking anybody, so a token goes from the socket straight to its delivery. Sinks never block, so one task cannot make
//! the reader wait and delay another.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, iter,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    BUILTIN_CLIENT, Event, STOPPING, codec, convert,
    outbound::{self, NotReading},
};
use crate::{
    domain::{
        CancelReason, Failure, FailureCode, LinkStatus, MAX_TASK_ID_BYTES, Outcome, Output, Printable,
        ProviderName, SessionHello, SessionKey, Taken, TaskId, TaskKey, TaskSink, Verdicts,
    },
    pb::{self, session_request::Payload},
};

/// How long a stream may take to send Hello: a client sends it at once.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// What a client accepts that states no limit: the default of gRPC libraries, in bytes.
const DEFAULT_MESSAGE_BYTES: u32 = 4 << 20;
/// Most entries of a snapshot that are judged one by one. A larger one is not a set of LLMs but a burden on memory.
const MAX_SNAPSHOT: usize = 10_000;
/// Most bytes of a snapshot's texts and numbers, which the agent keeps: even those of all sessions together are not much.
const MAX_SNAPSHOT_BYTES: usize = 1 << 20;
/// Longest client id or version that is accepted, in bytes.
const MAX_HELLO_TEXT: usize = 128;

/// A task as it is offered.
pub struct Offer {
    /// The agent's key for it.
    pub key: TaskKey,
    /// mcpd's id.
    pub id: TaskId,
    /// The provider to run it on.
    pub provider: ProviderName,
    /// The OpenAI body, byte for byte.
    pub request: Bytes,
    /// Whether the caller wants a stream.
    pub streaming: bool,
    /// Time left for the whole task.
    pub timeout: Duration,
    /// W3C trace context to run under.
    pub trace_context: BTreeMap<String, String>,
    /// Where its output goes.
    pub sink: Arc<dyn TaskSink>,
}

/// Why the agent ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Another session with the same client id came.
    Replaced,
    /// The agent is stopping.
    Stopping,
    /// The client does not read what it is sent.
    NotReading,
}

impl CloseReason {
    fn status(self) -> Status {
        match self {
            Self::Replaced => Status::aborted(
                "replaced: another session with this client_id came; wait 60 s before reconnecting",
            ),
            Self::Stopping => Status::unavailable(STOPPING),
            Self::NotReading => Status::resource_exhausted("the client does not read what it is sent"),
        }
    }
}

struct LocalTask {
    key: TaskKey,
    sink: Arc<dyn TaskSink>,
    any_output: bool,
    /// The output was refused as broken; what else comes is dropped.
    broken: bool,
}

type Tasks = HashMap<TaskId, LocalTask>;

impl LocalTask {
    /// Takes a message's pieces in their order; a message without any is a sign of life. A piece that breaks the output is the error, and
    /// whatever follows it is dropped.
    fn take(&mut self, pieces: &mut impl Iterator<Item = Output>) -> Result<(), Failure> {
        if self.broken {
            return Ok(());
        }
        let first = pieces.next();
        self.any_output |= first.is_some();
        for piece in iter::once(first.unwrap_or(Output::Alive)).chain(pieces) {
            let taken =
                convert::oversized_piece(&piece).map_or_else(|| self.sink.output(piece), Taken::Broken);
            if let Taken::Broken(failure) = taken {
                self.broken = true;
                return Err(failure);
            }
        }
        Ok(())
    }
}

/// The agent's side of one session. Nothing here blocks: the session of a client that does not keep up is closed.
#[derive(Clone)]
pub struct SessionHandle {
    out: outbound::Sender,
    tasks: Arc<Mutex<Tasks>>,
    late: Arc<atomic::AtomicU64>,
    closing: Arc<Mutex<Option<CloseReason>>>,
    closed: CancellationToken,
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle").finish_non_exhaustive()
    }
}

impl SessionHandle {
    /// The first message of every session.
    pub fn welcome(&self, session: SessionKey, max_message_bytes: usize, status: &LinkStatus) {
        self.send(pb::session_response::Payload::Welcome(pb::Welcome {
            session_id: session.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            max_message_bytes: u32::try_from(max_message_bytes).unwrap_or(u32::MAX),
            agent_status: Some(convert::link_status(status)),
        }));
    }

    /// Offers a task; its output goes to the offer's sink from now on.
    pub fn offer(&self, offer: Offer) {
        let local = LocalTask { key: offer.key, sink: offer.sink, any_output: false, broken: false };
        let task_id = offer.id.as_str().to_owned();
        lock(&self.tasks).insert(offer.id, local);
        self.send(pb::session_response::Payload::TaskOffer(pb::TaskOffer {
            task_id,
            provider_name: offer.provider.as_str().to_owned(),
            request_json: offer.request,
            streaming: offer.streaming,
            timeout_ms: convert::millis(offer.timeout),
            w3c_trace_context: offer.trace_context,
        }));
    }

    /// Asks the client to stop a task.
    pub fn cancel(&self, id: &TaskId, reason: CancelReason) {
        self.send(convert::task_cancel(id.as_str(), reason));
    }

    /// Forgets a task that is over for the agent, whether or not the client has ended it.
    pub fn forget(&self, id: &TaskId) {
        lock(&self.tasks).remove(id.as_str());
    }

    /// Pieces that came for tasks that the session does not have.
    pub fn late(&self) -> u64 {
        self.late.load(atomic::Ordering::Relaxed)
    }

    /// Cuts the session off from all its tasks. Once this returns, nothing that the session still sends can reach them, so they can be
    /// offered to another session.
    pub fn detach(&self) {
        lock(&self.tasks).clear();
    }

    /// Tells what became of the snapshot.
    pub fn verdicts(&self, generation: u32, verdicts: &Verdicts) {
        self.send(convert::snapshot_result(generation, verdicts));
    }

    /// Tells the state of the link to mcpd.
    pub fn status(&self, status: &LinkStatus) {
        self.send(pb::session_response::Payload::AgentStatus(convert::link_status(status)));
    }

    /// Says goodbye; running tasks may finish within the grace.
    pub fn drain(&self, grace: Duration, reason: &str) {
        self.send(pb::session_response::Payload::Drain(pb::Drain {
            grace_ms: convert::millis(grace),
            reason: reason.to_owned(),
        }));
    }

    /// Ends the stream.
    pub fn close(&self, reason: CloseReason) {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.closed.cancel();
    }

    fn send(&self, payload: pb::session_response::Payload) {
        if let Err(NotReading) = self.out.send(payload) {
            self.close(CloseReason::NotReading);
        }
    }
}

/// A panic while the table was locked cannot leave it half changed: every change is one call.
fn lock(tasks: &Mutex<Tasks>) -> MutexGuard<'_, Tasks> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reading side of one stream.
pub(super) struct Reader {
    key: SessionKey,
    inbound: Streaming<pb::SessionRequest>,
    events: mpsc::Sender<Event>,
    handle: SessionHandle,
    last_place: outbound::LastPlace,
    /// The last unknown task whose output the client was told to stop.
    told_to_stop: String,
}

impl Reader {
    /// A reader of `inbound`, whose answers go to `out`.
    pub(super) fn new(
        key: SessionKey,
        inbound: Streaming<pb::SessionRequest>,
        (out, last_place): (outbound::Sender, outbound::LastPlace),
        events: mpsc::Sender<Event>,
        shutdown: &CancellationToken,
    ) -> Self {
        let handle = SessionHandle {
            out,
            tasks: Arc::default(),
            late: Arc::default(),
            closing: Arc::default(),
            closed: shutdown.child_token(),
        };
        Self { key, inbound, events, handle, last_place, told_to_stop: String::new() }
    }

    /// Reads until the stream ends, and logs once how it did.
    pub(super) async fn run(mut self) {
        let session = self.key;
        match self.run_inner().await {
            Ok(()) => debug!(%session, "session ended"),
            Err(status) => {
                let message = Printable(status.message()).to_string();
                info!(%session, code = ?status.code(), message, "session ended");
                // Never swallowed into OK: the client sees why.
                self.last_place.end(status);
            }
        }
        lock(&self.handle.tasks).clear();
        let _ = self.events.send(Event::Closed(session)).await;
    }

    async fn run_inner(&mut self) -> Result<(), Status> {
        // Made once: a new future per message would have to be added to the token's list, and removed again.
        let mut end = pin!(self.handle.closed.clone().cancelled_owned());
        let first = tokio::time::timeout(HELLO_DEADLINE, self.next(end.as_mut())).await;
        match first.map_err(|_| Status::deadline_exceeded("no Hello came within 10 s"))?? {
            None => return Ok(()),
            Some(Payload::Hello(hello)) => self.hello(hello).await?,
            Some(_) => return Err(Status::invalid_argument("the first message of a session must be Hello")),
        }
        while let Some(payload) = self.next(end.as_mut()).await? {
            self.take(payload).await?;
        }
        Ok(())
    }

    /// The next message with a known payload; `None` at the regular end of the stream.
    async fn next(&mut self, mut end: Pin<&mut impl Future<Output = ()>>) -> Result<Option<Payload>, Status> {
        loop {
            let message = tokio::select! {
                biased;
                () = end.as_mut() => return Err(self.close_status()),
                message = self.inbound.message() => message.map_err(codec::inbound_error)?,
            };
            match message {
                None => return Ok(None),
                Some(pb::SessionRequest { payload: Some(payload) }) => return Ok(Some(payload)),
                Some(pb::SessionRequest { payload: None }) => {}
            }
        }
    }

    fn close_status(&self) -> Status {
        let reason = *self.handle.closing.lock().unwrap_or_else(PoisonError::into_inner);
        reason.unwrap_or(CloseReason::Stopping).status()
    }

    async fn hello(&mut self, hello: pb::Hello) -> Result<(), Status> {
        if hello.client_id.is_empty() {
            return Err(Status::invalid_argument(
                "Hello has no client_id; it has to be stable per installation",
            ));
        }
        if hello.client_id.len().max(hello.client_version.len()) > MAX_HELLO_TEXT {
            return Err(Status::invalid_argument(format!(
                "Hello's client_id and client_version may have {MAX_HELLO_TEXT} bytes at most"
            )));
        }
        let limit =
            if hello.max_message_bytes == 0 { DEFAULT_MESSAGE_BYTES } else { hello.max_message_bytes };
        let hello = SessionHello {
            builtin: hello.client_id.starts_with(BUILTIN_CLIENT),
            client_id: hello.client_id,
            client_version: hello.client_version,
            max_message_bytes: limit as usize,
        };
        info!(session = %self.key, client = %Printable(&hello.client_id), version = %Printable(&hello.client_version), "session opened");
        self.emit(Event::Opened(self.key, hello, self.handle.clone())).await
    }

    async fn take(&mut self, payload: Payload) -> Result<(), Status> {
        match payload {
            Payload::TaskChunk(chunk) => self.chunk(chunk).await,
            Payload::TaskFinished(finished) => self.finished(finished).await,
            Payload::ProviderSnapshot(snapshot) => self.snapshot(snapshot).await,
            Payload::Drain(drain) => {
                info!(session = %self.key, reason = %Printable(&drain.reason), "session drains");
                let grace = (drain.grace_ms > 0).then(|| Duration::from_millis(drain.grace_ms.into()));
                self.emit(Event::Draining(self.key, grace)).await
            }
            Payload::Hello(_) => {
                Err(Status::invalid_argument("Hello came twice; it is said once, as the first message"))
            }
        }
    }

    async fn snapshot(&mut self, snapshot: pb::ProviderSnapshot) -> Result<(), Status> {
        let (providers, bytes) = (snapshot.providers.len(), snapshot.encoded_len());
        if providers > MAX_SNAPSHOT {
            return Err(Status::invalid_argument(format!(
                "a snapshot of {providers} providers; {MAX_SNAPSHOT} are the most that is looked at"
            )));
        }
        if bytes > MAX_SNAPSHOT_BYTES {
            return Err(Status::invalid_argument(format!(
                "a snapshot of {bytes} bytes; {MAX_SNAPSHOT_BYTES} are the most that is kept"
            )));
        }
        let pushed = snapshot.providers.into_iter().map(convert::provider).collect();
        self.emit(Event::Snapshot(self.key, snapshot.generation, pushed)).await
    }

    async fn chunk(&mut self, mut chunk: pb::TaskChunk) -> Result<(), Status> {
        let id = std::mem::take(&mut chunk.task_id);
        let mut pieces = convert::pieces(chunk);
        let taken = lock(&self.handle.tasks)
            .get_mut(id.as_str())
            .map(|task| task.take(&mut pieces).map_err(|failure| (task.key, failure)));
        match taken {
            Some(Ok(())) => Ok(()),
            Some(Err((key, failure))) => self.emit(Event::Broken(self.key, key, failure)).await,
            None => {
                let dropped = u64::try_from(pieces.count()).unwrap_or(u64::MAX);
                self.handle.late.fetch_add(dropped, atomic::Ordering::Relaxed);
                self.unknown_task(&id);
                Ok(())
            }
        }
    }

    async fn finished(&mut self, finished: pb::TaskFinished) -> Result<(), Status> {
        let Some(task) = lock(&self.handle.tasks).remove(finished.task_id.as_str()) else {
            // A second end, or the end of a task that was taken back: there is nothing left to do.
            warn!(session = %self.key, task_id = %Printable(&finished.task_id), "end of a task that the session does not have; ignored");
            return Ok(());
        };
        // A refusal after output comes too late: the caller has part of an answer.
        if let Some(failure) = convert::refusal(&finished.outcome).filter(|_| !task.any_output) {
            return self.emit(Event::Refused(self.key, task.key, failure)).await;
        }
        let usage = convert::usage(finished.usage);
        let outcome = match convert::outcome(finished.outcome) {
            Outcome::Body(_) | Outcome::Result(_) if task.any_output => Outcome::Failed(Failure::new(
                FailureCode::BadOutput,
                "the local program sent chunks and then a whole answer; after chunks a task ends without an outcome",
            )),
            outcome => convert::bounded(outcome),
        };
        self.emit(Event::Finished(self.key, task.key, outcome, usage)).await
    }

    /// Output for a task that this session does not have: its producer is told to stop, once for all the output that is on its way.
    fn unknown_task(&mut self, id: &str) {
        debug!(session = %self.key, task_id = %Printable(id), "chunk for a task that the session does not have; dropped");
        // A longer id cannot have been offered, and is not worth a message.
        let worth_it = id.len() <= MAX_TASK_ID_BYTES && self.handle.out.has_spare_room();
        if worth_it && self.told_to_stop != id {
            self.handle.send(convert::task_cancel(id, CancelReason::CallerGone));
            id.clone_into(&mut self.told_to_stop);
        }
    }

    async fn emit(&self, event: Event) -> Result<(), Status> {
        self.events.send(event).await.map_err(|_| CloseReason::Stopping.status())
    }
}
