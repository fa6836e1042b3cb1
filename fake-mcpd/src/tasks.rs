//! The tasks: who waits for them, what has come, how they ended.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::parts::{Part, ResultBody};

/// Ended tasks remembered, so that a repeated last part is known from a stranger's.
const ENDED_REMEMBERED: usize = 10_000;
/// Chunks waiting for one caller; beyond that the result's reply waits for the caller to read.
const CALLER_CHUNKS: usize = 256;
/// What proxies log for a caller that left; a caller sees it only if a fault cancelled its call.
pub(crate) const CALLER_GONE: u16 = 499;

/// One inference, from its call to its end; ended ones are kept for a while.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) llm: String,
    pub(crate) session: String,
    pub(crate) streaming: bool,
    reader: Reader,
    end: Arc<OnceLock<TaskEnd>>,
    /// Dropped at its end: an upload waits for that.
    alive: Option<watch::Sender<()>>,
    applied: BTreeSet<Part>,
    /// Whether the agent ended it.
    answered: bool,
    deadline: Option<Instant>,
}

/// Who reads a task's chunks.
#[derive(Debug)]
enum Reader {
    Caller(mpsc::Sender<Bytes>),
    /// A task of a fault's making: everything is accepted and dropped.
    Nobody,
    /// The task ended; without a sender the caller's reading ends too.
    Ended,
}

impl Task {
    pub(crate) fn is_under_way(&self) -> bool {
        !matches!(self.reader, Reader::Ended)
    }

    pub(crate) fn end(&self) -> Option<&TaskEnd> {
        self.end.get()
    }

    /// Whether a part of the agent's ended it.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered
    }

    /// The number of the first part that has not come.
    pub(crate) fn next(&self) -> u64 {
        let index = |part: &Part| if let Part::Index(n) = part { Some(n + 1) } else { None };
        self.applied.iter().filter_map(index).next_back().unwrap_or_default()
    }

    /// Errs once the task has ended.
    pub(crate) fn alive(&self) -> Option<watch::Receiver<()>> {
        self.alive.as_ref().map(watch::Sender::subscribe)
    }
}

/// How a task ended for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// The agent's `{"status", "body"}`.
    Reply {
        /// The HTTP status.
        status: u16,
        /// The `Retry-After` header.
        retry_after: Option<String>,
        /// The JSON body, byte for byte.
        body: Bytes,
    },
    /// `[DONE]`.
    Done,
    /// A failure in words: the agent's `{"error"}`, or mcpd's own.
    Failed {
        /// The status of a caller that got no output yet.
        status: u16,
        /// The error's `code`.
        code: &'static str,
        /// The error's `message`.
        message: String,
    },
    /// The caller went away.
    CallerGone,
}

/// The caller's half of a task.
#[derive(Debug)]
pub(crate) struct TaskHandle {
    pub(crate) id: String,
    pub(crate) chunks: mpsc::Receiver<Bytes>,
    pub(crate) end: Arc<OnceLock<TaskEnd>>,
}

/// What became of a result part.
#[derive(Debug)]
pub(crate) enum Applied {
    Accepted,
    /// The key was applied before; dropped.
    Repeated,
    /// Nobody waits: unknown or ended.
    Gone,
    /// A line of an upload that is not the next part.
    Gap,
    /// A chunk for a task that did not ask for a stream.
    NotStreaming,
    /// The caller is behind; try again when there is room.
    Full(mpsc::Sender<Bytes>),
}

/// Every task under way, and the last ones that ended.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    tasks: BTreeMap<String, Task>,
    deadlines: BTreeSet<(Instant, String)>,
    ended: VecDeque<String>,
}

impl Tasks {
    pub(crate) fn get(&self, id: &str) -> Option<&Task> {
        self.tasks.get(id)
    }

    /// Whether its caller asked for a stream.
    pub(crate) fn is_streaming(&self, id: &str) -> bool {
        self.get(id).is_some_and(|task| task.streaming)
    }

    /// The session that a task was sent to.
    pub(crate) fn session(&self, id: &str) -> Option<&str> {
        Some(&self.get(id)?.session)
    }

    /// Enters a task; what comes for it goes to the handle.
    pub(crate) fn add(
        &mut self,
        id: &str,
        llm: &str,
        session: &str,
        streaming: bool,
        deadline: Option<Instant>,
    ) -> TaskHandle {
        let (sender, chunks) = mpsc::channel(CALLER_CHUNKS);
        let end = Arc::new(OnceLock::new());
        let task = Task {
            llm: llm.to_owned(),
            session: session.to_owned(),
            streaming,
            reader: Reader::Caller(sender),
            end: Arc::clone(&end),
            alive: Some(watch::Sender::new(())),
            applied: BTreeSet::new(),
            answered: false,
            deadline,
        };
        self.deadlines.extend(deadline.map(|deadline| (deadline, id.to_owned())));
        self.tasks.insert(id.to_owned(), task);
        TaskHandle { id: id.to_owned(), chunks, end }
    }

    /// Enters a task without a caller.
    pub(crate) fn add_unread(&mut self, id: &str, llm: &str, session: &str, streaming: bool) {
        let unread = self.add(id, llm, session, streaming, None);
        if let Some(task) = self.tasks.get_mut(&unread.id) {
            task.reader = Reader::Nobody;
        }
    }

    /// Applies a result part. `idempotent` drops a repeated key, even one that ended the task.
    pub(crate) fn apply(
        &mut self,
        id: &str,
        part: Option<Part>,
        body: &ResultBody,
        idempotent: bool,
    ) -> Applied {
        let Some(task) = self.tasks.get_mut(id) else { return Applied::Gone };
        if idempotent && part.is_some_and(|part| task.applied.contains(&part)) {
            return Applied::Repeated;
        }
        if !task.is_under_way() {
            return Applied::Gone;
        }
        if !task.streaming && matches!(body, ResultBody::Chunk(_) | ResultBody::Done { .. }) {
            return Applied::NotStreaming;
        }
        if let (ResultBody::Chunk(frame), Reader::Caller(chunks)) = (body, &task.reader) {
            match chunks.try_send(frame.clone()) {
                Err(mpsc::error::TrySendError::Full(_)) => return Applied::Full(chunks.clone()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Applied::Gone,
                Ok(()) => {}
            }
        }
        task.applied.extend(part);
        if let Some(end) = end_of(body) {
            task.answered = true;
            self.end(id, end);
        }
        Applied::Accepted
    }

    /// Applies a line of an upload. Whatever is announced, what came before is dropped.
    pub(crate) fn apply_line(&mut self, id: &str, n: u64, body: &ResultBody) -> Applied {
        let Some(task) = self.tasks.get(id) else { return Applied::Gone };
        match n.cmp(&task.next()) {
            Ordering::Less => Applied::Repeated,
            Ordering::Equal => self.apply(id, Some(Part::Index(n)), body, true),
            Ordering::Greater if task.is_under_way() => Applied::Gap,
            Ordering::Greater => Applied::Gone,
        }
    }

    /// Ends a task for its caller; false if it is unknown or had ended.
    pub(crate) fn end(&mut self, id: &str, end: TaskEnd) -> bool {
        let Some(task) = self.tasks.get_mut(id).filter(|task| task.is_under_way()) else { return false };
        // The end is there before the sender goes: the caller reads it when its chunks run out.
        let _ = task.end.set(end);
        (task.reader, task.alive) = (Reader::Ended, None);
        if let Some(deadline) = task.deadline {
            self.deadlines.remove(&(deadline, id.to_owned()));
        }
        self.ended.push_back(id.to_owned());
        if self.ended.len() > ENDED_REMEMBERED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.tasks.remove(&oldest);
        }
        true
    }

    /// The tasks under way, by id.
    pub(crate) fn iter_under_way(&self) -> impl Iterator<Item = (&String, &Task)> {
        self.tasks.iter().filter(|(_, task)| task.is_under_way())
    }

    /// The ids of the tasks under way, of one session or of all.
    pub(crate) fn under_way(&self, session: Option<&str>) -> Vec<String> {
        let of_session = |task: &Task| session.is_none_or(|session| task.session == session);
        let under_way = self.iter_under_way().filter(|(_, task)| of_session(task));
        under_way.map(|(id, _)| id.clone()).collect()
    }

    /// The tasks whose deadline has passed.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<String> {
        let overdue = self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now);
        overdue.map(|(_, id)| id.clone()).collect()
    }

    /// When [`Self::overdue`] has something to give next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

fn end_of(body: &ResultBody) -> Option<TaskEnd> {
    Some(match body {
        ResultBody::Chunk(_) => return None,
        ResultBody::Done { .. } => TaskEnd::Done,
        ResultBody::Status { status, retry_after, body } => {
            TaskEnd::Reply { status: *status, retry_after: retry_after.clone(), body: body.clone() }
        }
        ResultBody::Error(message) => {
            TaskEnd::Failed { status: 502, code: "provider_error", message: message.clone() }
        }
    })
}
