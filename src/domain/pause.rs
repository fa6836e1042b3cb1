//! What the owner has paused, and until when.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::ProviderName;

/// A moment of the machine's own clock, in seconds since 1970: what a person means by "until 18:00". The clock of deadlines would not
/// do, because it may stand still while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub u64);

impl From<SystemTime> for UnixTime {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

impl From<UnixTime> for SystemTime {
    fn from(time: UnixTime) -> Self {
        Self::UNIX_EPOCH + Duration::from_secs(time.0)
    }
}

/// One pause by the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// When it ends by itself; `None` lasts until the owner resumes.
    pub until: Option<UnixTime>,
}

/// Everything that the owner has paused. What is said of one name counts before what is said of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pauses {
    /// Of every provider, also of those that come later.
    pub all: Option<Pause>,
    /// Of one name; `None` is one that was resumed after all were paused.
    pub names: BTreeMap<ProviderName, Option<Pause>>,
}

impl Pauses {
    /// Pauses or resumes one provider, or all.
    pub fn set(&mut self, name: Option<ProviderName>, pause: Option<Pause>) {
        match name {
            Some(name) if pause.is_none() && self.all.is_none() => drop(self.names.remove(&name)),
            Some(name) => drop(self.names.insert(name, pause)),
            None => *self = Self { all: pause, names: BTreeMap::new() },
        }
    }

    /// The pause of one provider.
    pub fn of(&self, name: &ProviderName) -> Option<Pause> {
        // Asked for every task, and most agents have no pause at all.
        if self.names.is_empty() { self.all } else { self.names.get(name).copied().unwrap_or(self.all) }
    }

    /// Ends the pauses whose time has come; `true` if there were any.
    pub fn end(&mut self, now: UnixTime) -> bool {
        let before = self.clone();
        let is_over = |pause: Pause| pause.until.is_some_and(|until| until <= now);
        self.all = self.all.filter(|pause| !is_over(*pause));
        let all = self.all;
        self.names.retain(|_, pause| match pause {
            // A pause of one name that ends leaves that name as all are.
            Some(pause) => !is_over(*pause),
            None => all.is_some(),
        });
        *self != before
    }

    /// Whether a pause ends by itself.
    pub fn are_timed(&self) -> bool {
        let pauses = self.names.values().flatten().chain(&self.all);
        pauses.into_iter().any(|pause| pause.until.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ProviderName {
        ProviderName::new(text).unwrap()
    }

    const FOR_GOOD: Pause = Pause { until: None };

    fn until(time: u64) -> Pause {
        Pause { until: Some(UnixTime(time)) }
    }

    #[test]
    fn what_is_said_of_one_counts_before_what_is_said_of_all() {
        let mut pauses = Pauses::default();
        pauses.set(None, Some(FOR_GOOD));
        pauses.set(Some(name("a")), None);
        pauses.set(Some(name("b")), Some(until(9)));
        assert_eq!(["a", "b", "c"].map(|n| pauses.of(&name(n))), [None, Some(until(9)), Some(FOR_GOOD)]);
        pauses.set(None, None);
        assert_eq!(pauses, Pauses::default());
        pauses.set(Some(name("a")), None);
        assert_eq!(pauses, Pauses::default(), "what is not paused needs no record");
    }

    #[test]
    fn a_timed_pause_ends_by_itself_and_the_others_stay() {
        let mut pauses = Pauses::default();
        pauses.set(None, Some(until(10)));
        pauses.set(Some(name("a")), Some(FOR_GOOD));
        pauses.set(Some(name("b")), None);
        assert!(pauses.are_timed() && !pauses.end(UnixTime(9)));
        assert!(pauses.end(UnixTime(10)) && !pauses.are_timed());
        assert_eq!(["a", "b", "c"].map(|n| pauses.of(&name(n))), [Some(FOR_GOOD), None, None]);
        assert_eq!(pauses.names.len(), 1, "nothing is paused for all, so nothing is resumed from it");
    }
}
