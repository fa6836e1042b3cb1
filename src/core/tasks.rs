//! The states of a task, its deadlines, and its single end.
//!
//! A task has two sides that finish independently:
//!
//! ```text
//!   local     Queued ──► Offered ──► Cancelling ──► Released      (the slot is held while Offered or Cancelling)
//!                ▲          │ session lost, nothing sent
//!                └──────────┘
//!   upstream  Open ──► Ending ──► Settled                          (the end is decided once, on leaving Open)
//! ```
//!
//! It is forgotten when it is both Released and Settled; its id is remembered for another ten minutes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ActivityOf, DEADLINE_MARGIN, Settings, providers::Caller, recent::Recent};
use crate::domain::{Failure, FailureCode, ProviderName, SessionKey, Task, TaskId, TaskKey};

/// How many sessions may be lost with one task, or refuse it, before it ends: a task that crashes its local program must not do so
/// indefinitely.
pub(super) const MAX_OFFERS: usize = 3;

/// The local side of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    /// Waits for a slot until then.
    Queued { until: Instant },
    /// A session has it.
    Offered { session: SessionKey, since: Instant },
    /// A session was asked to stop it; the slot is freed by this time at the latest.
    Cancelling { session: SessionKey, until: Instant },
    /// No session has it any more.
    Released,
}

/// The upstream side of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upstream {
    /// It has no end yet.
    Open,
    /// Its end is decided and on its way.
    Ending,
    /// mcpd accepted the end, or nobody waits for it.
    Settled,
}

/// One task under way.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) task: Arc<Task>,
    pub(super) provider: Option<ProviderName>,
    pub(super) arrived: Instant,
    pub(super) local: Local,
    pub(super) upstream: Upstream,
    deadline: Instant,
    wake: Option<Instant>,
    /// Sessions that were lost while they had it, or refused it.
    failed_offers: Vec<SessionKey>,
}

/// What a passed deadline means.
#[derive(Debug, PartialEq)]
pub(super) enum Due {
    /// Output came in the meantime; the deadline has moved.
    Nothing,
    /// The task ends with this.
    Timeout(Failure),
    /// The session never confirmed the cancel.
    CancelUnconfirmed,
}

/// All tasks under way, and the ids of those that ended lately.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    entries: BTreeMap<TaskKey, Entry>,
    by_id: HashMap<TaskId, TaskKey>,
    wakes: BTreeSet<(Instant, TaskKey)>,
    recent: Recent,
    next_key: u64,
    held_bytes: usize,
}

impl Tasks {
    pub(super) fn is_known(&mut self, id: &TaskId, now: Instant) -> bool {
        self.by_id.contains_key(id) || self.recent.contains(id, now)
    }

    pub(super) fn remember(&mut self, id: &TaskId, now: Instant) {
        self.recent.insert(id, now);
    }

    pub(super) fn forget_remembered(&mut self) {
        self.recent.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TaskKey, &Entry)> {
        self.entries.iter().map(|(key, entry)| (*key, entry))
    }

    /// Takes a task in, as queued.
    pub(super) fn begin(&mut self, task: Task, settings: &Settings, now: Instant) -> (TaskKey, &mut Entry) {
        let key = TaskKey(self.next_key);
        self.next_key += 1;
        self.held_bytes += task.request.len();
        self.by_id.insert(task.id.clone(), key);
        let asked = task.deadline.map_or(settings.task_timeout, |d| d.min(settings.task_timeout));
        let local = Local::Queued { until: now + settings.queue_timeout };
        let deadline = now + asked.saturating_sub(DEADLINE_MARGIN);
        let entry = Entry {
            task: Arc::new(task),
            provider: None,
            arrived: now,
            local,
            upstream: Upstream::Open,
            deadline,
            wake: None,
            failed_offers: Vec::new(),
        };
        self.entries.insert(key, entry);
        self.rearm(key, None);
        (key, self.entries.get_mut(&key).expect("just inserted"))
    }

    pub(super) fn key_of(&self, id: &TaskId) -> Option<TaskKey> {
        self.by_id.get(id).copied()
    }

    pub(super) fn provider(&self, key: TaskKey) -> Option<ProviderName> {
        self.entries.get(&key).and_then(|e| e.provider.clone())
    }

    pub(super) fn caller(&self, key: TaskKey) -> Caller {
        self.entries.get(&key).and_then(|e| e.task.caller.clone())
    }

    pub(super) fn request_len(&self, key: TaskKey) -> usize {
        self.entries.get(&key).map_or(0, |e| e.task.request.len())
    }

    pub(super) fn time_left(&self, key: TaskKey, now: Instant) -> Duration {
        self.entries.get(&key).map_or(Duration::ZERO, |e| e.deadline.saturating_duration_since(now))
    }

    /// The session that has the task, offered or asked to stop it.
    pub(super) fn session_of(&self, key: TaskKey) -> Option<SessionKey> {
        match self.entries.get(&key)?.local {
            Local::Offered { session, .. } | Local::Cancelling { session, .. } => Some(session),
            Local::Queued { .. } | Local::Released => None,
        }
    }

    pub(super) fn is_with(&self, key: TaskKey, session: SessionKey) -> bool {
        self.session_of(key) == Some(session)
    }

    /// Whether the task has no end yet.
    pub(super) fn is_open(&self, key: TaskKey) -> bool {
        self.entries.get(&key).is_some_and(|e| e.upstream == Upstream::Open)
    }

    /// Whether the task's end is on its way.
    pub(super) fn is_ending(&self, key: TaskKey) -> bool {
        self.entries.get(&key).is_some_and(|e| e.upstream == Upstream::Ending)
    }

    pub(super) fn of_session(&self, session: SessionKey) -> Vec<TaskKey> {
        self.entries.keys().copied().filter(|key| self.is_with(*key, session)).collect()
    }

    pub(super) fn queued(&self) -> Vec<TaskKey> {
        self.iter().filter(|(_, e)| matches!(e.local, Local::Queued { .. })).map(|(key, _)| key).collect()
    }

    pub(super) fn all(&self) -> Vec<TaskKey> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn offered(&mut self, key: TaskKey, session: SessionKey, settings: &Settings, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.local = Local::Offered { session, since: now };
        // A plain task shows nothing before its end, so only a stream has a deadline for its first token.
        let look =
            entry.task.streaming.then(|| look_again(now + settings.first_token_timeout, settings, now));
        self.rearm(key, look);
    }

    /// The task's session was lost, or refused it; the sessions to which this happened, if yet another one may have the task.
    pub(super) fn offer_failed(&mut self, key: TaskKey, session: SessionKey) -> Option<&[SessionKey]> {
        let failed = &mut self.entries.get_mut(&key)?.failed_offers;
        failed.push(session);
        (failed.len() < MAX_OFFERS).then_some(failed)
    }

    pub(super) fn requeued(&mut self, key: TaskKey, until: Instant) {
        self.set_local(key, Local::Queued { until });
    }

    pub(super) fn cancelling(&mut self, key: TaskKey, until: Instant) {
        if let Some(session) = self.session_of(key) {
            self.set_local(key, Local::Cancelling { session, until });
        }
    }

    /// No session has the task any more.
    pub(super) fn release(&mut self, key: TaskKey) {
        self.set_local(key, Local::Released);
    }

    fn set_local(&mut self, key: TaskKey, local: Local) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.local = local;
            self.rearm(key, None);
        }
    }

    /// The end is decided; returns the task's deadline, or now if that has passed.
    pub(super) fn ended(&mut self, key: TaskKey, now: Instant) -> Instant {
        let Some(entry) = self.entries.get_mut(&key) else { return now };
        if std::mem::replace(&mut entry.upstream, Upstream::Ending) == Upstream::Open {
            self.held_bytes -= entry.task.request.len();
        }
        let until = entry.deadline.max(now);
        self.rearm(key, None);
        until
    }

    pub(super) fn settled(&mut self, key: TaskKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.upstream = Upstream::Settled;
        }
    }

    /// Forgets a task that is over on both sides; `true` if it was.
    pub(super) fn forget_if_over(&mut self, key: TaskKey, now: Instant) -> bool {
        let over = |e: &Entry| e.local == Local::Released && e.upstream == Upstream::Settled;
        if !self.entries.get(&key).is_some_and(over) {
            return false;
        }
        if let Some(entry) = self.entries.remove(&key) {
            self.by_id.remove(&entry.task.id);
            self.recent.insert(&entry.task.id, now);
            if let Some(at) = entry.wake {
                self.wakes.remove(&(at, key));
            }
        }
        true
    }

    // ---- deadlines -------------------------------------------------------------------------------------------------

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// The tasks with a deadline at `now` or before.
    pub(super) fn due(&self, now: Instant) -> Vec<TaskKey> {
        self.wakes.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| *key).collect()
    }

    /// Says what a passed deadline means; if nothing has to be done yet, sets the next one.
    pub(super) fn what_is_due(
        &mut self,
        key: TaskKey,
        now: Instant,
        settings: &Settings,
        activity: ActivityOf<'_>,
    ) -> Due {
        let Some(entry) = self.entries.get(&key) else { return Due::Nothing };
        match entry.local {
            Local::Cancelling { until, .. } if until <= now => Due::CancelUnconfirmed,
            _ if entry.upstream != Upstream::Open => Due::Nothing,
            _ if entry.deadline <= now => Due::Timeout(task_timeout(entry, now)),
            Local::Queued { until } if until <= now => Due::Timeout(queue_timeout(entry, now)),
            Local::Offered { since, .. } if entry.task.streaming => {
                let activity = activity(key);
                let quiet_since = activity.last_sign.map_or(since, |at| at.max(since));
                let (limit, code) = if activity.first_token {
                    (settings.idle_token_timeout, FailureCode::IdleTokenTimeout)
                } else {
                    (settings.first_token_timeout, FailureCode::FirstTokenTimeout)
                };
                if quiet_since + limit <= now {
                    return Due::Timeout(token_timeout(code, limit));
                }
                self.rearm(key, Some(look_again(quiet_since + limit, settings, now)));
                Due::Nothing
            }
            _ => Due::Nothing,
        }
    }

    /// Sets when the task is checked next: at its own deadline, at its phase's, or at an earlier `token` deadline.
    fn rearm(&mut self, key: TaskKey, token: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let open = entry.upstream == Upstream::Open;
        let phase = match entry.local {
            Local::Queued { until } => Some(until).filter(|_| open),
            Local::Cancelling { until, .. } => Some(until),
            Local::Offered { .. } => token,
            Local::Released => None,
        };
        let whole = Some(entry.deadline).filter(|_| open && entry.local != Local::Released);
        let wake = [phase, whole].into_iter().flatten().min();
        if wake == entry.wake {
            return;
        }
        if let Some(at) = std::mem::replace(&mut entry.wake, wake) {
            self.wakes.remove(&(at, key));
        }
        if let Some(at) = wake {
            self.wakes.insert((at, key));
        }
    }
}

/// When a stream is checked again. Tokens wake nobody, so the first one may come right after this check, and the next one would be due
/// an idle timeout later.
fn look_again(deadline: Instant, settings: &Settings, now: Instant) -> Instant {
    deadline.min(now + settings.idle_token_timeout)
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn task_timeout(entry: &Entry, now: Instant) -> Failure {
    let age = seconds(now.duration_since(entry.arrived));
    Failure::new(
        FailureCode::TaskTimeout,
        format!("the inference did not end within its time: {age} since the task arrived"),
    )
}

fn queue_timeout(entry: &Entry, now: Instant) -> Failure {
    let wait = seconds(now.duration_since(entry.arrived));
    let message = format!("no slot of the provider became free within {wait}; try again later");
    Failure::retryable(FailureCode::QueueTimeout, message, Duration::from_secs(5))
}

fn token_timeout(code: FailureCode, limit: Duration) -> Failure {
    let which = if code == FailureCode::FirstTokenTimeout { "first" } else { "next" };
    Failure::new(code, format!("the provider did not give its {which} token within {}", seconds(limit)))
}
