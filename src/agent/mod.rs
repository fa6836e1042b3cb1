//! The agent: the one place that joins the core, mcpd and the bridge, and that owns every task and the shutdown.
//!
//! One loop (the `Hub`) takes what happened, asks the core, and carries out the effects. It never waits for anybody: calls to
//! mcpd, the control channel, sessions and deliveries are tasks of their own that report back.

mod awake;
mod clock;
mod credentials_watch;
mod executor;
mod facts;
pub mod files;
mod hub;
mod journal;
mod ledger;
mod mcpd_link;
mod notices;
mod orphans;
mod relay;
mod relays;
mod sessions;
mod sleep;
mod spawner;
mod status;
pub mod usage;

use std::{fs::File, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    bridge::listener::{self, BindError, BoundSocket, Serve},
    config::{Config, TOKEN_VARIABLE},
    core,
    domain::LinkState,
    telemetry,
    upstream::connect::HttpSettings,
};

pub use clock::{SleepClock, SleptFor};
pub use facts::{FactSource, TellFacts};
use hub::Hub;

/// How long open connections to the socket may take to end once everything else is over.
const SERVER_STOP: Duration = Duration::from_secs(5);

/// What an agent depends on.
#[derive(Clone)]
pub struct Deps {
    /// How it learns that the machine has slept.
    pub clock: SleepClock,
    /// How it learns what the owner's rules are about.
    pub facts: FactSource,
    /// The seed of all jitter.
    pub seed: u64,
    /// Where spans and measurements go.
    pub telemetry: telemetry::Handle,
    /// Where it reports how it is doing.
    pub health: watch::Sender<HealthSummary>,
}

/// How an agent is doing, in one line: for a service manager's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthSummary {
    /// The state of the link, once that is known.
    pub link: Option<LinkState>,
    /// Why, where there is something to say.
    pub detail: String,
    /// How many providers mcpd was last asked to list.
    pub providers: usize,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Default for Deps {
    /// The machine's clocks, a random seed and no telemetry.
    fn default() -> Self {
        Self {
            clock: SleepClock::Machine,
            facts: FactSource::Machine,
            seed: fastrand::u64(..),
            telemetry: telemetry::Handle::off(),
            health: watch::Sender::default(),
        }
    }
}

/// The two ways to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Take no new work, let running tasks finish up to the drain timeout.
    pub drain: CancellationToken,
    /// End at once.
    pub abort: CancellationToken,
}

/// How an agent stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every task had its end.
    Drained,
    /// At once.
    Aborted,
}

/// Why an agent did not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket or the lock of the home is not available.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket's server failed.
    #[error("the bridge's server failed: {0}")]
    Serve(String),
}

/// An agent that has its socket and has read its files, but does nothing yet.
#[derive(Debug)]
pub struct Agent {
    hub: Hub,
    socket: BoundSocket,
    serve: Serve,
    /// Held while the agent runs: its files are for one agent.
    home_lock: Option<File>,
}

impl Agent {
    /// Binds the socket and reads the files.
    ///
    /// # Errors
    /// If the socket cannot be bound, or another agent has it or the home.
    pub fn new(config: &Config, deps: Deps) -> Result<Self, AgentError> {
        let socket = BoundSocket::bind(&config.socket, config.socket_mode)?;
        Self::with_socket(config, deps, socket)
    }

    /// The same on a socket that is bound already.
    ///
    /// # Errors
    /// If another agent has the home.
    pub fn with_socket(config: &Config, deps: Deps, socket: BoundSocket) -> Result<Self, AgentError> {
        let home_lock = listener::lock_home(&config.home)?;
        let (hub, serve) = Hub::new(config, deps);
        Ok(Self { hub, socket, serve, home_lock })
    }

    /// Runs until told to stop. Everything that it started has ended when this returns.
    ///
    /// # Errors
    /// If the server of the socket failed.
    pub async fn run(self, stop: Stop) -> Result<Stopped, AgentError> {
        let _home_lock = self.home_lock;
        let shutdown = CancellationToken::new();
        // An agent that is dropped while it runs ends its streams and gives up its socket, as a killed one does.
        let _shutdown_when_dropped = shutdown.clone().drop_guard();
        let mut server =
            AbortOnDropHandle::new(tokio::spawn(listener::serve(self.socket, self.serve, shutdown.clone())));
        let hub = self.hub.run(stop);
        let (stopped, served) = tokio::select! {
            stopped = hub => {
                shutdown.cancel();
                (stopped, tokio::time::timeout(SERVER_STOP, &mut server).await.ok())
            }
            served = &mut server => (Stopped::Aborted, Some(served)),
        };
        server.abort();
        match served {
            Some(Ok(Err(error))) => Err(AgentError::Serve(error.to_string())),
            _ => Ok(stopped),
        }
    }
}

/// The core's part of the settings.
fn core_settings(config: &Config) -> core::Settings {
    core::Settings {
        task_timeout: config.task_timeout,
        first_token_timeout: config.first_token_timeout,
        idle_token_timeout: config.idle_token_timeout,
        queue_timeout: config.queue_timeout,
        max_in_flight: config.max_in_flight,
        max_queued: config.max_queued,
        max_queued_per_caller: config.max_queued_per_caller,
        drain_timeout: config.drain_timeout,
        link: core::link::Settings {
            heartbeat_interval: config.heartbeat_interval,
            reconnect_min: config.reconnect_min,
            reconnect_max: config.reconnect_max,
            token_source: match config.token {
                Some(_) => TOKEN_VARIABLE,
                None => "the credentials file",
            },
        },
    }
}

fn http_settings(config: &Config) -> HttpSettings {
    HttpSettings { ca_file: config.ca_file.clone() }
}
