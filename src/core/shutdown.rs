//! Stopping: first running tasks may finish, then every task left gets its end, until nothing is left.

use std::time::{Duration, Instant};

use super::{Core, Effect};
use crate::domain::{CancelReason, Failure, FailureCode};

/// How far the agent has got with stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    /// It is not stopping.
    No,
    /// Running tasks may finish until then.
    Finishing(Instant),
    /// Since then every task has its end, and the ends are being delivered.
    Ending(Instant),
    /// Nothing is left.
    Over,
}

impl Core {
    pub(super) fn drain(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.drain != Drain::No {
            return;
        }
        self.drain = Drain::Finishing(now + self.settings.drain_timeout);
        for key in self.tasks.queued() {
            self.broken(key, shutting_down(), CancelReason::Shutdown, now, effects);
        }
        self.with_link(effects, |link, out| link.drain(now, out));
    }

    /// The drain's time is over: tasks that still run end with an error, and confirmations of cancels are no longer waited for.
    pub(super) fn drain_deadline(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.drain = Drain::Ending(now);
        for key in self.tasks.all() {
            self.broken(key, shutting_down(), CancelReason::Shutdown, now, effects);
            self.free_slot(key, now, effects);
        }
    }

    /// After every input: tells the link whether tasks are under way, passes on name conflicts, and ends the drain once nothing is left.
    pub(super) fn settle_down(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let busy = !self.tasks.is_empty();
        self.with_link(effects, |link, out| link.set_busy(busy, now, out));
        if self.providers.set_conflicts(self.link.conflicts()) {
            self.providers.changed_verdicts(effects);
        }
        let draining = matches!(self.drain, Drain::Finishing(_) | Drain::Ending(_));
        if draining && self.tasks.is_empty() && self.link.is_quiet() {
            self.drained(effects);
        }
    }

    pub(super) fn drained(&mut self, effects: &mut Vec<Effect>) {
        self.drain = Drain::Over;
        effects.push(Effect::Drained);
    }
}

pub(super) fn shutting_down() -> Failure {
    Failure::retryable(
        FailureCode::ShuttingDown,
        "the agent is stopping; try again elsewhere or later",
        Duration::from_secs(5),
    )
}
