//! The order of the tasks that wait for one name: fair among callers, first come first served within each.
//!
//! The next slot goes to the caller with the fewest running tasks; of several, to the one who has waited longest, which begins anew
//! whenever one of the caller's tasks ends. So a batch job of one caller delays another one's question by one inference, however
//! many tasks it has.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::domain::TaskKey;

/// Who asks, as mcpd says. Everybody whom it does not name is one caller.
pub(in crate::core) type Caller = Option<Arc<str>>;

/// The tasks of one caller.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<TaskKey>,
    running: u32,
    /// The turn since when the caller waits.
    since: i64,
}

/// The tasks that wait for one name, and how many of each caller run.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: BTreeMap<Caller, Line>,
    waiting: usize,
    /// Grows whenever a caller begins to wait.
    turn: i64,
    /// Falls whenever a task that was offered before goes to the head.
    head: i64,
}

impl Queue {
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn waiting_of(&self, caller: &Caller) -> usize {
        self.lines.get(caller).map_or(0, |line| line.waiting.len())
    }

    /// Whether nothing waits and nothing runs.
    pub(super) fn is_over(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn push(&mut self, caller: &Caller, key: TaskKey) {
        self.turn += 1;
        let line = self.lines.entry(caller.clone()).or_default();
        if line.waiting.is_empty() {
            line.since = self.turn;
        }
        line.waiting.push_back(key);
        self.waiting += 1;
    }

    /// Puts a task that was offered before in front of all others.
    pub(super) fn push_first(&mut self, caller: &Caller, key: TaskKey) {
        self.head -= 1;
        let line = self.lines.entry(caller.clone()).or_default();
        line.since = self.head;
        line.waiting.push_front(key);
        self.waiting += 1;
    }

    /// Takes the task whose turn it is; it runs from now on.
    pub(super) fn next(&mut self) -> Option<TaskKey> {
        let waiting = self.lines.values_mut().filter(|line| !line.waiting.is_empty());
        let line = waiting.min_by_key(|line| (line.running, line.since))?;
        let key = line.waiting.pop_front()?;
        line.running += 1;
        self.waiting -= 1;
        Some(key)
    }

    /// A task of this caller runs although its turn has not come.
    pub(super) fn run(&mut self, caller: &Caller) {
        self.lines.entry(caller.clone()).or_default().running += 1;
    }

    /// A task of this caller does not run any more.
    pub(super) fn ended(&mut self, caller: &Caller) {
        self.turn += 1;
        let Some(line) = self.lines.get_mut(caller) else { return };
        line.running = line.running.saturating_sub(1);
        line.since = self.turn;
        self.tidy(caller);
    }

    /// Takes a task out before its turn.
    pub(super) fn remove(&mut self, caller: &Caller, key: TaskKey) {
        let Some(line) = self.lines.get_mut(caller) else { return };
        let before = line.waiting.len();
        line.waiting.retain(|other| *other != key);
        self.waiting -= before - line.waiting.len();
        self.tidy(caller);
    }

    /// Takes every waiting task out.
    pub(super) fn clear(&mut self) -> Vec<TaskKey> {
        self.waiting = 0;
        let keys = self.lines.values_mut().flat_map(|line| std::mem::take(&mut line.waiting)).collect();
        self.lines.retain(|_, line| line.running > 0);
        keys
    }

    fn tidy(&mut self, caller: &Caller) {
        if self.lines.get(caller).is_some_and(|line| line.waiting.is_empty() && line.running == 0) {
            self.lines.remove(caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SLOTS: usize = 2;

    fn caller(n: u8) -> Caller {
        (n > 0).then(|| n.to_string().into())
    }

    /// Slots that are filled as the queue says, and every task's caller.
    #[derive(Default)]
    struct Slots {
        queue: Queue,
        running: Vec<TaskKey>,
        callers: Vec<u8>,
        /// In the order in which they began.
        began: Vec<TaskKey>,
    }

    impl Slots {
        fn with(slots: usize, callers: impl IntoIterator<Item = u8>) -> Self {
            let mut all = Self::default();
            callers.into_iter().for_each(|n| all.ask(n));
            all.fill(slots);
            all
        }

        fn of(&self, key: TaskKey) -> u8 {
            self.callers[usize::try_from(key.0).unwrap()]
        }

        fn ask(&mut self, n: u8) {
            self.queue.push(&caller(n), TaskKey(self.callers.len() as u64));
            self.callers.push(n);
        }

        fn fill(&mut self, slots: usize) {
            while self.running.len() < slots {
                let Some(key) = self.queue.next() else { return };
                self.running.push(key);
                self.began.push(key);
            }
        }

        fn end(&mut self, nth: usize, slots: usize) {
            let key = self.running.remove(nth);
            self.queue.ended(&caller(self.of(key)));
            self.fill(slots);
        }

        fn began_by(&self) -> Vec<u8> {
            self.began.iter().map(|key| self.of(*key)).collect()
        }
    }

    #[test]
    fn nine_callers_with_one_question_each_wait_one_inference_longer_beside_a_batch_of_two_hundred() {
        let mut alone = Slots::with(1, 1..=9);
        // The batch came first and has the slot.
        let mut beside = Slots::with(1, std::iter::repeat_n(0, 200));
        (1..=9).for_each(|n| beside.ask(n));
        for _ in 0..9 {
            alone.end(0, 1);
            beside.end(0, 1);
        }
        // The slot of the batch's one running inference, and then exactly the order that they have without it.
        let expected: Vec<u8> = [0].into_iter().chain(alone.began_by()).collect();
        assert_eq!(beside.began_by(), expected);
    }

    #[test]
    fn of_two_batches_each_gets_every_second_slot_whichever_came_first() {
        let mut slots = Slots::with(1, [vec![1; 20], vec![2; 20]].concat());
        (0..9).for_each(|_| slots.end(0, 1));
        assert_eq!(slots.began_by(), [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn who_runs_fewer_comes_first_also_if_another_waits_longer() {
        let mut slots = Slots::with(3, [1, 1, 1, 1, 1]);
        slots.ask(2);
        slots.end(0, 3);
        assert_eq!(slots.began_by(), [1, 1, 1, 2]);
    }

    #[test]
    fn what_was_offered_before_goes_first_and_what_is_taken_out_does_not_go() {
        let mut queue = Queue::default();
        queue.push(&caller(1), TaskKey(1));
        queue.push(&caller(2), TaskKey(2));
        queue.push_first(&caller(3), TaskKey(3));
        queue.push_first(&caller(2), TaskKey(4));
        queue.remove(&caller(1), TaskKey(1));
        assert_eq!(queue.waiting(), 3);
        assert_eq!(
            [(); 4].map(|()| queue.next()),
            [Some(TaskKey(4)), Some(TaskKey(3)), Some(TaskKey(2)), None]
        );
        [2, 3, 2].iter().for_each(|n| queue.ended(&caller(*n)));
        assert!(queue.is_over());
    }

    proptest! {
        /// Whoever waits is served although others ask for ever.
        #[test]
        fn no_caller_starves_and_order_within_a_caller_is_kept(moves in vec((any::<bool>(), 0u8..4, 0usize..SLOTS), 1..200)) {
            let mut slots = Slots::default();
            for (asks, n, nth) in moves {
                if asks {
                    slots.ask(n);
                    slots.fill(SLOTS);
                } else if nth < slots.running.len() {
                    slots.end(nth, SLOTS);
                }
                prop_assert_eq!(slots.queue.waiting() + slots.began.len(), slots.callers.len());
            }
            for n in 0..4 {
                let began: Vec<_> = slots.began.iter().filter(|key| slots.of(**key) == n).collect();
                prop_assert!(began.is_sorted(), "first come, first served");
            }
            // Whoever waits now has begun after so many ends.
            let waiting: Vec<u8> = (0..4).filter(|n| slots.queue.waiting_of(&caller(*n)) > 0).collect();
            let before = slots.began.len();
            for turn in 0..(4 + SLOTS) * SLOTS {
                slots.ask(0);
                slots.ask(3);
                slots.fill(SLOTS);
                slots.end(turn % SLOTS, SLOTS);
            }
            let lately: Vec<u8> = slots.began_by().split_off(before);
            prop_assert!(waiting.iter().all(|n| lately.contains(n)), "{waiting:?} waited, {lately:?} began");
        }

        /// With one caller it is a plain queue.
        #[test]
        fn one_caller_alone_is_served_first_come_first_served(moves in vec((any::<bool>(), 0usize..SLOTS), 1..100)) {
            let mut slots = Slots::default();
            for (asks, nth) in moves {
                if asks {
                    slots.ask(1);
                    slots.fill(SLOTS);
                } else if nth < slots.running.len() {
                    slots.end(nth, SLOTS);
                }
            }
            prop_assert!(slots.began.iter().zip(0..).all(|(key, n)| key.0 == n));
        }
    }
}
