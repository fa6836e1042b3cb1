//! The agent's one loop: events go in, the core decides, effects come out. Nothing in it waits.
//!
//! The hub takes what happened to the [`Core`], and what the core wants to the [`Executor`], whose parts keep their own state:
//! [`McpdLink`] the calls to mcpd, [`Sessions`] the local programs, [`Relays`] the tasks under way, [`Journal`] their record on disk,
//! [`Notices`] what others were told.

use std::{
    collections::BTreeSet,
    pin::pin,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::DropGuard;
use tracing::{debug, info, warn};

use super::{
    Deps, Stop, Stopped, awake::Awake, core_settings, credentials_watch::CredentialsWatch,
    executor::Executor, facts::FactWatch, files::PauseFile, journal::Journal, ledger::Ledger,
    mcpd_link::McpdLink, notices::Notices, relays::Relays, sessions::Sessions, sleep::SleepWatch,
    spawner::Spawner, status,
};
use crate::{
    bridge::{self, SessionHandle, listener::Serve},
    config::{Config, PAUSES_FILE, TASKS_FILE, USAGE_FOLDER},
    core::{ActivityOf, Core, Effect, Input, LinkInput},
    domain::{CallFailure, LinkStatus, Pause, ProviderName, SessionHello, SessionKey, TaskId, TaskKey},
    telemetry,
    upstream::{
        self,
        events::{Delivered, Handover},
        outbox::Summary,
        results::Report,
    },
};

/// Events that may wait to be handled, per source. A source waits when there is no room; the loop never does.
const EVENTS: usize = 1024;
/// Most events taken from one source before the next source has its turn.
const TURN: usize = 64;
/// How long an agent that is told to stop at once still tries to tell the callers of what runs (the contract's number).
const ABORT_BOUND: Duration = Duration::from_secs(2);
/// By how many bytes a bridge message may be larger than an event: for the proto's framing and the trace context.
const MESSAGE_MARGIN: usize = 1 << 20;

/// Where what happens comes from.
struct Inputs {
    bridge: mpsc::Receiver<bridge::Event>,
    upstream: mpsc::Receiver<Delivered>,
    reports: mpsc::Receiver<(TaskKey, Report)>,
    /// Orphaned tasks that have their end.
    orphans: mpsc::Receiver<TaskId>,
}

/// The hub and everything it owns.
pub(super) struct Hub {
    core: Core,
    inputs: Inputs,
    parts: Executor,
    credentials: CredentialsWatch,
    sleep: SleepWatch,
    awake: Awake,
    facts: FactWatch,
    pauses: PauseFile,
    /// `None` if none is to be kept.
    ledger: Option<Ledger>,
    telemetry: telemetry::Handle,
    started: SystemTime,
    /// Largest message that the bridge takes, in bytes.
    message_bytes: usize,
    /// How long running tasks may go on once the drain has begun.
    drain_timeout: Duration,
    /// Told `false` when the drain begins: the health service says NOT_SERVING from then on.
    serving: watch::Sender<bool>,
    /// Room for the core's effects, kept between inputs.
    effects: Vec<Effect>,
    spawner: Spawner,
    _end_all_when_dropped: DropGuard,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub that has read the agent's files, and what the socket's server needs of it.
    pub(super) fn new(config: &Config, deps: Deps) -> (Self, Serve) {
        let (events, from_bridge) = mpsc::channel(EVENTS);
        let (to_upstream, from_upstream) = mpsc::channel(EVENTS);
        let (to_reports, from_reports) = mpsc::channel(EVENTS);
        let (to_orphans, from_orphans) = mpsc::channel(EVENTS);
        let (watchers, status) = watch::channel(None);
        let (serving_tx, serving) = watch::channel(true);
        let max_message_bytes = config.event_limit + MESSAGE_MARGIN;
        let serve = Serve { events, status, allow_uid: config.allow_uid.clone(), max_message_bytes, serving };
        let (spawner, telemetry) = (Spawner::default(), deps.telemetry);
        let mcpd = McpdLink::open(config, to_upstream, spawner.clone(), telemetry.clone());
        let mut rng = fastrand::Rng::with_seed(deps.seed);
        let (pauses, paused) = PauseFile::open(config.home.join(PAUSES_FILE));
        let core = Core::new(core_settings(config), mcpd.session_id().map(str::to_owned), rng.u64(..));
        let facts = FactWatch::new(deps.facts, &spawner);
        let ledger = config.usage_ledger.then(|| Ledger::open(config.home.join(USAGE_FOLDER), facts.clock()));
        let parts = Executor {
            mcpd,
            sessions: Sessions::default(),
            relays: Relays::new(to_reports, spawner.clone(), telemetry.clone(), rng),
            journal: Journal::open(config.home.join(TASKS_FILE), to_orphans, spawner.clone()),
            notices: Notices::new(telemetry.clone(), deps.health, watchers),
            drained: false,
        };
        let hub = Self {
            core: core.with_pauses(paused),
            inputs: Inputs {
                bridge: from_bridge,
                upstream: from_upstream,
                reports: from_reports,
                orphans: from_orphans,
            },
            parts,
            credentials: CredentialsWatch::new(config.credential_sources()),
            sleep: SleepWatch::new(deps.clock),
            awake: Awake::new(config.keep_awake),
            facts,
            pauses,
            ledger,
            telemetry,
            started: SystemTime::now(),
            message_bytes: max_message_bytes,
            drain_timeout: config.drain_timeout,
            serving: serving_tx,
            effects: Vec::new(),
            _end_all_when_dropped: spawner.drop_guard(),
            spawner,
        };
        (hub, serve)
    }

    // ---- the loop --------------------------------------------------------------------------------------------------

    /// Runs until told to stop; then everything that was started has ended.
    pub(super) async fn run(mut self, stop: Stop) -> Stopped {
        self.read_credentials();
        self.look_at_machine();
        let mut every_second = self.sleep.ticks();
        // Made once: a new future per turn would have to be added to its token's list, and removed again.
        let (mut aborted, mut drain) = (pin!(stop.abort.cancelled()), pin!(stop.drain.cancelled()));
        while !self.parts.drained {
            let due = self.core.next_deadline().map(Instant::from_std);
            let status_due = self.parts.notices.status_due();
            tokio::select! {
                biased;
                () = aborted.as_mut() => return self.aborted().await,
                () = drain.as_mut(), if !self.parts.sessions.is_draining() => self.drain(),
                Some((key, report)) = self.inputs.reports.recv() => self.reported(key, report),
                Some(event) = self.inputs.bridge.recv() => self.bridge_event(event),
                Some(event) = self.inputs.upstream.recv() => self.upstream_event(event),
                Some(id) = self.inputs.orphans.recv() => self.orphan_is_over(id),
                () = sleep_until_some(due) => self.tick(),
                () = sleep_until_some(status_due) => self.publish_status(),
                () = every_second.tick() => self.look_around().await,
            }
            self.take_turns();
        }
        self.stopped(Stopped::Drained).await
    }

    /// Takes what else has come, from each source in turn, so that a flood from one does not hold up the others.
    fn take_turns(&mut self) {
        for _ in 0..TURN {
            let report = self.inputs.reports.try_recv().map(|(key, report)| self.reported(key, report));
            let bridge = self.inputs.bridge.try_recv().map(|event| self.bridge_event(event));
            let upstream = self.inputs.upstream.try_recv().map(|event| self.upstream_event(event));
            if report.is_err() && bridge.is_err() && upstream.is_err() {
                break;
            }
        }
        self.parts.send_offers();
        self.parts.journal.flush();
    }

    /// Ends what still runs: its callers are told so, as far as mcpd takes it in time.
    async fn aborted(mut self) -> Stopped {
        let until = Instant::now() + ABORT_BOUND;
        self.feed(Input::Abort);
        while !self.parts.relays.are_delivered() {
            match timeout_at(until, self.inputs.reports.recv()).await {
                Ok(Some((key, report))) => self.reported(key, report),
                Ok(None) | Err(_) => break,
            }
        }
        self.stopped(Stopped::Aborted).await
    }

    async fn stopped(mut self, how: Stopped) -> Stopped {
        self.parts.journal.flush();
        self.parts.sessions.close_all();
        if let Some(ledger) = &mut self.ledger {
            ledger.close().await;
        }
        self.spawner.stop().await;
        how
    }

    // ---- the core --------------------------------------------------------------------------------------------------

    fn feed(&mut self, input: Input) {
        self.decide(None, |core, now, activity, effects| core.handle(input, now, activity, effects));
    }

    fn feed_link(&mut self, input: LinkInput) {
        self.feed(Input::Link(input));
        self.tell_of_link();
    }

    fn tick(&mut self) {
        self.decide(None, |core, now, activity, effects| core.tick(now, activity, effects));
        self.tell_of_link();
    }

    /// Asks the core and carries its effects out. A task that begins takes its handover; a duplicate does not begin, and gives it back.
    fn decide(
        &mut self,
        mut handover: Option<Handover>,
        ask: impl FnOnce(&mut Core, std::time::Instant, ActivityOf<'_>, &mut Vec<Effect>),
    ) {
        let mut effects = std::mem::take(&mut self.effects);
        let relays = &self.parts.relays;
        ask(&mut self.core, Instant::now().into_std(), &|key| relays.activity(key), &mut effects);
        for effect in effects.drain(..) {
            self.parts.carry_out(effect, &self.core, &mut handover);
        }
        self.effects = effects;
        self.parts.notices.status_changed();
    }

    // ---- mcpd ------------------------------------------------------------------------------------------------------

    fn upstream_event(&mut self, (event, handover): Delivered) {
        use upstream::Event;
        match event {
            Event::Task(task) | Event::BadTask(task, _) if self.is_orphan(&task.id, handover.as_ref()) => {
                debug!(task_id = %task.id, "mcpd handed over a task that a previous run had; not run");
            }
            Event::Task(task) => self.task_came(Input::Task(task), handover),
            Event::BadTask(task, failure) => self.task_came(Input::BadTask(task, failure), handover),
            Event::LostTask => self.parts.relays.lost(),
            Event::CallerLeft(id) => self.feed(Input::CallerLeft(id)),
            Event::Registered(attempt, reply) => {
                let accepted = reply.is_ok();
                self.feed_link(LinkInput::Registered(attempt, reply));
                if accepted {
                    self.parts.journal.end_orphans(self.parts.mcpd.mcpd());
                }
            }
            Event::Heartbeat(number, reply) => self.heartbeat(number, reply),
            Event::ChannelOpened(epoch) => {
                self.parts.mcpd.channel_opened(epoch);
                self.feed_link(LinkInput::ChannelOpened(epoch));
            }
            Event::ChannelProved(epoch) => self.feed_link(LinkInput::ChannelProved(epoch)),
            Event::ChannelClosed(epoch, why) => {
                self.parts.mcpd.channel_closed(epoch, why.word());
                self.feed_link(LinkInput::ChannelClosed(epoch, why));
            }
        }
    }

    fn task_came(&mut self, input: Input, handover: Option<Handover>) {
        self.parts.relays.came();
        self.decide(handover, |core, now, activity, effects| core.handle(input, now, activity, effects));
    }

    fn heartbeat(&mut self, number: u64, reply: Result<(), CallFailure>) {
        if let Err(why) = &reply {
            warn!("heartbeat missed: {why}");
            self.telemetry.metrics().heartbeat_missed();
        }
        self.feed_link(LinkInput::Heartbeat(number, reply));
    }

    /// Whether the task that has just come is one that a previous run had.
    fn is_orphan(&self, id: &TaskId, handover: Option<&Handover>) -> bool {
        self.parts.journal.is_orphan(id, handover.and_then(|h| h.mcpd.url()).as_deref())
    }

    /// An orphaned task has its end; from now on its id is treated like that of any other task that has ended.
    fn orphan_is_over(&mut self, id: TaskId) {
        self.parts.journal.over(&id);
        self.feed(Input::Restored(vec![id]));
    }

    fn reported(&mut self, key: TaskKey, report: Report) {
        match report {
            Report::Failed(failure) => self.feed(Input::DeliveryFailed(key, failure)),
            Report::Settled(summary) => {
                self.delivered(key, summary);
                self.feed(Input::Settled(key));
            }
            Report::NobodyWaits(summary) => {
                self.delivered(key, summary);
                self.feed(Input::CallerGone(key));
            }
        }
    }

    fn delivered(&mut self, key: TaskKey, summary: Summary) {
        if let (Some(ended), Some(ledger)) = (self.parts.relays.delivered(key, summary), &mut self.ledger) {
            ledger.record(ended);
        }
    }

    // ---- the bridge ------------------------------------------------------------------------------------------------

    fn bridge_event(&mut self, event: bridge::Event) {
        use bridge::Event;
        match event {
            Event::Opened(session, hello, handle) => self.session_opened(session, hello, handle),
            Event::Snapshot(session, generation, pushed) => {
                self.providers_changed(Input::Snapshot(session, generation, pushed));
                self.look_at_machine();
            }
            Event::Finished(session, key, outcome, usage) => {
                self.parts.relays.set_usage(key, usage);
                self.feed(Input::Finished(session, key, outcome));
            }
            Event::Refused(session, key, failure) => self.feed(Input::Refused(session, key, failure)),
            Event::Broken(session, key, failure) => self.feed(Input::Broken(session, key, failure)),
            Event::Draining(session, grace) => {
                self.parts.sessions.drains(session);
                self.providers_changed(Input::SessionDraining(session, grace));
            }
            Event::Closed(session) => {
                self.parts.sessions.closed(session);
                self.providers_changed(Input::SessionClosed(session));
            }
            Event::SetPaused(name, pause, reply) => {
                // Whoever asked may be gone, but the request is carried out.
                let _ = reply.send(self.set_paused(name, pause));
            }
            Event::StatusWanted => self.publish_status(),
            Event::UsageWanted(by, days, reply) => match &self.ledger {
                Some(ledger) => ledger.report(by, days, reply),
                // Whoever asked may be gone.
                None => drop(reply.send(None)),
            },
        }
    }

    fn providers_changed(&mut self, input: Input) {
        self.feed(input);
        self.tell_of_link();
    }

    fn session_opened(&mut self, session: SessionKey, hello: SessionHello, handle: SessionHandle) {
        // A session of the same client is cut off now, and must not get an offer afterwards.
        self.parts.send_offers();
        let link = self.link_status();
        self.parts.sessions.opened(session, &hello, handle, self.message_bytes, &link);
        self.feed(Input::SessionOpened(session, hello));
    }

    /// Pauses or resumes; gives the names that this changed, or `None` for one that nobody has pushed.
    fn set_paused(&mut self, name: Option<ProviderName>, pause: Option<Pause>) -> Option<Vec<String>> {
        let before = self.core.providers();
        if name.as_ref().is_some_and(|name| before.iter().all(|p| p.provider.name != *name)) {
            return None;
        }
        self.providers_changed(Input::SetPaused(name, pause));
        self.pauses.save(self.core.pauses());
        let after = self.core.providers();
        let changed = before.iter().zip(&after).filter(|(before, after)| before.paused != after.paused);
        let names: BTreeSet<_> = changed.map(|(_, after)| after.provider.name.as_str().to_owned()).collect();
        Some(names.into_iter().collect())
    }

    // ---- the machine and its owner ---------------------------------------------------------------------------------

    /// What has to be checked once a second, because nothing notifies the agent of it.
    async fn look_around(&mut self) {
        self.look_at_machine();
        if let Some(ledger) = &mut self.ledger {
            ledger.tick(self.facts.clock()).await;
        }
        if self.awake.tick(self.core.runs()) {
            self.parts.notices.status_changed();
        }
        if let Some(slept) = self.sleep.slept() {
            info!("the machine slept for {} s", slept.as_secs());
            self.feed_link(LinkInput::Woke);
        }
        if self.credentials.have_changed() || self.parts.mcpd.may_access_now() {
            self.read_credentials();
        }
        if let Some(trouble) = self.parts.mcpd.results_changed() {
            self.feed_link(LinkInput::Results(trouble));
        }
        if self.parts.mcpd.follow_authorities() {
            self.feed_link(LinkInput::AuthoritiesChanged);
        }
    }

    /// Judges the owner's rules and timed pauses by what is so on the machine now.
    fn look_at_machine(&mut self) {
        if self.core.heeds_facts() {
            let facts = self.facts.now(self.core.rules());
            self.providers_changed(Input::Facts(facts));
            self.pauses.save(self.core.pauses());
        }
    }

    fn read_credentials(&mut self) {
        let others_work = self.parts.mcpd.url().is_some();
        let read = self.credentials.read();
        let read = read.and_then(|access| self.parts.mcpd.use_access(&access).map_err(|e| e.reason()));
        self.credentials.report(&read, others_work);
        // Unusable credentials are no reason to drop those that work.
        if read.is_ok() || !others_work {
            self.feed_link(LinkInput::Credentials(read));
        }
    }

    fn drain(&mut self) {
        self.parts.send_offers();
        info!("stopping: no new tasks are taken; running ones have {} s", self.drain_timeout.as_secs());
        self.serving.send_replace(false);
        self.parts.sessions.drain(self.drain_timeout);
        self.providers_changed(Input::Drain);
    }

    // ---- who is told what ------------------------------------------------------------------------------------------

    fn link_status(&self) -> LinkStatus {
        self.core.link_status(Instant::now().into_std())
    }

    fn tell_of_link(&mut self) {
        self.parts.notices.providers(&self.core);
        let status = self.link_status();
        if self.parts.notices.link(&status) {
            self.parts.sessions.link(&status);
        }
    }

    fn publish_status(&mut self) {
        let url = self.parts.mcpd.url();
        self.parts.notices.publish(status::of(&status::Parts {
            core: &self.core,
            relays: &self.parts.relays,
            sessions: &self.parts.sessions,
            mcpd_url: url.as_deref().unwrap_or_default(),
            started: self.started,
            awake: self.awake.is_held(),
        }));
    }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
