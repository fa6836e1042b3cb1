//! The ids of tasks that ended recently: a task that mcpd delivers again is not run again.

use std::{
    collections::{VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    time::{Duration, Instant},
};

use crate::domain::{NumberSet, TaskId};

/// How long an ended task's id is remembered (the contract's number).
const REMEMBER: Duration = Duration::from_secs(600);
/// Most ids remembered: at 32 bytes each this is 8 MiB, and a workstation that ends more than 400 tasks a second for ten minutes
/// has other limits.
const MAX_IDS: usize = 1 << 18;

/// A bounded memory of ids, as keyed 64-bit hashes: a wrong match has a chance of one in 2^46 even when it is full.
#[derive(Debug, Default)]
pub(super) struct Recent {
    hasher: RandomState,
    known: NumberSet,
    order: VecDeque<(Instant, u64)>,
}

impl Recent {
    /// Remembers an id from now on.
    pub(super) fn insert(&mut self, id: &TaskId, now: Instant) {
        self.expire(now);
        let hash = self.hasher.hash_one(id);
        if self.known.insert(hash) {
            self.order.push_back((now, hash));
        }
        if self.order.len() > MAX_IDS {
            self.drop_oldest();
        }
    }

    /// Whether the id ended within the last ten minutes.
    pub(super) fn contains(&mut self, id: &TaskId, now: Instant) -> bool {
        self.expire(now);
        !self.known.is_empty() && self.known.contains(&self.hasher.hash_one(id))
    }

    /// Forgets everything: mcpd has started afresh, and its ids with it.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.order.clear();
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.duration_since(*at) >= REMEMBER) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, hash)) = self.order.pop_front() {
            self.known.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> TaskId {
        TaskId::new(&format!("t{n}")).unwrap()
    }

    #[test]
    fn an_id_is_known_for_ten_minutes() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        recent.insert(&id(1), start);
        assert!(recent.contains(&id(1), start + REMEMBER - Duration::from_millis(1)));
        assert!(!recent.contains(&id(1), start + REMEMBER));
        assert!(recent.known.is_empty() && recent.order.is_empty());
    }

    #[test]
    fn the_oldest_ids_go_first_when_there_are_too_many() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        (0..=MAX_IDS).for_each(|n| recent.insert(&id(n), now));
        assert!(!recent.contains(&id(0), now));
        assert!(recent.contains(&id(1), now) && recent.contains(&id(MAX_IDS), now));
    }
}
