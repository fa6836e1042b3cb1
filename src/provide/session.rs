//! One session with the agent, from Hello to its end. One `select!` loop owns its state; the tasks run concurrently.

use std::{
    collections::{HashMap, hash_map::Entry},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

use super::{
    gather::Gathered,
    offered::{ProviderSet, RegistrarConfig},
    task::{self, Chunks, Task},
    verdicts::Verdicts,
    wire,
};
use crate::{
    bridge::convert,
    domain::{Failure, FailureCode, Outcome, Printable},
    pb::{
        self, bridge_service_client::BridgeServiceClient, session_request::Payload as Out,
        session_response::Payload as In,
    },
};

/// Messages of all tasks together that may wait for the connection: enough for a burst of tokens to leave in one write, few enough for a
/// provider to be slowed down by an agent that is slower than itself.
const OUTGOING_MESSAGES: usize = 256;
/// How long the agent may take to accept the stream. It normally does so at once; if it does not, it hangs.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the session stays open after its goodbye although nothing runs: an offer that crossed the goodbye is refused instead of lost.
const LINGER: Duration = Duration::from_millis(100);
/// How long the agent may take to close the stream after the goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The default limit of gRPC libraries, in bytes: what an agent accepts that announces no limit.
const GRPC_DEFAULT_MAX_BYTES: usize = 4 * 1024 * 1024;
/// When to ask again for a task that came too late for its provider.
const REFUSED_RETRY: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// We were asked to stop, and have said goodbye.
    Stopped,
    /// The agent ended the stream without a word.
    Closed,
    /// The agent ended the stream after its goodbye.
    Left,
    /// There is no agent, or it ended the stream with this status.
    Failed(Status),
}

/// Waits until somebody asks to stop. The answer is the time that running tasks get.
pub(super) async fn stop_asked(stopping: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match stopping.wait_for(Option::is_some).await {
        Ok(grace) => grace.unwrap_or_default(),
        // The handle was dropped: nobody waits for the tasks.
        Err(_) => Duration::ZERO,
    }
}

/// Runs one session over `channel`. Calls `welcomed` once the agent has taken it.
pub(super) async fn run(
    channel: Channel,
    config: &RegistrarConfig,
    providers: watch::Receiver<ProviderSet>,
    mut stopping: watch::Receiver<Option<Duration>>,
    welcomed: impl FnMut(),
) -> Result<End, Status> {
    let (outgoing, messages) = mpsc::channel(OUTGOING_MESSAGES);
    // The channel is new and empty, so this cannot fail.
    let _ = outgoing.try_send(hello(config));
    let mut client = BridgeServiceClient::new(channel)
        .max_decoding_message_size(usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX));
    let accepted = timeout(ACCEPT_TIMEOUT, client.session(Gathered::new(messages)));
    let inbound = tokio::select! {
        accepted = accepted => accepted.map_err(|_| Status::unavailable("it does not answer"))??.into_inner(),
        _ = stop_asked(&mut stopping) => return Ok(End::Stopped),
    };
    Session::new(inbound, outgoing, providers).run(stopping, welcomed).await
}

fn hello(config: &RegistrarConfig) -> pb::SessionRequest {
    wire::request(Out::Hello(pb::Hello {
        client_id: config.client_id.clone(),
        client_version: config.client_version.clone(),
        max_message_bytes: config.max_message_bytes,
    }))
}

struct Session {
    inbound: Streaming<pb::SessionResponse>,
    outgoing: mpsc::Sender<pb::SessionRequest>,
    providers: watch::Receiver<ProviderSet>,
    /// The set that was last sent: offers refer to its members.
    offered: ProviderSet,
    running: HashMap<Arc<str>, Running>,
    /// Each returns the id of its task. Dropping the session aborts them: the agent has ended the tasks itself.
    tasks: JoinSet<Arc<str>>,
    snapshot_due: bool,
    goodbye_due: Option<pb::Drain>,
    generation: u32,
    max_message_bytes: usize,
    /// The agent has said goodbye.
    agent_leaves: bool,
    /// Set once we leave: when the tasks that still run are ended.
    drain_until: Option<Instant>,
    /// When our goodbye went out.
    goodbye_at: Option<Instant>,
    verdicts: Verdicts,
}

/// One running task. Its id may be offered again at the moment when it ends, so the id alone does not identify it.
struct Running {
    number: tokio::task::Id,
    cancel: CancellationToken,
}

/// What the set of tasks reports when one has ended.
type Ended = Result<(tokio::task::Id, Arc<str>), tokio::task::JoinError>;

impl Session {
    /// A session that has not sent its providers yet.
    fn new(
        inbound: Streaming<pb::SessionResponse>,
        outgoing: mpsc::Sender<pb::SessionRequest>,
        providers: watch::Receiver<ProviderSet>,
    ) -> Self {
        let offered = providers.borrow().clone();
        Self {
            inbound,
            outgoing,
            offered,
            providers,
            running: HashMap::new(),
            tasks: JoinSet::new(),
            snapshot_due: true,
            goodbye_due: None,
            generation: 0,
            max_message_bytes: GRPC_DEFAULT_MAX_BYTES,
            agent_leaves: false,
            drain_until: None,
            goodbye_at: None,
            verdicts: Verdicts::default(),
        }
    }

    async fn run(
        mut self,
        mut stopping: watch::Receiver<Option<Duration>>,
        mut welcomed: impl FnMut(),
    ) -> Result<End, Status> {
        // Made once: a new future per turn would have to be added to its list of waiters, and removed again.
        let mut stop = pin!(stop_asked(&mut stopping));
        loop {
            let leave_at = self.leave_at();
            tokio::select! {
                // The agent speaks, or its stream ends.
                message = self.inbound.message() => match message {
                    Ok(Some(pb::SessionResponse { payload: Some(payload) })) => self.take(payload, &mut welcomed),
                    Ok(Some(_)) => {} // A payload of a later version.
                    Ok(None) if leave_at.is_some() => return Ok(End::Stopped),
                    Ok(None) | Err(_) if self.agent_leaves => return Ok(End::Left),
                    Ok(None) => return Ok(End::Closed),
                    Err(status) => return Err(status),
                },
                // A task has sent its end.
                Some(ended) = self.tasks.join_next_with_id() => self.forget(ended),
                // The set of providers has changed. (An error means that the handle is gone: `stopping` tells.)
                Ok(()) = self.providers.changed() => self.snapshot_due = true,
                // There is room for what the session itself has to send.
                Ok(permit) = async { self.outgoing.clone().reserve_owned().await }, if self.has_something_to_say() => {
                    if let Some(message) = self.next_message() { permit.send(message); }
                }
                // The session is asked to leave.
                grace = stop.as_mut(), if leave_at.is_none() => self.begin_drain(grace),
                // The session leaves: nothing runs any more, or the time is over.
                () = async { sleep_until(leave_at.unwrap_or_else(Instant::now)).await }, if leave_at.is_some() => {
                    return Ok(self.close().await);
                }
            }
        }
    }

    fn leave_at(&self) -> Option<Instant> {
        let until = self.drain_until?;
        let lingered = self.goodbye_at.filter(|_| self.tasks.is_empty()).map(|said| said + LINGER);
        Some(lingered.map_or(until, |lingered| lingered.min(until)))
    }

    fn take(&mut self, payload: In, welcomed: &mut impl FnMut()) {
        match payload {
            In::Welcome(welcome) => {
                self.welcome(&welcome);
                welcomed();
            }
            In::ProviderSnapshotResult(result) => self.verdicts.take(&result, &self.offered),
            In::TaskOffer(offer) => self.begin(offer),
            In::TaskCancel(cancel) => self.cancel(&cancel),
            In::AgentStatus(status) => tracing::debug!(
                state = status.state().as_str_name(),
                detail = %Printable(&status.detail),
                "the agent's link to mcpd"
            ),
            In::Drain(drain) => {
                self.agent_leaves = true;
                tracing::info!(reason = %Printable(&drain.reason), "the agent is going away");
            }
        }
    }

    fn welcome(&mut self, welcome: &pb::Welcome) {
        if welcome.max_message_bytes > 0 {
            self.max_message_bytes = usize::try_from(welcome.max_message_bytes).unwrap_or(usize::MAX);
        }
        tracing::info!(
            session = %Printable(&welcome.session_id),
            agent = %Printable(&welcome.agent_version),
            "connected to the agent"
        );
    }

    fn begin(&mut self, offer: pb::TaskOffer) {
        let task = Task::from_offer(offer);
        let id = Arc::<str>::from(task.id.as_str());
        let chunks = Chunks::new(Arc::clone(&id), self.outgoing.clone(), self.max_message_bytes);
        let cancel = CancellationToken::new();
        let offered = self.offered.iter().find(|o| o.info.name.as_str() == task.provider);
        let spawned = match offered.filter(|_| self.drain_until.is_none()) {
            Some(offered) => {
                self.tasks.spawn(task::run(offered.provider.clone(), task, chunks, cancel.clone()))
            }
            None => self.tasks.spawn(self.refusal(task)),
        };
        self.running.insert(id, Running { number: spawned.id(), cancel });
    }

    /// Tells the agent that a task came too late: its provider is withdrawn, or we are leaving.
    fn refusal(&self, task: Task) -> impl Future<Output = Arc<str>> + use<> {
        let outgoing = self.outgoing.clone();
        async move {
            let why = format!("{} is no longer offered here; try again", Printable(&task.provider));
            let refused = Failure::retryable(FailureCode::Unavailable, why, REFUSED_RETRY);
            // A closed channel: the session is gone, and the offer with it.
            let _ = outgoing.send(wire::refused(&task.id, &refused)).await;
            task.id.into()
        }
    }

    fn cancel(&mut self, cancel: &pb::TaskCancel) {
        // An unknown id has just ended: the two messages passed each other.
        if let Some(running) = self.running.get(cancel.task_id.as_str()) {
            let (id, reason) = (Printable(&cancel.task_id), cancel.reason().as_str_name());
            tracing::debug!(task_id = %id, reason, "task cancelled");
            running.cancel.cancel();
        }
    }

    fn forget(&mut self, ended: Ended) {
        // An error means that the task was aborted before its end: it stays in the table, because its end is still owed.
        if let Ok((number, id)) = ended
            && let Entry::Occupied(running) = self.running.entry(id)
            && running.get().number == number
        {
            running.remove();
        }
    }

    fn has_something_to_say(&self) -> bool {
        self.snapshot_due || self.goodbye_due.is_some()
    }

    fn next_message(&mut self) -> Option<pb::SessionRequest> {
        if let Some(goodbye) = self.goodbye_due.take() {
            // No snapshot may follow: it would offer again what has just been withdrawn.
            self.snapshot_due = false;
            self.goodbye_at = Some(Instant::now());
            return Some(wire::request(Out::Drain(goodbye)));
        }
        if !std::mem::take(&mut self.snapshot_due) {
            return None;
        }
        self.generation = self.generation.wrapping_add(1);
        self.offered = self.providers.borrow_and_update().clone();
        Some(wire::snapshot(self.generation, self.offered.iter().map(|offered| &offered.info)))
    }

    fn begin_drain(&mut self, grace: Duration) {
        self.drain_until = Some(Instant::now() + grace);
        self.goodbye_due = Some(pb::Drain {
            grace_ms: convert::millis(grace),
            reason: "the provider host stops".to_owned(),
        });
    }

    /// Ends what still runs and waits for the agent to close the stream.
    async fn close(mut self) -> End {
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.forget(ended);
        }
        for (id, _) in self.running.drain() {
            let why = "the provider's host was stopped before the answer was complete";
            let failed = Outcome::Failed(Failure::new(FailureCode::ShuttingDown, why));
            // A full queue is an agent that does not read: it sees the stream end instead.
            let _ = self.outgoing.try_send(wire::finished(&id, failed, None));
        }
        drop(self.outgoing);
        let closed = async { while let Ok(Some(_)) = self.inbound.message().await {} };
        // If the agent does not close the stream, dropping it does.
        let _ = timeout(CLOSE_TIMEOUT, closed).await;
        End::Stopped
    }
}
