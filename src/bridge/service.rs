//! The gRPC service: each rpc is handed to the part that does its work.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::server::UdsConnectInfo};

use super::{Event, STOPPING, outbound, session::Reader};
use crate::{
    domain::{Pause, Printable, ProviderName, SessionKey},
    pb::{self, bridge_service_server::BridgeService},
};

/// Most sessions at once: a workstation has one or two local programs.
const MAX_SESSIONS: usize = 64;

/// The status as the agent publishes it; `None` until somebody has asked for it.
pub type StatusFeed = watch::Receiver<Option<Arc<pb::WatchStatusResponse>>>;

/// The bridge's service.
#[derive(Debug)]
pub struct Service {
    events: mpsc::Sender<Event>,
    status: StatusFeed,
    shutdown: CancellationToken,
    next_session: AtomicU64,
    places: Arc<Semaphore>,
}

impl Service {
    /// A service that reports to `events` and ends all its streams on `shutdown`.
    pub fn new(events: mpsc::Sender<Event>, status: StatusFeed, shutdown: CancellationToken) -> Self {
        let places = Arc::new(Semaphore::new(MAX_SESSIONS));
        Self { events, status, shutdown, next_session: AtomicU64::new(1), places }
    }

    async fn emit(&self, event: Event) -> Result<(), Status> {
        self.events.send(event).await.map_err(|_| Status::unavailable(STOPPING))
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl BridgeService for Service {
    type SessionStream = outbound::Receiver;
    type WatchStatusStream = Responses<pb::WatchStatusResponse>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place
            .map_err(|_| Status::resource_exhausted(format!("{MAX_SESSIONS} sessions are open already")))?;
        let (out, last_place, responses) = outbound::channel();
        let key = SessionKey(self.next_session.fetch_add(1, Ordering::Relaxed));
        let reader =
            Reader::new(key, request.into_inner(), (out, last_place), self.events.clone(), &self.shutdown);
        tokio::spawn(async move {
            reader.run().await;
            drop(place);
        });
        Ok(Response::new(responses))
    }

    async fn watch_status(
        &self,
        _request: Request<pb::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let mut feed = self.status.clone();
        feed.mark_unchanged();
        self.emit(Event::StatusWanted).await?;
        let updates = WatchStream::from_changes(feed).filter_map(|status| status.map(|s| Ok((*s).clone())));
        let stopped = self.shutdown.clone();
        let until_stopped =
            futures_util::StreamExt::take_until(updates, async move { stopped.cancelled().await });
        // Without a status, a watcher would take the end of the stream for the one that it asked for itself.
        let goodbye = tokio_stream::once(Err(Status::unavailable(STOPPING)));
        Ok(Response::new(Box::pin(until_stopped.chain(goodbye))))
    }

    async fn set_paused(
        &self,
        request: Request<pb::SetPausedRequest>,
    ) -> Result<Response<pb::SetPausedResponse>, Status> {
        let request = request.into_inner();
        let name = match request.provider_name.as_str() {
            "" => None,
            name => Some(
                ProviderName::new(name)
                    .map_err(|why| Status::invalid_argument(format!("provider_name {why}")))?,
            ),
        };
        let until = Some(&*request.until).filter(|until| !until.is_empty());
        let until = until.map(humantime::parse_rfc3339).transpose();
        let until = until.map_err(|why| Status::invalid_argument(format!("until: {why}")))?;
        let pause = request.paused.then_some(Pause { until: until.map(Into::into) });
        let (reply, changed) = oneshot::channel();
        self.emit(Event::SetPaused(name, pause, reply)).await?;
        let changed = changed.await.map_err(|_| Status::unavailable(STOPPING))?;
        let changed = changed.ok_or_else(|| {
            let name = Printable(&request.provider_name);
            Status::not_found(format!("no provider named '{name}' was pushed"))
        })?;
        Ok(Response::new(pb::SetPausedResponse { changed }))
    }

    async fn get_usage(
        &self,
        request: Request<pb::GetUsageRequest>,
    ) -> Result<Response<pb::GetUsageResponse>, Status> {
        let request = request.into_inner();
        let (reply, rows) = oneshot::channel();
        self.emit(Event::UsageWanted(request.by(), request.days, reply)).await?;
        let rows = rows.await.map_err(|_| Status::unavailable(STOPPING))?;
        let rows = rows.ok_or_else(|| {
            Status::failed_precondition("no usage is kept: the agent runs with --usage-ledger off")
        })?;
        Ok(Response::new(pb::GetUsageResponse { rows }))
    }
}

/// Lets in the agent's own uid, root, and the uids that the owner named; everybody else gets PERMISSION_DENIED.
#[derive(Clone, Debug)]
pub struct UidGuard(Arc<BTreeSet<u32>>);

impl UidGuard {
    /// A guard for the running user, root and `also`.
    pub fn new(also: &[u32]) -> Self {
        let own = [nix::unistd::getuid().as_raw(), 0];
        Self(Arc::new(own.into_iter().chain(also.iter().copied()).collect()))
    }

    /// A guard that refuses even the running user: a test has no other user.
    #[cfg(test)]
    pub(super) fn of_nobody() -> Self {
        Self(Arc::default())
    }

    /// Whether a user may use the socket.
    pub fn lets_in(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }
}

impl tonic::service::Interceptor for UidGuard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        match peer {
            Some(peer) if self.lets_in(peer.uid()) => Ok(request),
            Some(peer) => Err(Status::permission_denied(format!(
                "uid {} may not use this socket; its owner can start mcprelay with --allow-uid {0}",
                peer.uid()
            ))),
            None => Err(Status::permission_denied("the peer's uid is not known")),
        }
    }
}
