//! Who serves which name: snapshots, verdicts, stand-by, slots, queues and admission.
//!
//! Of all opted-in providers of one name the first by rank is the *holder*: it fixes type and model, and others that differ are
//! refused. The first of the same kind that can work *serves*; the rest stand by. Sessions from outside rank before the agent's own
//! provider host, and earlier ones before later ones. A slot belongs to a session's provider, because it is that session's machine
//! that is busy, and so it outlives a withdrawal.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{Effect, SESSION_GRACE};
use crate::domain::{
    Failure, FailureCode, Provider, ProviderName, ProviderState, Pushed, SessionHello, SessionKey, TaskKey,
    Verdict, Verdicts,
};

/// Most providers one session may push; more are refused one by one.
pub const MAX_PROVIDERS: usize = 1000;
/// What a caller is told to wait when a provider is full: about the time in which one short answer ends.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// Why a task is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No provider of this name is published.
    NotPublished,
    /// Its owner has paused it.
    Paused,
    /// All slots and places in the queue are taken: so many run, so many wait.
    Full(u32, u32),
    /// The requests under way hold too many bytes.
    Memory,
}

impl Refusal {
    /// What the caller gets.
    pub fn failure(&self, name: &ProviderName) -> Failure {
        use FailureCode::{Overloaded, Unavailable};
        match self {
            Self::NotPublished => Failure::retryable(
                Unavailable,
                format!("no provider named '{name}' is published by this agent"),
                SESSION_GRACE,
            ),
            Self::Paused => Failure::retryable(
                Unavailable,
                format!("'{name}' is paused by its owner; `mcprelay resume` lets it take work again"),
                Duration::from_secs(60),
            ),
            Self::Full(running, queued) => Failure::retryable(
                Overloaded,
                format!("'{name}' is full: {running} running, {queued} waiting; try again later"),
                OVERLOAD_RETRY,
            ),
            Self::Memory => Failure::retryable(
                Overloaded,
                "the agent holds as many bytes of requests as it may; try again later",
                OVERLOAD_RETRY,
            ),
        }
    }
}

/// How a session left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// Without a word: there is a grace.
    Lost,
    /// After a goodbye.
    Orderly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Live,
    /// Said goodbye; finishes what runs.
    Draining,
    /// Its stream ended without a word; its providers stay listed until then.
    Lost(Instant),
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) hello: SessionHello,
    pub(super) life: Life,
    generation: u32,
    /// The last snapshot in its order: a provider, or why an entry was refused.
    pushed: Vec<Pushed>,
    pub(super) providers: BTreeMap<ProviderName, Provider>,
    told: Option<(u32, Verdicts)>,
}

/// All sessions, their providers, slots and queues.
#[derive(Debug)]
pub(super) struct Providers {
    default_in_flight: u32,
    max_queued: u32,
    pub(super) sessions: BTreeMap<SessionKey, Session>,
    running: BTreeMap<(ProviderName, SessionKey), u32>,
    queues: BTreeMap<ProviderName, VecDeque<TaskKey>>,
    paused: BTreeSet<ProviderName>,
    all_paused: bool,
    conflicts: BTreeSet<ProviderName>,
}

impl Providers {
    pub(super) fn new(default_in_flight: u32, max_queued: u32) -> Self {
        Self {
            default_in_flight,
            max_queued,
            sessions: BTreeMap::new(),
            running: BTreeMap::new(),
            queues: BTreeMap::new(),
            paused: BTreeSet::new(),
            all_paused: false,
            conflicts: BTreeSet::new(),
        }
    }

    // ---- sessions --------------------------------------------------------------------------------------------------

    /// Takes a session in; returns the connected one with the same client id, which it replaces.
    pub(super) fn opened(&mut self, session: SessionKey, hello: SessionHello) -> Option<SessionKey> {
        let same = |s: &Session| s.hello.client_id == hello.client_id && !matches!(s.life, Life::Lost(_));
        let former = self.sessions.iter().find(|(_, s)| same(s)).map(|(key, _)| *key);
        let fresh = Session {
            hello,
            life: Life::Live,
            generation: 0,
            pushed: Vec::new(),
            providers: BTreeMap::new(),
            told: None,
        };
        self.sessions.insert(session, fresh);
        former
    }

    /// Replaces a session's whole set. A lost session of the same client ends here: its successor has spoken.
    pub(super) fn snapshot(&mut self, session: SessionKey, generation: u32, pushed: Vec<Pushed>) {
        // A session that is lost or replaced has nothing more to say.
        let Some(entry) = self.sessions.get_mut(&session).filter(|s| !matches!(s.life, Life::Lost(_))) else {
            return;
        };
        entry.generation = generation;
        entry.providers.clear();
        entry.pushed = pushed;
        for slot in &mut entry.pushed {
            let Ok(provider) = slot else { continue };
            let refused = if entry.providers.contains_key(&provider.name) {
                Some(Failure::new(
                    FailureCode::Duplicate,
                    "the snapshot has this name twice; names are unique",
                ))
            } else if entry.providers.len() >= MAX_PROVIDERS {
                Some(Failure::new(
                    FailureCode::InvalidRequest,
                    format!("a session may push {MAX_PROVIDERS} providers at most"),
                ))
            } else {
                None
            };
            match refused {
                Some(failure) => *slot = Err((provider.name.as_str().to_owned(), failure)),
                None => drop(entry.providers.insert(provider.name.clone(), provider.clone())),
            }
        }
        let client = entry.hello.client_id.clone();
        self.sessions.retain(|_, s| !(matches!(s.life, Life::Lost(_)) && s.hello.client_id == client));
    }

    pub(super) fn draining(&mut self, session: SessionKey) {
        if let Some(entry) = self.sessions.get_mut(&session).filter(|s| s.life == Life::Live) {
            entry.life = Life::Draining;
        }
    }

    /// A session's stream ended; `None` if it was not connected.
    pub(super) fn closed(&mut self, session: SessionKey, now: Instant) -> Option<Departure> {
        let entry = self.sessions.get_mut(&session)?;
        match entry.life {
            Life::Lost(_) => None,
            Life::Draining => {
                self.sessions.remove(&session);
                Some(Departure::Orderly)
            }
            Life::Live => {
                entry.life = Life::Lost(now + SESSION_GRACE);
                Some(Departure::Lost)
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let ends =
            self.sessions.values().filter_map(|s| if let Life::Lost(at) = s.life { Some(at) } else { None });
        ends.min()
    }

    /// Forgets the sessions whose grace is over.
    pub(super) fn tick(&mut self, now: Instant) {
        self.sessions.retain(|_, s| !matches!(s.life, Life::Lost(at) if at <= now));
    }

    /// Pauses or resumes one provider, or all.
    pub(super) fn set_paused(&mut self, name: Option<ProviderName>, paused: bool) {
        match (name, paused) {
            (Some(name), true) => drop(self.paused.insert(name)),
            (Some(name), false) => {
                self.paused.remove(&name);
            }
            (None, true) => self.all_paused = true,
            (None, false) => {
                self.all_paused = false;
                self.paused.clear();
            }
        }
    }

    pub(super) fn is_paused(&self, name: &ProviderName) -> bool {
        self.all_paused || self.paused.contains(name)
    }

    /// The names that mcpd gives to somebody else; `true` if that changed.
    pub(super) fn set_conflicts(&mut self, conflicts: &BTreeSet<ProviderName>) -> bool {
        let changed = self.conflicts != *conflicts;
        if changed {
            self.conflicts.clone_from(conflicts);
        }
        changed
    }

    // ---- rank ------------------------------------------------------------------------------------------------------

    /// The opted-in providers of one name, best first, drained sessions left out.
    fn ranked(&self, name: &ProviderName) -> Vec<(SessionKey, &Session, &Provider)> {
        let mut seats: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.life != Life::Draining)
            .filter_map(|(key, s)| s.providers.get(name).filter(|p| p.publish).map(|p| (*key, s, p)))
            .collect();
        seats.sort_by_key(|(key, s, _)| (s.hello.builtin, *key));
        seats
    }

    /// Those of [`Self::ranked`] that are the same LLM as the holder.
    fn candidates(&self, name: &ProviderName) -> Vec<(SessionKey, &Session, &Provider)> {
        let mut seats = self.ranked(name);
        if let Some((_, _, holder)) = seats.first().copied() {
            seats.retain(|(_, _, p)| same_llm(p, holder));
        }
        seats
    }

    /// The session whose provider gets the name's work now.
    fn serving(&self, name: &ProviderName) -> Option<(SessionKey, &Session, &Provider)> {
        self.candidates(name)
            .into_iter()
            .find(|(_, s, p)| s.life == Life::Live && p.state != ProviderState::Unavailable)
    }

    /// The provider that mcpd is to list under the name: the one that serves, or one whose session is in its grace.
    fn listed(&self, name: &ProviderName) -> Option<&Provider> {
        if self.is_paused(name) {
            return None;
        }
        let lost = || self.candidates(name).into_iter().find(|(_, s, _)| matches!(s.life, Life::Lost(_)));
        self.serving(name).or_else(lost).map(|(_, _, p)| p)
    }

    fn names(&self) -> BTreeSet<&ProviderName> {
        self.sessions.values().flat_map(|s| s.providers.keys()).collect()
    }

    /// The set to publish, by name.
    pub(super) fn published(&self) -> BTreeMap<ProviderName, Provider> {
        self.names()
            .into_iter()
            .filter_map(|name| self.listed(name).map(|p| (name.clone(), p.clone())))
            .collect()
    }

    // ---- verdicts --------------------------------------------------------------------------------------------------

    pub(super) fn verdict(&self, session: SessionKey, provider: &Provider) -> Verdict {
        if !provider.publish {
            return Verdict::NotOptedIn;
        }
        let ranked = self.ranked(&provider.name);
        let Some((_, _, holder)) = ranked.first() else { return Verdict::Published };
        if !same_llm(provider, holder) {
            let message = format!(
                "the name is taken by another program's {} with model '{}'; choose another name",
                holder.kind, holder.model
            );
            return Verdict::Refused(Failure::new(FailureCode::Duplicate, message));
        }
        if self.conflicts.contains(&provider.name) {
            let message = "mcpd has an LLM of this name from somebody else; choose another name";
            return Verdict::Refused(Failure::retryable(
                FailureCode::Duplicate,
                message,
                Duration::from_secs(60),
            ));
        }
        let first = self.serving(&provider.name).map_or(ranked[0].0, |(key, _, _)| key);
        if first == session { Verdict::Published } else { Verdict::StandingBy }
    }

    /// Tells every session whose verdicts are not those it was told last.
    pub(super) fn changed_verdicts(&mut self, fx: &mut Vec<Effect>) {
        let connected = self.sessions.iter().filter(|(_, s)| s.life == Life::Live && s.generation > 0);
        let all: Vec<_> = connected.map(|(key, s)| (*key, s.generation, self.verdicts(*key, s))).collect();
        for (key, generation, verdicts) in all {
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let now = Some((generation, verdicts.clone()));
            if session.told != now {
                session.told = now;
                fx.push(Effect::Verdicts(key, generation, verdicts));
            }
        }
    }

    fn verdicts(&self, key: SessionKey, session: &Session) -> Verdicts {
        let one = |pushed: &Pushed| match pushed {
            Ok(provider) => (provider.name.as_str().to_owned(), self.verdict(key, provider)),
            Err((name, failure)) => (name.clone(), Verdict::Refused(failure.clone())),
        };
        session.pushed.iter().map(one).collect()
    }

    // ---- slots and queues ------------------------------------------------------------------------------------------

    pub(super) fn limit(&self, provider: &Provider) -> u32 {
        provider.max_in_flight.unwrap_or(self.default_in_flight)
    }

    pub(super) fn max_queued(&self) -> u32 {
        self.max_queued
    }

    pub(super) fn running(&self, name: &ProviderName, session: SessionKey) -> u32 {
        self.running.get(&(name.clone(), session)).copied().unwrap_or(0)
    }

    pub(super) fn queued(&self, name: &ProviderName) -> u32 {
        self.queues.get(name).map_or(0, |q| u32::try_from(q.len()).unwrap_or(u32::MAX))
    }

    /// The free slot that the next task of this name would take.
    fn free_slot(&self, name: &ProviderName) -> Option<(SessionKey, usize)> {
        if self.is_paused(name) {
            return None;
        }
        let (session, entry, provider) = self.serving(name)?;
        let ready = provider.state == ProviderState::Ready;
        let free = ready && self.running(name, session) < self.limit(provider);
        free.then_some((session, entry.hello.max_message_bytes))
    }

    /// Whether one more task of this name may come in.
    pub(super) fn admit(&self, name: &ProviderName) -> Result<(), Refusal> {
        if self.is_paused(name) && !self.candidates(name).is_empty() {
            return Err(Refusal::Paused);
        }
        if self.listed(name).is_none() || self.conflicts.contains(name) {
            return Err(Refusal::NotPublished);
        }
        let queued = self.queued(name);
        let at_once = queued == 0 && self.free_slot(name).is_some();
        if at_once || queued < self.max_queued {
            return Ok(());
        }
        let running = self.serving(name).map_or(0, |(session, _, _)| self.running(name, session));
        Err(Refusal::Full(running, queued))
    }

    pub(super) fn enqueue(&mut self, name: &ProviderName, key: TaskKey) {
        self.queues.entry(name.clone()).or_default().push_back(key);
    }

    /// Puts a task that had been offered before at the head of its queue.
    pub(super) fn enqueue_first(&mut self, name: &ProviderName, key: TaskKey) {
        self.queues.entry(name.clone()).or_default().push_front(key);
    }

    pub(super) fn unqueue(&mut self, name: &ProviderName, key: TaskKey) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.retain(|k| *k != key);
            if queue.is_empty() {
                self.queues.remove(name);
            }
        }
    }

    /// Takes the next task out of the queue and a slot for it; with the session's message limit in bytes.
    pub(super) fn next_offer(&mut self, name: &ProviderName) -> Option<(TaskKey, SessionKey, usize)> {
        self.queues.get(name)?;
        let (session, message_limit) = self.free_slot(name)?;
        let queue = self.queues.get_mut(name)?;
        let key = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(name);
        }
        *self.running.entry((name.clone(), session)).or_default() += 1;
        Some((key, session, message_limit))
    }

    /// Gives a slot back.
    pub(super) fn release(&mut self, name: &ProviderName, session: SessionKey) {
        let seat = (name.clone(), session);
        if let Some(running) = self.running.get_mut(&seat) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&seat);
            }
        }
    }

    /// The names whose queue is not empty.
    pub(super) fn waiting_names(&self) -> Vec<ProviderName> {
        self.queues.keys().cloned().collect()
    }

    /// Empties the queues of names that nobody publishes any more.
    pub(super) fn strand_queues(&mut self) -> Vec<TaskKey> {
        let stranded: Vec<_> =
            self.queues.keys().filter(|name| self.listed(name).is_none()).cloned().collect();
        stranded.iter().filter_map(|name| self.queues.remove(name)).flatten().collect()
    }
}

fn same_llm(a: &Provider, b: &Provider) -> bool {
    a.kind == b.kind && a.model == b.model
}
