//! The output of one task, between whoever produces it and the delivery that sends it.
//!
//! ```text
//!   bridge ──output()──► Outbox ──next()──► Delivery ──POST──► mcpd
//!   agent  ──end()─────►   │  chunks that arrive while a POST is under way merge here
//! ```
//!
//! It is written by whoever reads the provider's answer, and read by one [`Delivery`](super::results::Delivery), which runs as a task of
//! its own, so that a slow mcpd holds up nobody else.

mod pending;
mod summary;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tracing::field::{DisplayValue, display};

use super::contract::{CHUNK_HEAD, CHUNK_TAIL};
use crate::{
    domain::{Activity, End, Failure, FailureCode, Outcome, Output, Taken, Task, TaskSink, Usage},
    openai::{ChunkEnvelope, MemoryBudget, Reservation, ResponseMeta},
    telemetry::{AnswerContent, TaskReport, TaskTrace, TraceId},
};

use pending::{Origin, Pending};
pub use summary::Summary;

/// Most bytes of one task's output that may wait for mcpd (the bridge's rule).
pub const OUTBOX_LIMIT: usize = 4 << 20;
/// Most bytes of a plain answer that is gathered from chunks: what the caller of a plain inference can be expected to handle.
pub const GATHER_LIMIT: usize = 32 << 20;
/// Most bytes of all tasks' output together that may wait for mcpd: as much as their requests may hold, which a workstation can spare.
/// 64 tasks at their own limit fit, so that a slow caller reaches the limit of its own task before it takes room from others.
pub const WAITING_LIMIT: usize = 256 << 20;
/// How long the part that is being sent may still take once an error is to end the task: the error must not wait for a POST that hangs.
const FAILURE_PATIENCE: Duration = Duration::from_secs(1);

struct State {
    origin: Origin,
    pending: Pending,
    /// What the part under way takes of the room that all tasks share.
    under_way: Reservation,
    /// What a whole answer, received or gathered, takes of it.
    whole: Reservation,
    end: Option<(End, Instant)>,
    ended_at: Option<Instant>,
    activity: Activity,
    first_token_at: Option<Instant>,
    usage: Usage,
    late: u32,
    posts: u32,
    /// Whether the delivery sleeps because there is nothing to send. While it sends, output merges without waking it.
    waiting: bool,
}

impl State {
    /// The same end; or, if all tasks together hold too much, a failure instead of the answer, or the failure without the provider's body.
    fn with_room_for(&mut self, end: End) -> End {
        match end {
            End::Answer(outcome) => match self.whole.reserve(outcome.held_bytes()) {
                Ok(()) => End::Answer(outcome),
                Err(error) => End::Failed(error.into()),
            },
            End::Failed(failure) => match self.whole.reserve(failure.body.len()) {
                Ok(()) => End::Failed(failure),
                Err(_) => End::Failed(Failure { body: Bytes::new(), ..failure }),
            },
            End::Nobody => End::Nobody,
        }
    }
}

/// The output of one task. Shared by the bridge, the agent and the delivery; no call blocks.
pub struct Outbox {
    state: Mutex<State>,
    wake: Notify,
    /// The task's spans and measurements; `None` once they have ended.
    trace: Mutex<Option<TaskTrace>>,
    /// Stays known when the trace has ended.
    trace_id: Option<TraceId>,
    /// The answer's content, where somebody wants it recorded.
    answer: Option<Mutex<AnswerContent>>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

/// What a look into the outbox gives.
pub(super) enum Next {
    Part(Bytes),
    End(End, Instant),
}

impl Outbox {
    /// An empty outbox for a task that has just come. Its output takes its memory from `room`.
    pub fn new(task: Arc<Task>, room: &MemoryBudget, trace: TaskTrace) -> Arc<Self> {
        let state = State {
            origin: Origin::new(task, room.clone()),
            pending: Pending::Nothing,
            under_way: room.reservation(),
            whole: room.reservation(),
            end: None,
            ended_at: None,
            activity: Activity::default(),
            first_token_at: None,
            usage: Usage::default(),
            late: 0,
            posts: 0,
            waiting: false,
        };
        let answer = trace.answer_content().map(Mutex::new);
        Arc::new(Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            trace_id: trace.trace_id(),
            trace: Mutex::new(Some(trace)),
            answer,
        })
    }

    /// Decides the task's end; output that came before is still sent first. [`End::Nobody`] replaces an end that has not been delivered
    /// yet; any other second end is ignored.
    pub fn end(&self, end: End, until: std::time::Instant) {
        let mut state = self.lock();
        if state.end.is_none() || end == End::Nobody {
            state.end = Some((state.with_room_for(end), until.into()));
            state.ended_at = Some(Instant::now());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Notes what the provider said it used.
    pub fn set_usage(&self, usage: Usage) {
        let mut state = self.lock();
        state.usage = usage.or(state.usage);
    }

    /// Uses the task's trace, unless it has ended.
    pub fn trace<T>(&self, with: impl FnOnce(&mut TaskTrace) -> T) -> Option<T> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(with)
    }

    /// The trace's id, for log lines; `None` where there is no trace.
    pub(super) fn trace_id(&self) -> Option<DisplayValue<TraceId>> {
        self.trace_id.map(display)
    }

    /// Shows a piece of the answer to whoever records its content, if anybody does.
    fn record(&self, show: impl FnOnce(&mut AnswerContent)) {
        if let Some(answer) = &self.answer {
            show(&mut answer.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// What the output has shown so far.
    pub fn activity(&self) -> Activity {
        self.lock().activity
    }

    /// Pieces of output so far, and when the first token came.
    pub fn progress(&self) -> (u32, Option<Instant>) {
        let state = self.lock();
        (state.pending.chunks(), state.first_token_at)
    }

    /// Pieces that came after the end.
    pub fn late(&self) -> u32 {
        self.lock().late
    }

    /// A lock that is poisoned by a panic is used nevertheless: that the task gets its end matters more than a state that is half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to [`take`](Self::take).
    pub(super) async fn ready(&self) {
        loop {
            let woken = self.wake.notified();
            if self.is_ready() {
                return;
            }
            woken.await;
        }
    }

    fn is_ready(&self) -> bool {
        let mut state = self.lock();
        let ready =
            state.end.is_some() || matches!(&state.pending, Pending::Stream(buffer) if buffer.is_ready());
        state.waiting = !ready;
        ready
    }

    /// The next part to send, or the end once everything before it is sent.
    pub(super) fn take(&self) -> Option<Next> {
        let mut state = self.lock();
        if let Some((End::Nobody, until)) = state.end {
            return Some(Next::End(End::Nobody, until));
        }
        if let Pending::Stream(buffer) = &mut state.pending
            && let Some(part) = buffer.pop_escaped(CHUNK_HEAD, CHUNK_TAIL)
        {
            state.under_way.hold(part.len());
            return Some(Next::Part(part));
        }
        state.end.clone().map(|(end, until)| Next::End(end, until))
    }

    /// Resolves once the part that is being sent must not be waited for any longer. For the end itself, that is only when the caller has
    /// left.
    pub(super) async fn overtaken(&self, terminal: bool) {
        loop {
            let woken = self.wake.notified();
            let until = match &*self.lock() {
                State { end: Some((End::Nobody, _)), .. } => return,
                State { end: Some((End::Failed(_), _)), ended_at: Some(at), .. } if !terminal => {
                    Some(*at + FAILURE_PATIENCE)
                }
                State { end: Some((End::Answer(_), until)), .. } if !terminal => Some(*until),
                _ => None,
            };
            match until {
                Some(until) => {
                    if timeout_at(until, woken).await.is_err() {
                        return;
                    }
                }
                None => woken.await,
            }
        }
    }
}

impl TaskSink for Outbox {
    fn output(&self, output: Output) -> Taken {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.end.is_some() {
            state.late += 1;
            return Taken::Closed;
        }
        let now = Instant::now();
        state.activity.last_sign = Some(now.into_std());
        self.record(|answer| answer.output(&output));
        let pushed = match (state.pending.begun(&state.origin), output) {
            (_, Output::Alive) => return Taken::Accepted,
            (Pending::Stream(buffer), Output::Raw(chunk)) => buffer.push_raw(chunk),
            (Pending::Stream(buffer), Output::Delta(delta)) => buffer.push_delta(&delta),
            (Pending::Plain(gather), Output::Raw(chunk)) => gather.push_raw(chunk),
            (Pending::Plain(gather), Output::Delta(delta)) => gather.push_delta(&delta),
            (Pending::Nothing | Pending::Gathered(_), _) => return Taken::Closed,
        };
        if let Err(error) = pushed {
            return Taken::Broken(error.into());
        }
        state.activity.any_output = true;
        if state.first_token_at.is_none() && state.pending.meta().is_some_and(|facts| facts.first_token) {
            state.activity.first_token = true;
            state.first_token_at = Some(now);
        }
        let sleeps = std::mem::take(&mut state.waiting);
        drop(guard);
        self.trace(|trace| trace.chunk(now));
        if sleeps {
            self.wake.notify_one();
        }
        Taken::Accepted
    }
}

impl Outbox {
    /// mcpd took one more part.
    pub(super) fn posted(&self) {
        let mut state = self.lock();
        state.posts += 1;
        state.under_way.hold(0);
    }

    /// So many bytes of parts are kept by an upload, and mcpd took so many more parts.
    pub(super) fn uploading(&self, kept: usize, received: u32) {
        let mut state = self.lock();
        state.posts += received;
        state.under_way.hold(kept);
        if let Pending::Stream(buffer) = &mut state.pending {
            buffer.count_elsewhere(kept);
        }
    }

    /// Waits until the end is decided.
    pub(super) async fn decided(&self) -> (End, Instant) {
        loop {
            let woken = self.wake.notified();
            if let Some(end) = self.lock().end.clone() {
                return end;
            }
            woken.await;
        }
    }

    /// Whether the end is a failure.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.lock().end, Some((End::Failed(_), _)))
    }

    pub(super) fn is_nobody(&self) -> bool {
        matches!(self.lock().end, Some((End::Nobody, _)))
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        Some(self.lock().usage).filter(|usage| *usage != Usage::default())
    }

    /// Notes an answer that came whole for whoever records content.
    pub(super) fn record_whole(&self, outcome: &Outcome) {
        self.record(|answer| answer.outcome(outcome));
    }

    /// What the chunks and bodies that the agent builds itself are marked with.
    pub(super) fn stamp(&self) -> ChunkEnvelope {
        self.lock().origin.stamp()
    }

    /// Notes what a whole answer says about itself.
    pub(super) fn note(&self, facts: ResponseMeta) {
        self.lock().pending = Pending::Gathered(facts);
    }

    pub(super) fn gathered(&self) -> Result<Bytes, Failure> {
        let usage = self.usage();
        let mut guard = self.lock();
        let state = &mut *guard;
        let facts = state.pending.begun(&state.origin).meta().cloned().unwrap_or_default();
        match std::mem::replace(&mut state.pending, Pending::Gathered(facts)) {
            Pending::Plain(gather) => gather.finish(usage).inspect(|body| state.whole.hold(body.len())),
            Pending::Nothing | Pending::Stream(_) | Pending::Gathered(_) => {
                Err(Failure::new(FailureCode::Internal, "the answer was gathered twice"))
            }
        }
    }

    /// What a stream that was given as chunks still needs before its end.
    pub(super) fn finished(&self, include_usage: bool) -> Result<Vec<Bytes>, Failure> {
        let usage = self.usage();
        let mut guard = self.lock();
        let state = &mut *guard;
        let Pending::Stream(buffer) = state.pending.begun(&state.origin) else { return Ok(Vec::new()) };
        buffer.finish(usage, include_usage)?;
        let parts: Vec<_> = std::iter::from_fn(|| buffer.pop_escaped(CHUNK_HEAD, CHUNK_TAIL)).collect();
        state.whole.hold(parts.iter().map(Bytes::len).sum());
        Ok(parts)
    }

    /// What has become of the task, which ends its trace.
    pub(super) fn summary(&self, end: &End) -> Summary {
        let trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner).take();
        let state = self.lock();
        let facts = state.pending.meta();
        let reported = facts.and_then(|facts| facts.usage).unwrap_or_default();
        let content = trace.as_ref().is_some_and(TaskTrace::captures_content);
        let summary = Summary {
            outcome: end.kind(),
            reason: end.failure().map(|failure| failure.reason(content)),
            usage: state.usage.or(reported),
            chunks: state.pending.chunks(),
            first_token_at: state.first_token_at,
            posts: state.posts,
            trace_id: self.trace_id,
        };
        if let Some(trace) = trace {
            let answer = self.answer.as_ref().map(|a| a.lock().unwrap_or_else(PoisonError::into_inner));
            trace.end(&TaskReport { answer: answer.as_deref(), ..summary.report(end.failure(), facts) });
        }
        summary
    }
}

#[cfg(test)]
mod tests;
