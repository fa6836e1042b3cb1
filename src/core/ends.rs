//! How tasks end, no matter what ends them, and how their slots become free.

use std::time::Instant;

use super::{
    ActivityOf, CANCEL_BOUND, Core, DRAIN_DELIVERY_BOUND, END_DELIVERY_BOUND, Effect, shutdown::Drain, tasks,
};
use crate::domain::{CancelReason, End, Failure, TaskId, TaskKey};

impl Core {
    pub(super) fn caller_left(&mut self, id: &TaskId, now: Instant, effects: &mut Vec<Effect>) {
        if let Some(key) = self.tasks.key_of(id) {
            self.stop(key, End::Nobody, CancelReason::CallerGone, now, effects);
        }
    }

    pub(super) fn caller_gone(&mut self, key: TaskKey, now: Instant, effects: &mut Vec<Effect>) {
        self.stop(key, End::Nobody, CancelReason::CallerGone, now, effects);
        self.settled(key, now, effects);
    }

    pub(super) fn broken(
        &mut self,
        key: TaskKey,
        failure: Failure,
        reason: CancelReason,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.stop(key, End::Failed(failure), reason, now, effects);
    }

    /// Ends an open task from the agent's side: removes it from the queue, or cancels it at the session that runs it.
    fn stop(
        &mut self,
        key: TaskKey,
        end: End,
        reason: CancelReason,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if end == End::Nobody && self.tasks.is_ending(key) {
            // The end was being delivered when the caller left: nothing more is posted, and no second end is counted.
            effects.push(Effect::End(key, End::Nobody, now));
            return;
        }
        if !self.tasks.is_open(key) {
            return;
        }
        self.end(key, end, now, effects);
        match self.tasks.session_of(key) {
            Some(session) => {
                self.tasks.cancelling(key, now + CANCEL_BOUND);
                effects.push(Effect::Cancel(key, session, reason));
            }
            None => {
                if let Some(name) = self.tasks.provider(key) {
                    self.providers.unqueue(&name, &self.tasks.caller(key), key);
                }
                self.tasks.release(key);
            }
        }
    }

    /// Decides the one end of an open task.
    pub(super) fn end(&mut self, key: TaskKey, end: End, now: Instant, effects: &mut Vec<Effect>) {
        let mut until = self.tasks.ended(key, now) + END_DELIVERY_BOUND;
        if let Drain::Finishing(drain) | Drain::Ending(drain) = self.drain {
            until = until.min(drain + DRAIN_DELIVERY_BOUND);
        }
        effects.push(Effect::End(key, end, until));
    }

    pub(super) fn settled(&mut self, key: TaskKey, now: Instant, effects: &mut Vec<Effect>) {
        self.tasks.settled(key);
        self.forget_if_over(key, now, effects);
    }

    /// Gives the slot of a task back and lets the next one have it.
    pub(super) fn free_slot(&mut self, key: TaskKey, now: Instant, effects: &mut Vec<Effect>) {
        let (session, name) = (self.tasks.session_of(key), self.tasks.provider(key));
        self.tasks.release(key);
        if let (Some(session), Some(name)) = (session, name) {
            self.providers.release(&name, &self.tasks.caller(key), session);
            self.pump(&name, now, effects);
        }
        self.forget_if_over(key, now, effects);
    }

    pub(super) fn forget_if_over(&mut self, key: TaskKey, now: Instant, effects: &mut Vec<Effect>) {
        if self.tasks.forget_if_over(key, now) {
            effects.push(Effect::Forget(key));
        }
    }

    pub(super) fn task_due(
        &mut self,
        key: TaskKey,
        now: Instant,
        activity: ActivityOf<'_>,
        effects: &mut Vec<Effect>,
    ) {
        match self.tasks.what_is_due(key, now, &self.settings, activity) {
            tasks::Due::Nothing => {}
            tasks::Due::Timeout(failure) => self.broken(key, failure, CancelReason::Deadline, now, effects),
            tasks::Due::CancelUnconfirmed => self.free_slot(key, now, effects),
        }
    }
}
