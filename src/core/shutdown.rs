//! Stopping: running tasks may finish, then everything gets its end, then nothing is left.

use std::time::{Duration, Instant};

use super::{Core, Effect};
use crate::domain::{CancelReason, Failure, FailureCode};

/// How far the agent is with stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    /// It is not.
    No,
    /// Running tasks may finish until then.
    Finishing(Instant),
    /// Since then everything has its end, and the ends are being delivered.
    Ending(Instant),
    /// Nothing is left.
    Over,
}

impl Core {
    pub(super) fn drain(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.drain != Drain::No {
            return;
        }
        self.drain = Drain::Finishing(now + self.settings.drain_timeout);
        for key in self.tasks.queued() {
            self.broken(key, shutting_down(), CancelReason::Shutdown, now, fx);
        }
        self.link.drain(now, fx);
    }

    /// The drain's time is over: what still runs gets its error, and nobody waits for a cancel to be confirmed any more.
    pub(super) fn drain_deadline(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.drain = Drain::Ending(now);
        for key in self.tasks.all() {
            self.broken(key, shutting_down(), CancelReason::Shutdown, now, fx);
            self.free_slot(key, now, fx);
        }
    }

    /// What follows from there being tasks or not, after every input.
    pub(super) fn settle_down(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.link.set_busy(!self.tasks.is_empty(), now, fx);
        if self.providers.set_conflicts(self.link.conflicts()) {
            self.providers.changed_verdicts(fx);
        }
        let draining = matches!(self.drain, Drain::Finishing(_) | Drain::Ending(_));
        if draining && self.tasks.is_empty() && self.link.is_quiet() {
            self.drained(fx);
        }
    }

    pub(super) fn drained(&mut self, fx: &mut Vec<Effect>) {
        self.drain = Drain::Over;
        fx.push(Effect::Drained);
    }
}

pub(super) fn shutting_down() -> Failure {
    Failure::retryable(
        FailureCode::ShuttingDown,
        "the agent is stopping; try again elsewhere or later",
        Duration::from_secs(5),
    )
}
