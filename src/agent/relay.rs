//! One task on its way through the agent, and the memory of those that ended.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    domain::{EndKind, FailureCode, SessionKey, Task, TaskId},
    telemetry::{TaskLine, log_task_end},
    upstream::outbox::{Outbox, Summary},
};

/// How many ended tasks the status shows.
const RECENT: usize = 50;

/// What the agent holds of one task under way.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) task: Arc<Task>,
    pub(super) arrived: Instant,
    pub(super) outbox: Arc<Outbox>,
    /// When a provider got it last.
    pub(super) offered: Option<Instant>,
    /// The session that has it.
    pub(super) session: Option<SessionKey>,
    /// Whether the history has its result: its slot may be held for longer than that.
    pub(super) recorded: bool,
    /// Its permit to be under way; the control channel is not read while all are taken.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// One ended task, as the status shows it.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) id: TaskId,
    pub(super) llm: String,
    pub(super) caller: Option<Arc<str>>,
    pub(super) at: SystemTime,
    pub(super) duration: Duration,
    pub(super) first_token: Option<Duration>,
    /// How long a provider worked on it; `None` if none did.
    pub(super) inference: Option<Duration>,
    pub(super) summary: Summary,
}

impl Relay {
    /// Writes the one log line of a task's end.
    pub(super) fn ended(&self, summary: Summary, now: Instant) -> Ended {
        let duration = now.duration_since(self.arrived);
        let first_token = summary.first_token_at.map(|at| at.duration_since(self.arrived));
        log_task_end(&TaskLine {
            task: &self.task.id,
            llm: &self.task.llm,
            end: summary.outcome,
            reason: summary.reason.as_deref(),
            took: duration,
            first_chunk: first_token,
            usage: summary.usage,
            trace_id: summary.trace_id,
        });
        Ended {
            id: self.task.id.clone(),
            llm: self.task.llm.clone(),
            caller: self.task.caller.clone(),
            at: SystemTime::now(),
            duration,
            first_token,
            inference: self.offered.map(|offered| now.duration_since(offered)),
            summary,
        }
    }
}

/// Counts since the agent started, and the last tasks that ended.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) tasks: u64,
    pub(super) ok: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) overloaded: u64,
    pub(super) chunks: u64,
    pub(super) posts: u64,
    pub(super) late_chunks: u64,
    pub(super) repeated: u64,
    pub(super) recent: VecDeque<Ended>,
}

impl History {
    /// Counts a task whose caller cannot be told of its end.
    pub(super) fn lost(&mut self) {
        self.tasks += 1;
        self.failed += 1;
    }

    pub(super) fn record(&mut self, ended: Ended) {
        let summary = &ended.summary;
        match summary.outcome {
            EndKind::Answered => self.ok += 1,
            EndKind::Nobody => self.cancelled += 1,
            EndKind::Failed(code) => {
                self.failed += 1;
                self.overloaded += u64::from(code == FailureCode::Overloaded);
            }
        }
        self.chunks += u64::from(summary.chunks);
        self.posts += u64::from(summary.posts);
        self.recent.push_front(ended);
        self.recent.truncate(RECENT);
    }
}
