//! The agent's one loop: events go in, the core decides, effects come out. Nothing in it waits.

mod effects;
mod events;
mod left_behind;
mod notices;
mod polling;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Stop, Stopped, Surroundings, core_settings,
    files::{StickySession, TaskFile, warn_of_wide_modes},
    http_settings,
    relay::{History, Relay},
};
use polling::access;

use crate::{
    bridge::{self, CloseReason, Offer, SessionHandle, service::StatusFeed},
    config::{Config, SESSION_FILE, TASKS_FILE},
    core::{Core, Effect, Input, LinkInput},
    credentials::{Fingerprint, Sources, WideMode},
    domain::{Activity, LinkStatus, NumberMap, SessionKey, TaskId, TaskKey},
    pb,
    telemetry::{ChannelOpening, ChannelTrace},
    upstream::{client::Mcpd, events::Delivered, results::Report},
};

/// Events that may wait to be handled, per source. A source waits when there is no room; the loop never does.
const EVENTS: usize = 1024;
/// Most tasks under way at once; beyond that the control channel is not read. At 16 KiB per task this is 256 MiB.
const MAX_UNDER_WAY: usize = 16_384;
/// Most events taken from one source before the next source has its turn.
const TURN: usize = 64;
/// Least time between two publications of the status: a person cannot read faster.
pub(super) const STATUS_SPACING: Duration = Duration::from_millis(250);

/// Both ends of a channel: the hub hands out the first and reads the second.
type Both<T> = (mpsc::Sender<T>, mpsc::Receiver<T>);

/// The ends of all channels that meet in the hub.
#[derive(Debug)]
pub(super) struct Channels {
    bridge: mpsc::Receiver<bridge::Event>,
    upstream: Both<Delivered>,
    reports: Both<(TaskKey, Report)>,
    restarted: Both<TaskId>,
    status: watch::Sender<Option<Arc<pb::WatchStatusResponse>>>,
}

impl Channels {
    pub(super) fn new() -> (Self, mpsc::Sender<bridge::Event>, StatusFeed) {
        let (bridge_events, bridge) = mpsc::channel(EVENTS);
        let (status, feed) = watch::channel(None);
        let (upstream, reports, restarted) =
            (mpsc::channel(EVENTS), mpsc::channel(EVENTS), mpsc::channel(EVENTS));
        (Self { bridge, upstream, reports, restarted, status }, bridge_events, feed)
    }
}

/// One connected session.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) handle: SessionHandle,
    pub(super) client_id: String,
    pub(super) since: SystemTime,
}

/// The part of the configuration that the hub needs while it runs.
struct Limits {
    /// Most bytes of one event of the control channel.
    event_bytes: usize,
    /// Largest message that the bridge takes, in bytes.
    message_bytes: usize,
    /// A channel that has shown a keep-alive and is then silent for this long is given up.
    channel_idle: Duration,
    /// How long running tasks may go on once the drain has begun.
    drain: Duration,
}

impl Limits {
    fn new(config: &Config, message_bytes: usize) -> Self {
        Self {
            event_bytes: config.event_limit,
            message_bytes,
            channel_idle: config.channel_idle_timeout,
            drain: config.drain_timeout,
        }
    }
}

/// The agent's own files, and what is kept of their content.
struct Files {
    session_path: PathBuf,
    /// What the session file holds.
    session: Option<StickySession>,
    tasks: TaskFile,
    /// Tasks that a former life left behind and that are not being ended yet, each with the mcpd that is to be told.
    left_behind: Vec<(TaskId, Option<Arc<str>>)>,
}

impl Files {
    fn open(home: &Path) -> Self {
        let session_path = home.join(SESSION_FILE);
        warn_of_wide_modes(home, &session_path);
        let session = StickySession::read(&session_path);
        let (tasks, left_behind) = TaskFile::open(home.join(TASKS_FILE));
        Self { session_path, session, tasks, left_behind }
    }

    /// The sticky id of the session that was registered last.
    fn session_id(&self) -> Option<String> {
        self.session.as_ref().map(|session| session.provider_session_id.clone())
    }
}

/// The credentials as they were last read, and what has been said about them.
struct CredentialsWatch {
    sources: Sources,
    fingerprint: Fingerprint,
    /// The problem that was logged last, until it is solved.
    problem: Option<String>,
    /// The file mode that was warned of last.
    wide_mode: Option<WideMode>,
}

impl CredentialsWatch {
    fn new(sources: Sources) -> Self {
        let fingerprint = Fingerprint::of(&sources.home);
        Self { sources, fingerprint, problem: None, wide_mode: None }
    }
}

/// The calls to mcpd that can be given up, and the trace of its channel.
#[derive(Default)]
struct Calls {
    /// The register call under way, if there is one.
    registering: CancellationToken,
    channel: Option<CancellationToken>,
    /// The channel that is being opened, by its epoch.
    opening: Option<(u64, ChannelOpening)>,
    /// The channel that was opened last: tasks link to it.
    trace: ChannelTrace,
}

/// The hub and everything it owns.
pub(super) struct Hub {
    pub(super) core: Core,
    pub(super) mcpd: Mcpd,
    pub(super) relays: NumberMap<TaskKey, Relay>,
    pub(super) sessions: BTreeMap<SessionKey, Connected>,
    pub(super) history: History,
    pub(super) started: SystemTime,
    surroundings: Surroundings,
    channels: Channels,
    limits: Limits,
    credentials: CredentialsWatch,
    calls: Calls,
    files: Files,
    /// Offers that go out once the ids of their tasks are on disk: all offers of a turn after one write.
    offers: Vec<(SessionKey, Offer)>,
    /// A place for each task that may be under way.
    places: Arc<Semaphore>,
    /// The place of the task that is being taken, and the mcpd that handed it over.
    place: Option<(OwnedSemaphorePermit, Mcpd)>,
    /// Told `false` when the drain begins: the health service says NOT_SERVING from then on.
    serving: watch::Sender<bool>,
    /// The link's status that the sessions and the log were told last.
    told: Option<LinkStatus>,
    /// How long the machine had slept in all when that was last looked at.
    slept: Duration,
    /// Ends everything that the hub started, when the hub is dropped.
    halt: CancellationToken,
    spawned: TaskTracker,
    rng: fastrand::Rng,
    /// Whether the core has said that nothing is left to do.
    drained: bool,
    /// The drain's end, once it has begun.
    draining_until: Option<Instant>,
    /// When the status is published next, where somebody watches it.
    status_due: Option<Instant>,
    /// Room for the core's effects, kept between inputs.
    fx: Vec<Effect>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.halt.cancel();
    }
}

impl Hub {
    pub(super) fn new(
        config: &Config,
        surroundings: Surroundings,
        channels: Channels,
        serving: watch::Sender<bool>,
        max_message_bytes: usize,
    ) -> Self {
        let files = Files::open(&config.home);
        let sources = config.credential_sources();
        let reload_sources = sources.clone();
        let mcpd = Mcpd::new(http_settings(config), Arc::new(move || Some(access(&reload_sources).ok()?.0)));
        let mut rng = fastrand::Rng::with_seed(surroundings.seed);
        Self {
            core: Core::new(core_settings(config), files.session_id(), rng.u64(..)),
            mcpd,
            relays: NumberMap::default(),
            sessions: BTreeMap::new(),
            history: History::default(),
            started: SystemTime::now(),
            slept: surroundings.clock.slept_for(),
            surroundings,
            channels,
            limits: Limits::new(config, max_message_bytes),
            credentials: CredentialsWatch::new(sources),
            calls: Calls::default(),
            files,
            offers: Vec::new(),
            places: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            place: None,
            serving,
            told: None,
            halt: CancellationToken::new(),
            spawned: TaskTracker::new(),
            rng,
            drained: false,
            draining_until: None,
            status_due: None,
            fx: Vec::new(),
        }
    }

    /// Runs until told to stop; then everything that was started has ended.
    pub(super) async fn run(mut self, stop: Stop) -> Stopped {
        self.read_credentials();
        let mut look_around = self.surroundings.clock.ticks();
        // Made once: a new future per turn would have to be added to its token's list, and removed again.
        let (mut aborted, mut drain) = (pin!(stop.abort.cancelled()), pin!(stop.drain.cancelled()));
        while !self.drained {
            let due = self.core.next_deadline().map(Instant::from_std);
            let status_due = self.status_due;
            tokio::select! {
                biased;
                () = aborted.as_mut() => return self.stopped(Stopped::Aborted).await,
                () = drain.as_mut(), if self.draining_until.is_none() => self.drain(),
                Some((key, report)) = self.channels.reports.1.recv() => self.reported(key, report),
                Some(event) = self.channels.bridge.recv() => self.bridge_event(event),
                Some(event) = self.channels.upstream.1.recv() => self.upstream_event(event),
                Some(id) = self.channels.restarted.1.recv() => self.left_behind_is_over(id),
                () = sleep_until_some(due) => self.tick(),
                () = sleep_until_some(status_due) => self.publish_status(),
                () = look_around.tick() => self.look_around(),
            }
            self.take_turns();
        }
        self.stopped(Stopped::Drained).await
    }

    /// Takes what else has come, from each source in turn, so that a flood from one does not hold up the others.
    fn take_turns(&mut self) {
        for _ in 0..TURN {
            let report = self.channels.reports.1.try_recv().map(|(key, report)| self.reported(key, report));
            let bridge = self.channels.bridge.try_recv().map(|event| self.bridge_event(event));
            let upstream = self.channels.upstream.1.try_recv().map(|event| self.upstream_event(event));
            if report.is_err() && bridge.is_err() && upstream.is_err() {
                break;
            }
        }
        self.send_offers();
        self.files.tasks.flush();
    }

    /// Sends the offers that are held back. A killed agent must have written down every id that a provider may have seen.
    fn send_offers(&mut self) {
        if self.offers.is_empty() {
            return;
        }
        self.files.tasks.flush();
        for (session, offer) in self.offers.drain(..) {
            if let Some(connected) = self.sessions.get(&session) {
                connected.handle.offer(offer);
            }
        }
    }

    async fn stopped(mut self, how: Stopped) -> Stopped {
        self.files.tasks.flush();
        for session in self.sessions.values() {
            session.handle.close(CloseReason::Stopping);
        }
        self.halt.cancel();
        self.spawned.close();
        self.spawned.wait().await;
        how
    }

    pub(super) fn activity(relays: &NumberMap<TaskKey, Relay>, key: TaskKey) -> Activity {
        relays.get(&key).map_or_else(Activity::default, |relay| relay.outbox.activity())
    }

    fn feed(&mut self, input: Input) {
        let mut fx = std::mem::take(&mut self.fx);
        let relays = &self.relays;
        let now = Instant::now().into_std();
        self.core.handle(input, now, &|key| Self::activity(relays, key), &mut fx);
        self.carry_out(fx);
    }

    fn tick(&mut self) {
        let mut fx = std::mem::take(&mut self.fx);
        let relays = &self.relays;
        let now = Instant::now().into_std();
        self.core.tick(now, &|key| Self::activity(relays, key), &mut fx);
        self.carry_out(fx);
        self.link_may_have_changed();
    }

    fn feed_link(&mut self, input: LinkInput) {
        self.feed(Input::Link(input));
        self.link_may_have_changed();
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
