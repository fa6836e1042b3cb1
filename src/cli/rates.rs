//! Tokens per second of each provider, from the counts in successive statuses. A piece of output counts as a token.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::pb::WatchStatusResponse;

/// How far back a rate looks: short enough to follow a model, long enough not to flicker.
const WINDOW: Duration = Duration::from_secs(4);
/// The least time from which a rate is computed.
const LEAST: Duration = Duration::from_millis(500);

/// What has been seen so far.
#[derive(Default)]
pub struct Rates {
    /// Pieces of each task in the last status.
    tasks: BTreeMap<String, u32>,
    /// Pieces of each provider since the first status.
    totals: BTreeMap<String, u64>,
    /// Those totals over the window, oldest first.
    samples: VecDeque<(Instant, BTreeMap<String, u64>)>,
}

impl Rates {
    /// Takes a status that came at `at`; they come in order.
    pub fn observe(&mut self, status: &WatchStatusResponse, at: Instant) {
        let first = self.samples.is_empty();
        let before = std::mem::take(&mut self.tasks);
        let running = status.tasks.iter().map(|task| (&task.task_id, &task.llm_name, task.chunks));
        let ended = status.recent.iter().map(|task| (&task.task_id, &task.llm_name, task.chunks));
        for (task, llm, chunks) in running.chain(ended) {
            // A cancelled task is in both lists until its provider has confirmed the cancellation.
            let counted = self.tasks.get(task).or_else(|| before.get(task)).copied().unwrap_or(0);
            let new = chunks.saturating_sub(counted);
            // What the first status counts was produced before the first look.
            *self.totals.entry(llm.clone()).or_default() += if first { 0 } else { new.into() };
            self.tasks.insert(task.clone(), counted.max(chunks));
        }
        self.totals.retain(|llm, _| {
            status
                .providers
                .iter()
                .any(|status| status.provider.as_ref().is_some_and(|provider| provider.name == *llm))
        });
        self.samples.push_back((at, self.totals.clone()));
        while self.samples.get(1).is_some_and(|(second, _)| at.duration_since(*second) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Tokens per second of `llm` over the window that ends at `at`; `None` while too little has been seen.
    pub fn rate(&self, llm: &str, at: Instant) -> Option<f64> {
        let old = |(time, _): &&(Instant, _)| at.saturating_duration_since(*time) >= WINDOW;
        let (start, then) = self.samples.iter().take_while(old).last().or(self.samples.front())?;
        let time = at.saturating_duration_since(*start);
        let count = |totals: &BTreeMap<String, u64>| totals.get(llm).copied().unwrap_or(0);
        let new = count(&self.totals).saturating_sub(count(then));
        (time >= LEAST).then(|| new as f64 / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::view::tests::example,
        pb::{EndedTask, TaskStatus},
    };

    fn status(running: u32, ended: u32) -> WatchStatusResponse {
        let llm_name = String::from("qwen3");
        let running = TaskStatus {
            task_id: "a".into(),
            llm_name: llm_name.clone(),
            chunks: running,
            ..Default::default()
        };
        let ended = EndedTask { task_id: "b".into(), llm_name, chunks: ended, ..Default::default() };
        WatchStatusResponse { tasks: vec![running], recent: vec![ended], ..example() }
    }

    #[test]
    fn a_rate_counts_what_came_since_the_first_look_and_fades_when_nothing_comes() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        rates.observe(&status(1_000, 500), at(0));
        assert_eq!(rates.rate("qwen3", at(0)), None);
        rates.observe(&status(1_010, 510), at(1));
        assert_eq!(rates.rate("qwen3", at(1)), Some(20.0));
        assert_eq!(rates.rate("other", at(1)), Some(0.0));
        assert_eq!(rates.rate("qwen3", at(9)), Some(0.0));
    }

    #[test]
    fn a_task_that_has_its_end_and_still_holds_its_slot_counts_once() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let twice = |chunks| {
            let mut status = status(chunks, chunks);
            status.recent[0].task_id.clone_from(&status.tasks[0].task_id);
            status
        };
        rates.observe(&twice(100), start);
        rates.observe(&twice(110), start + Duration::from_secs(1));
        assert_eq!(rates.rate("qwen3", start + Duration::from_secs(1)), Some(10.0));
    }

    #[test]
    fn the_window_stays_short() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        for second in 0..100_u32 {
            rates.observe(&status(second * 10, 0), start + Duration::from_secs(second.into()));
        }
        assert!(rates.samples.len() <= 6);
        assert_eq!(rates.rate("qwen3", start + Duration::from_secs(99)), Some(10.0));
    }
}
