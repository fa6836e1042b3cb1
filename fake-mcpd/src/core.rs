//! The one place where state, journal, faults and verdict meet, so that everything happens in one order.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::armed::Armed;
use crate::builder::Settings;
use crate::faults::Fault;
use crate::journal::{Entry, Journal, Kind};
use crate::state::{Delivery, State};
use crate::tasks::{CALLER_GONE, TaskEnd};
use crate::verdict::Verdict;
use crate::wire;

/// Garbage by default: an event that breaks off, a NUL in an id, a field name of raw bytes.
const GARBAGE: &[u8] =
    b"event: task\ndata: {\"kind\":\"infer\",\"taskId\":\n\nid: \0\nretry: -1\n\xff\xfe\x00: \xc3\x28\n\n";

/// How long a task waits for an event that overtakes it.
const OVERTAKEN_WITHIN: Duration = Duration::from_secs(1);

/// A task that is sent once another event has been.
#[derive(Debug)]
struct Held {
    session: String,
    /// The channel that it was meant for; it goes on no other.
    epoch: Option<u64>,
    frame: Bytes,
    until: Instant,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) now: Instant,
    pub(crate) state: State,
    pub(crate) journal: Journal,
    pub(crate) armed: Armed,
    pub(crate) verdict: Verdict,
    /// The one token that is accepted; any if absent.
    pub(crate) token: Option<String>,
    pub(crate) at_task: Vec<(u64, Fault)>,
    pub(crate) at_time: Vec<(Instant, Fault)>,
    held: Option<Held>,
}

impl Core {
    pub(crate) fn new(settings: &Settings, started: Instant) -> Self {
        let random = settings.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        Self {
            now: started,
            state: State::new(random, settings.task_prefix.clone()),
            journal: Journal::new(settings.journal, started),
            armed: Armed::default(),
            verdict: Verdict::new(started, settings),
            token: settings.token.clone(),
            at_task: Vec::new(),
            at_time: Vec::new(),
            held: None,
        }
    }

    /// Appends to the journal.
    pub(crate) fn log(&mut self, entry: impl FnOnce() -> Entry) {
        self.journal.push(self.now, entry);
    }

    /// Sends an event on a session's channel and journals it; false if there is no channel that takes it.
    pub(crate) fn send(&mut self, session: &str, event: Event, entry: Entry) -> bool {
        let frame = wire::event_frame(event.name(), &entry.body);
        let delivery = if event == Event::Task && self.held.is_none() && self.armed.is_overtaken() {
            self.hold(session, frame)
        } else {
            let delivery = self.state.send(session, frame);
            self.let_go();
            delivery
        };
        let entry = Entry { kind: event.kind(), session: Some(session.to_owned()), ..entry };
        self.log(|| match delivery {
            Delivery::Sent => entry,
            Delivery::Swallowed => entry.note("swallowed by the half-open channel"),
            Delivery::Impossible => entry.note("no channel takes it"),
        });
        delivery != Delivery::Impossible
    }

    /// Keeps a task back until another event has been sent.
    fn hold(&mut self, session: &str, frame: Bytes) -> Delivery {
        let epoch = self.state.channel_epoch(session);
        let until = self.now + OVERTAKEN_WITHIN;
        self.held = Some(Held { session: session.to_owned(), epoch, frame, until });
        if epoch.is_some() { Delivery::Sent } else { Delivery::Impossible }
    }

    /// Sends what was kept back.
    fn let_go(&mut self) {
        let Some(held) = self.held.take() else { return };
        if held.epoch.is_some() && held.epoch == self.state.channel_epoch(&held.session) {
            self.state.send(&held.session, held.frame);
        }
    }

    /// Ends a task for its caller, tells the agent if it cannot know, and journals.
    pub(crate) fn end_task(&mut self, id: &str, end: TaskEnd, tell_agent: bool) {
        let Some(session) = self.state.tasks.get(id).map(|task| task.session.clone()) else { return };
        if !self.state.tasks.end(id, end) {
            return;
        }
        if tell_agent {
            self.send_cancel(&session, id);
        }
        self.log_end(id);
    }

    /// Journals a task's end.
    pub(crate) fn log_end(&mut self, id: &str) {
        let Some(task) = self.state.tasks.get(id) else { return };
        let Some(end) = task.end() else { return };
        self.journal.push(self.now, || {
            let (status, note) = end.describe();
            let llm = Some(task.llm.clone());
            let entry = Entry { llm, ..Entry::new(Kind::TaskEnded) };
            entry.session(&task.session).task(id).status(status).note(note)
        });
    }

    /// Tells the agent what has come of a task's result, unless a fault loses that.
    pub(crate) fn send_received(&mut self, session: &str, task: &str, next: u64) {
        let data = wire::json(&wire::Received { task_id: Some(task), next });
        let entry = Entry::new(Kind::Received).task(task).body(data);
        if self.armed.loses_received() {
            return self.log(|| entry.session(session).note("lost on order"));
        }
        self.send(session, Event::Received, entry);
    }

    fn send_cancel(&mut self, session: &str, task: &str) {
        let data = wire::json(&serde_json::json!({"taskId": task}));
        self.send(session, Event::Cancel, Entry::new(Kind::Cancel).task(task).body(data));
    }

    /// Ends what has outlived its time.
    pub(crate) fn expire(&mut self, ttl: Duration) {
        if self.held.as_ref().is_some_and(|held| held.until <= self.now) {
            self.let_go();
        }
        for id in self.state.expire_sessions(self.now, ttl) {
            self.check_heartbeats(&id);
            self.log(|| Entry::new(Kind::SessionExpired).session(&id));
            self.end_session_tasks(
                Some(&id),
                "provider_gone",
                "the provider's session stopped its heartbeats",
            );
        }
        for id in self.state.tasks.overdue(self.now) {
            let message = "the task's deadline has passed".to_owned();
            self.end_task(&id, TaskEnd::Failed { status: 504, code: "deadline", message }, true);
        }
    }

    /// When there is something to do next.
    pub(crate) fn next_deadline(&self, ttl: Duration) -> Option<Instant> {
        let own = self.at_time.iter().map(|(at, _)| *at).chain(self.held.iter().map(|held| held.until));
        own.chain(self.state.next_deadline(ttl)).min()
    }

    pub(crate) fn take_due_faults(&mut self) -> Vec<Fault> {
        self.at_time.sort_by_key(|(at, _)| *at);
        let due = self.at_time.partition_point(|(at, _)| *at <= self.now);
        self.at_time.drain(..due).map(|(_, fault)| fault).collect()
    }

    fn end_session_tasks(&mut self, session: Option<&str>, code: &'static str, message: &str) {
        for id in self.state.tasks.under_way(session) {
            let message = message.to_owned();
            self.end_task(&id, TaskEnd::Failed { status: 503, code, message }, false);
        }
    }

    /// Looks for a pause in a session's heartbeats.
    pub(crate) fn check_heartbeats(&mut self, session: &str) {
        let opened = self.state.channel_opened(session);
        self.verdict.check_gap(self.now, session, opened);
    }

    /// Tells the verdict of a heartbeat, whatever becomes of it.
    pub(crate) fn heartbeat_arrived(&mut self, session: &str) {
        let opened = self.state.channel_opened(session);
        self.verdict.heartbeat(self.now, session, opened);
    }

    /// Puts a fault into effect; true if every connection is to be cut.
    pub(crate) fn fault(&mut self, fault: Fault) -> bool {
        self.log(|| Entry::new(Kind::Fault).body(wire::json(&fault)));
        match self.armed.arm(self.now, fault) {
            None => false,
            Some(at_once) => self.fault_at_once(at_once),
        }
    }

    fn fault_at_once(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::Drop { broken } => self.drop_channels(broken),
            Fault::Silent => self.silence(true),
            Fault::Clear => self.silence(false),
            Fault::Task { json } => self.send_task(&json),
            Fault::Garbage { frame: None } => self.send_raw(Bytes::from_static(GARBAGE)),
            Fault::Garbage { frame: Some(text) } => self.send_raw(unescape(&text)),
            Fault::Cancel { task } => self.cancel(task),
            Fault::Forget => self.forget(),
            Fault::Restart => {
                self.forget();
                return true;
            }
            armed => debug_assert!(!armed.acts_at_once(), "{armed:?} is armed, not done"),
        }
        false
    }

    fn drop_channels(&mut self, broken: bool) {
        let sessions: Vec<String> = self.state.sessions.keys().cloned().collect();
        for id in sessions {
            self.check_heartbeats(&id);
            if let Some(channel) = self.state.take_channel(&id) {
                channel.control.broken.store(broken, Ordering::Relaxed);
                self.log(|| Entry::new(Kind::ChannelClosed).session(&id).note("dropped"));
            }
        }
    }

    fn silence(&mut self, silent: bool) {
        for channel in self.state.sessions.values().filter_map(|session| session.channel.as_ref()) {
            channel.control.silent.store(silent, Ordering::Relaxed);
        }
    }

    pub(crate) fn forget(&mut self) {
        self.end_session_tasks(None, "restarted", "mcpd forgot its sessions");
        self.drop_channels(false);
        self.state.forget();
    }

    /// Every session with a channel.
    pub(crate) fn connected(&self) -> Vec<String> {
        let connected = self.state.sessions.iter().filter(|(_, session)| session.channel.is_some());
        connected.map(|(id, _)| id.clone()).collect()
    }

    fn send_raw(&mut self, bytes: Bytes) {
        for session in self.connected() {
            self.state.send(&session, bytes.clone());
            self.log(|| Entry::new(Kind::Raw).session(&session).body(bytes.clone()));
        }
    }

    /// Sends a task of somebody's own making; where it has an id, its results are accepted like any task's.
    fn send_task(&mut self, json: &str) {
        let data = Bytes::copy_from_slice(json.as_bytes());
        let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        let id = value["taskId"].as_str().unwrap_or_default();
        for session in self.connected() {
            if !id.is_empty() && self.state.tasks.get(id).is_none() {
                let llm = value["llmName"].as_str().unwrap_or_default();
                let streaming = value["streaming"].as_bool().unwrap_or_default();
                self.state.tasks.add_unread(id, llm, &session, streaming);
            }
            self.send(&session, Event::Task, Entry::new(Kind::Task).task(id).body(data.clone()));
        }
    }

    fn cancel(&mut self, task: Option<String>) {
        for id in task.map_or_else(|| self.state.tasks.under_way(None), |id| vec![id]) {
            if self.state.tasks.get(&id).is_some_and(|task| task.is_under_way()) {
                self.end_task(&id, TaskEnd::CallerGone, true);
                continue;
            }
            for session in self.connected() {
                self.send_cancel(&session, &id);
            }
        }
    }
}

/// What is sent on a control channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Hello,
    Task,
    Cancel,
    Received,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Task => "task",
            Self::Cancel => "cancel",
            Self::Received => "received",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Hello => Kind::Hello,
            Self::Task => Kind::Task,
            Self::Cancel => Kind::Cancel,
            Self::Received => Kind::Received,
        }
    }
}

impl TaskEnd {
    /// The status of an HTTP caller and a word for the journal.
    fn describe(&self) -> (u16, String) {
        match self {
            Self::Reply { status, .. } => (*status, "status".to_owned()),
            Self::Done => (200, "done".to_owned()),
            Self::Failed { status, code, message } => (*status, format!("{code}: {message}")),
            Self::CallerGone => (CALLER_GONE, "caller gone".to_owned()),
        }
    }
}

/// Reads `\n`, `\r` and `\\`.
fn unescape(text: &str) -> Bytes {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        let escaped = if char == '\\' { chars.next() } else { None };
        match escaped {
            None => out.push(char),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('\\') => out.push('\\'),
            Some(other) => out.extend(['\\', other]),
        }
    }
    Bytes::from(out)
}
