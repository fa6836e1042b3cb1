//! The delivery of one task's output: ordered, retrying, and with exactly one end.
//!
//! Part 0 goes by POST, and so do all others unless mcpd takes the rest of a stream as one upload; where that gets no further, the parts
//! that are not known to be received go by POST after all. Whichever way a part goes, it has the same number.
//!
//! At most one POST of a task is under way. Once a part has been attempted it is frozen: a retry is byte-identical, under the same key.
//! If the agent cannot know whether mcpd has a chunk, and mcpd does not drop repeats, the stream ends with an explicit error rather than
//! with a token twice. Nothing is sent after a part that was lost.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, warn};

use super::{
    client::Mcpd,
    contract::{CHUNK_HEAD, CHUNK_TAIL, ResultPart, idempotency_key, status_body},
    outbox::{Next, Outbox, Summary},
    post::{PartReply, Place, ResultPosts},
    upload::{Over, Upload},
};
use crate::{
    domain::{End, Failure, FailureCode, Outcome, Task, TaskKey, hide_private},
    http::Backoff,
    json::text::wrap_escaped,
    openai::{
        convert,
        failure::{error_object, retry_after_seconds},
    },
    telemetry::Posts,
};

/// First wait before a part is sent again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a part is sent again, unless mcpd asks for more.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What a delivery tells the agent.
#[derive(Debug)]
pub enum Report {
    /// mcpd says that nobody waits for the task; the delivery is over.
    NobodyWaits(Summary),
    /// The end was delivered, or will never be; the delivery is over.
    Settled(Summary),
    /// mcpd did not accept a part, so the task has to end with this failure.
    Failed(Failure),
}

/// How the sending of one part ended.
enum Sent {
    Delivered,
    NobodyWaits,
    /// The task's end no longer waits for this part.
    Overtaken,
    /// mcpd does not accept it, or may have accepted it and cannot be asked.
    Lost(Failure),
}

/// A part with its place in the answer.
struct Numbered {
    number: u32,
    body: Bytes,
    is_end: bool,
    /// An upload may have brought it to mcpd.
    maybe_applied: bool,
}

/// Sends one task's output, from its first part to its end.
pub struct Delivery {
    key: TaskKey,
    task: Arc<Task>,
    include_usage: bool,
    outbox: Arc<Outbox>,
    posts: ResultPosts,
    reports: mpsc::Sender<(TaskKey, Report)>,
    rng: fastrand::Rng,
    parts: u32,
    /// Where the parts after the first go as one upload.
    upload: Option<Upload>,
    /// How long the last POST took.
    round_trip: Duration,
    /// When mcpd's own deadline has passed, if it gave one.
    due: Option<Instant>,
    trace: Option<Posts>,
}

impl Delivery {
    /// A delivery of the output that `outbox` gets. It reports to `reports`.
    pub fn new(
        (key, task): (TaskKey, Arc<Task>),
        include_usage: bool,
        outbox: Arc<Outbox>,
        mcpd: Mcpd,
        seed: u64,
        reports: mpsc::Sender<(TaskKey, Report)>,
    ) -> Self {
        Self {
            key,
            include_usage,
            outbox,
            posts: ResultPosts::new(mcpd, &task.id),
            due: task.deadline.and_then(|deadline| Instant::now().checked_add(deadline)),
            task,
            reports,
            rng: fastrand::Rng::with_seed(seed),
            parts: 0,
            upload: None,
            round_trip: Duration::ZERO,
            trace: None,
        }
    }

    /// Runs until the task is settled.
    pub async fn run(&mut self) {
        let (end, until) = loop {
            let sent = match self.turn().await {
                Ok(place) => match self.outbox.take() {
                    None => continue,
                    Some(Next::End(end, until)) => break (end, until),
                    Some(Next::Part(body)) => self.send(body, false, place).await,
                },
                Err(sent) => sent,
            };
            match sent {
                Sent::Delivered => {}
                Sent::NobodyWaits => return self.finish(End::Nobody, true, false).await,
                Sent::Overtaken => break self.broken_off(not_in_time()).await,
                Sent::Lost(failure) => {
                    self.tell(Report::Failed(failure.clone())).await;
                    break self.broken_off(failure).await;
                }
            }
        };
        self.deliver_end(end, until).await;
    }

    /// Waits for output or an end, and for a way to send it. Output that comes while this waits for a way merges into the part that is
    /// taken afterwards. Errs if what was sent before turns out not to be delivered.
    async fn turn(&mut self) -> Result<Option<Place>, Sent> {
        let outbox = Arc::clone(&self.outbox);
        while let Some(upload) = &mut self.upload {
            tokio::select! {
                biased;
                () = outbox.ready() => break,
                over = upload.run() => self.upload_over(over).await?,
            }
        }
        while let Some(upload) = &mut self.upload {
            tokio::select! {
                biased;
                over = upload.run_until_room() => match over {
                    Some(over) => self.upload_over(over).await?,
                    None => return Ok(None),
                },
                () = outbox.overtaken(false) => return Err(Sent::Overtaken),
            }
        }
        outbox.ready().await;
        Ok(Some(self.posts.place().await))
    }

    /// The upload is over: what it has not brought to mcpd goes by POST.
    async fn upload_over(&mut self, over: Over) -> Result<(), Sent> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        match over {
            Over::Received => return Ok(()),
            // mcpd probably got the end, and is done with the task because of it.
            Over::NobodyWaits if upload.end_has_left() => return Ok(()),
            Over::NobodyWaits => return Err(Sent::NobodyWaits),
            Over::Lost(said) => return Err(Sent::Lost(refused(&said))),
            Over::GivenUp => {}
        }
        let is_ended = upload.is_ended();
        let mut kept = upload.into_kept().into_iter().peekable();
        while let Some((number, body, maybe_applied)) = kept.next() {
            let is_end = is_ended && kept.peek().is_none();
            let sent = self.post_part(Numbered { number, body, is_end, maybe_applied }, None).await;
            if !matches!(sent, Sent::Delivered) {
                return Err(sent);
            }
        }
        self.outbox.uploading(0, 0);
        Ok(())
    }

    /// Waits until an upload has brought the end to mcpd.
    async fn uploaded(&mut self) -> Sent {
        let Some(upload) = &mut self.upload else { return Sent::Delivered };
        let outbox = Arc::clone(&self.outbox);
        let over = tokio::select! {
            biased;
            over = upload.run() => Some(over),
            () = outbox.overtaken(false) => None,
        };
        if let Some(over) = over {
            return self.upload_over(over).await.err().unwrap_or(Sent::Delivered);
        }
        // A failure must not wait for what hangs; an answer must not have a hole.
        let kept = self.upload.take().map(Upload::into_kept).unwrap_or_default();
        match kept.into_iter().next_back() {
            Some((number, body, maybe_applied)) if outbox.has_failed() => {
                self.post_part(Numbered { number, body, is_end: true, maybe_applied }, None).await
            }
            _ => Sent::Overtaken,
        }
    }

    /// The end of a stream that now has a hole: nothing after the hole is sent, and an answer becomes a failure.
    async fn broken_off(&mut self, failure: Failure) -> (End, Instant) {
        match self.outbox.decided().await {
            (End::Answer(_), until) => (End::Failed(failure), until),
            decided => decided,
        }
    }

    /// Sends the end. An answer can still turn out to be invalid; the end is then the failure that says so.
    async fn deliver_end(&mut self, end: End, until: Instant) {
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
        match timeout_at(until, self.send(body, true, None)).await {
            Ok(Sent::Delivered) => self.finish(end, false, false).await,
            Ok(Sent::NobodyWaits) => self.finish(End::Nobody, true, false).await,
            // A smaller end replaces the one that was too large; a second refusal is final.
            Ok(Sent::Lost(failure)) if failure.code == FailureCode::TooLarge => {
                let body = self.failure_body(&failure);
                let sent = timeout_at(until, self.send(body, true, None)).await;
                self.finish(End::Failed(failure), false, !matches!(sent, Ok(Sent::Delivered))).await;
            }
            Ok(Sent::Overtaken) if self.outbox.is_nobody() => self.finish(End::Nobody, false, false).await,
            Ok(Sent::Lost(_) | Sent::Overtaken) | Err(_) => self.finish(end, false, true).await,
        }
    }

    /// The terminal body of an answer, after any chunks that it still has; `None` if nobody waits.
    async fn answer(&mut self, outcome: Outcome) -> Result<Option<Bytes>, Failure> {
        self.outbox.record_whole(&outcome);
        if !self.task.streaming {
            let body = match outcome {
                Outcome::Body(body) => {
                    self.outbox.note(convert::read_completion(&body)?);
                    body
                }
                Outcome::Result(result) => self.outbox.stamp().completion(&result, self.outbox.usage()),
                _ => self.outbox.gathered()?,
            };
            return Ok(Some(status_body(200, &body, None)));
        }
        let chunks = match outcome {
            Outcome::Body(body) => {
                let (facts, chunks) = convert::chunks_from_completion(&body, self.include_usage)?;
                self.outbox.note(facts);
                wrap(chunks)
            }
            Outcome::Result(result) => {
                wrap(self.outbox.stamp().chunks(&result, self.outbox.usage(), self.include_usage))
            }
            _ => self.outbox.finished(self.include_usage)?,
        };
        for body in chunks {
            match self.send(body, false, None).await {
                Sent::Delivered => {}
                Sent::NobodyWaits => return Ok(None),
                Sent::Overtaken => return Err(not_in_time()),
                Sent::Lost(failure) => return Err(failure),
            }
        }
        Ok(Some(json(&ResultPart::DONE)))
    }

    async fn finish(&mut self, end: End, told: bool, undelivered: bool) {
        self.upload = None;
        if let Some(posts) = self.trace.take() {
            posts.end(self.outbox.progress().0);
        }
        let summary = self.outbox.summary(&end);
        if undelivered {
            let outcome = summary.outcome.as_str();
            let trace_id = self.outbox.trace_id();
            warn!(task_id = %self.task.id, trace_id, outcome, "mcpd did not take the task's end");
        }
        self.tell(if told { Report::NobodyWaits(summary) } else { Report::Settled(summary) }).await;
    }

    /// An agent that has ended needs no report.
    async fn tell(&mut self, report: Report) {
        let _ = self.reports.send((self.key, report)).await;
    }

    /// Sends one part. By POST, that takes until mcpd has it, refuses it, or its time is over; a part that an upload takes is kept there,
    /// and only the end is waited for.
    async fn send(&mut self, body: Bytes, is_end: bool, place: Option<Place>) -> Sent {
        let number = self.parts;
        self.parts += 1;
        // For the end alone an upload brings nothing.
        self.upload.take_if(|upload| is_end && upload.is_unused());
        if let Some(upload) = &mut self.upload {
            upload.push(body, is_end);
            return if is_end { self.uploaded().await } else { Sent::Delivered };
        }
        let sent = self.post_part(Numbered { number, body, is_end, maybe_applied: false }, place).await;
        if number == 0 && !is_end && matches!(sent, Sent::Delivered) {
            self.begin_upload();
        }
        sent
    }

    /// From now on parts go by one upload, where mcpd takes it.
    fn begin_upload(&mut self) {
        if self.posts.mcpd().takes_uploads() {
            let (posts, outbox, trace) =
                (self.posts.clone(), Arc::clone(&self.outbox), self.trace.clone().unwrap_or_default());
            let rng = self.rng.fork();
            self.upload = Some(Upload::new(&self.task.id, posts, outbox, self.round_trip, trace, rng));
        }
    }

    /// Posts one part until mcpd has it, refuses it, or its time is over.
    async fn post_part(&mut self, part: Numbered, place: Option<Place>) -> Sent {
        let key = idempotency_key(&self.task.id, part.number);
        let outbox = Arc::clone(&self.outbox);
        let overtaken = outbox.overtaken(part.is_end);
        tokio::select! {
            biased;
            sent = self.attempts(&key, part, place) => sent,
            () = overtaken => Sent::Overtaken,
        }
    }

    async fn attempts(&mut self, key: &str, part: Numbered, mut place: Option<Place>) -> Sent {
        let Numbered { number, body, is_end: terminal, mut maybe_applied } = part;
        if maybe_applied && !terminal && !self.posts.mcpd().is_idempotent() {
            return Sent::Lost(ambiguous("an upload got no further"));
        }
        let (first, mut renewed, mut attempt) = (number == 0, false, 0);
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let (said, asked, latest) = match self.post(key, &body, attempt, terminal, place.take()).await {
                PartReply::Accepted => return self.delivered(),
                // mcpd probably got the end with an earlier attempt, and is done with the task because of it.
                PartReply::NobodyWaits(_) if terminal && maybe_applied => return Sent::Delivered,
                PartReply::NobodyWaits(said) => return self.nobody_waits(&said, first && attempt == 0),
                PartReply::TooLarge(said) => return Sent::Lost(too_large(&said, body.len())),
                PartReply::Refused(said) => return Sent::Lost(refused(&said)),
                PartReply::Unauthorized(_, true) if !renewed => {
                    renewed = true;
                    continue;
                }
                PartReply::Ambiguous(said, _) if !terminal && !self.posts.mcpd().is_idempotent() => {
                    return Sent::Lost(ambiguous(&said));
                }
                // By then the caller has its answer from mcpd, whoever logs in again.
                PartReply::Unauthorized(said, _) if self.is_due() => return Sent::Lost(refused(&said)),
                PartReply::Unauthorized(said, _) => (said, None, self.due),
                PartReply::NotApplied(said, asked) => (said, asked, None),
                PartReply::Ambiguous(said, asked) => {
                    maybe_applied = true;
                    (said, asked, None)
                }
            };
            let wait = backoff.next(&mut self.rng).max(asked.unwrap_or_default());
            // At least what mcpd asked for, but not beyond the latest time.
            let wait =
                latest.map_or(wait, |latest| wait.min(latest.saturating_duration_since(Instant::now())));
            let (id, trace_id) = (&self.task.id, self.outbox.trace_id());
            debug!(task_id = %id, trace_id, key, attempt, ?wait, "result part not taken, sent again: {said}");
            sleep(wait).await;
            attempt += 1;
        }
    }

    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    fn delivered(&self) -> Sent {
        self.outbox.posted();
        Sent::Delivered
    }

    /// Warns if this answers the very first POST of a task: it may be the path that mcpd does not know.
    fn nobody_waits(&self, said: &str, at_the_first_post: bool) -> Sent {
        if at_the_first_post {
            warn!(
                task_id = %self.task.id,
                trace_id = self.outbox.trace_id(),
                "{said}: nobody waits, or the path is wrong; `mcprelay check-mcpd` tells which"
            );
        }
        Sent::NobodyWaits
    }

    /// One attempt to send one part, with its span.
    async fn post(
        &mut self,
        key: &str,
        body: &Bytes,
        attempt: u32,
        terminal: bool,
        place: Option<Place>,
    ) -> PartReply {
        let _place = match place {
            Some(place) => place,
            None => self.posts.place().await,
        };
        if self.trace.is_none() {
            let target = self.posts.mcpd().server().zip(self.posts.path());
            self.trace =
                target.and_then(|(server, path)| self.outbox.trace(|trace| trace.deliver(&server, path)));
        }
        let span = self.trace.get_or_insert_default().post(attempt, terminal);
        let begun = Instant::now();
        let (status, reply) = self.posts.post(key, body.clone()).await;
        self.round_trip = begun.elapsed();
        span.end(status);
        reply
    }

    /// An error with a status as long as no chunk has been attempted; in the middle of a stream, or if no status fits, a sentence.
    fn failure_body(&self, failure: &Failure) -> Bytes {
        if (self.task.streaming && self.parts > 0) || failure.code == FailureCode::BadTask {
            return json(&ResultPart::Error { error: &hide_private(&failure.message) });
        }
        status_body(failure.status(), &error_object(failure), retry_after_seconds(failure))
    }
}

fn wrap(chunks: Vec<Bytes>) -> Vec<Bytes> {
    chunks.iter().map(|chunk| wrap_escaped(CHUNK_HEAD, chunk, CHUNK_TAIL)).collect()
}

fn json(part: &ResultPart<'_>) -> Bytes {
    serde_json::to_vec(part).expect("texts always serialise").into()
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
