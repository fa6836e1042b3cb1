//! Random schedules of everything that can go wrong, and the one promise that has to hold in all of them.
//!
//! The normal test run plays a few hundred. Ten thousand, optimised:
//!
//! ```text
//! MCPRELAY_SIM_SCHEDULES=10000 cargo test --profile simulation --test it simulation -- --nocapture
//! ```
//!
//! `MCPRELAY_SIM_FIRST=<seed>` begins elsewhere than at 0. A schedule that fails prints its seed; the same schedule again, with
//! everything that happened:
//!
//! ```text
//! MCPRELAY_SIM_SEED=<seed> cargo test --test it simulation -- --nocapture
//! ```

mod check;
mod journal;
mod plan;
mod program;
mod run;
mod script;
mod story;

use std::{
    env,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use check::breaches;
use plan::Plan;
use story::Story;

use crate::support::Scheme;

/// Schedules of a normal test run.
const SCHEDULES: u64 = 300;

fn number(variable: &str) -> Option<u64> {
    env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Plays one schedule; the error says what is wrong and how to see it again.
fn judge(seed: u64, verbose: bool) -> Result<Story, String> {
    let plan = Plan::of(seed);
    let story = run::play(&plan);
    if verbose {
        println!("{plan:#?}\n{}", story.log.join("\n"));
        story.wire.iter().for_each(|p| println!("{:>7} #{} {:?}", p.at, p.connection, p.what));
    }
    let found = breaches(&story);
    if found.is_empty() {
        return Ok(story);
    }
    Err(format!(
        "schedule {seed} broke the promise:\n  {}\nreplay: MCPRELAY_SIM_SEED={seed} cargo test --test it simulation -- --nocapture",
        found.join("\n  ")
    ))
}

#[test]
fn whatever_breaks_every_task_has_one_end_in_time_and_its_tokens_once_and_in_order() {
    if let Some(seed) = number("MCPRELAY_SIM_SEED") {
        judge(seed, true).unwrap_or_else(|why| panic!("{why}"));
        return;
    }
    let schedules = number("MCPRELAY_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("MCPRELAY_SIM_FIRST").unwrap_or_default();
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let work = || {
        let mut tally = Tally::default();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + schedules {
                break;
            }
            match judge(seed, false) {
                Ok(story) => tally.add(&story),
                Err(why) => {
                    failed.store(number("MCPRELAY_SIM_GO_ON").is_none(), Ordering::Relaxed);
                    eprintln!("{why}");
                    tally.failures += 1;
                }
            }
        }
        tally
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let tallies: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a schedule does not panic")).collect()
    });
    let all = tallies.into_iter().fold(Tally::default(), Tally::plus);
    println!("{all:?}");
    assert_eq!(all.failures, 0, "see above");
}

/// Everything that happened. Of what several parties did in one and the same millisecond, the order is nobody's promise.
fn events(seed: u64) -> Vec<String> {
    let mut log = run::play(&Plan::of(seed)).log;
    log.sort();
    log
}

#[test]
fn the_same_seed_twice_gives_the_same_events_to_the_millisecond() {
    for seed in 1_000_000..1_000_010 {
        let (first, second) = (events(seed), events(seed));
        assert!(!first.is_empty());
        let differs = first.iter().zip(&second).find(|(a, b)| a != b);
        assert!(differs.is_none() && first.len() == second.len(), "schedule {seed}: {differs:?}");
    }
}

/// What the schedules came to, to be seen that they are not idle.
#[derive(Debug, Default)]
struct Tally {
    schedules: u64,
    http: u64,
    https1: u64,
    https2: u64,
    sealed: u64,
    offered: u64,
    uploads: u64,
    calls: u64,
    refused: u64,
    succeeded: u64,
    failed: u64,
    left: u64,
    tokens: u64,
    runs: u64,
    lives: u64,
    failures: u64,
}

impl Tally {
    fn add(&mut self, story: &Story) {
        self.schedules += 1;
        self.http += u64::from(story.scheme == Scheme::Http);
        self.https1 += u64::from(story.scheme == Scheme::Https1);
        self.https2 += u64::from(story.scheme == Scheme::Https2);
        self.sealed += u64::from(story.sealed);
        self.offered += u64::from(story.result_stream);
        self.uploads += story.uploads;
        self.runs += story.runs.len() as u64;
        self.lives += story.lives.len() as u64;
        for call in &story.calls {
            let end = call.end.as_ref().map(|(_, end)| run::word(end));
            self.calls += 1;
            self.refused += u64::from(call.refused.is_some());
            self.left += u64::from(call.left_at.is_some());
            self.tokens += call.text.split_whitespace().count() as u64;
            match end.as_deref() {
                Some("done" | "200 ") => self.succeeded += 1,
                Some(_) => self.failed += 1,
                None => {}
            }
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            schedules: self.schedules + other.schedules,
            http: self.http + other.http,
            https1: self.https1 + other.https1,
            https2: self.https2 + other.https2,
            sealed: self.sealed + other.sealed,
            offered: self.offered + other.offered,
            uploads: self.uploads + other.uploads,
            calls: self.calls + other.calls,
            refused: self.refused + other.refused,
            succeeded: self.succeeded + other.succeeded,
            failed: self.failed + other.failed,
            left: self.left + other.left,
            tokens: self.tokens + other.tokens,
            runs: self.runs + other.runs,
            lives: self.lives + other.lives,
            failures: self.failures + other.failures,
        }
    }
}
