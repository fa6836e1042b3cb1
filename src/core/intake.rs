//! Tasks coming in: admission, and offers while there are free slots.

use std::{sync::Arc, time::Instant};

use super::{
    Core, Effect, MAX_HELD_BYTES,
    providers::{Refusal, Slot},
    shutdown::{Drain, shutting_down},
    tasks,
};
use crate::domain::{Activity, End, Failure, FailureCode, ProviderName, Task, TaskKey};

/// What an offer needs beyond the request's own bytes: ids, trace context, framing.
const OFFER_OVERHEAD: usize = 4 << 10;

impl Core {
    pub(super) fn task(
        &mut self,
        task: Task,
        admitted: Result<ProviderName, Failure>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.tasks.is_known(&task.id, now) {
            return effects.push(Effect::Repeated(task.id));
        }
        let (key, entry) = self.tasks.begin(task, &self.settings, now);
        effects.push(Effect::Begin(key, Arc::clone(&entry.task)));
        match admitted {
            Ok(name) => {
                entry.provider = Some(name.clone());
                let caller = entry.task.caller.clone();
                self.providers.enqueue(&name, &caller, key);
                self.pump(&name, now, effects);
            }
            Err(failure) => {
                self.tasks.release(key);
                self.end(key, End::Failed(failure), now, effects);
            }
        }
    }

    pub(super) fn admit(&self, task: &Task) -> Result<ProviderName, Failure> {
        if self.drain != Drain::No {
            return Err(shutting_down());
        }
        let name = ProviderName::new(&task.llm).map_err(|why| {
            Failure::new(FailureCode::Unavailable, format!("the LLM name of the task {why}"))
        })?;
        if self.tasks.held_bytes() + task.request.len() > MAX_HELD_BYTES {
            return Err(Refusal::Memory.failure(&name));
        }
        self.providers.admit(&name, &task.caller).map_err(|refusal| refusal.failure(&name))?;
        Ok(name)
    }

    /// Offers queued tasks of one provider while it has free slots.
    pub(super) fn pump(&mut self, name: &ProviderName, now: Instant, effects: &mut Vec<Effect>) {
        while let Some((key, slot)) = self.providers.next_offer(name) {
            self.offer(key, name, slot, now, effects);
        }
    }

    /// Offers a waiting task to the session that has a slot for it.
    pub(super) fn offer(
        &mut self,
        key: TaskKey,
        name: &ProviderName,
        (session, limit): Slot,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(failure) = self.too_late_or_large(key, limit, now) {
            self.providers.release(name, &self.tasks.caller(key), session);
            self.tasks.release(key);
            self.end(key, End::Failed(failure), now, effects);
        } else {
            let left = self.tasks.time_left(key, now);
            self.tasks.offered(key, session, &self.settings, now);
            effects.push(Effect::Offer(key, session, left));
        }
    }

    /// Why a task whose turn has come is not offered after all: its time is over although no tick has noticed it yet, or it does not
    /// fit into a message of `limit` bytes.
    fn too_late_or_large(&mut self, key: TaskKey, limit: usize, now: Instant) -> Option<Failure> {
        match self.tasks.what_is_due(key, now, &self.settings, &|_| Activity::default()) {
            tasks::Due::Timeout(failure) => Some(failure),
            _ => (self.tasks.request_len(key) + OFFER_OVERHEAD > limit).then(|| too_large(limit)),
        }
    }
}

fn too_large(limit: usize) -> Failure {
    Failure::new(
        FailureCode::TooLarge,
        format!(
            "the request does not fit into a message of {limit} bytes, the most that the local program accepts"
        ),
    )
}
