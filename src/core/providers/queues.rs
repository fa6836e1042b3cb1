//! Slots and queues: which task for a name is admitted, which is offered next, and to which session.

use std::time::Duration;

use super::{
    Caller, Paused, Providers, Queue,
    rank::{Seat, rank},
};
use crate::{
    core::SESSION_GRACE,
    domain::{Failure, FailureCode, Provider, ProviderName, ProviderState, SessionKey, TaskKey},
};

/// How long a caller is told to wait when a provider is full: about the time that one short answer takes.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// How long a caller is told to wait while a provider is paused.
const PAUSED_RETRY: Duration = Duration::from_secs(60);

/// Why a task is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No provider of this name is published.
    NotPublished,
    /// Its owner, or a rule of its owner's, has paused it.
    Paused(Paused),
    /// All slots and places in the queue are taken: so many run, so many wait.
    Full(u32, u32),
    /// So many tasks of this caller wait already.
    CallerFull(u32),
    /// The requests under way hold too many bytes.
    Memory,
}

/// A slot that is taken for a task: the session, and the largest message in bytes that it accepts.
pub(in crate::core) type Slot = (SessionKey, usize);

/// Who may have a task that a session refused.
#[derive(Clone, Copy, Debug)]
pub(in crate::core) enum AfterRefusal {
    /// Another session serves the name by now.
    Queue,
    /// A session that stands by: it has a free slot, which is taken.
    Offer(Slot),
}

impl Refusal {
    /// What the caller gets.
    pub fn failure(&self, name: &ProviderName) -> Failure {
        use FailureCode::{Overloaded, Unavailable};
        match self {
            Self::NotPublished => Failure::retryable(
                Unavailable,
                format!("no provider named '{name}' is published by this agent"),
                SESSION_GRACE,
            ),
            Self::Paused(paused) => Failure::retryable(
                Unavailable,
                // Why is nobody else's business: it may tell whether somebody sits at the machine.
                format!("'{name}' is paused by its owner; try again later"),
                PAUSED_RETRY,
            )
            .with_owner_detail(format!("'{name}' is {paused}; see `mcprelay status`")),
            Self::Full(running, queued) => Failure::retryable(
                Overloaded,
                format!("'{name}' is full: {running} running, {queued} waiting; try again later"),
                OVERLOAD_RETRY,
            ),
            Self::CallerFull(queued) => Failure::retryable(
                Overloaded,
                format!("{queued} of this caller's tasks wait for '{name}' already; try again later"),
                OVERLOAD_RETRY,
            ),
            Self::Memory => Failure::retryable(
                Overloaded,
                "the agent holds as many bytes of requests as it may; try again later",
                OVERLOAD_RETRY,
            ),
        }
    }
}

fn slot_of((session, entry, _): &Seat<'_>) -> Slot {
    (*session, entry.hello.max_message_bytes)
}

impl Providers {
    pub(in crate::core) fn limit(&self, provider: &Provider) -> u32 {
        provider.max_in_flight.unwrap_or(self.default_in_flight)
    }

    pub(in crate::core) fn max_queued(&self) -> u32 {
        self.max_queued
    }

    pub(in crate::core) fn running(&self, name: &ProviderName, session: SessionKey) -> u32 {
        self.running.get(&(name.clone(), session)).copied().unwrap_or(0)
    }

    pub(in crate::core) fn any_running(&self) -> bool {
        !self.running.is_empty()
    }

    pub(in crate::core) fn queued(&self, name: &ProviderName) -> u32 {
        self.queues.get(name).map_or(0, |queue| number(queue.waiting()))
    }

    /// The free slot that the next task of this name would take.
    fn free_slot(&self, name: &ProviderName) -> Option<Slot> {
        let seat = self.serving(name)?;
        self.has_free_slot(&seat).then(|| slot_of(&seat))
    }

    fn has_free_slot(&self, (session, _, provider): &Seat<'_>) -> bool {
        let ready = provider.state == ProviderState::Ready;
        ready && self.running(&provider.name, *session) < self.limit(provider)
    }

    /// Who may have a task that these sessions refused.
    pub(in crate::core) fn after_refusal(
        &mut self,
        name: &ProviderName,
        caller: &Caller,
        refused_by: &[SessionKey],
    ) -> Option<AfterRefusal> {
        let (serving, ..) = self.serving(name)?;
        if !refused_by.contains(&serving) {
            return Some(AfterRefusal::Queue);
        }
        let others = self.able(name).filter(|(session, ..)| !refused_by.contains(session));
        let slot = slot_of(&others.filter(|seat| self.has_free_slot(seat)).min_by_key(rank)?);
        self.take_slot(name, slot.0);
        self.queues.entry(name.clone()).or_default().run(caller);
        Some(AfterRefusal::Offer(slot))
    }

    fn take_slot(&mut self, name: &ProviderName, session: SessionKey) {
        *self.running.entry((name.clone(), session)).or_default() += 1;
    }

    /// Whether one more task of this name and caller may come in.
    pub(in crate::core) fn admit(&self, name: &ProviderName, caller: &Caller) -> Result<(), Refusal> {
        if self.listed(name).is_none() {
            let paused = self.candidates(name).find_map(|(_, _, p)| self.paused(p));
            return Err(paused.map_or(Refusal::NotPublished, Refusal::Paused));
        }
        if self.conflicts.contains(name) {
            return Err(Refusal::NotPublished);
        }
        let queued = self.queued(name);
        let at_once = queued == 0 && self.free_slot(name).is_some();
        let queued_of = |queue: &Queue| number(queue.waiting_of(caller));
        let of_caller = self.queues.get(name).filter(|_| caller.is_some()).map_or(0, queued_of);
        if at_once || (queued < self.max_queued && of_caller < self.max_queued_per_caller) {
            return Ok(());
        }
        if of_caller >= self.max_queued_per_caller {
            return Err(Refusal::CallerFull(of_caller));
        }
        let running = self.serving(name).map_or(0, |(session, _, _)| self.running(name, session));
        Err(Refusal::Full(running, queued))
    }

    pub(in crate::core) fn enqueue(&mut self, name: &ProviderName, caller: &Caller, key: TaskKey) {
        self.queues.entry(name.clone()).or_default().push(caller, key);
    }

    /// Puts a task that had been offered before at the head of its queue.
    pub(in crate::core) fn enqueue_first(&mut self, name: &ProviderName, caller: &Caller, key: TaskKey) {
        self.queues.entry(name.clone()).or_default().push_first(caller, key);
    }

    pub(in crate::core) fn unqueue(&mut self, name: &ProviderName, caller: &Caller, key: TaskKey) {
        self.with_queue(name, |queue| queue.remove(caller, key));
    }

    /// Takes the next task out of the queue and a slot for it.
    pub(in crate::core) fn next_offer(&mut self, name: &ProviderName) -> Option<(TaskKey, Slot)> {
        self.queues.get(name).filter(|queue| queue.waiting() > 0)?;
        let slot = self.free_slot(name)?;
        let key = self.queues.get_mut(name)?.next()?;
        self.take_slot(name, slot.0);
        Some((key, slot))
    }

    /// Gives a slot back that a task of this caller had.
    pub(in crate::core) fn release(&mut self, name: &ProviderName, caller: &Caller, session: SessionKey) {
        let seat = (name.clone(), session);
        if let Some(running) = self.running.get_mut(&seat) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&seat);
            }
        }
        self.with_queue(name, |queue| queue.ended(caller));
    }

    /// Changes a queue, and forgets it if it is over.
    fn with_queue(&mut self, name: &ProviderName, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.queues.get_mut(name) {
            change(queue);
            if queue.is_over() {
                self.queues.remove(name);
            }
        }
    }

    /// The names for which tasks wait.
    pub(in crate::core) fn waiting_names(&self) -> Vec<ProviderName> {
        let waiting = self.queues.iter().filter(|(_, queue)| queue.waiting() > 0);
        waiting.map(|(name, _)| name.clone()).collect()
    }

    /// Empties the queues of names that nobody publishes any more.
    pub(in crate::core) fn strand_queues(&mut self) -> Vec<TaskKey> {
        let stranded: Vec<_> =
            self.queues.keys().filter(|name| self.listed(name).is_none()).cloned().collect();
        let mut keys = Vec::new();
        for name in stranded {
            self.with_queue(&name, |queue| keys.extend(queue.clear()));
        }
        keys
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
