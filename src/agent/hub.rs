//! The loop: what happened goes in, the core decides, effects come out. Nothing in it waits.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::ExposeSecret as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use super::{
    AgentError, Stop, Stopped, Surroundings, core_settings,
    files::{StickySession, TaskFile},
    http_settings,
    relay::{History, Relay},
};
use crate::{
    bridge::{self, CloseReason, Offer, SessionHandle, service::StatusFeed},
    config::{Config, SESSION_FILE, TASKS_FILE},
    core::{Core, Effect, Input, LinkEffect, LinkInput, link::UrlChange},
    credentials::{self, Fingerprint, Sources},
    domain::{Activity, FailureCode, LinkStatus, SessionKey, Task, TaskId, TaskKey},
    openai::{RequestFacts, Stamp},
    pb,
    telemetry::{ChannelOpening, ChannelTrace, TaskTrace},
    upstream::{
        self,
        client::{Access, Mcpd, PartReply},
        contract::restart_key,
        events::{Channel, Delivered},
        results::{Delivery, Outbox, Report},
    },
};

/// Room for what happened and was not looked at yet, per source. Sources wait when it is full, the loop never does.
const EVENTS: usize = 1024;
/// Most tasks under way at once; where there are more the control channel is not read on. At 16 KiB a task this is 256 MiB.
const MAX_UNDER_WAY: usize = 16_384;
/// Most events taken from one source before the next one has its turn.
const TURN: usize = 64;
/// How often the clocks and the credentials file are looked at: a wake from sleep has to be noticed within a second.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// A jump of the sleep clock over this is a sleep; less is how the two clocks are read one after the other.
const SLEEP_JUMP: Duration = Duration::from_secs(5);
/// Least time between two publications of the status: a person cannot read faster.
pub(super) const STATUS_SPACING: Duration = Duration::from_millis(250);
/// How often the end of a former life's task is offered to mcpd before it is given up.
const RESTART_ATTEMPTS: u32 = 5;
/// Wait between those attempts.
const RESTART_RETRY: Duration = Duration::from_secs(2);
/// What mcpd's caller is told about a task that a killed agent left behind.
const RESTARTED: &[u8] = br#"{"error":"the agent was restarted while it ran this task; try again"}"#;

/// The ends of all channels that meet in the hub.
#[derive(Debug)]
pub(super) struct Channels {
    bridge: mpsc::Receiver<bridge::Event>,
    upstream: (mpsc::Sender<Delivered>, mpsc::Receiver<Delivered>),
    reports: (mpsc::Sender<(TaskKey, Report)>, mpsc::Receiver<(TaskKey, Report)>),
    restarted: (mpsc::Sender<TaskId>, mpsc::Receiver<TaskId>),
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
    session_file: PathBuf,
    tasks_file: TaskFile,
    /// Offers that go out once the ids of their tasks are on disk: all of a turn after one write.
    offers: Vec<(SessionKey, Offer)>,
    left_behind: Vec<TaskId>,
    event_limit: usize,
    channel_idle_timeout: Duration,
    max_message_bytes: usize,
    drain_timeout: Duration,
    channel: Option<CancellationToken>,
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
        let sticky = StickySession::read(&session_file);
        let (tasks_file, left_behind) = TaskFile::open(config.home.join(TASKS_FILE));
        let reload_sources = sources.clone();
        let mcpd = Mcpd::new(http_settings(config), Arc::new(move || access(&reload_sources).ok()));
        let url = access(&sources).ok().map(|access| access.url);
        // An id of another mcpd is worth nothing.
        let sticky = sticky.filter(|s| s.mcpd_url.is_none() || url.is_none() || s.mcpd_url == url);
        let mut rng = fastrand::Rng::with_seed(surroundings.seed);
        Ok(Self {
            core: Core::new(core_settings(config), sticky.map(|s| s.provider_session_id), rng.u64(..)),
            mcpd,
            relays: HashMap::new(),
            sessions: BTreeMap::new(),
            history: History::default(),
            started: SystemTime::now(),
            slept: (surroundings.slept_for)(),
            surroundings,
            channels,
            fingerprint: Fingerprint::of(&sources.home),
            sources,
            credentials_problem: None,
            session_file,
            tasks_file,
            offers: Vec::new(),
            left_behind,
            event_limit: config.event_limit,
            channel_idle_timeout: config.channel_idle_timeout,
            max_message_bytes,
            drain_timeout: config.drain_timeout,
            channel: None,
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
        self.feed(Input::Restored(self.left_behind.clone()));
        let mut look_around = interval(LOOK_AROUND);
        look_around.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                Some(event) = self.channels.bridge.recv() => self.from_bridge(event),
                Some(event) = self.channels.upstream.1.recv() => self.from_upstream(event),
                Some(id) = self.channels.restarted.1.recv() => self.tasks_file.over(&id),
                () = sleep_until_some(due) => self.tick(),
                () = sleep_until_some(status_due) => self.publish_status(),
                _ = look_around.tick() => self.look_around(),
            }
            self.take_turns();
        }
        self.stopped(Stopped::Drained).await
    }

    /// Takes what else has come, each source in its turn: a flood of one does not hold up the others.
    fn take_turns(&mut self) {
        for _ in 0..TURN {
            let report = self.channels.reports.1.try_recv().map(|(key, report)| self.reported(key, report));
            let bridge = self.channels.bridge.try_recv().map(|event| self.from_bridge(event));
            let upstream = self.channels.upstream.1.try_recv().map(|event| self.from_upstream(event));
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

    fn from_upstream(&mut self, (event, place): Delivered) {
        self.place = place;
        match event {
            upstream::Event::Task(task) => {
                self.history.tasks += 1;
                self.feed(Input::Task(task));
            }
            upstream::Event::BadTask(task, failure) => {
                self.history.tasks += 1;
                self.feed(Input::BadTask(task, failure));
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

    fn from_bridge(&mut self, event: bridge::Event) {
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
                let before = self.core.providers();
                self.feed(Input::SetPaused(name, paused));
                let after = self.core.providers();
                let changed =
                    before.iter().zip(&after).filter(|(b, a)| b.paused != a.paused || a.paused == paused);
                let mut names: Vec<_> = changed.map(|(_, a)| a.provider.name.as_str().to_owned()).collect();
                names.dedup();
                // Whoever asked may be gone; what it asked for is done.
                let _ = reply.send(names);
                self.link_may_have_changed();
            }
            bridge::Event::StatusWanted => self.publish_status(),
        }
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

    fn record(&mut self, key: TaskKey, summary: crate::upstream::results::Summary) {
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
        let slept = (self.surroundings.slept_for)();
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
                Err(problem)
            }
            Ok(access) => {
                self.credentials_problem = None;
                let other = self.mcpd.url().is_some_and(|url| url != access.url);
                let set = self.mcpd.set_access(&access);
                set.map(|()| if other { UrlChange::Other } else { UrlChange::Same }).map_err(|error| {
                    warn!("{error}");
                    error.to_string()
                })
            }
        };
        self.feed_link(LinkInput::Credentials(input));
    }

    // ---- what is to be done ----------------------------------------------------------------------------------------

    fn carry_out(&mut self, mut fx: Vec<Effect>) {
        for effect in fx.drain(..) {
            self.effect(effect);
        }
        self.fx = fx;
        self.status_may_have_changed();
    }

    fn effect(&mut self, effect: Effect) {
        if self.follows_an_offer(&effect) {
            self.send_offers();
        }
        match effect {
            Effect::Begin(key, task) => self.begin(key, task),
            Effect::Offer(key, session, timeout) => self.offer(key, session, timeout),
            Effect::Requeued(key) => {
                if let Some(relay) = self.relays.get_mut(&key) {
                    relay.session = None;
                    relay.outbox.trace(|trace| trace.requeued(FailureCode::ProviderLost));
                }
            }
            Effect::Cancel(key, session, reason) => {
                if let (Some(session), Some(relay)) = (self.sessions.get(&session), self.relays.get(&key)) {
                    session.handle.cancel(&relay.task.id, reason);
                }
            }
            Effect::End(key, end, until) => {
                if let Some(relay) = self.relays.get(&key) {
                    relay.outbox.end(end, until);
                }
            }
            Effect::Forget(key) => self.forget(key),
            Effect::Verdicts(session, generation, verdicts) => {
                if let Some(session) = self.sessions.get(&session) {
                    session.handle.verdicts(generation, &verdicts);
                }
            }
            Effect::Replaced(session) => {
                if let Some(session) = self.sessions.get(&session) {
                    session.handle.close(CloseReason::Replaced);
                }
            }
            Effect::Link(effect) => self.link_effect(effect),
            Effect::Drained => self.drained = true,
        }
    }

    /// Whether a session must have had its held offer before this is done: nobody can cancel or forget what he was not offered.
    fn follows_an_offer(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Cancel(key, ..) | Effect::Forget(key) | Effect::Requeued(key) => {
                self.offers.iter().any(|(_, offer)| offer.key == *key)
            }
            Effect::Replaced(_) => !self.offers.is_empty(),
            _ => false,
        }
    }

    fn begin(&mut self, key: TaskKey, task: Task) {
        self.tasks_file.begun(&task.id);
        let facts = RequestFacts::read(&task.request).unwrap_or_default();
        let stamp = stamp(&task);
        let trace = TaskTrace::start(&self.surroundings.telemetry, &task, &self.channel_trace);
        let outbox = Outbox::new(&task, stamp.clone(), trace);
        let delivery = Delivery::new(
            (key, &task),
            facts.include_usage,
            stamp,
            Arc::clone(&outbox),
            self.mcpd.clone(),
            self.rng.u64(..),
            self.channels.reports.0.clone(),
        );
        self.spawn(delivery.run());
        let relay = Relay { task, arrived: Instant::now(), outbox, session: None, _place: self.place.take() };
        self.relays.insert(key, relay);
    }

    fn offer(&mut self, key: TaskKey, session: SessionKey, timeout: Duration) {
        let Some(relay) = self.relays.get_mut(&key).filter(|_| self.sessions.contains_key(&session)) else {
            error!("an offer names a task or a session that the agent does not have");
            return;
        };
        let Some(provider) = self.core.provider_of(key) else {
            error!("an offer names a task whose provider is gone");
            return;
        };
        relay.session = Some(session);
        let request = &relay.task.request;
        let trace_context = relay.outbox.trace(|trace| {
            trace.running(provider, request);
            trace.offer_context()
        });
        let offer = Offer {
            key,
            id: relay.task.id.clone(),
            provider: provider.name.clone(),
            request: relay.task.request.clone(),
            streaming: relay.task.streaming,
            timeout,
            trace_context: trace_context.unwrap_or_default(),
            sink: Arc::clone(&relay.outbox) as Arc<_>,
        };
        self.offers.push((session, offer));
    }

    fn forget(&mut self, key: TaskKey) {
        let Some(relay) = self.relays.remove(&key) else { return };
        self.tasks_file.over(&relay.task.id);
        if let Some(session) = relay.session.and_then(|s| self.sessions.get(&s)) {
            session.handle.forget(&relay.task.id);
        }
    }

    fn link_effect(&mut self, effect: LinkEffect) {
        let (mcpd, events) = (self.mcpd.clone(), self.channels.upstream.0.clone());
        match effect {
            LinkEffect::Register { attempt, session, providers } => self.spawn(async move {
                let reply = mcpd.register(session.as_deref(), &providers).await;
                let _ = events.send((upstream::Event::Registered(attempt, reply), None)).await;
            }),
            LinkEffect::Heartbeat { session, after_wake } => self.spawn(async move {
                let reply = mcpd.heartbeat(&session, after_wake).await;
                let _ = events.send((upstream::Event::Heartbeat(reply), None)).await;
            }),
            LinkEffect::OpenChannel { epoch, session } => self.open_channel(epoch, session),
            LinkEffect::CloseChannel => self.close_channel(),
            LinkEffect::Persist(id) => {
                StickySession { provider_session_id: id, mcpd_url: self.mcpd.url() }
                    .write(&self.session_file);
            }
            LinkEffect::SessionForgotten => info!("mcpd does not know this agent's session any more"),
        }
    }

    fn open_channel(&mut self, epoch: u64, session: String) {
        self.close_channel();
        if epoch > 1 {
            self.surroundings.telemetry.metrics().reconnect();
        }
        self.channel_opening = Some((epoch, ChannelOpening::start(&self.surroundings.telemetry)));
        let channel = Channel {
            epoch,
            session,
            event_limit: self.event_limit,
            idle_timeout: self.channel_idle_timeout,
            events: self.channels.upstream.0.clone(),
            places: Arc::clone(&self.places),
        };
        let cancelled = self.halt.child_token();
        self.channel = Some(cancelled.clone());
        self.spawn(channel.run(self.mcpd.clone(), cancelled));
    }

    fn close_channel(&mut self) {
        if let Some(channel) = self.channel.take() {
            channel.cancel();
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawned.spawn(self.halt.clone().run_until_cancelled_owned(work));
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

/// What the chunks and bodies that the agent builds itself are marked with.
fn stamp(task: &Task) -> Stamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Stamp { id: format!("chatcmpl-{}", task.id), model: task.llm.clone(), created: since.as_secs() }
}

/// The credentials as the client wants them, or why there are none.
fn access(sources: &Sources) -> Result<Access, String> {
    let found = credentials::load(sources).map_err(|problem| problem.to_string())?;
    if let Some(wide) = &found.wide_mode {
        warn!("{wide}");
    }
    Ok(Access { url: found.url.as_str().to_owned(), token: found.token.expose_secret().into() })
}

/// Ends the tasks of a former life, each with one error that mcpd drops if it comes twice.
async fn end_left_behind(mcpd: Mcpd, left: Vec<TaskId>, over: mpsc::Sender<TaskId>) {
    for id in left {
        for _ in 0..RESTART_ATTEMPTS {
            match mcpd.post_part(&id, &restart_key(&id), RESTARTED.into()).await.1 {
                PartReply::Unauthorized(..) | PartReply::NotApplied(..) | PartReply::Ambiguous(..) => {
                    tokio::time::sleep(RESTART_RETRY).await;
                }
                PartReply::Accepted
                | PartReply::NobodyWaits(_)
                | PartReply::TooLarge(_)
                | PartReply::Refused(_) => break,
            }
        }
        let _ = over.send(id).await;
    }
}
