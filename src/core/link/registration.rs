//! What mcpd has accepted, and the register call that changes it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::domain::{Provider, ProviderName};

/// Least time between the starts of two register calls (the contract's number).
pub const REGISTER_SPACING: Duration = Duration::from_millis(250);

/// A whole set, as it is registered.
pub(super) type ProviderSet = BTreeMap<ProviderName, Provider>;

/// A register call under way.
#[derive(Debug)]
struct Call {
    attempt: u64,
    set: ProviderSet,
    /// mcpd turned out not to know the session meanwhile, so it may have forgotten what this call registered.
    outdated: bool,
}

/// What became of the register call under way.
#[derive(Debug)]
pub(super) enum Ended {
    /// It says what mcpd lists, if it was accepted.
    Current(ProviderSet),
    /// Its reply says nothing any more.
    Outdated(ProviderSet),
}

/// This agent's session in mcpd, and the set that mcpd lists for it.
#[derive(Debug)]
pub(super) struct Registration {
    /// The session's sticky id.
    session: Option<String>,
    /// Whether the agent has written the id since its start: a file from before may lack the mcpd's URL or the right mode.
    persisted: bool,
    /// What mcpd accepted last in this session and, as far as is known, still has.
    accepted: Option<ProviderSet>,
    /// Whether mcpd may list something of this agent.
    listed: bool,
    call: Option<Call>,
    attempts: u64,
    last_start: Option<Instant>,
}

impl Registration {
    pub(super) fn new(session: Option<String>) -> Self {
        Self {
            session,
            persisted: false,
            accepted: None,
            listed: false,
            call: None,
            attempts: 0,
            last_start: None,
        }
    }

    pub(super) fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.call.is_some()
    }

    /// Whether mcpd may list something of this agent.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// Whether mcpd has accepted a set, and no doubt has come up since.
    pub(super) fn is_accepted(&self) -> bool {
        self.accepted.is_some()
    }

    /// Whether mcpd has accepted a set that needs the control channel.
    pub(super) fn needs_channel(&self) -> bool {
        self.accepted.as_ref().is_some_and(|set| !set.is_empty())
    }

    /// Whether mcpd has yet to hear of this set. An empty one is for what was registered, once, and only where its owner has withdrawn
    /// everything: never because somebody else has the names.
    pub(super) fn lacks<'a>(
        &'a self,
        set: impl Iterator<Item = (&'a ProviderName, &'a Provider)>,
        withdrawn: bool,
    ) -> bool {
        let mut set = set.peekable();
        if set.peek().is_none() {
            return self.listed && withdrawn && self.accepted.as_ref().is_none_or(|set| !set.is_empty());
        }
        self.accepted.as_ref().is_none_or(|accepted| !set.eq(accepted))
    }

    /// When the next call may start.
    pub(super) fn next_start(&self) -> Option<Instant> {
        self.last_start.map(|at| at + REGISTER_SPACING)
    }

    /// Starts a call; returns its attempt.
    pub(super) fn start(&mut self, set: ProviderSet, now: Instant) -> u64 {
        self.attempts += 1;
        self.last_start = Some(now);
        self.call = Some(Call { attempt: self.attempts, set, outdated: false });
        self.attempts
    }

    /// The reply to an attempt came; `None` if that is not the one under way.
    pub(super) fn take(&mut self, attempt: u64) -> Option<Ended> {
        let call = self.call.take_if(|call| call.attempt == attempt)?;
        Some(if call.outdated { Ended::Outdated(call.set) } else { Ended::Current(call.set) })
    }

    /// mcpd accepted a set; `true` if it did so in another session than before.
    pub(super) fn accept(&mut self, session: &str, set: ProviderSet) -> bool {
        self.listed = !set.is_empty();
        self.accepted = Some(set);
        let other = self.session.as_deref() != Some(session);
        if other {
            self.session = Some(session.to_owned());
            self.persisted = false;
        }
        other
    }

    /// Whether the id has to be written; asked once per id.
    pub(super) fn must_persist(&mut self) -> bool {
        !std::mem::replace(&mut self.persisted, true)
    }

    /// mcpd is taken to know of no provider, although it did not say so.
    pub(super) fn assume_empty(&mut self) {
        self.accepted = Some(ProviderSet::new());
    }

    /// It is no longer certain what mcpd has accepted.
    pub(super) fn doubt(&mut self) {
        self.accepted = None;
    }

    /// The same, and a reply to the call under way will not be listened to.
    pub(super) fn abandon(&mut self) {
        self.accepted = None;
        self.call = None;
    }

    /// The same, but the next call waits for the reply to the one under way: there is one at a time.
    pub(super) fn outdate(&mut self) {
        self.accepted = None;
        if let Some(call) = &mut self.call {
            call.outdated = true;
        }
    }

    /// The machine slept: a call from before is as good as lost, and nobody knows whether it arrived.
    pub(super) fn slept(&mut self) {
        if self.call.take().is_some() {
            self.accepted = None;
        }
    }

    /// The credentials lead to another mcpd, where this session is ours if there is one. Returns the former session if the former mcpd
    /// may list something for it.
    pub(super) fn leave(&mut self, session: Option<String>) -> Option<String> {
        let may_be_listed = std::mem::take(&mut self.listed) || self.call.is_some();
        self.abandon();
        self.persisted = false;
        std::mem::replace(&mut self.session, session).filter(|_| may_be_listed)
    }
}
