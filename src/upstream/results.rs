//! The delivery of one task's output: ordered, merging, retrying, and with exactly one end.
//!
//! ```text
//!   bridge ──output()──► Outbox ──next()──► Delivery ──POST──► mcpd
//!   agent  ──end()─────►   │  chunks that arrive while a POST is under way merge here
//! ```
//!
//! The [`Outbox`] is written by whoever reads the provider and read by one [`Delivery`], a task of its own, so a slow mcpd holds up
//! nobody else. At most one POST of a task is under way. A part that was attempted once is frozen: a retry is byte-identical under
//! the same key, and where the agent cannot know whether mcpd has a chunk and mcpd does not drop repeats, the stream ends with an
//! explicit error rather than with a token twice.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, warn};

use super::{
    client::{Mcpd, PartReply},
    contract::{CHUNK_HEAD, CHUNK_TAIL, ResultPart, idempotency_key, result_path},
};
use crate::{
    domain::{
        Activity, CancelReason, End, Failure, FailureCode, Outcome, Output, Taken, Task, TaskId, TaskKey,
        TaskSink, Usage,
    },
    openai::{Facts, Gather, Stamp, StreamBuffer, convert, failure::error_object, text::wrap_escaped},
    telemetry::{AnswerText, Ending, Posts, TaskReport, TaskTrace},
};

/// Most bytes of one task's output that may wait for mcpd (the bridge's rule).
pub const OUTBOX_LIMIT: usize = 4 << 20;
/// Most bytes of a plain answer that is gathered from chunks: what a caller of a plain inference can be expected to take.
pub const GATHER_LIMIT: usize = 32 << 20;
/// First wait before a part is sent again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a part is sent again, unless mcpd asks for more.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Once an error is to end the task, what is still being sent gets so long: the error must not wait for a POST that hangs.
const FAILURE_PATIENCE: Duration = Duration::from_secs(1);

enum Pending {
    Stream(Box<StreamBuffer>),
    Plain(Box<Gather>),
    /// The gathered answer is on its way; this is what it showed.
    Gathered(Facts),
}

impl Pending {
    fn facts(&self) -> &Facts {
        match self {
            Self::Stream(buffer) => buffer.facts(),
            Self::Plain(gather) => gather.facts(),
            Self::Gathered(facts) => facts,
        }
    }
}

struct State {
    pending: Pending,
    end: Option<(End, Instant)>,
    ended_at: Option<Instant>,
    activity: Activity,
    first_token_at: Option<Instant>,
    usage: Usage,
    late: u32,
    posts: u32,
    /// The task's spans and measurements; `None` once they have ended.
    trace: Option<TaskTrace>,
    /// The answer's text, where the trace records content.
    answer: Option<AnswerText>,
    /// The delivery has nothing to send and sleeps. While it sends, output merges without waking anybody.
    waiting: bool,
}

/// The output of one task on its way. Shared by the bridge, the agent and the delivery; no call waits.
pub struct Outbox {
    state: Mutex<State>,
    wake: Notify,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

/// What a task's delivery came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// "ok", "cancelled", or the failure's code: what mcpd was told.
    pub outcome: &'static str,
    /// Whether mcpd never took the end.
    pub undelivered: bool,
    /// What the output showed.
    pub facts: Facts,
    /// What the provider said it used.
    pub usage: Usage,
    /// When the first token came.
    pub first_token_at: Option<Instant>,
    /// Parts that mcpd took.
    pub posts: u32,
    /// The trace's id, where there is a trace.
    pub trace_id: Option<String>,
}

/// What a look into the outbox gives.
enum Next {
    Part(Bytes),
    End(End, Instant),
}

impl Outbox {
    /// An empty outbox for a task; `stamp` is what the agent's own chunks and bodies are marked with.
    pub fn new(task: &Task, stamp: Stamp, trace: TaskTrace) -> Arc<Self> {
        let pending = if task.streaming {
            Pending::Stream(Box::new(StreamBuffer::new(OUTBOX_LIMIT, stamp)))
        } else {
            Pending::Plain(Box::new(Gather::new(GATHER_LIMIT, stamp)))
        };
        let state = State {
            pending,
            end: None,
            ended_at: None,
            activity: Activity::default(),
            first_token_at: None,
            usage: Usage::default(),
            late: 0,
            posts: 0,
            answer: trace.answer_text(),
            trace: Some(trace),
            waiting: false,
        };
        Arc::new(Self { state: Mutex::new(state), wake: Notify::new() })
    }

    /// Decides the task's end; what was put in before still goes first. [`End::Nobody`] takes the place of an end that is still on
    /// its way; any other second end is ignored.
    pub fn end(&self, end: End, until: std::time::Instant) {
        let mut state = self.lock();
        if state.end.is_none() || end == End::Nobody {
            state.end = Some((end, until.into()));
            state.ended_at = Some(Instant::now());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Notes what the provider said it used.
    pub fn set_usage(&self, usage: Usage) {
        let mut state = self.lock();
        state.usage = Usage {
            input_tokens: usage.input_tokens.or(state.usage.input_tokens),
            output_tokens: usage.output_tokens.or(state.usage.output_tokens),
        };
    }

    /// Does something with the task's trace, unless that has ended.
    pub fn trace<T>(&self, with: impl FnOnce(&mut TaskTrace) -> T) -> Option<T> {
        self.lock().trace.as_mut().map(with)
    }

    /// What the output has shown so far.
    pub fn activity(&self) -> Activity {
        self.lock().activity
    }

    /// Pieces of output so far, and when the first token came.
    pub fn progress(&self) -> (u32, Option<Instant>) {
        let state = self.lock();
        (state.pending.facts().chunks, state.first_token_at)
    }

    /// Pieces that came after the end.
    pub fn late(&self) -> u32 {
        self.lock().late
    }

    /// A panic while the state was locked cannot leave it half changed in a way that matters more than the task's end.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next part to send, or the end once everything before it is sent.
    async fn next(&self) -> Next {
        loop {
            let woken = self.wake.notified();
            if let Some(next) = self.try_next() {
                return next;
            }
            woken.await;
        }
    }

    fn try_next(&self) -> Option<Next> {
        let mut state = self.lock();
        if let Some((End::Nobody, until)) = state.end {
            return Some(Next::End(End::Nobody, until));
        }
        let ended = state.end.is_some();
        if let Pending::Stream(buffer) = &mut state.pending
            && (ended || buffer.is_ready())
            && let Some(part) = buffer.pop_escaped(CHUNK_HEAD, CHUNK_TAIL)
        {
            return Some(Next::Part(part));
        }
        state.waiting = !ended;
        state.end.clone().map(|(end, until)| Next::End(end, until))
    }

    /// Resolves once what is being sent must not be waited for any longer. The end itself is only overtaken by the caller's leaving.
    async fn overtaken(&self, terminal: bool) {
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
        if let Some(answer) = &mut state.answer {
            answer.output(&output);
        }
        let pushed = match (&mut state.pending, output) {
            (_, Output::Alive) => return Taken::Accepted,
            (Pending::Stream(buffer), Output::Raw(chunk)) => buffer.push_raw(chunk),
            (Pending::Stream(buffer), Output::Delta(delta)) => buffer.push_delta(&delta),
            (Pending::Plain(gather), Output::Raw(chunk)) => gather.push_raw(chunk),
            (Pending::Plain(gather), Output::Delta(delta)) => gather.push_delta(&delta),
            (Pending::Gathered(_), _) => return Taken::Closed,
        };
        if let Err(error) = pushed {
            return Taken::Broken(error.into());
        }
        state.activity.any_output = true;
        if let Some(trace) = &mut state.trace {
            trace.chunk();
        }
        if state.first_token_at.is_none() && state.pending.facts().first_token {
            state.activity.first_token = true;
            state.first_token_at = Some(now);
        }
        let sleeps = std::mem::take(&mut state.waiting);
        drop(guard);
        if sleeps {
            self.wake.notify_one();
        }
        Taken::Accepted
    }
}

/// What a delivery tells the agent.
#[derive(Debug)]
pub enum Report {
    /// mcpd says that nobody waits for the task; the delivery is over.
    NobodyWaits(Summary),
    /// The end was delivered, or will never be; the delivery is over.
    Settled(Summary),
    /// A part was not taken, so the task has to end with this failure.
    Failed(Failure),
}

/// How one part's way to mcpd ended.
enum Sent {
    Delivered,
    NobodyWaits,
    /// The task's end does not wait for it any longer.
    Overtaken,
    /// mcpd does not take it, or may have taken it and cannot be asked.
    Lost(Failure),
}

/// Sends one task's output, from its first part to its end.
pub struct Delivery {
    key: TaskKey,
    task: TaskId,
    streaming: bool,
    include_usage: bool,
    stamp: Stamp,
    outbox: Arc<Outbox>,
    mcpd: Mcpd,
    reports: mpsc::Sender<(TaskKey, Report)>,
    rng: fastrand::Rng,
    parts: u32,
    posts: Option<Posts>,
}

impl Delivery {
    /// A delivery of what `outbox` gets, which says through `reports` how it goes.
    pub fn new(
        (key, task): (TaskKey, &Task),
        include_usage: bool,
        stamp: Stamp,
        outbox: Arc<Outbox>,
        mcpd: Mcpd,
        seed: u64,
        reports: mpsc::Sender<(TaskKey, Report)>,
    ) -> Self {
        Self {
            key,
            task: task.id.clone(),
            streaming: task.streaming,
            include_usage,
            stamp,
            outbox,
            mcpd,
            reports,
            rng: fastrand::Rng::with_seed(seed),
            parts: 0,
            posts: None,
        }
    }

    /// Runs until the task is settled.
    pub async fn run(mut self) {
        let (end, until) = loop {
            match self.outbox.next().await {
                Next::End(end, until) => break (end, until),
                Next::Part(body) => match self.send(body, false).await {
                    Sent::Delivered => {}
                    Sent::NobodyWaits => return self.finish(End::Nobody, true, false).await,
                    Sent::Overtaken => break self.broken_off(not_in_time()).await,
                    Sent::Lost(failure) => {
                        self.tell(Report::Failed(failure.clone())).await;
                        break self.broken_off(failure).await;
                    }
                },
            }
        };
        self.deliver_end(end, until).await;
    }

    /// The end of a stream that has a hole now: what comes after the hole is not sent, and an answer is none any more.
    async fn broken_off(&self, failure: Failure) -> (End, Instant) {
        match self.outbox.decided().await {
            (End::Answer(_), until) => (End::Failed(failure), until),
            decided => decided,
        }
    }

    /// Sends the end. An answer can still turn out to be no answer, and then the end is the failure that says so.
    async fn deliver_end(mut self, end: End, until: Instant) {
        let (body, end) = match end {
            End::Nobody => return self.finish(End::Nobody, false, false).await,
            End::Failed(failure) => (self.failure_body(&failure), End::Failed(failure)),
            End::Answer(outcome) => match self.answer(outcome).await {
                Ok(Some(body)) => (body, End::Answer(Outcome::Complete)),
                Ok(None) => return self.finish(End::Nobody, true, false).await,
                Err(_) if self.outbox.is_nobody() => return self.finish(End::Nobody, false, false).await,
                Err(failure) => (self.failure_body(&failure), End::Failed(failure)),
            },
        };
        match timeout_at(until, self.send(body, true)).await {
            Ok(Sent::Delivered) => self.finish(end, false, false).await,
            Ok(Sent::NobodyWaits) => self.finish(End::Nobody, true, false).await,
            // A smaller end in the large one's place; a second refusal is final.
            Ok(Sent::Lost(failure)) if failure.code == FailureCode::TooLarge => {
                let body = self.failure_body(&failure);
                let sent = timeout_at(until, self.send(body, true)).await;
                self.finish(End::Failed(failure), false, !matches!(sent, Ok(Sent::Delivered))).await;
            }
            Ok(Sent::Overtaken) if self.outbox.is_nobody() => self.finish(End::Nobody, false, false).await,
            Ok(Sent::Lost(_) | Sent::Overtaken) | Err(_) => self.finish(end, false, true).await,
        }
    }

    /// The terminal body of an answer, after any chunks that it still has; `None` if nobody waits.
    async fn answer(&mut self, outcome: Outcome) -> Result<Option<Bytes>, Failure> {
        self.outbox.record(&outcome);
        if !self.streaming {
            let body = match outcome {
                Outcome::Body(body) => {
                    self.outbox.note(convert::read_completion(&body)?);
                    body
                }
                Outcome::Result(result) => self.stamp.completion(&result, self.outbox.usage()),
                _ => self.outbox.gathered()?,
            };
            return Ok(Some(status_body(200, &body, None)));
        }
        let chunks = match outcome {
            Outcome::Body(body) => {
                self.outbox.note(convert::read_completion(&body)?);
                wrap(convert::chunks_from_completion(&body, self.include_usage)?)
            }
            Outcome::Result(result) => {
                wrap(self.stamp.chunks(&result, self.outbox.usage(), self.include_usage))
            }
            _ => self.outbox.finished(self.include_usage)?,
        };
        for body in chunks {
            match self.send(body, false).await {
                Sent::Delivered => {}
                Sent::NobodyWaits => return Ok(None),
                Sent::Overtaken => return Err(not_in_time()),
                Sent::Lost(failure) => return Err(failure),
            }
        }
        Ok(Some(json(&ResultPart::DONE)))
    }

    async fn finish(self, end: End, told: bool, undelivered: bool) {
        let summary = self.outbox.summary(end, undelivered);
        if undelivered {
            warn!(task_id = %self.task, outcome = summary.outcome, "mcpd did not take the task's end");
        }
        self.tell(if told { Report::NobodyWaits(summary) } else { Report::Settled(summary) }).await;
    }

    /// A closed agent needs no report.
    async fn tell(&self, report: Report) {
        let _ = self.reports.send((self.key, report)).await;
    }

    /// Sends one part until mcpd has it, will not have it, or its time is over.
    async fn send(&mut self, body: Bytes, terminal: bool) -> Sent {
        let number = self.parts;
        self.parts += 1;
        let key = idempotency_key(&self.task, number);
        let outbox = Arc::clone(&self.outbox);
        let overtaken = outbox.overtaken(terminal);
        let attempts = self.attempts(&key, body, terminal, number == 0);
        tokio::select! {
            biased;
            sent = attempts => sent,
            () = overtaken => Sent::Overtaken,
        }
    }

    async fn attempts(&mut self, key: &str, body: Bytes, terminal: bool, first: bool) -> Sent {
        let (mut renewed, mut attempt) = (false, 0);
        loop {
            let (said, asked) = match self.post(key, &body, attempt).await {
                PartReply::Accepted => {
                    self.outbox.lock().posts += 1;
                    return Sent::Delivered;
                }
                PartReply::NobodyWaits(said) => {
                    if first && attempt == 0 {
                        warn!(task_id = %self.task, "{said}: nobody waits, or the path is wrong; `mcprelay check-mcpd` tells which");
                    }
                    return Sent::NobodyWaits;
                }
                PartReply::TooLarge(said) => return Sent::Lost(too_large(&said, body.len())),
                PartReply::Refused(said) => return Sent::Lost(refused(&said)),
                PartReply::Unauthorized(_, true) if !renewed => {
                    renewed = true;
                    continue;
                }
                PartReply::Ambiguous(said, _) if !terminal && !self.mcpd.is_idempotent() => {
                    return Sent::Lost(ambiguous(&said));
                }
                PartReply::Unauthorized(said, _) => (said, None),
                PartReply::NotApplied(said, asked) | PartReply::Ambiguous(said, asked) => (said, asked),
            };
            let wait = self.wait(attempt).max(asked.unwrap_or_default());
            debug!(task_id = %self.task, key, attempt, ?wait, "result part not taken, sent again: {said}");
            sleep(wait).await;
            attempt += 1;
        }
    }

    /// One try of one part, with its span.
    async fn post(&mut self, key: &str, body: &Bytes, attempt: u32) -> PartReply {
        if self.posts.is_none() {
            let target = self.mcpd.server().zip(result_path(&self.task));
            self.posts =
                target.and_then(|(server, path)| self.outbox.trace(|trace| trace.posts(&server, &path)));
        }
        let span = self.posts.get_or_insert_default().post(attempt);
        let (status, reply) = self.mcpd.post_part(&self.task, key, body.clone()).await;
        span.end(status);
        reply
    }

    fn wait(&mut self, attempt: u32) -> Duration {
        let base = RETRY_MIN.saturating_mul(1 << attempt.min(16)).min(RETRY_MAX);
        base + base.mul_f64(self.rng.f64() / 2.0)
    }

    /// An error with a status while no chunk has been attempted; in the middle of a stream, or where no status fits, a sentence.
    fn failure_body(&self, failure: &Failure) -> Bytes {
        if (self.streaming && self.parts > 0) || failure.code == FailureCode::BadTask {
            return json(&ResultPart::Error { error: &failure.message });
        }
        status_body(failure.status(), &error_object(failure), failure.retry_after)
    }
}

impl Outbox {
    async fn decided(&self) -> (End, Instant) {
        loop {
            let woken = self.wake.notified();
            if let Some(end) = self.lock().end.clone() {
                return end;
            }
            woken.await;
        }
    }

    fn is_nobody(&self) -> bool {
        matches!(self.lock().end, Some((End::Nobody, _)))
    }

    fn usage(&self) -> Option<Usage> {
        Some(self.lock().usage).filter(|usage| *usage != Usage::default())
    }

    /// Keeps the text of an answer that came whole, where the trace records content.
    fn record(&self, outcome: &Outcome) {
        if let Some(answer) = &mut self.lock().answer {
            answer.outcome(outcome);
        }
    }

    /// Notes what a whole answer says of itself.
    fn note(&self, facts: Facts) {
        self.lock().pending = Pending::Gathered(facts);
    }

    fn gathered(&self) -> Result<Bytes, Failure> {
        let usage = self.usage();
        let mut state = self.lock();
        let facts = state.pending.facts().clone();
        match std::mem::replace(&mut state.pending, Pending::Gathered(facts)) {
            Pending::Plain(gather) => gather.finish(usage),
            Pending::Stream(_) | Pending::Gathered(_) => {
                Err(Failure::new(FailureCode::Internal, "the answer was gathered twice"))
            }
        }
    }

    /// What a stream that was given as chunks still needs before its end.
    fn finished(&self, include_usage: bool) -> Result<Vec<Bytes>, Failure> {
        let usage = self.usage();
        let mut state = self.lock();
        let Pending::Stream(buffer) = &mut state.pending else { return Ok(Vec::new()) };
        buffer.finish(usage, include_usage)?;
        Ok(std::iter::from_fn(|| buffer.pop_escaped(CHUNK_HEAD, CHUNK_TAIL)).collect())
    }

    fn summary(&self, end: End, undelivered: bool) -> Summary {
        let mut state = self.lock();
        let facts = state.pending.facts().clone();
        let trace = state.trace.take();
        let reported = facts.usage.unwrap_or_default();
        let summary = Summary {
            outcome: end.as_str(),
            undelivered,
            usage: Usage {
                input_tokens: state.usage.input_tokens.or(reported.input_tokens),
                output_tokens: state.usage.output_tokens.or(reported.output_tokens),
            },
            facts,
            first_token_at: state.first_token_at,
            posts: state.posts,
            trace_id: trace.as_ref().and_then(TaskTrace::trace_id),
        };
        let answer = state.answer.take();
        drop(state);
        if let Some(trace) = trace {
            end_trace(trace, &end, &summary, answer.as_ref().and_then(AnswerText::get));
        }
        summary
    }
}

fn end_trace(trace: TaskTrace, end: &End, summary: &Summary, answer: Option<&str>) {
    let ending = match end {
        End::Answer(_) => Ending::Completed,
        End::Failed(failure) => Ending::Failed(failure),
        End::Nobody => Ending::Cancelled(CancelReason::CallerGone),
    };
    let finish_reasons: Vec<_> =
        summary.facts.finish_reasons.iter().map(|(_, reason)| reason.clone()).collect();
    trace.end(&TaskReport {
        response_id: summary.facts.response_id.as_deref(),
        response_model: summary.facts.model.as_deref(),
        finish_reasons: &finish_reasons,
        usage: summary.usage,
        answer,
        ..TaskReport::new(ending)
    });
}

fn wrap(chunks: Vec<Bytes>) -> Vec<Bytes> {
    chunks.iter().map(|chunk| wrap_escaped(CHUNK_HEAD, chunk, CHUNK_TAIL)).collect()
}

fn json(part: &ResultPart<'_>) -> Bytes {
    serde_json::to_vec(part).expect("texts always serialise").into()
}

/// `{"status","body","headers"?}` around a body that is JSON already.
fn status_body(status: u16, body: &[u8], retry_after: Option<Duration>) -> Bytes {
    let mut out = format!(r#"{{"status":{status},"body":"#).into_bytes();
    out.extend_from_slice(body);
    if let Some(wait) = retry_after {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        out.extend_from_slice(format!(r#","headers":{{"retry-after":"{seconds}"}}"#).as_bytes());
    }
    out.push(b'}');
    out.into()
}

fn too_large(said: &str, len: usize) -> Failure {
    Failure::new(
        FailureCode::TooLarge,
        format!("a part of {len} bytes of the answer is too large for mcpd ({said})"),
    )
}

fn not_in_time() -> Failure {
    Failure::new(FailureCode::DeliveryFailed, "mcpd did not take the answer in time")
}

fn refused(said: &str) -> Failure {
    Failure::new(FailureCode::DeliveryFailed, format!("mcpd did not take a part of the answer ({said})"))
}

fn ambiguous(said: &str) -> Failure {
    Failure::new(
        FailureCode::DeliveryFailed,
        format!(
            "the connection to mcpd failed while a part was sent, and sending it again could repeat tokens ({said})"
        ),
    )
}
