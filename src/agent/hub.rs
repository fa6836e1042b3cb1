//! The loop: what happened goes in, the core decides, effects come out. Nothing in it waits.

mod effects;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::ExposeSecret as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    AgentError, Stop, Stopped, Surroundings, core_settings,
    files::{StickySession, TaskFile, warn_of_wide_modes},
    http_settings,
    relay::{History, Relay},
};
use crate::{
    bridge::{self, CloseReason, Offer, SessionHandle, service::StatusFeed},
    config::{Config, SESSION_FILE, TASKS_FILE},
    core::{Core, Effect, Input, LinkInput, link::UrlChange},
    credentials::{self, Fingerprint, Sources, WideMode},
    domain::{Activity, LinkStatus, ProviderName, SessionKey, TaskId, TaskKey},
    pb,
    telemetry::{ChannelOpening, ChannelTrace},
    upstream::{
        self,
        client::{Access, Mcpd},
        connect::HttpError,
        contract::restart_key,
        events::Delivered,
        post::{PartReply, ResultPosts},
        results::Report,
    },
};

/// Room for what happened and was not looked at yet, per source. Sources wait when it is full, the loop never does.
const EVENTS: usize = 1024;
/// Most tasks under way at once; where there are more the control channel is not read on. At 16 KiB a task this is 256 MiB.
const MAX_UNDER_WAY: usize = 16_384;
/// Most events taken from one source before the next one has its turn.
const TURN: usize = 64;
/// A jump of the sleep clock over this is a sleep; less is how the two clocks are read one after the other.
const SLEEP_JUMP: Duration = Duration::from_secs(5);
/// Least time between two publications of the status: a person cannot read faster.
pub(super) const STATUS_SPACING: Duration = Duration::from_millis(250);
/// How long the ends of a former life's tasks are offered to an mcpd that does not take them: as long as tasks last by default.
const RESTART_PATIENCE: Duration = Duration::from_secs(600);
/// Wait between those attempts.
const RESTART_RETRY: Duration = Duration::from_secs(2);
/// What mcpd's caller is told about a task that a killed agent left behind.
const RESTARTED: &[u8] = br#"{"error":"the agent was restarted while it ran this task; try again"}"#;

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

/// The hub and everything it owns.
pub(super) struct Hub {
    pub(super) core: Core,
    pub(super) mcpd: Mcpd,
    pub(super) relays: HashMap<TaskKey, Relay>,
    pub(super) sessions: BTreeMap<SessionKey, Connected>,
    pub(super) history: History,
    pub(super) started: SystemTime,
    surroundings: Surroundings,
    channels: Channels,
    sources: Sources,
    fingerprint: Fingerprint,
    credentials_problem: Option<String>,
    wide_mode: Option<WideMode>,
    session_file: PathBuf,
    /// What the session file holds.
    sticky: Option<StickySession>,
    tasks_file: TaskFile,
    /// Offers that go out once the ids of their tasks are on disk: all of a turn after one write.
    offers: Vec<(SessionKey, Offer)>,
    left_behind: Vec<TaskId>,
    event_limit: usize,
    channel_idle_timeout: Duration,
    max_message_bytes: usize,
    drain_timeout: Duration,
    channel: Option<CancellationToken>,
    /// The register call under way, if there is one.
    registering: CancellationToken,
    channel_opening: Option<(u64, ChannelOpening)>,
    channel_trace: ChannelTrace,
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    serving: watch::Sender<bool>,
    told: Option<LinkStatus>,
    slept: Duration,
    /// Ends everything the hub started, when it goes.
    halt: CancellationToken,
    spawned: TaskTracker,
    rng: fastrand::Rng,
    drained: bool,
    status_due: Option<Instant>,
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
    ) -> Result<Self, AgentError> {
        let sources = config.credential_sources();
        let session_file = config.home.join(SESSION_FILE);
        warn_of_wide_modes(&config.home, &session_file);
        let sticky = StickySession::read(&session_file);
        let (tasks_file, left_behind) = TaskFile::open(config.home.join(TASKS_FILE));
        let reload_sources = sources.clone();
        let mcpd = Mcpd::new(http_settings(config), Arc::new(move || Some(access(&reload_sources).ok()?.0)));
        let mut rng = fastrand::Rng::with_seed(surroundings.seed);
        let id = sticky.as_ref().map(|s| s.provider_session_id.clone());
        Ok(Self {
            core: Core::new(core_settings(config), id, rng.u64(..)),
            mcpd,
            relays: HashMap::new(),
            sessions: BTreeMap::new(),
            history: History::default(),
            started: SystemTime::now(),
            slept: surroundings.clock.slept_for(),
            surroundings,
            channels,
            fingerprint: Fingerprint::of(&sources.home),
            sources,
            credentials_problem: None,
            wide_mode: None,
            session_file,
            sticky,
            tasks_file,
            offers: Vec::new(),
            left_behind,
            event_limit: config.event_limit,
            channel_idle_timeout: config.channel_idle_timeout,
            max_message_bytes,
            drain_timeout: config.drain_timeout,
            channel: None,
            registering: CancellationToken::new(),
            channel_opening: None,
            channel_trace: ChannelTrace::default(),
            places: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            place: None,
            serving,
            told: None,
            halt: CancellationToken::new(),
            spawned: TaskTracker::new(),
            rng,
            drained: false,
            status_due: None,
            fx: Vec::new(),
        })
    }

    /// Runs until told to stop; then everything that was started has ended.
    pub(super) async fn run(mut self, stop: Stop) -> Stopped {
        self.read_credentials();
        let mut look_around = self.surroundings.clock.ticks();
        let mut draining = false;
        while !self.drained {
            let due = self.core.next_deadline().map(Instant::from_std);
            let status_due = self.status_due;
            tokio::select! {
                biased;
                () = stop.abort.cancelled() => return self.stopped(Stopped::Aborted).await,
                () = stop.drain.cancelled(), if !draining => {
                    draining = true;
                    self.drain();
                }
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

    /// Takes what else has come, each source in its turn: a flood of one does not hold up the others.
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
        self.tasks_file.flush();
    }

    /// Lets the held offers go. A killed agent must leave behind every id that a provider may have seen.
    fn send_offers(&mut self) {
        if self.offers.is_empty() {
            return;
        }
        self.tasks_file.flush();
        for (session, offer) in self.offers.drain(..) {
            if let Some(connected) = self.sessions.get(&session) {
                connected.handle.offer(offer);
            }
        }
    }

    async fn stopped(mut self, how: Stopped) -> Stopped {
        self.tasks_file.flush();
        for session in self.sessions.values() {
            session.handle.close(CloseReason::Stopping);
        }
        self.halt.cancel();
        self.spawned.close();
        self.spawned.wait().await;
        how
    }

    // ---- what happened ---------------------------------------------------------------------------------------------

    pub(super) fn activity(relays: &HashMap<TaskKey, Relay>, key: TaskKey) -> Activity {
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

    fn upstream_event(&mut self, (event, place): Delivered) {
        self.place = place;
        match event {
            upstream::Event::Task(task) | upstream::Event::BadTask(task, _)
                if self.tasks_file.is_left_behind(&task.id) =>
            {
                debug!(task_id = %task.id, "mcpd handed over a task that a former life left behind; not run");
            }
            upstream::Event::Task(task) => {
                self.history.tasks += 1;
                self.feed(Input::Task(task));
            }
            upstream::Event::BadTask(task, failure) => {
                self.history.tasks += 1;
                self.feed(Input::BadTask(task, failure));
            }
            upstream::Event::LostTask => {
                self.history.lost();
                self.surroundings.telemetry.metrics().task_lost();
            }
            upstream::Event::CallerLeft(id) => self.feed(Input::CallerLeft(id)),
            upstream::Event::Registered(attempt, reply) => self.registered(attempt, reply),
            upstream::Event::Heartbeat(reply) => {
                if let Err(why) = &reply {
                    warn!("heartbeat missed: {why}");
                    self.surroundings.telemetry.metrics().heartbeat_missed();
                }
                self.feed_link(LinkInput::Heartbeat(reply));
            }
            upstream::Event::ChannelOpened(epoch) => {
                if let Some(opening) = self.channel_opening.take_if(|(of, _)| *of == epoch) {
                    self.channel_trace = opening.1.opened();
                }
                self.feed_link(LinkInput::ChannelOpened(epoch));
            }
            upstream::Event::ChannelProved(epoch) => self.feed_link(LinkInput::ChannelProved(epoch)),
            upstream::Event::ChannelClosed(epoch, why) => {
                if let Some((_, opening)) = self.channel_opening.take_if(|(of, _)| *of == epoch) {
                    opening.failed(why.word());
                }
                self.feed_link(LinkInput::ChannelClosed(epoch, why))
            }
        }
        // A task that was not taken (a duplicate) needs no place.
        self.place = None;
    }

    fn registered(&mut self, attempt: u64, reply: Result<String, crate::domain::CallFailure>) {
        let accepted = reply.is_ok();
        self.feed_link(LinkInput::Registered(attempt, reply));
        if accepted && !self.left_behind.is_empty() {
            let left = std::mem::take(&mut self.left_behind);
            info!(tasks = left.len(), "ending tasks that a former life of this agent left behind");
            let (mcpd, over) = (self.mcpd.clone(), self.channels.restarted.0.clone());
            self.spawn(end_left_behind(mcpd, left, over));
        }
    }

    /// A task of a former life has its end; from now on its id is like that of any other that ended.
    fn left_behind_is_over(&mut self, id: TaskId) {
        self.tasks_file.over(&id);
        self.feed(Input::Restored(vec![id]));
    }

    fn bridge_event(&mut self, event: bridge::Event) {
        match event {
            bridge::Event::Opened(session, hello, handle) => {
                // A session that is cut off below must not get an offer afterwards.
                self.send_offers();
                handle.welcome(
                    session,
                    self.max_message_bytes,
                    &self.core.link_status(Instant::now().into_std()),
                );
                // Whatever a session of the same client still sends must not reach a task that is offered again.
                self.sessions
                    .values()
                    .filter(|s| s.client_id == hello.client_id)
                    .for_each(|s| s.handle.detach());
                let connected =
                    Connected { handle, client_id: hello.client_id.clone(), since: SystemTime::now() };
                self.sessions.insert(session, connected);
                self.feed(Input::SessionOpened(session, hello));
            }
            bridge::Event::Snapshot(session, generation, pushed) => {
                self.feed(Input::Snapshot(session, generation, pushed));
                self.link_may_have_changed();
            }
            bridge::Event::Finished(session, key, outcome, usage) => {
                if let Some(relay) = self.relays.get(&key) {
                    relay.outbox.set_usage(usage);
                }
                self.feed(Input::Finished(session, key, outcome));
            }
            bridge::Event::Broken(session, key, failure) => self.feed(Input::Broken(session, key, failure)),
            bridge::Event::Draining(session) => {
                self.feed(Input::SessionDraining(session));
                self.link_may_have_changed();
            }
            bridge::Event::Closed(session) => {
                self.sessions.remove(&session);
                self.feed(Input::SessionClosed(session));
                self.link_may_have_changed();
            }
            bridge::Event::SetPaused(name, paused, reply) => {
                // Whoever asked may be gone; what it asked for is done.
                let _ = reply.send(self.set_paused(name, paused));
            }
            bridge::Event::StatusWanted => self.publish_status(),
        }
    }

    /// Pauses or resumes; gives the names that this changed, or `None` for one that nobody has pushed.
    fn set_paused(&mut self, name: Option<ProviderName>, paused: bool) -> Option<Vec<String>> {
        let before = self.core.providers();
        if name.as_ref().is_some_and(|name| before.iter().all(|p| p.provider.name != *name)) {
            return None;
        }
        self.feed(Input::SetPaused(name, paused));
        self.link_may_have_changed();
        let after = self.core.providers();
        let changed = before.iter().zip(&after).filter(|(before, after)| before.paused != after.paused);
        let names: BTreeSet<_> = changed.map(|(_, after)| after.provider.name.as_str().to_owned()).collect();
        Some(names.into_iter().collect())
    }

    fn reported(&mut self, key: TaskKey, report: Report) {
        match report {
            Report::Failed(failure) => self.feed(Input::DeliveryFailed(key, failure)),
            Report::Settled(summary) => {
                self.record(key, summary);
                self.feed(Input::Settled(key));
            }
            Report::NobodyWaits(summary) => {
                self.record(key, summary);
                self.feed(Input::NobodyWaits(key));
            }
        }
    }

    fn record(&mut self, key: TaskKey, summary: crate::upstream::outbox::Summary) {
        if let Some(relay) = self.relays.get(&key) {
            self.history.record(relay.ended(summary, Instant::now()));
        }
    }

    fn drain(&mut self) {
        self.send_offers();
        info!("stopping: no new tasks are taken; running ones have {} s", self.drain_timeout.as_secs());
        self.serving.send_replace(false);
        for session in self.sessions.values() {
            session.handle.drain(self.drain_timeout, "the agent is stopping");
        }
        self.feed(Input::Drain);
        self.link_may_have_changed();
    }

    /// Once a second: has the machine slept, are there other credentials?
    fn look_around(&mut self) {
        let slept = self.surroundings.clock.slept_for();
        if slept > self.slept + SLEEP_JUMP {
            info!("the machine slept for {} s", (slept - self.slept).as_secs());
            self.feed_link(LinkInput::Woke);
        }
        self.slept = slept;
        let fingerprint = Fingerprint::of(&self.sources.home);
        if fingerprint != self.fingerprint {
            self.fingerprint = fingerprint;
            self.read_credentials();
        }
    }

    fn read_credentials(&mut self) {
        let input = match access(&self.sources) {
            Err(problem) => {
                // One warning for one problem, however often the file changes.
                if self.credentials_problem.as_ref() != Some(&problem) {
                    warn!("{problem}; going online when that is mended");
                    self.credentials_problem = Some(problem.clone());
                }
                if self.mcpd.url().is_some() {
                    // Half a file is no reason to let go of the credentials that work.
                    return;
                }
                Err(problem)
            }
            Ok((access, wide_mode)) => {
                self.credentials_problem = None;
                self.warn_of_a_wide_mode(wide_mode);
                // Credentials may come long after the start, and then the id on disk can be another mcpd's.
                let former =
                    self.mcpd.url().or_else(|| self.sticky.as_ref().and_then(|s| s.mcpd_url.clone()));
                let other = former.is_some_and(|url| url != access.url);
                let set = self.use_access(&access, other);
                set.map(|()| if other { UrlChange::Other } else { UrlChange::Same }).map_err(|error| {
                    warn!("{error}");
                    error.to_string()
                })
            }
        };
        self.feed_link(LinkInput::Credentials(input));
    }

    /// Goes over to these credentials. Tasks that another mcpd handed over keep that one: their answers are its callers' alone.
    fn use_access(&mut self, access: &Access, other: bool) -> Result<(), HttpError> {
        if !other {
            return self.mcpd.set_access(access);
        }
        let mcpd = self.mcpd.anew();
        mcpd.set_access(access)?;
        self.mcpd = mcpd;
        Ok(())
    }

    /// One warning for one mode, however often the files change or mcpd refuses the token.
    fn warn_of_a_wide_mode(&mut self, found: Option<WideMode>) {
        if let Some(wide) = found.as_ref().filter(|_| found != self.wide_mode) {
            warn!("{wide}");
        }
        self.wide_mode = found;
    }

    // ---- who is told -----------------------------------------------------------------------------------------------

    /// Tells the sessions and the log how the link is, when that is something else than they were told last.
    fn link_may_have_changed(&mut self) {
        let status = self.core.link_status(Instant::now().into_std());
        let same = |told: &LinkStatus| told.state == status.state && told.detail == status.detail;
        if self.told.as_ref().is_some_and(same) {
            return;
        }
        let (state, next) =
            (status.state.as_str(), status.next_attempt.map(|d| format!("{:.1} s", d.as_secs_f64())));
        if status.detail.is_empty() {
            info!(state, "link to mcpd");
        } else {
            info!(state, next_attempt = next, "link to mcpd: {}", status.detail);
        }
        self.surroundings.telemetry.metrics().link_state(status.state);
        self.sessions.values().for_each(|session| session.handle.status(&status));
        self.told = Some(status);
    }

    fn status_may_have_changed(&mut self) {
        // One receiver is the service's own; without a watcher nothing is put together.
        if self.status_due.is_none() && self.channels.status.receiver_count() > 1 {
            self.status_due = Some(Instant::now() + STATUS_SPACING);
        }
    }

    fn publish_status(&mut self) {
        self.channels.status.send_replace(Some(Arc::new(self.status())));
        // Tokens change nothing that the core sees, so a watched stream is looked at again by itself.
        let watched = self.channels.status.receiver_count() > 1 && !self.relays.is_empty();
        self.status_due = watched.then(|| Instant::now() + STATUS_SPACING);
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The credentials as the client wants them, or why there are none.
fn access(sources: &Sources) -> Result<(Access, Option<WideMode>), String> {
    let found = credentials::load(sources).map_err(|problem| problem.to_string())?;
    let access = Access { url: found.url.as_str().to_owned(), token: found.token.expose_secret().into() };
    Ok((access, found.wide_mode))
}

/// Ends the tasks of a former life, each with one error that mcpd drops if it comes twice.
async fn end_left_behind(mcpd: Mcpd, left: Vec<TaskId>, over: mpsc::Sender<TaskId>) {
    let until = Instant::now() + RESTART_PATIENCE;
    for id in left {
        let mut posts = ResultPosts::new(mcpd.clone(), &id);
        loop {
            let asked = match posts.post(&restart_key(&id), RESTARTED.into()).await.1 {
                _ if Instant::now() >= until => break,
                PartReply::NotApplied(_, asked) | PartReply::Ambiguous(_, asked) => asked,
                PartReply::Unauthorized(..) => None,
                _ => break,
            };
            let asked = asked.unwrap_or_default().min(RESTART_PATIENCE);
            tokio::time::sleep(RESTART_RETRY.max(asked)).await;
        }
        let _ = over.send(id).await;
    }
}
