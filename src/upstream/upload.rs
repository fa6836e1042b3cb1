//! One upload of a task's parts (the contract's section 6), over as many connections as it takes.
//!
//! ```text
//!   Delivery ──push──► Lines ──(a line each)──► mcpd
//!                        ▲                        │ control channel
//!                        └──── received(next) ────┘
//! ```
//!
//! Parts are kept until mcpd says that it has them. A connection that breaks is followed by another one, which begins with the first part
//! that is kept; mcpd drops what it has already. Nothing is ambiguous, then, as long as parts go by uploads. Where they cannot, the upload
//! is given up and the delivery posts what is kept.

mod lines;
mod ways;

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{
    outbox::Outbox,
    post::{ResultPosts, UploadReply},
};
use crate::{
    domain::{Printable, Reason, TaskId},
    http::Backoff,
    telemetry::{PostTrace, Posts},
};

pub(super) use self::{lines::Lines, ways::UploadWays};
pub use self::{lines::UPLOAD_WINDOW, ways::UPLOAD_PAUSE};

/// How much longer than a POST the first `received` may take before the upload counts as held back.
pub const RECEIVED_PATIENCE: Duration = Duration::from_millis(250);
/// How long mcpd may say nothing of lines that it was sent.
const STALL: Duration = Duration::from_secs(10);
/// How often in a row an upload may break without anything having been received, before parts go by POST.
const TRIES: u32 = 3;
/// First wait before another connection; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest wait before another connection, unless mcpd asks for more.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the owner reads of an upload that something held back.
const HELD_BACK: &str =
    "something before mcpd holds uploads back, so each part of an answer costs a round trip";
const UNBUFFER: &str =
    "switch request buffering off there (nginx: proxy_request_buffering off), and run `mcprelay doctor`";

type Request = Pin<Box<dyn Future<Output = (Option<u16>, UploadReply)> + Send>>;

/// Why an upload is over.
#[derive(Debug)]
pub(super) enum Over {
    /// mcpd has every part, the end included.
    Received,
    /// Nobody waits for the task.
    NobodyWaits,
    /// The parts that are kept have to be posted.
    GivenUp,
    /// mcpd lacks a part that it said to have.
    Lost(String),
}

/// One task's upload.
pub(super) struct Upload {
    task: TaskId,
    posts: ResultPosts,
    outbox: Arc<Outbox>,
    lines: Arc<Lines>,
    /// How long a POST took.
    round_trip: Duration,
    request: Option<Request>,
    span: Option<PostTrace>,
    trace: Posts,
    /// When the next connection may be made.
    not_before: Option<Instant>,
    backoff: Backoff,
    rng: fastrand::Rng,
    /// Breaks in a row without anything having been received.
    breaks: u32,
    connections: u32,
    /// The number of the first part that was kept when this was last looked at.
    first: u32,
}

impl Upload {
    /// An upload of the parts that follow part 0, whose POST took `round_trip`.
    pub(super) fn new(
        task: &TaskId,
        posts: ResultPosts,
        outbox: Arc<Outbox>,
        round_trip: Duration,
        trace: Posts,
        rng: fastrand::Rng,
    ) -> Self {
        let lines = Lines::new(1);
        posts.mcpd().uploads().enter(task, &lines);
        Self {
            task: task.clone(),
            posts,
            outbox,
            lines,
            round_trip,
            request: None,
            span: None,
            trace,
            not_before: None,
            backoff: Backoff::new(RETRY_MIN, RETRY_MAX),
            rng,
            breaks: 0,
            connections: 0,
            first: 1,
        }
    }

    /// Whether nothing has been sent by it.
    pub(super) fn is_unused(&self) -> bool {
        self.connections == 0 && !self.lines.is_waiting()
    }

    /// Adds the next part.
    pub(super) fn push(&mut self, part: Bytes, is_end: bool) {
        self.lines.push(part, is_end);
        self.outbox.uploading(self.lines.kept().1, 0);
    }

    /// Looks after the upload until it is over.
    pub(super) async fn run(&mut self) -> Over {
        loop {
            if let Some(over) = self.step().await {
                return over;
            }
        }
    }

    /// The same until another part can be sent; `None` then.
    pub(super) async fn run_until_room(&mut self) -> Option<Over> {
        loop {
            self.account();
            if self.lines.has_room(self.posts.mcpd().uploads().is_sure()) {
                return None;
            }
            if let Some(over) = self.step().await {
                return Some(over);
            }
        }
    }

    /// The parts that are not known to be received, with their numbers, and whether each may have been applied.
    pub(super) fn into_kept(self) -> Vec<(u32, Bytes, bool)> {
        self.lines.take()
    }

    /// Whether the last part is the task's end.
    pub(super) fn is_ended(&self) -> bool {
        self.lines.is_closed()
    }

    /// Whether mcpd may have applied the task's end.
    pub(super) fn end_has_left(&self) -> bool {
        self.lines.end_has_left()
    }

    /// Waits for the next thing to happen, and does what follows from it.
    async fn step(&mut self) -> Option<Over> {
        self.account();
        if self.request.is_none() {
            if !self.lines.is_waiting() {
                self.lines.changed().await;
                return None;
            }
            if let Some(not_before) = self.not_before {
                sleep_until(not_before).await;
            }
            self.connect();
        }
        let (lines, limit) = (Arc::clone(&self.lines), self.limit());
        let request = self.request.as_mut().expect("it has just been made");
        tokio::select! {
            biased;
            (status, reply) = request => self.replied(status, reply),
            () = lines.changed() => None,
            () = sleep_until(limit.map_or_else(Instant::now, |(at, _)| at)), if limit.is_some() => {
                self.silent(limit.is_some_and(|(_, is_held_back)| is_held_back))
            }
        }
    }

    fn connect(&mut self) {
        self.span = Some(self.trace.upload(self.connections, self.posts.upload_path().unwrap_or_default()));
        self.connections += 1;
        let (mut posts, lines) = (self.posts.clone(), Arc::clone(&self.lines));
        self.request = Some(Box::pin(async move { posts.upload(&lines).await }));
    }

    fn disconnect(&mut self, status: Option<Option<u16>>) {
        self.request = None;
        if let Some(mut span) = self.span.take() {
            span.set_lines(self.lines.taken());
            if let Some(status) = status {
                span.end(status);
            }
        }
        self.lines.disconnect();
    }

    /// Until when mcpd has to say something, and whether silence means that the upload is held back. While the channel is away, mcpd
    /// cannot say anything.
    fn limit(&self) -> Option<(Instant, bool)> {
        let (unanswered, open) = (self.lines.unanswered(), self.posts.mcpd().uploads().channel()?);
        match unanswered.begun {
            Some(begun) if open <= begun => Some((begun + self.round_trip + RECEIVED_PATIENCE, true)),
            _ => unanswered.since.map(|since| (since.max(open) + STALL, false)),
        }
    }

    /// mcpd has said nothing for too long.
    fn silent(&mut self, is_held_back: bool) -> Option<Over> {
        if !is_held_back {
            // The connection is given up too, for whoever else uses it; the request ends because of that.
            self.lines.stall();
            return None;
        }
        self.disconnect(None);
        self.posts.mcpd().uploads().pause(Reason::new(HELD_BACK, UNBUFFER));
        Some(Over::GivenUp)
    }

    /// Tells the outbox what has been received since it was last told.
    fn account(&mut self) {
        let (first, bytes) = self.lines.kept();
        let received = first - std::mem::replace(&mut self.first, first);
        if received > 0 {
            self.breaks = 0;
            self.backoff.reset();
            self.outbox.uploading(bytes, received);
        }
    }

    fn replied(&mut self, status: Option<u16>, reply: UploadReply) -> Option<Over> {
        self.disconnect(Some(status));
        let said = match reply {
            UploadReply::Received(next) => {
                let holds = next.is_none_or(|next| self.lines.received(next));
                self.account();
                match next {
                    _ if self.lines.is_received() => return Some(Over::Received),
                    None if self.lines.end_has_left() => return Some(Over::Received),
                    Some(next) if !holds => {
                        return Some(Over::Lost(format!("mcpd lacks part {next}, which it had received")));
                    }
                    _ => "mcpd answered before the end".to_owned(),
                }
            }
            UploadReply::NobodyWaits => return Some(Over::NobodyWaits),
            UploadReply::Refused(said) => {
                let said = Printable(&said);
                let what = format!(
                    "uploads are refused on their way to mcpd ({said}), so each part of an answer costs a round trip"
                );
                self.posts.mcpd().uploads().pause(Reason::new(what, "run `mcprelay doctor`"));
                return Some(Over::GivenUp);
            }
            UploadReply::NoRoom => return Some(Over::GivenUp),
            UploadReply::Broken(said, asked) => {
                self.not_before = asked.map(|asked| Instant::now() + asked);
                said
            }
        };
        self.broke(&said)
    }

    /// The connection is over and the upload is not. The first time it is made again at once.
    fn broke(&mut self, why: &str) -> Option<Over> {
        self.breaks += 1;
        // Where mcpd cannot be relied on to drop a repeated POST, an upload is the safer way.
        if self.breaks >= TRIES && self.posts.mcpd().is_idempotent() {
            return Some(Over::GivenUp);
        }
        if self.breaks > 1 {
            let wait = Instant::now() + self.backoff.next(&mut self.rng);
            self.not_before = Some(self.not_before.map_or(wait, |asked| asked.max(wait)));
        }
        debug!(
            task_id = %self.task,
            trace_id = self.outbox.trace_id(),
            breaks = self.breaks,
            "an upload broke, and goes on on another connection: {why}"
        );
        None
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.disconnect(None);
        self.posts.mcpd().uploads().leave(&self.task);
    }
}
