//! Whether a provider works for others now: what its owner has paused, and the rules under which it is shared.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use super::Providers;
use crate::domain::{Facts, Pause, Provider, Rule};

/// How long a rule has to be fulfilled before work comes again: a plug that is wiggled, or a mouse that is touched once a minute, does not
/// flap the list. A rule that is broken counts at once.
pub(in crate::core) const SETTLING: Duration = Duration::from_secs(30);

/// What keeps a provider from work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paused {
    /// Its owner, until then.
    ByOwner(Pause),
    /// A rule that is not fulfilled, for this reason.
    ByRule(&'static str),
}

impl fmt::Display for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByOwner(_) => f.write_str("paused by its owner"),
            Self::ByRule(why) => write!(f, "paused: {why}"),
        }
    }
}

/// The rules of all pushed providers, and how each stands.
#[derive(Debug, Default)]
pub(super) struct Rules {
    facts: Option<Facts>,
    standing: BTreeMap<Rule, Standing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing is known of it yet.
    Unknown,
    Fulfilled,
    /// Fulfilled since then, after it was broken.
    Settling(Instant),
    Broken(&'static str),
}

impl Standing {
    fn after(self, verdict: Option<Result<(), &'static str>>, now: Instant) -> Self {
        match (verdict, self) {
            (None, _) => self,
            (Some(Err(why)), _) => Self::Broken(why),
            (Some(Ok(())), Self::Broken(_)) => Self::Settling(now),
            (Some(Ok(())), Self::Settling(since)) if now.duration_since(since) < SETTLING => self,
            (Some(Ok(())), _) => Self::Fulfilled,
        }
    }

    fn why_not(self) -> Option<&'static str> {
        match self {
            Self::Fulfilled => None,
            Self::Unknown => Some("its sharing rules are being looked at"),
            Self::Settling(_) => Some("its sharing rules have to hold for a moment"),
            Self::Broken(why) => Some(why),
        }
    }
}

impl Rules {
    /// Judges the rules that there are now, by the last facts; `true` if one stands otherwise than before.
    fn judge<'a>(&mut self, rules: impl Iterator<Item = &'a Rule>, now: Instant) -> bool {
        let judged = rules.map(|rule| {
            let before = self.standing.get(rule).copied().unwrap_or(Standing::Unknown);
            let verdict = self.facts.as_ref().and_then(|facts| rule.judge(facts));
            (rule.clone(), before.after(verdict, now))
        });
        let judged: BTreeMap<_, _> = judged.collect();
        let changed = judged != self.standing;
        self.standing = judged;
        changed
    }

    fn broken(&self, rules: &[Rule]) -> Option<Paused> {
        let why = |rule: &Rule| self.standing.get(rule).copied().unwrap_or(Standing::Unknown).why_not();
        rules.iter().find_map(why).map(Paused::ByRule)
    }
}

impl Providers {
    /// What keeps this provider from work, if anything does.
    pub(in crate::core) fn paused(&self, provider: &Provider) -> Option<Paused> {
        let owner = self.pauses.of(&provider.name).map(Paused::ByOwner);
        owner.or_else(|| self.rules.broken(&provider.sharing))
    }

    /// Takes the facts of a moment; `true` if they change who works.
    pub(in crate::core) fn heed(&mut self, facts: &Facts, now: Instant) -> bool {
        self.rules.facts = Some(*facts);
        let ended = self.pauses.end(facts.now);
        self.judge_rules(now) || ended
    }

    /// To be called whenever the providers have changed.
    pub(super) fn judge_rules(&mut self, now: Instant) -> bool {
        let providers = self.sessions.values().flat_map(|session| session.providers.values());
        self.rules.judge(providers.flat_map(|provider| &provider.sharing), now)
    }

    /// The rules of all pushed providers.
    pub(in crate::core) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.standing.keys()
    }
}
