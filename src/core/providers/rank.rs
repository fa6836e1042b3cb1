//! Who serves a name, who stands by, and what every session is told about its snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Life, Providers, Session};
use crate::{
    core::Effect,
    domain::{
        Failure, FailureCode, Provider, ProviderName, ProviderState, Pushed, SessionKey, Verdict, Verdicts,
    },
};

/// One provider with a name, and the session that pushed it.
pub(super) type Seat<'a> = (SessionKey, &'a Session, &'a Provider);

/// What seats are ranked by, best first.
pub(super) fn rank((key, session, _): &Seat<'_>) -> (bool, SessionKey) {
    (session.hello.builtin, *key)
}

impl Providers {
    /// The opted-in providers of one name, drained sessions left out.
    fn seats<'a>(&'a self, name: &'a ProviderName) -> impl Iterator<Item = Seat<'a>> {
        self.sessions
            .iter()
            .filter(|(_, s)| !s.life.is_draining())
            .filter_map(|(key, s)| s.providers.get(name).filter(|p| p.publish).map(|p| (*key, s, p)))
    }

    /// The first of [`Self::seats`] by rank.
    fn holder<'a>(&'a self, name: &'a ProviderName) -> Option<Seat<'a>> {
        self.seats(name).min_by_key(rank)
    }

    /// Those of [`Self::seats`] that are the same LLM as the holder.
    pub(super) fn candidates<'a>(&'a self, name: &'a ProviderName) -> impl Iterator<Item = Seat<'a>> {
        let holder = self.holder(name);
        self.seats(name).filter(move |(_, _, p)| holder.is_some_and(|(_, _, holder)| same_llm(p, holder)))
    }

    /// Those of [`Self::candidates`] that can work, and may.
    pub(super) fn able<'a>(&'a self, name: &'a ProviderName) -> impl Iterator<Item = Seat<'a>> {
        let able = |(_, s, p): &Seat<'_>| {
            s.life == Life::Live && p.state != ProviderState::Unavailable && self.paused(p).is_none()
        };
        self.candidates(name).filter(able)
    }

    /// The session whose provider gets the name's work now.
    pub(super) fn serving<'a>(&'a self, name: &'a ProviderName) -> Option<Seat<'a>> {
        self.able(name).min_by_key(rank)
    }

    /// The provider that mcpd is to list under the name: the one that serves, or one whose session is in its grace.
    pub(super) fn listed<'a>(&'a self, name: &'a ProviderName) -> Option<&'a Provider> {
        let is_lost = |(_, s, p): &Seat<'_>| matches!(s.life, Life::Lost(_)) && self.paused(p).is_none();
        let lost = || self.candidates(name).filter(is_lost).min_by_key(rank);
        self.serving(name).or_else(lost).map(|(_, _, p)| p)
    }

    fn names(&self) -> BTreeSet<&ProviderName> {
        self.sessions.values().flat_map(|s| s.providers.keys()).collect()
    }

    /// The set to publish, by name.
    pub(in crate::core) fn published(&self) -> BTreeMap<ProviderName, Provider> {
        self.names()
            .into_iter()
            .filter_map(|name| self.listed(name).map(|p| (name.clone(), p.clone())))
            .collect()
    }

    pub(in crate::core) fn verdict(&self, session: SessionKey, provider: &Provider) -> Verdict {
        if !provider.publish {
            return Verdict::NotOptedIn;
        }
        let Some((first, _, holder)) = self.holder(&provider.name) else { return Verdict::Published };
        if !same_llm(provider, holder) {
            let message = format!(
                "the name is taken by another program's {} with model '{}'; choose another name",
                holder.kind, holder.model
            );
            return Verdict::Refused(Failure::new(FailureCode::Duplicate, message));
        }
        if self.conflicts.contains(&provider.name) {
            let message = "this name is taken in mcpd; choose another name";
            return Verdict::Refused(Failure::retryable(
                FailureCode::Duplicate,
                message,
                Duration::from_secs(60),
            ));
        }
        let serves = self.serving(&provider.name).map_or(first, |(key, _, _)| key);
        if serves == session { Verdict::Published } else { Verdict::StandingBy }
    }

    /// Tells every session whose verdicts have changed since it was last told.
    pub(in crate::core) fn changed_verdicts(&mut self, effects: &mut Vec<Effect>) {
        let connected = self.sessions.iter().filter(|(_, s)| s.life == Life::Live);
        let all: Vec<_> = connected
            .filter_map(|(key, s)| s.generation.map(|generation| (*key, generation, self.verdicts(*key, s))))
            .collect();
        for (key, generation, verdicts) in all {
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let now = Some((generation, verdicts.clone()));
            if session.told != now {
                session.told = now;
                effects.push(Effect::Verdicts(key, generation, verdicts));
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
}

fn same_llm(a: &Provider, b: &Provider) -> bool {
    a.kind == b.kind && a.model == b.model
}
