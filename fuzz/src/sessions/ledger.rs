//! What the core has promised by its effects, kept apart from it and checked with each effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    core::{CANCEL_BOUND, Effect, LinkEffect, link::REGISTER_SPACING},
    domain::{End, Provider, ProviderName, ProviderState, SessionKey, TaskId, TaskKey},
};

/// A task as the effects tell of it.
#[derive(Debug)]
pub struct Told {
    pub id: TaskId,
    llm: String,
    pub ended: bool,
    /// Until when its end is delivered; given up after that.
    pub until: Option<Instant>,
    pub settled: bool,
    /// Who has it, and until when a cancel may hold its slot.
    pub held: Option<(SessionKey, Option<Instant>)>,
}

/// A session as it has spoken.
#[derive(Debug, Default)]
pub struct Session {
    pub snapshots: u32,
    pub providers: BTreeMap<ProviderName, Provider>,
    pub draining: bool,
}

/// Everything promised.
#[derive(Debug, Default)]
pub struct Ledger {
    pub tasks: BTreeMap<TaskKey, Told>,
    pub sessions: BTreeMap<SessionKey, Session>,
    pub paused: BTreeSet<ProviderName>,
    pub all_paused: bool,
    /// Resumed one by one since all were paused.
    pub resumed: BTreeSet<ProviderName>,
    pub draining: bool,
    /// When a drain ends though mcpd has not taken every end: a successor offers them again.
    pub drain_bound: Option<Instant>,
    pub drained: bool,
    pub registering: Option<u64>,
    pub epoch: u64,
    pub channel: bool,
    pub heartbeat: Option<u64>,
    /// The task of which mcpd is just saying that nobody waits for it.
    pub abandoned: Option<TaskKey>,
    /// The task that a session is just refusing.
    pub refused: Option<TaskKey>,
    ever_registered: bool,
    registered_at: Option<Instant>,
    default_in_flight: u32,
}

impl Ledger {
    pub fn new(default_in_flight: u32) -> Self {
        Self { default_in_flight, ..Self::default() }
    }

    /// Takes one effect, at its time.
    pub fn take(&mut self, effect: Effect, now: Instant) {
        assert!(!self.drained, "after Drained: {effect:?}");
        match effect {
            Effect::Repeated(_) => {}
            Effect::Begin(key, task) => self.begin(key, task.id.clone(), task.llm.clone()),
            Effect::Offer(key, session, left) => self.offer(key, session, left, now),
            Effect::Requeued(key, _) => {
                let held = self.open(key).held.take().is_some() || self.refused.take() == Some(key);
                assert!(held, "nobody had {key:?}");
            }
            Effect::Cancel(key, session, _) => self.cancel(key, session, now),
            Effect::End(key, end, until) => self.end(key, &end, until),
            Effect::Forget(key) => self.forget(key, now),
            Effect::Verdicts(session, ..) => {
                assert!(self.sessions.contains_key(&session), "verdicts for nobody")
            }
            Effect::Replaced(session) => self.close(session),
            Effect::Link(link) => self.link(link, now),
            Effect::Drained => {
                let bound = self.drain_bound.is_some_and(|bound| bound <= now);
                assert!(self.draining && (self.tasks.is_empty() || bound), "drained too early");
                assert!(self.tasks.values().all(|task| task.ended), "without an end: {:?}", self.tasks);
                self.drained = true;
            }
        }
    }

    fn task(&mut self, key: TaskKey) -> &mut Told {
        self.tasks.get_mut(&key).expect("an effect names a task that is not under way")
    }

    fn open(&mut self, key: TaskKey) -> &mut Told {
        let task = self.task(key);
        assert!(!task.ended, "{key:?} has its end");
        task
    }

    fn begin(&mut self, key: TaskKey, id: TaskId, llm: String) {
        assert!(self.tasks.values().all(|task| task.id != id), "{id} runs twice");
        let told = Told { id, llm, ended: false, until: None, settled: false, held: None };
        assert!(self.tasks.insert(key, told).is_none(), "{key:?} was used before");
    }

    fn offer(&mut self, key: TaskKey, session: SessionKey, left: Duration, now: Instant) {
        let task = self.open(key);
        assert!(task.held.is_none() && !left.is_zero(), "{key:?} is offered twice or too late");
        let name = ProviderName::new(&task.llm).expect("a name");
        let speaker = self.sessions.get(&session).expect("an offer for nobody");
        let paused = self.paused.contains(&name) || (self.all_paused && !self.resumed.contains(&name));
        assert!(!self.draining && !speaker.draining && !paused);
        let provider = &speaker.providers[&name];
        assert!(provider.publish && provider.state == ProviderState::Ready, "no consent or no provider");
        let limit = provider.max_in_flight.unwrap_or(self.default_in_flight);
        assert!(self.running(&name, session, now) < limit, "more at once than {limit}");
        self.task(key).held = Some((session, None));
    }

    /// How many slots of one provider are taken; an unconfirmed cancel gives its slot back in the end.
    fn running(&self, name: &ProviderName, session: SessionKey, now: Instant) -> u32 {
        let holds = |task: &&Told| {
            let held = task.held.filter(|(_, until)| until.is_none_or(|until| until > now));
            task.llm == name.as_str() && held.is_some_and(|(by, _)| by == session)
        };
        self.tasks.values().filter(holds).count() as u32
    }

    fn cancel(&mut self, key: TaskKey, session: SessionKey, now: Instant) {
        let task = self.task(key);
        assert!(task.ended && task.held == Some((session, None)), "{key:?} is not there to be cancelled");
        task.held = Some((session, Some(now + CANCEL_BOUND)));
    }

    fn end(&mut self, key: TaskKey, end: &End, until: Instant) {
        let task = self.tasks.get_mut(&key).expect("an end of a task that is not under way");
        // A caller who leaves while the end is on its way takes that end back: nothing is posted any more.
        assert!(!task.ended || (*end == End::Nobody && !task.settled), "{key:?} ends twice");
        (task.ended, task.until) = (true, Some(until));
        task.held.take_if(|(by, _)| !self.sessions.contains_key(by));
    }

    fn forget(&mut self, key: TaskKey, now: Instant) {
        let (draining, abandoned) = (self.draining, self.abandoned == Some(key));
        let task = self.tasks.remove(&key).expect("forgotten twice");
        assert!(task.ended && (task.settled || abandoned), "{key:?} is forgotten too early");
        let bound = |until: Option<Instant>| draining || until.is_some_and(|until| until <= now);
        assert!(task.held.is_none_or(|(_, until)| bound(until)), "{key:?} is still held");
    }

    /// A session is gone, and with it every slot of its own.
    pub fn close(&mut self, session: SessionKey) {
        self.sessions.remove(&session).expect("an unknown session is closed");
        for task in self.tasks.values_mut().filter(|task| task.ended) {
            task.held.take_if(|(by, _)| *by == session);
        }
    }

    /// The task whose end is given up first.
    pub fn next_given_up(&self) -> Option<(Instant, TaskKey)> {
        let waiting = self.tasks.iter().filter(|(_, task)| !task.settled);
        waiting.filter_map(|(key, task)| Some((task.until?, *key))).min()
    }

    /// Nothing that is open may be left with a session that is gone.
    pub fn check_holders(&self) {
        let gone = |task: &&Told| task.held.is_some_and(|(by, _)| !self.sessions.contains_key(&by));
        let lost = self.tasks.values().find(|task| !task.ended && gone(task));
        assert!(lost.is_none(), "left with a session that is gone: {lost:?}");
    }

    fn link(&mut self, effect: LinkEffect, now: Instant) {
        match effect {
            LinkEffect::Register { attempt, providers, .. } => self.register(attempt, &providers, now),
            LinkEffect::OpenChannel { epoch, .. } => {
                assert!(epoch > self.epoch && !std::mem::replace(&mut self.channel, true), "two channels");
                self.epoch = epoch;
            }
            LinkEffect::CloseChannel => self.channel = false,
            LinkEffect::Heartbeat { number, .. } => {
                assert!(self.heartbeat.replace(number).is_none(), "two heartbeats at once");
            }
            // The answer to one that is under way says nothing of what follows.
            LinkEffect::SessionForgotten | LinkEffect::SessionLeft(_) => self.heartbeat = None,
            LinkEffect::Persist(_) => {}
        }
    }

    fn register(&mut self, attempt: u64, providers: &[Provider], now: Instant) {
        assert!(providers.iter().all(|provider| provider.publish), "published without consent");
        assert!(self.ever_registered || !providers.is_empty(), "deregistered before it registered");
        let spaced = self.registered_at.is_none_or(|at| now >= at + REGISTER_SPACING);
        assert!(spaced, "two register calls within {REGISTER_SPACING:?}");
        (self.registering, self.registered_at, self.ever_registered) = (Some(attempt), Some(now), true);
    }
}
