//! Who serves which name: snapshots, verdicts, stand-by, slots, queues and admission.
//!
//! Of all opted-in providers with one name, the first by rank is the *holder*: it determines type and model, and providers that differ
//! are refused. Of the holder and those that match it, the first that can work *serves*; the rest stand by. Sessions from outside rank
//! before the agent's own provider host, and earlier sessions before later ones. A slot belongs to a session's provider, because it stands
//! for work that this session is doing, so it outlives a withdrawal.

mod queue;
mod queues;
mod rank;
mod sharing;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{SESSION_GRACE, Settings};
use crate::domain::{
    Failure, FailureCode, Pauses, Provider, ProviderName, Pushed, SessionHello, SessionKey, Verdicts,
};

pub(super) use queue::Caller;
use queue::Queue;
pub use queues::Refusal;
pub(super) use queues::{AfterRefusal, Slot};
pub use sharing::Paused;
use sharing::Rules;
#[cfg(test)]
pub(super) use sharing::SETTLING;

/// Most providers one session may push; more are refused one by one.
pub const MAX_PROVIDERS: usize = 1000;

/// How a session left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// Without a goodbye: there is a grace period.
    Lost,
    /// After a goodbye.
    Orderly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Live,
    /// Said goodbye, and is finishing its running tasks: until then at most, once its successor has come.
    Draining {
        until: Instant,
        succeeded: bool,
    },
    /// Its stream ended without a goodbye; its providers stay listed until then.
    Lost(Instant),
}

impl Life {
    pub(super) fn is_draining(self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    /// When time alone ends it.
    fn ends(self) -> Option<Instant> {
        match self {
            Self::Lost(at) | Self::Draining { until: at, succeeded: true } => Some(at),
            Self::Live | Self::Draining { .. } => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) hello: SessionHello,
    pub(super) life: Life,
    /// The last snapshot's; `None` before the first one.
    generation: Option<u32>,
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
    max_queued_per_caller: u32,
    pub(super) sessions: BTreeMap<SessionKey, Session>,
    running: BTreeMap<(ProviderName, SessionKey), u32>,
    queues: BTreeMap<ProviderName, Queue>,
    pub(super) pauses: Pauses,
    rules: Rules,
    conflicts: BTreeSet<ProviderName>,
}

impl Providers {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            default_in_flight: settings.max_in_flight,
            max_queued: settings.max_queued,
            max_queued_per_caller: settings.max_queued_per_caller,
            sessions: BTreeMap::new(),
            running: BTreeMap::new(),
            queues: BTreeMap::new(),
            pauses: Pauses::default(),
            rules: Rules::default(),
            conflicts: BTreeSet::new(),
        }
    }

    // ---- sessions --------------------------------------------------------------------------------------------------

    /// Takes a session in; returns the connected one with the same client id, which it replaces. One that has said goodbye finishes
    /// its tasks beside it.
    pub(super) fn opened(&mut self, session: SessionKey, hello: SessionHello) -> Option<SessionKey> {
        let mut former = None;
        for (key, other) in self.sessions.iter_mut().filter(|(_, s)| s.hello.client_id == hello.client_id) {
            match &mut other.life {
                Life::Live => former = Some(*key),
                Life::Draining { succeeded, .. } => *succeeded = true,
                Life::Lost(_) => {}
            }
        }
        let fresh = Session {
            hello,
            life: Life::Live,
            generation: None,
            pushed: Vec::new(),
            providers: BTreeMap::new(),
            told: None,
        };
        self.sessions.insert(session, fresh);
        former
    }

    /// Replaces a session's whole set. A lost session of the same client ends here: its successor has spoken.
    pub(super) fn snapshot(
        &mut self,
        session: SessionKey,
        generation: u32,
        pushed: Vec<Pushed>,
        now: Instant,
    ) {
        // A session that is lost or replaced can push nothing more.
        let Some(entry) = self.sessions.get_mut(&session).filter(|s| !matches!(s.life, Life::Lost(_))) else {
            return;
        };
        entry.generation = Some(generation);
        // Every snapshot is answered, even one that is equal to the last.
        entry.told = None;
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
        self.judge_rules(now);
    }

    pub(super) fn draining(&mut self, session: SessionKey, until: Instant) {
        if let Some(entry) = self.sessions.get_mut(&session).filter(|s| s.life == Life::Live) {
            entry.life = Life::Draining { until, succeeded: false };
        }
    }

    /// The sessions whose successors have come and whose time to finish is over.
    pub(super) fn overdue(&self, now: Instant) -> Vec<SessionKey> {
        let over = self.sessions.iter().filter(|(_, s)| s.life.ends().is_some_and(|at| at <= now));
        over.filter(|(_, s)| s.life.is_draining()).map(|(key, _)| *key).collect()
    }

    /// A session's stream ended; `None` if it was not connected.
    pub(super) fn closed(&mut self, session: SessionKey, now: Instant) -> Option<Departure> {
        let entry = self.sessions.get_mut(&session)?;
        match entry.life {
            Life::Lost(_) => None,
            Life::Draining { .. } => {
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
        self.sessions.values().filter_map(|s| s.life.ends()).min()
    }

    /// Forgets the sessions whose grace is over.
    pub(super) fn tick(&mut self, now: Instant) {
        self.sessions.retain(|_, s| !matches!(s.life, Life::Lost(at) if at <= now));
    }

    /// The names that mcpd gives to somebody else; `true` if that changed.
    pub(super) fn set_conflicts(&mut self, conflicts: &BTreeSet<ProviderName>) -> bool {
        let changed = self.conflicts != *conflicts;
        if changed {
            self.conflicts.clone_from(conflicts);
        }
        changed
    }
}
