//! The client of the bridge: it maintains one session with the agent, whatever happens to the agent, until it is stopped.
//!
//! ```text
//!            +--> connecting --> serving --(stream ends)--> waiting --+
//!            |        |             |  \--(replaced)--> waiting 60 s -+
//!            |        +--(no agent)-|--------------------> waiting ---+
//!            +----------------------|---------------------------------+
//!                                   +--(stop)--> draining --> gone
//! ```

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::watch, task::JoinHandle, time::Instant};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{
    session::{self, End},
    task::Provider,
};
use crate::{
    domain,
    http::{Backoff, root_cause},
};

/// First wait after a lost session: a restarted agent is usually back at once.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait: two attempts fit into the 10 s for which the agent keeps a lost session's providers listed.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// A session that lived this long was a good one: the next wait starts from the shortest again.
const PROVEN: Duration = Duration::from_secs(5);
/// Wait after another client took over our id: two that replace each other must not do so in a tight loop.
const REPLACED_WAIT: Duration = Duration::from_secs(60);
/// HTTP/2 windows of the connection: several offers with pictures in them fit without waiting for an update.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// The largest message taken unless configured otherwise: mcpd's largest event by default (32 MiB) and 1 MiB around it.
pub const DEFAULT_MAX_MESSAGE_BYTES: u32 = 33 * 1024 * 1024;

/// Who this client is and where the agent listens.
#[derive(Clone, Debug)]
pub struct RegistrarConfig {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Stable per installation: a second session with the same id replaces the first.
    pub client_id: String,
    /// For people who read the status, "mcplocal/1.4.0".
    pub client_version: String,
    /// The largest message this client accepts, in bytes.
    pub max_message_bytes: u32,
}

/// One provider as it is offered to the agent, and what runs its tasks.
#[derive(Clone)]
pub struct Offered {
    /// What the agent shows and publishes.
    pub info: domain::Provider,
    /// What runs the inferences.
    pub provider: Arc<dyn Provider>,
}

/// The whole set of offered providers; replaced as a whole, never edited.
pub(super) type ProviderSet = Arc<[Offered]>;

/// A running client of the bridge. Dropping it ends the session at once, without goodbye.
pub struct Registrar {
    providers: watch::Sender<ProviderSet>,
    stop: watch::Sender<Option<Duration>>,
    running: JoinHandle<()>,
}

impl Registrar {
    /// Starts offering `providers`; returns at once. An agent that is not there is waited for, never an error.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(config: RegistrarConfig, providers: Vec<Offered>) -> Self {
        let (providers, offered) = watch::channel(ProviderSet::from(providers));
        let (stop, stopping) = watch::channel(None);
        let running = tokio::spawn(Forever { config, offered, stopping, quiet: None }.run());
        Self { providers, stop, running }
    }

    /// Replaces the whole set. What is missing from it is withdrawn; running tasks go on. An equal set sends nothing.
    pub fn set_providers(&self, providers: Vec<Offered>) {
        self.providers.send_if_modified(|current| {
            let changed = !same(current, &providers);
            if changed {
                *current = providers.into();
            }
            changed
        });
    }

    /// Says goodbye, lets running tasks finish for at most `grace`, ends the others with an error, and closes the session.
    pub async fn stop(self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        // An error means that it panicked or the runtime is going away: it has stopped either way.
        let _ = self.running.await;
    }
}

fn same(one: &[Offered], other: &[Offered]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(a, b)| a.info == b.info && Arc::ptr_eq(&a.provider, &b.provider))
}

/// "For ever, with backoff"; one attempt is [`session::run`].
struct Forever {
    config: RegistrarConfig,
    offered: watch::Receiver<ProviderSet>,
    stopping: watch::Receiver<Option<Duration>>,
    /// The last trouble that was logged: the same one is not logged at every attempt.
    quiet: Option<String>,
}

impl Forever {
    async fn run(mut self) {
        let (mut backoff, mut rng) = (Backoff::new(BACKOFF_MIN, BACKOFF_MAX), fastrand::Rng::new());
        loop {
            let started = Instant::now();
            let end = self.attempt().await.unwrap_or_else(End::Failed);
            if started.elapsed() >= PROVEN {
                backoff.reset();
            }
            let wait = match &end {
                End::Stopped => return,
                End::Failed(status) if status.code() == tonic::Code::Aborted => REPLACED_WAIT,
                End::Failed(_) | End::Closed | End::Left => backoff.next(&mut rng),
            };
            self.explain(&end, wait);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = session::stop_asked(&mut self.stopping) => return,
            }
        }
    }

    async fn attempt(&mut self) -> Result<End, Status> {
        let channel = connect(&self.config).await?;
        let (offered, stopping) = (self.offered.clone(), self.stopping.clone());
        session::run(channel, &self.config, offered, stopping, || {
            self.quiet = None;
        })
        .await
    }

    /// Says once why there is no session, and what is done about it.
    fn explain(&mut self, end: &End, wait: Duration) {
        let socket = self.config.socket.display();
        let trouble = match end {
            // Its goodbye is in the log already.
            End::Stopped | End::Left => return,
            End::Closed => format!("the agent closed the session on {socket}; reconnecting"),
            End::Failed(status) => match status.code() {
                tonic::Code::Aborted => format!(
                    "another client with the id {:?} took over this session; trying again in {} s",
                    self.config.client_id,
                    wait.as_secs()
                ),
                tonic::Code::Unavailable => {
                    format!("no agent on {socket} ({}); waiting for it", status.message())
                }
                tonic::Code::InvalidArgument | tonic::Code::PermissionDenied => {
                    format!("the agent on {socket} refuses this session: {}", status.message())
                }
                _ => format!("lost the agent on {socket} ({}); reconnecting", status.message()),
            },
        };
        if self.quiet.as_ref() != Some(&trouble) {
            tracing::warn!("{}", domain::Printable(&trouble));
            self.quiet = Some(trouble);
        }
    }
}

async fn connect(config: &RegistrarConfig) -> Result<Channel, Status> {
    let socket = config.socket.clone();
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The authority is never looked up; it only has to be one.
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector(connector)
        .await
        .map_err(|error| Status::unavailable(root_cause(&error)))
}
