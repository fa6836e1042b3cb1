//! What happened, in order: every request with the status of its answer, and every event that was sent.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::wire::CallKind;

/// Entries kept by default: a busy test's whole story, in a few MiB.
pub(crate) const DEFAULT_ENTRIES: usize = 16_384;
/// Bytes kept of one body; longer ones are cut. Enough for any chunk and for prompts that people read.
const BODY_LIMIT: usize = 16 * 1024;
/// Bytes kept of all bodies together, so that a long run of large ones stays small.
const TOTAL_LIMIT: usize = 64 * 1024 * 1024;

/// What an entry tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A request: `status` is what it was answered, none if its connection was cut instead.
    Call(CallKind),
    /// A `hello` was sent: the channel is open.
    Hello,
    /// A `task` was sent.
    Task,
    /// A `cancel` was sent.
    Cancel,
    /// A `received` was sent.
    Received,
    /// A line of an upload came: one part, with its `key` as if it had been posted; `status` is what a POST would have been answered.
    Line,
    /// A keep-alive was sent.
    Ping,
    /// Bytes that a fault put on the channel.
    Raw,
    /// A channel ended, by either side.
    ChannelClosed,
    /// A session's heartbeats stopped for its time to live.
    SessionExpired,
    /// A task's caller got its end: `status` is what an HTTP caller saw, `note` says how it came about.
    TaskEnded,
    /// A fault was ordered.
    Fault,
}

/// One line of the journal.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Counts from 0 without gaps.
    pub seq: u64,
    /// Milliseconds since the start, on tokio's clock.
    pub at_ms: u64,
    /// What it tells of.
    #[serde(serialize_with = "flat_kind")]
    pub kind: Kind,
    /// The provider session concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The task concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The LLM that a caller named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<String>,
    /// The `Idempotency-Key` as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The status answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// fake-mcpd's own trace context of the inference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What else there is to say: `repeated`, `reply lost`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The body of the request or event, cut at 16 KiB.
    #[serde(skip_serializing_if = "Bytes::is_empty", serialize_with = "json_or_text")]
    pub body: Bytes,
}

impl Entry {
    /// An entry that knows its kind only.
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            seq: 0,
            at_ms: 0,
            kind,
            session: None,
            task: None,
            llm: None,
            key: None,
            status: None,
            traceparent: None,
            note: None,
            body: Bytes::new(),
        }
    }

    pub(crate) fn session(mut self, id: &str) -> Self {
        self.session = Some(id.to_owned());
        self
    }

    pub(crate) fn task(mut self, id: &str) -> Self {
        self.task = Some(id.to_owned());
        self
    }

    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub(crate) fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    /// Whether it is a request of this kind.
    pub fn is_call(&self, call: CallKind) -> bool {
        self.kind == Kind::Call(call)
    }

    /// Whether it is a part of a result, posted or as a line of an upload.
    pub fn is_part(&self) -> bool {
        self.is_call(CallKind::Result) || self.kind == Kind::Line
    }

    /// The body as JSON; null where it is none (or was cut).
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn flat_kind<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    match kind {
        Kind::Call(call) => call.serialize(serializer),
        event => event.serialize(serializer),
    }
}

fn json_or_text<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(raw) => raw.serialize(serializer),
        Err(_) => String::from_utf8_lossy(body).serialize(serializer),
    }
}

/// A bounded list of entries; the oldest go first.
#[derive(Debug)]
pub(crate) struct Journal {
    started: Instant,
    entries: VecDeque<Entry>,
    limit: usize,
    bytes: usize,
    next_seq: u64,
}

impl Journal {
    /// A journal of at most `limit` entries; 0 keeps nothing.
    pub(crate) fn new(limit: usize, started: Instant) -> Self {
        Self { started, entries: VecDeque::new(), limit, bytes: 0, next_seq: 0 }
    }

    /// Appends an entry, numbered and timed. A switched-off journal does not even count.
    pub(crate) fn push(&mut self, now: Instant, entry: impl FnOnce() -> Entry) {
        if self.limit == 0 {
            return;
        }
        let mut entry = entry();
        entry.seq = self.next_seq;
        entry.at_ms = now.duration_since(self.started).as_millis() as u64;
        if entry.body.len() > BODY_LIMIT {
            entry.body = Bytes::copy_from_slice(&entry.body[..BODY_LIMIT]);
        }
        self.next_seq += 1;
        self.bytes += entry.body.len();
        self.entries.push_back(entry);
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        while self.entries.len() > self.limit || self.bytes > TOTAL_LIMIT {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.body.len();
        }
    }

    /// The entries from `seq` on that are still there.
    pub(crate) fn since(&self, seq: u64) -> Vec<Entry> {
        let skip = seq.saturating_sub(self.dropped()) as usize;
        self.entries.iter().skip(skip).cloned().collect()
    }

    /// The number of the entry that comes next.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// How many entries were dropped for room.
    pub(crate) fn dropped(&self) -> u64 {
        self.next_seq - self.entries.len() as u64
    }
}
