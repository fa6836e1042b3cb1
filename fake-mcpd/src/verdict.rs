//! Did the agent under test keep the contract? Every call on the providers' side is checked against the rules.
//!
//! Only what cannot be bad luck of a correct agent counts: a part that a fault refused, a reply that was cut, or a
//! heartbeat that was lost with a refused connection is not a violation.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::builder::Settings;
use crate::parts::{Part, Posted, ResultBody};

/// Register calls of one session may follow each other after 250 ms; the network's jitter takes some of it.
const REGISTER_GAP: Duration = Duration::from_millis(200);
/// Violations kept in words; beyond that they are counted.
const KEPT: usize = 1_000;
/// Tasks whose parts are remembered, ended ones included.
const TASKS_REMEMBERED: usize = 20_000;

/// What an agent is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Only what the mcpctl system itself fixes, so that a program with a registrar of its own passes.
    Given,
    /// The whole contract.
    #[default]
    Chosen,
}

impl Profile {
    fn judges(self, rule: Rule) -> bool {
        self == Self::Chosen || rule.is_given()
    }
}

/// A clause of the contract that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A part came with a number that is not the next one.
    PartOutOfOrder,
    /// A part came after the task's end, or after mcpd had said that nobody waits.
    ResultAfterEnd,
    /// A second end came under another key.
    TwoEnds,
    /// A key was used again with other bytes.
    RepeatedKeyOtherBytes,
    /// A chunk was sent again although mcpd does not drop repeated keys.
    ChunkSentTwice,
    /// Part 0 came by an upload.
    PartZeroByUpload,
    /// Two parts of one task were under way at once.
    ConcurrentParts,
    /// A result came without a key, or with one of another task.
    MissingKey,
    /// A chunk or `[DONE]` came for a task that asked for no stream.
    ChunkOnPlainTask,
    /// A `{"status"}` came for a stream that had begun, or a 200 of it for a stream at all.
    StatusInStream,
    /// A result is none of the contract's five bodies.
    MalformedResult,
    /// Heartbeats paused for over two intervals while the channel was open.
    MissingHeartbeat,
    /// A heartbeat came for a session that never registered.
    HeartbeatBeforeRegister,
    /// A register call came while another one was under way.
    RegisterUnderWay,
    /// Two register calls of one life of the agent followed each other within 250 ms.
    RegisterTooOften,
    /// A call below `/api/v1/llms/_provider-` that is none of the contract's.
    UnknownPath,
    /// The body of a register call or a heartbeat is not what the contract says.
    MalformedBody,
    /// The control channel was asked for without the header that names its session.
    MissingSessionHeader,
    /// `[DONE]` came without `"done": true`.
    DoneWithoutMark,
    /// Fewer tasks ended than were expected.
    FewerTasks,
}

impl Rule {
    /// Whether the mcpctl system itself fixes it; everything else fills what its description leaves open.
    fn is_given(self) -> bool {
        matches!(
            self,
            Self::ResultAfterEnd
                | Self::TwoEnds
                | Self::ChunkOnPlainTask
                | Self::StatusInStream
                | Self::MalformedResult
                | Self::MissingHeartbeat
                | Self::HeartbeatBeforeRegister
                | Self::UnknownPath
                | Self::MalformedBody
                | Self::MissingSessionHeader
                | Self::FewerTasks
        )
    }
}

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Milliseconds since the start.
    pub at_ms: u64,
    /// The first entry that the journal got afterwards: that of the call itself, unless other calls were under way.
    pub seq: u64,
    /// The rule.
    pub rule: Rule,
    /// The task or session it is about.
    pub subject: String,
    /// One sentence for people.
    pub detail: String,
}

/// What one task's parts were so far.
#[derive(Debug, Default)]
struct TaskAudit {
    attempts: BTreeMap<Part, PartAudit>,
    next: u64,
    begun: bool,
    under_way: Option<Part>,
    ended: bool,
    ended_by: Option<Part>,
    told_gone_on: Option<Part>,
}

/// One key: the bytes it was first sent with, and whether they were accepted.
#[derive(Debug, Clone, Copy)]
struct PartAudit {
    hash: u64,
    /// Of what is the same in a POST and in a line of an upload.
    content: u64,
    is_line: bool,
    accepted: bool,
}

impl PartAudit {
    fn is_same(&self, hash: u64, content: u64, is_line: bool) -> bool {
        if self.is_line == is_line { self.hash == hash } else { self.content == content }
    }
}

/// What one session's registers and heartbeats were so far.
#[derive(Debug, Default)]
struct SessionAudit {
    last_register: Option<Instant>,
    registering: bool,
    last_beat: Option<Instant>,
}

/// The checker.
#[derive(Debug)]
pub(crate) struct Verdict {
    started: Instant,
    heartbeat: Duration,
    /// This process follows an earlier one: sessions it has not seen may be honest.
    restarted: bool,
    tasks: BTreeMap<String, TaskAudit>,
    order: VecDeque<String>,
    sessions: BTreeMap<String, SessionAudit>,
    refused_until: Option<Instant>,
    profile: Profile,
    /// Least number of tasks that have to end with an agent's result.
    expected_tasks: u64,
    /// The number of the journal's next entry.
    pub(crate) seq: u64,
    pub(crate) counts: Counts,
    violations: Vec<Violation>,
    count: u64,
}

/// What happened, whether or not it was right: a verdict on nothing is no praise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Register calls that were accepted.
    pub registers: u64,
    /// Heartbeats that arrived.
    pub heartbeats: u64,
    /// Control channels that were opened.
    pub channels: u64,
    /// Tasks that ended with an agent's result.
    pub tasks: u64,
    /// Parts of results that were applied.
    pub parts: u64,
    /// Uploads that were begun.
    pub uploads: u64,
}

impl Verdict {
    /// A checker with these settings.
    pub(crate) fn new(started: Instant, settings: &Settings) -> Self {
        Self {
            started,
            heartbeat: settings.heartbeat,
            restarted: settings.restarted,
            profile: settings.profile,
            expected_tasks: settings.expected_tasks,
            seq: 0,
            counts: Counts::default(),
            tasks: BTreeMap::new(),
            order: VecDeque::new(),
            sessions: BTreeMap::new(),
            refused_until: None,
            violations: Vec::new(),
            count: 0,
        }
    }

    fn report(&mut self, now: Instant, rule: Rule, subject: &str, detail: impl Into<String>) {
        if !self.profile.judges(rule) {
            return;
        }
        self.count += 1;
        if self.violations.len() < KEPT {
            let at_ms = now.duration_since(self.started).as_millis() as u64;
            self.violations.push(Violation {
                at_ms,
                seq: self.seq,
                rule,
                subject: subject.to_owned(),
                detail: detail.into(),
            });
        }
    }

    fn task(&mut self, id: &str) -> &mut TaskAudit {
        if !self.tasks.contains_key(id) {
            self.order.push_back(id.to_owned());
            self.tasks.insert(id.to_owned(), TaskAudit::default());
            if self.order.len() > TASKS_REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.tasks.remove(&oldest);
            }
        }
        self.tasks.get_mut(id).expect("it was there or has just been put there")
    }

    /// A result call arrived; no fault has touched it yet.
    pub(crate) fn attempt(&mut self, now: Instant, posted: &Posted, bytes: &[u8]) {
        let id = &posted.task;
        if let Err(reason) = &posted.body {
            self.report(now, Rule::MalformedResult, id, format!("the body is no result: {reason}"));
        }
        if posted.body.as_ref().is_ok_and(|body| matches!(body, ResultBody::Done { marked: false })) {
            let detail = "[DONE] came without \"done\": true";
            self.report(now, Rule::DoneWithoutMark, id, detail);
        }
        let Some(part) = posted.part else {
            self.after_the_end(now, id, "a result without a key", &posted.body);
            let detail = match &posted.key {
                Some(key) => {
                    format!("the Idempotency-Key {key:?} is of another task, or has no number of a part")
                }
                None => "a result has no Idempotency-Key".to_owned(),
            };
            return self.report(now, Rule::MissingKey, id, detail);
        };
        let (hash, content, is_line) = (hash(bytes), content_hash(bytes), posted.is_line);
        let audit = self.task(id);
        let concurrent = audit.under_way.filter(|other| *other != part);
        let known = audit.attempts.get(&part).copied();
        audit.attempts.entry(part).or_insert(PartAudit { hash, content, is_line, accepted: false });
        if let Some(other) = concurrent {
            self.report(now, Rule::ConcurrentParts, id, format!("{part} came while {other} was under way"));
        }
        match known {
            Some(before) if !before.is_same(hash, content, is_line) => {
                self.report(
                    now,
                    Rule::RepeatedKeyOtherBytes,
                    id,
                    format!("{part} was sent again with other bytes"),
                );
            }
            Some(_) => {}
            // A failure may overtake the lines of an upload that hangs; they come later, if at all, and are dropped.
            None if posted.is_line && self.was_overtaken(id, part) => {}
            None => self.new_part(now, id, part, &posted.body),
        }
    }

    /// Whether the task ended with a later part.
    fn was_overtaken(&mut self, id: &str, part: Part) -> bool {
        self.task(id).ended_by.is_some_and(|end| part < end)
    }

    /// A part under a new key: may it come at all, and is its number the next one?
    fn new_part(&mut self, now: Instant, id: &str, part: Part, body: &Result<ResultBody, String>) {
        // An agent that crashed cannot know which of its tasks had ended.
        let Part::Index(n) = part else { return };
        let audit = self.task(id);
        let expected = audit.next;
        audit.next = expected.max(n.saturating_add(1));
        let gone = audit.told_gone_on;
        if self.after_the_end(now, id, &part.to_string(), body) {
            return;
        }
        if let Some(told) = gone {
            let detail = format!("{part} came although {told} was told that nobody waits");
            return self.report(now, Rule::ResultAfterEnd, id, detail);
        }
        // A part that never got through may be given up for an explicit error.
        let gives_up = n > expected && body.as_ref().is_ok_and(ResultBody::is_failure);
        if n != expected && !gives_up {
            self.report(now, Rule::PartOutOfOrder, id, format!("{part} came where part {expected} was due"));
        }
    }

    /// Whether the task had ended before this came, which is reported.
    fn after_the_end(
        &mut self,
        now: Instant,
        id: &str,
        what: &str,
        body: &Result<ResultBody, String>,
    ) -> bool {
        let audit = self.task(id);
        if audit.ended {
            let by = audit.ended_by.map(|end| format!(" with {end}")).unwrap_or_default();
            let is_end = body.as_ref().is_ok_and(ResultBody::is_end);
            let rule = if is_end { Rule::TwoEnds } else { Rule::ResultAfterEnd };
            self.report(now, rule, id, format!("{what} came after the task had ended{by}"));
            return true;
        }
        false
    }

    /// Marks a part as under way while its reply is held back.
    pub(crate) fn hold(&mut self, task: &str, part: Option<Part>) {
        self.task(task).under_way = part;
    }

    /// The held part's call ended.
    pub(crate) fn release(&mut self, task: &str, part: Option<Part>) {
        let audit = self.task(task);
        if audit.under_way == part {
            audit.under_way = None;
        }
    }

    /// A part was applied.
    pub(crate) fn accepted(&mut self, now: Instant, task: &str, part: Option<Part>, body: &ResultBody) {
        self.counts.parts += 1;
        self.counts.tasks += u64::from(body.is_end());
        let audit = self.task(task);
        audit.ended |= body.is_end();
        let begun = std::mem::replace(&mut audit.begun, !body.is_end());
        let known = part.and_then(|part| audit.attempts.get_mut(&part));
        let again = known.is_some_and(|known| std::mem::replace(&mut known.accepted, true));
        if body.is_end() {
            audit.ended_by = audit.ended_by.or(part);
        } else if again {
            let detail = "a chunk was sent again, and mcpd does not drop repeated keys";
            self.report(now, Rule::ChunkSentTwice, task, detail);
        }
        if begun && matches!(body, ResultBody::Status { .. }) {
            self.report(now, Rule::StatusInStream, task, "a status came for a stream that had begun");
        }
    }

    /// A part was answered that nobody waits.
    pub(crate) fn told_gone(&mut self, task: &str, part: Option<Part>) {
        let audit = self.task(task);
        audit.told_gone_on = audit.told_gone_on.or(part);
    }

    /// Reports a breach that was found elsewhere.
    pub(crate) fn breach(&mut self, now: Instant, rule: Rule, subject: &str, detail: &str) {
        self.report(now, rule, subject, detail);
    }

    /// A register call arrived from this session (or, without an id, for these names).
    pub(crate) fn register_began(&mut self, now: Instant, who: &str) {
        let session = self.sessions.entry(who.to_owned()).or_default();
        let under_way = std::mem::replace(&mut session.registering, true);
        let last = session.last_register;
        if under_way {
            self.report(now, Rule::RegisterUnderWay, who, "a register call came while another was under way");
        }
        if let Some(last) = last.filter(|last| now.duration_since(*last) < REGISTER_GAP) {
            let gap = now.duration_since(last).as_millis();
            let detail = format!("a register call came {gap} ms after the one before it");
            self.report(now, Rule::RegisterTooOften, who, detail);
        }
    }

    /// A register call ended, one way or the other.
    pub(crate) fn register_ended(&mut self, who: &str) {
        self.sessions.entry(who.to_owned()).or_default().registering = false;
    }

    /// A register call was accepted.
    pub(crate) fn registered(&mut self, now: Instant, id: &str) {
        let session = self.sessions.entry(id.to_owned()).or_default();
        session.last_register = Some(now);
        session.last_beat = Some(now);
    }

    /// The agent closed its session's channel. What registers next may be another life of it, started after a crash, and no
    /// life can know when its predecessor registered.
    pub(crate) fn left(&mut self, id: &str) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.last_register = None;
        }
    }

    /// A heartbeat arrived; `channel` is when the session's open channel was opened.
    pub(crate) fn heartbeat(&mut self, now: Instant, id: &str, channel: Option<Instant>) {
        self.counts.heartbeats += 1;
        if !self.restarted && !self.sessions.contains_key(id) {
            let detail = "a heartbeat came for a session that has not registered";
            return self.report(now, Rule::HeartbeatBeforeRegister, id, detail);
        }
        self.check_gap(now, id, channel);
        self.sessions.entry(id.to_owned()).or_default().last_beat = Some(now);
    }

    /// Looks for a pause in the heartbeats of a session with an open channel, once per pause.
    pub(crate) fn check_gap(&mut self, now: Instant, id: &str, channel: Option<Instant>) {
        let Some((opened, session)) = channel.zip(self.sessions.get_mut(id)) else { return };
        let since = [session.last_beat, self.refused_until].into_iter().flatten().fold(opened, Instant::max);
        let gap = now.saturating_duration_since(since);
        if gap > self.heartbeat.saturating_mul(2) {
            session.last_beat = Some(now);
            let detail = format!("no heartbeat for {} ms with the channel open", gap.as_millis());
            self.report(now, Rule::MissingHeartbeat, id, detail);
        }
    }

    /// A fault kept calls away: what is missing until now is not the agent's.
    pub(crate) fn forgive_silence(&mut self, now: Instant) {
        self.refused_until = Some(now);
    }

    /// The breaches so far.
    pub(crate) fn view(&mut self, now: Instant) -> VerdictView {
        let (mut violations, mut count) = (self.violations.clone(), self.count);
        let (ended, expected) = (self.counts.tasks, self.expected_tasks);
        if ended < expected {
            count += 1;
            violations.push(Violation {
                at_ms: now.duration_since(self.started).as_millis() as u64,
                seq: self.seq,
                rule: Rule::FewerTasks,
                subject: String::new(),
                detail: format!("{ended} tasks ended where at least {expected} were expected"),
            });
        }
        VerdictView { ok: count == 0, count, counts: self.counts, violations }
    }
}

/// What there is to say of the agent under test.
#[derive(Debug, Clone, Serialize)]
pub struct VerdictView {
    /// Whether it kept the contract.
    pub ok: bool,
    /// How many violations there were.
    pub count: u64,
    /// What happened.
    pub counts: Counts,
    /// The first 1000 violations.
    pub violations: Vec<Violation>,
}

/// The hash of a part without the number that it has in an upload.
fn content_hash(bytes: &[u8]) -> u64 {
    let mut members: BTreeMap<&str, &RawValue> = serde_json::from_slice(bytes).unwrap_or_default();
    members.remove("n");
    hash(&serde_json::to_vec(&members).unwrap_or_default())
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
