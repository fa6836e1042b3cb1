//! Random lives of tasks and sessions against a model that is too plain to be wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    core::shutdown::shutting_down,
    domain::{Fact, Facts, Outcome, Pause, Rule, UnixTime},
};

const NAMES: [&str; 2] = ["one", "two"];
const LIMIT: u32 = 2;

// ---- one provider: slots and queue are two lists ---------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Move {
    Ask,
    Finish(usize),
    Leave(usize),
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        3 => Just(Move::Ask),
        2 => (0usize..8).prop_map(Move::Finish),
        1 => (0usize..8).prop_map(Move::Leave),
    ]
}

/// What runs (cancelled or not) and what waits.
#[derive(Debug, Default)]
struct Plain {
    running: Vec<u64>,
    waiting: VecDeque<u64>,
}

impl Plain {
    /// Fills the free slots; says which tasks got one.
    fn fill(&mut self) -> Vec<u64> {
        let free = LIMIT as usize - self.running.len();
        let next: Vec<_> = (0..free).map_while(|_| self.waiting.pop_front()).collect();
        self.running.extend(&next);
        next
    }
}

proptest! {
    #[test]
    fn slots_and_queue_do_what_two_lists_do(moves in vec(moves(), 1..120)) {
        let mut rig = Rig::serving(LIMIT);
        let (mut plain, mut next) = (Plain::default(), 0);
        for step in moves {
            let effects = match step {
                Move::Ask => {
                    let full = plain.running.len() == LIMIT as usize && plain.waiting.len() == 2;
                    let effects = rig.act(Input::Task(task(&format!("t{next}"), "llm", false)));
                    let refused = failures(&effects) == [(next, FailureCode::Overloaded)];
                    prop_assert_eq!(refused, full, "{:?} {:?}", plain, effects);
                    if !full {
                        plain.waiting.push_back(next);
                    }
                    next += 1;
                    effects
                }
                Move::Finish(n) if n < plain.running.len() => {
                    let key = plain.running.remove(n);
                    rig.act(Input::Finished(SessionKey(1), TaskKey(key), Outcome::Complete))
                }
                Move::Leave(n) if n < plain.waiting.len() => {
                    let key = plain.waiting.remove(n).unwrap();
                    rig.act(Input::CallerLeft(TaskId::new(&format!("t{key}")).unwrap()))
                }
                // A running task whose caller left keeps its slot.
                Move::Leave(n) if n - plain.waiting.len() < plain.running.len() => {
                    let key = plain.running[n - plain.waiting.len()];
                    rig.act(Input::CallerLeft(TaskId::new(&format!("t{key}")).unwrap()))
                }
                Move::Finish(_) | Move::Leave(_) => continue,
            };
            prop_assert_eq!(offers(&effects), plain.fill());
        }
    }
}

// ---- everything: one end each, and nothing is left ---------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Event {
    Open(u8),
    Push(u8, Vec<(bool, u32)>),
    Task(bool, u8, Option<u16>),
    Again(usize),
    Output(usize),
    Finish(usize),
    Broken(usize),
    Leave(usize),
    Settle(usize),
    NobodyWaits(usize),
    DeliveryFailed(usize),
    Refuse(usize),
    Goodbye(u8),
    Close(u8),
    Pause(bool, bool, Option<u8>),
    Facts(u8),
    Wait(u32),
    Drain,
}

fn events() -> impl Strategy<Value = Event> {
    let nth = 0usize..40;
    prop_oneof![
        2 => (0u8..3).prop_map(Event::Open),
        3 => (0u8..6, vec((any::<bool>(), 0u32..3), 2)).prop_map(|(s, p)| Event::Push(s, p)),
        8 => (any::<bool>(), 0u8..3, proptest::option::of(300u16..20_000)).prop_map(|(s, l, d)| Event::Task(s, l, d)),
        1 => nth.clone().prop_map(Event::Again),
        4 => nth.clone().prop_map(Event::Output),
        5 => nth.clone().prop_map(Event::Finish),
        1 => nth.clone().prop_map(Event::Broken),
        2 => nth.clone().prop_map(Event::Leave),
        5 => nth.clone().prop_map(Event::Settle),
        1 => nth.clone().prop_map(Event::NobodyWaits),
        1 => nth.clone().prop_map(Event::Refuse),
        1 => nth.prop_map(Event::DeliveryFailed),
        1 => (0u8..6).prop_map(Event::Goodbye),
        1 => (0u8..6).prop_map(Event::Close),
        1 => (any::<bool>(), any::<bool>(), any::<Option<u8>>()).prop_map(|(one, on, s)| Event::Pause(one, on, s)),
        2 => (0u8..4).prop_map(Event::Facts),
        4 => (1u32..30_000).prop_map(Event::Wait),
        1 => Just(Event::Drain),
    ]
}

/// What the effects say of one task.
#[derive(Clone, Debug, Default)]
struct Said {
    id: Option<TaskId>,
    with: Option<SessionKey>,
    ended: bool,
    settled: bool,
    forgotten: bool,
}

/// Holds the core against what its driver may rely on.
struct Watch {
    rig: Rig,
    began: Instant,
    sessions: u64,
    tasks: BTreeMap<TaskKey, Said>,
    ids: BTreeSet<TaskId>,
    drained: bool,
}

impl Watch {
    fn see(&mut self, effects: &[Effect]) -> Result<(), TestCaseError> {
        for effect in effects {
            match effect {
                Effect::Begin(key, task) => {
                    prop_assert!(self.ids.insert(task.id.clone()), "{} began twice", task.id);
                    self.tasks.insert(*key, Said { id: Some(task.id.clone()), ..Said::default() });
                }
                Effect::Offer(key, session, _) => {
                    let said = self.tasks.get_mut(key).unwrap();
                    prop_assert!(said.with.is_none() && !said.ended, "{key:?} was offered as {said:?}");
                    let offered =
                        self.rig.core.provider_of(*key).and_then(|p| self.rig.core.providers.paused(p));
                    prop_assert_eq!(offered, None, "a paused provider gets no work");
                    said.with = Some(*session);
                }
                Effect::Requeued(key, _) => self.tasks.get_mut(key).unwrap().with = None,
                Effect::End(key, end, until) => {
                    let said = self.tasks.get_mut(key).unwrap();
                    prop_assert!(!said.ended || *end == End::Nobody, "{key:?} has two ends");
                    prop_assert!(*until >= self.rig.now, "an end must have time to be delivered");
                    said.ended = true;
                }
                Effect::Forget(key) => {
                    let said = self.tasks.get_mut(key).unwrap();
                    prop_assert!(
                        said.ended && said.settled && !said.forgotten,
                        "{key:?} is forgotten as {said:?}"
                    );
                    said.forgotten = true;
                }
                Effect::Cancel(key, session, _) => {
                    prop_assert_eq!(self.tasks[key].with, Some(*session));
                }
                Effect::Drained => self.drained = true,
                Effect::Repeated(_) | Effect::Verdicts(..) | Effect::Replaced(_) | Effect::Link(_) => {}
            }
        }
        Ok(())
    }

    /// The machine's clock, from the beginning of the test.
    fn unix_now(&self) -> UnixTime {
        UnixTime(self.rig.now.duration_since(self.began).as_secs())
    }

    fn pick(&self, n: usize, take: impl Fn(&Said) -> bool) -> Option<TaskKey> {
        self.tasks.iter().filter(|(_, said)| !said.forgotten && take(said)).map(|(key, _)| *key).nth(n % 7)
    }

    fn play(&mut self, event: Event) -> Result<(), TestCaseError> {
        let (now, fail) = (self.rig.now, shutting_down);
        let session = |n: u8| SessionKey(self.sessions.saturating_sub(u64::from(n)));
        let input = match event {
            Event::Open(client) => {
                self.sessions += 1;
                let effects = self.rig.open(self.sessions, &format!("c{client}"));
                return self.see(&effects);
            }
            Event::Push(n, limits) => {
                let one = |(name, (on, limit)): (&&str, &(bool, u32))| {
                    let sharing = if *limit == 2 { vec![Rule::NotOnBattery] } else { Vec::new() };
                    on.then(|| Ok(Provider { sharing, ..provider(name, *limit) }))
                };
                let pushed = NAMES.iter().zip(&limits).filter_map(one).collect();
                Input::Snapshot(session(n), 1, pushed)
            }
            Event::Task(streaming, llm, deadline) => {
                let llm = ["one", "two", "unknown"][usize::from(llm)];
                let new = task(&format!("t{}", self.ids.len()), llm, streaming);
                let deadline = deadline.map(|ms| MS * u32::from(ms));
                Input::Task(Task { deadline, ..new })
            }
            Event::Again(n) => match self.pick(n, |_| true).and_then(|key| self.tasks[&key].id.clone()) {
                Some(id) => Input::Task(task(id.as_str(), "one", true)),
                None => return Ok(()),
            },
            Event::Output(n) => {
                if let Some(key) = self.pick(n, |said| said.with.is_some() && !said.ended) {
                    self.rig.output(key, true);
                }
                return Ok(());
            }
            Event::Finish(n) => match self.pick(n, |said| said.with.is_some()) {
                Some(key) => Input::Finished(self.tasks[&key].with.unwrap(), key, Outcome::Complete),
                None => return Ok(()),
            },
            Event::Broken(n) => match self.pick(n, |said| said.with.is_some()) {
                Some(key) => Input::Broken(self.tasks[&key].with.unwrap(), key, fail()),
                None => return Ok(()),
            },
            Event::Refuse(n) => match self.pick(n, |said| said.with.is_some()) {
                Some(key) => Input::Refused(self.tasks[&key].with.unwrap(), key, fail()),
                None => return Ok(()),
            },
            Event::Leave(n) => match self.ids.iter().nth(n) {
                Some(id) => Input::CallerLeft(id.clone()),
                None => return Ok(()),
            },
            Event::Settle(n) | Event::NobodyWaits(n) => {
                let gone = matches!(event, Event::NobodyWaits(_));
                let Some(key) = self.pick(n, |said| (said.ended || gone) && !said.settled) else {
                    return Ok(());
                };
                self.tasks.get_mut(&key).unwrap().settled = true;
                if gone { Input::CallerGone(key) } else { Input::Settled(key) }
            }
            Event::DeliveryFailed(n) => match self.pick(n, |said| !said.settled) {
                Some(key) => Input::DeliveryFailed(key, fail()),
                None => return Ok(()),
            },
            Event::Goodbye(n) => Input::SessionDraining(session(n), None),
            Event::Close(n) => Input::SessionClosed(session(n)),
            Event::Pause(one, on, seconds) => {
                let until = seconds.map(|seconds| UnixTime(self.unix_now().0 + u64::from(seconds)));
                Input::SetPaused(one.then(|| name("one")), on.then_some(Pause { until }))
            }
            Event::Facts(fact) => Input::Facts(Facts {
                now: self.unix_now(),
                minute_of_week: 0,
                on_battery: [Fact::Unknown, Fact::Unreadable, Fact::Is(true), Fact::Is(false)]
                    [usize::from(fact)],
                idle_for: Fact::Unknown,
            }),
            Event::Wait(ms) => {
                let effects: Vec<_> = self.rig.pass(MS * ms).into_iter().map(|(_, effect)| effect).collect();
                self.rig.now = now;
                let seen = self.see(&effects);
                self.rig.now = now + MS * ms;
                return seen;
            }
            Event::Drain => Input::Drain,
        };
        let effects = self.rig.act(input);
        self.see(&effects)
    }

    /// What every list of the core says together.
    fn agrees(&self) -> Result<(), TestCaseError> {
        for (session, entry) in &self.rig.core.providers.sessions {
            for offered in entry.providers.keys() {
                let with = |key: &&TaskKey| {
                    self.rig.core.tasks.is_with(**key, *session)
                        && self.rig.core.tasks.provider(**key).as_ref() == Some(offered)
                };
                let held = self.tasks.keys().filter(with).count();
                prop_assert_eq!(self.rig.core.providers.running(offered, *session) as usize, held);
            }
        }
        Ok(())
    }

    /// Everybody goes, and time passes: nothing may be left.
    fn wind_up(&mut self) -> Result<(), TestCaseError> {
        for n in 0..=self.sessions {
            let effects = self.rig.act(Input::SessionClosed(SessionKey(n)));
            self.see(&effects)?;
        }
        self.play(Event::Wait(700_000))?;
        let open: Vec<_> = self.tasks.iter().filter(|(_, said)| !said.ended).collect();
        prop_assert!(open.is_empty(), "no end within any deadline: {open:?}");
        while let Some(key) = self.pick(0, |said| !said.settled) {
            self.tasks.get_mut(&key).unwrap().settled = true;
            let effects = self.rig.act(Input::Settled(key));
            self.see(&effects)?;
        }
        let kept: Vec<_> = self.tasks.iter().filter(|(_, said)| !said.forgotten).collect();
        prop_assert!(kept.is_empty(), "never forgotten: {kept:?}");
        let core = &self.rig.core;
        prop_assert!(
            core.tasks.is_empty() && core.tasks.held_bytes() == 0 && core.tasks.next_deadline().is_none()
        );
        prop_assert_eq!(core.providers.waiting_names(), []);
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_every_task_has_one_end_and_nothing_is_left(events in vec(events(), 1..150)) {
        let rig = Rig::new();
        let began = rig.now;
        let mut watch = Watch { rig, began, sessions: 0, tasks: BTreeMap::new(), ids: BTreeSet::new(), drained: false };
        for event in events {
            watch.play(event)?;
            if watch.drained {
                return Ok(());
            }
            watch.agrees()?;
        }
        watch.wind_up()?;
    }
}
