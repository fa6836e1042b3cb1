//! The local side: sessions that come, push, finish tasks and go.

use std::time::Instant;

use super::{
    ActivityOf, Core, Effect, SESSION_GRACE,
    providers::{AfterRefusal, Departure},
    shutdown::Drain,
};
use crate::domain::{End, Failure, FailureCode, Outcome, ProviderName, SessionHello, SessionKey, TaskKey};

impl Core {
    pub(super) fn session_opened(
        &mut self,
        session: SessionKey,
        hello: SessionHello,
        now: Instant,
        activity: ActivityOf<'_>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(former) = self.providers.opened(session, hello) {
            self.replaced(former, now, activity, effects);
        }
    }

    /// Another session has taken the place of this one.
    pub(super) fn replaced(
        &mut self,
        former: SessionKey,
        now: Instant,
        activity: ActivityOf<'_>,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::Replaced(former));
        self.session_closed(former, now, activity, effects);
    }

    pub(super) fn finished(
        &mut self,
        session: SessionKey,
        key: TaskKey,
        outcome: Outcome,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if !self.tasks.is_with(key, session) {
            return;
        }
        if self.tasks.is_open(key) {
            let end = match outcome {
                Outcome::Failed(failure) => End::Failed(failure),
                Outcome::Cancelled => End::Failed(Failure::new(
                    FailureCode::Internal,
                    "the provider stopped the inference without being asked to",
                )),
                answer => End::Answer(answer),
            };
            self.end(key, end, now, effects);
        }
        self.free_slot(key, now, effects);
    }

    /// A session did not take an offer: another one may have it, or the failure is the caller's answer.
    pub(super) fn refused(
        &mut self,
        session: SessionKey,
        key: TaskKey,
        failure: Failure,
        now: Instant,
        activity: ActivityOf<'_>,
        effects: &mut Vec<Effect>,
    ) {
        if !self.tasks.is_with(key, session) {
            return;
        }
        let untouched = self.tasks.is_open(key) && !activity(key).any_output && self.drain == Drain::No;
        let Some((name, next)) = untouched.then(|| self.after_refusal(key, session)).flatten() else {
            return self.finished(session, key, Outcome::Failed(failure), now, effects);
        };
        let caller = self.tasks.caller(key);
        self.providers.release(&name, &caller, session);
        self.tasks.requeued(key, now + self.settings.queue_timeout);
        effects.push(Effect::Requeued(key, failure.code));
        match next {
            AfterRefusal::Queue => self.providers.enqueue_first(&name, &caller, key),
            AfterRefusal::Offer(slot) => self.offer(key, &name, slot, now, effects),
        }
        self.pump(&name, now, effects);
    }

    fn after_refusal(&mut self, key: TaskKey, session: SessionKey) -> Option<(ProviderName, AfterRefusal)> {
        let name = self.tasks.provider(key)?;
        let caller = self.tasks.caller(key);
        let refused_by = self.tasks.offer_failed(key, session)?;
        let next = self.providers.after_refusal(&name, &caller, refused_by)?;
        Some((name, next))
    }

    /// The stream of a session ended. Without a goodbye its providers get a grace period, and its tasks without output wait for it to
    /// return, unless they have lost too many sessions.
    pub(super) fn session_closed(
        &mut self,
        session: SessionKey,
        now: Instant,
        activity: ActivityOf<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(departure) = self.providers.closed(session, now) else { return };
        // In reverse order, because each task that is offered again goes to the head of its queue.
        for key in self.tasks.of_session(session).into_iter().rev() {
            let Some(name) = self.tasks.provider(key) else { continue };
            self.providers.release(&name, &self.tasks.caller(key), session);
            if !self.tasks.is_open(key) {
                self.tasks.release(key);
                self.forget_if_over(key, now, effects);
            } else if departure == Departure::Lost
                && !activity(key).any_output
                && self.drain == Drain::No
                && self.tasks.offer_failed(key, session).is_some()
            {
                self.requeue(key, &name, now, effects);
            } else {
                self.tasks.release(key);
                self.end(key, End::Failed(provider_lost()), now, effects);
            }
        }
        self.providers_changed(now, effects);
    }

    fn requeue(&mut self, key: TaskKey, name: &ProviderName, now: Instant, effects: &mut Vec<Effect>) {
        let wait = SESSION_GRACE.min(self.settings.queue_timeout);
        self.tasks.requeued(key, now + wait);
        self.providers.enqueue_first(name, &self.tasks.caller(key), key);
        effects.push(Effect::Requeued(key, FailureCode::ProviderLost));
    }

    /// To be called after any change of sessions, snapshots or pauses: updates the verdicts, the published set, and the queues that can
    /// move or must be emptied.
    pub(super) fn providers_changed(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.providers.changed_verdicts(effects);
        for key in self.providers.strand_queues() {
            self.tasks.release(key);
            self.end(key, End::Failed(withdrawn()), now, effects);
        }
        for name in self.providers.waiting_names() {
            self.pump(&name, now, effects);
        }
        let published = self.providers.published();
        self.with_link(effects, |link, out| link.want(published, now, out));
    }
}

fn withdrawn() -> Failure {
    Failure::retryable(
        FailureCode::Unavailable,
        "the provider was withdrawn, or its local program did not come back, while the task waited for it",
        SESSION_GRACE,
    )
}

fn provider_lost() -> Failure {
    Failure::new(
        FailureCode::ProviderLost,
        "the local program that ran the inference went away before its end (connection to mcplocal lost)",
    )
}
