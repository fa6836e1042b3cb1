//! How a [`FakeMcpd`] is set up.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::FakeMcpd;
use crate::journal::DEFAULT_ENTRIES;
use crate::spec::Step;
use crate::tls::Tls;
use crate::verdict::Profile;

/// The contract's keep-alive interval.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How long a session lives without a heartbeat, by the contract.
pub const SESSION_TTL: Duration = Duration::from_secs(90);
/// The contract's heartbeat interval, which the verdict holds agents to.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// The largest body taken, of callers and of agents: the agent's own default for one event.
pub const BODY_LIMIT: usize = 32 * 1024 * 1024;
/// The token of the library unless another is set.
pub const DEFAULT_TOKEN: &str = "fake-mcpd-token";

/// How the control channel is kept alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PingStyle {
    /// `ping` events.
    #[default]
    Event,
    /// Comment lines, which SSE parsers do not show to applications.
    Comment,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) token: Option<String>,
    pub(crate) ping_interval: Option<Duration>,
    pub(crate) ping_style: PingStyle,
    pub(crate) session_ttl: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) idempotent: bool,
    pub(crate) result_stream: bool,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) streams: Option<u32>,
    pub(crate) event_limit: usize,
    pub(crate) result_limit: usize,
    pub(crate) journal: usize,
    pub(crate) seed: Option<u64>,
    pub(crate) task_prefix: String,
    pub(crate) restarted: bool,
    pub(crate) profile: Profile,
    pub(crate) expected_tasks: u64,
}

/// Sets up a [`FakeMcpd`]; every setting has the contract's default.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    settings: Settings,
    listen: SocketAddr,
    tls: Option<Tls>,
    steps: Vec<Step>,
}

impl Default for Builder {
    fn default() -> Self {
        let settings = Settings {
            token: Some(DEFAULT_TOKEN.to_owned()),
            ping_interval: Some(PING_INTERVAL),
            ping_style: PingStyle::Event,
            session_ttl: SESSION_TTL,
            heartbeat: HEARTBEAT_INTERVAL,
            idempotent: true,
            result_stream: true,
            keep_alive: None,
            streams: None,
            event_limit: BODY_LIMIT,
            result_limit: BODY_LIMIT,
            journal: DEFAULT_ENTRIES,
            seed: None,
            task_prefix: String::new(),
            restarted: false,
            profile: Profile::default(),
            expected_tasks: 0,
        };
        Self { settings, listen: (Ipv4Addr::LOCALHOST, 0).into(), tls: None, steps: Vec::new() }
    }
}

impl Builder {
    /// Listens here; a free loopback port by default.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Serves `https` instead of `http`; the authority to trust is in [`FakeMcpd::ca_file`].
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Accepts this bearer token only.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.settings.token = Some(token.into());
        self
    }

    /// Accepts any bearer token, but none missing.
    pub fn any_token(mut self) -> Self {
        self.settings.token = None;
        self
    }

    /// Sends a keep-alive this often; never if zero.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.settings.ping_interval = (!interval.is_zero()).then_some(interval);
        self
    }

    /// Sends keep-alives in this way.
    pub fn ping_style(mut self, style: PingStyle) -> Self {
        self.settings.ping_style = style;
        self
    }

    /// Turns a session inactive after this long without a heartbeat.
    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.settings.session_ttl = ttl;
        self
    }

    /// The interval at which the verdict expects heartbeats.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.settings.heartbeat = interval;
        self
    }

    /// Whether repeated result parts are dropped, and `idempotent-results` is announced.
    pub fn idempotent_results(mut self, on: bool) -> Self {
        self.settings.idempotent = on;
        self
    }

    /// Whether a stream may come as one upload, and `result-stream` is announced.
    pub fn result_stream(mut self, on: bool) -> Self {
        self.settings.result_stream = on;
        self
    }

    /// Takes this many requests at once on a connection of HTTP/2; hyper's own limit unless set.
    pub fn streams(mut self, most: u32) -> Self {
        self.settings.streams = Some(most);
        self
    }

    /// Announces `Keep-Alive: timeout=` (whole seconds) and closes idle connections after it, as Node does.
    pub fn keep_alive(mut self, timeout: Duration) -> Self {
        self.settings.keep_alive = Some(timeout);
        self
    }

    /// Answers 413 to callers' bodies over this size, so that no larger task is sent.
    pub fn event_limit(mut self, bytes: usize) -> Self {
        self.settings.event_limit = bytes;
        self
    }

    /// Answers 413 to agents' bodies over this size.
    pub fn result_limit(mut self, bytes: usize) -> Self {
        self.settings.result_limit = bytes;
        self
    }

    /// Keeps this many journal entries; 0 keeps none, for benches.
    pub fn journal(mut self, entries: usize) -> Self {
        self.settings.journal = entries;
        self
    }

    /// Makes every id follow from a seed, so that a run can be replayed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = Some(seed);
        self
    }

    /// Begins every task id with this text, to see ids that need escaping.
    pub fn task_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.task_prefix = prefix.into();
        self
    }

    /// Tells the verdict that this mcpd follows an earlier one: a heartbeat of a session it never saw is honest.
    pub fn restarted(mut self, restarted: bool) -> Self {
        self.settings.restarted = restarted;
        self
    }

    /// What the verdict holds the agent under test to.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.settings.profile = profile;
        self
    }

    /// Finds fault with a run in which fewer tasks than these ended with an agent's result.
    pub fn expect_tasks(mut self, tasks: u64) -> Self {
        self.settings.expected_tasks = tasks;
        self
    }

    /// Plays these faults, each when its trigger says.
    pub fn steps(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.steps.extend(steps);
        self
    }

    /// Starts it on the current runtime.
    ///
    /// # Errors
    /// If the address cannot be listened on, or the file of the authority cannot be written.
    pub async fn start(self) -> io::Result<FakeMcpd> {
        FakeMcpd::launch(self.settings, self.listen, self.tls, self.steps).await
    }
}
