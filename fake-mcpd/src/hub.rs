//! The one place where state, journal, faults and verdict meet, under one lock, so that there is one order of things.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::builder::Settings;
use crate::callers::CALLER_GONE;
use crate::faults::{Armed, Fault, Refused, Step, Trigger};
use crate::journal::{Entry, Journal, Kind};
use crate::state::{Delivery, State, TaskEnd};
use crate::verdict::{Verdict, VerdictView};
use crate::wire::{self, LlmView};

/// Garbage by default: an event that breaks off, a NUL in an id, bytes that are no UTF-8, an endless field name.
const GARBAGE: &[u8] =
    b"event: task\ndata: {\"kind\":\"infer\",\"taskId\":\n\nid: \0\nretry: -1\n\xff\xfe\x00: \xc3\x28\n\n";

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) settings: Settings,
    started: Instant,
    started_at: SystemTime,
    core: Mutex<Core>,
    /// Something happened: waiting conditions are to be looked at.
    changed: Notify,
    /// A deadline came nearer: the timekeeper is to look again.
    sooner: Notify,
    /// Counts the orders to cut every connection.
    cuts: watch::Sender<u64>,
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
    at_task: Vec<(u64, Fault)>,
    at_time: Vec<(Instant, Fault)>,
}

impl Hub {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let started = Instant::now();
        let random = settings.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let core = Core {
            now: started,
            state: State::new(random, settings.task_prefix.clone()),
            journal: Journal::new(settings.journal, started),
            armed: Armed::default(),
            verdict: Verdict::new(started, settings.heartbeat, settings.restarted),
            token: settings.token.clone(),
            at_task: Vec::new(),
            at_time: Vec::new(),
        };
        let (changed, sooner) = (Notify::new(), Notify::new());
        let core = Mutex::new(core);
        let (cuts, _) = watch::channel(0);
        let started_at = SystemTime::now();
        Arc::new(Self { settings, started, started_at, core, changed, sooner, cuts })
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        core.now = Instant::now();
        core
    }

    /// Looks, without anything happening.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.lock())
    }

    /// Lets something happen.
    pub(crate) fn act<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        let done = act(&mut self.lock());
        self.changed.notify_waiters();
        done
    }

    /// Waits until `look` finds something, looking again whenever something happened.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            changed.await;
        }
    }

    /// Tells the timekeeper that a deadline was set.
    pub(crate) fn deadline_set(&self) {
        self.sooner.notify_one();
    }

    /// Does what its time has come for, for ever: sessions without heartbeats, tasks past their deadline, faults.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            self.act(|core| core.expire(self.settings.session_ttl));
            self.look(Core::take_due_faults).into_iter().for_each(|fault| self.fault(fault));
            match self.look(|core| core.next_deadline(self.settings.session_ttl)) {
                Some(next) => drop(tokio::time::timeout_at(next, self.sooner.notified()).await),
                None => self.sooner.notified().await,
            }
        }
    }

    /// Orders the connections to be cut when this changes.
    pub(crate) fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Whether a new connection is to be reset.
    pub(crate) fn refuses_connections(&self) -> bool {
        self.act(|core| {
            let refused = core.armed.refuses(core.now, Refused::Connections);
            if refused {
                core.verdict.forgive_silence(core.now);
            }
            refused
        })
    }

    /// Puts a fault into effect.
    pub(crate) fn fault(&self, fault: Fault) {
        if self.act(|core| core.fault(fault)) {
            self.cuts.send_modify(|cuts| *cuts += 1);
        }
    }

    /// Takes steps: those of no delay happen, the others wait for their time or task.
    pub(crate) fn schedule(&self, steps: Vec<Step>) {
        for Step { trigger, fault } in steps {
            match trigger {
                Trigger::AtTask(number) => self.look(|core| core.at_task.push((number, fault))),
                Trigger::After(Duration::ZERO) => self.fault(fault),
                Trigger::After(after) => self.look(|core| core.at_time.push((core.now + after, fault))),
            }
        }
        self.deadline_set();
    }

    /// Puts the faults of a task's number into effect that arm something, or (later) those that act at once.
    pub(crate) fn faults_at_task(&self, number: u64, at_once: bool) {
        let due = |(at, fault): &mut (u64, Fault)| *at == number && fault.acts_at_once() == at_once;
        let faults: Vec<_> = self.look(|core| core.at_task.extract_if(.., due).collect());
        faults.into_iter().for_each(|(_, fault)| self.fault(fault));
    }

    /// Ends every task and channel.
    pub(crate) fn stop(&self) {
        self.act(Core::forget);
    }

    /// How the agent under test has done so far.
    pub(crate) fn verdict(&self) -> VerdictView {
        self.look(|core| {
            for session in core.connected() {
                core.check_heartbeats(&session);
            }
            core.verdict.view()
        })
    }

    /// The list of LLMs, of one session or of all.
    pub(crate) fn llms(&self, core: &Core, session: Option<&str>) -> Vec<LlmView> {
        let rows = core.state.rows.values().filter(|row| session.is_none_or(|session| row.owner == session));
        rows.map(|row| LlmView {
            id: row.id.clone(),
            spec: row.spec.clone(),
            llm_kind: "virtual",
            status: if row.active { "active" } else { "inactive" },
            provider_session_id: row.owner.clone(),
            last_heartbeat_at: self.last_beat(core, &row.owner),
        })
        .collect()
    }

    fn last_beat(&self, core: &Core, session: &str) -> String {
        let beat = core.state.sessions.get(session).map_or(self.started, |session| session.last_beat);
        let at = self.started_at + beat.duration_since(self.started);
        humantime::format_rfc3339_millis(at).to_string()
    }
}

impl Core {
    /// Appends to the journal.
    pub(crate) fn log(&mut self, entry: impl FnOnce() -> Entry) {
        self.journal.push(self.now, entry);
    }

    /// Sends an event on a session's channel and journals it; false if there is no channel that takes it.
    pub(crate) fn send(&mut self, session: &str, event: Event, entry: Entry) -> bool {
        let frame = wire::event_frame(event.name(), &entry.body);
        let delivery = self.state.send(session, frame);
        let entry = Entry { kind: event.kind(), session: Some(session.to_owned()), ..entry };
        self.log(|| match delivery {
            Delivery::Sent => entry,
            Delivery::Swallowed => entry.note("swallowed by the half-open channel"),
            Delivery::Impossible => entry.note("no channel takes it"),
        });
        delivery != Delivery::Impossible
    }

    /// Ends a task for its caller, tells the agent if it cannot know, and journals.
    pub(crate) fn end_task(&mut self, id: &str, end: TaskEnd, tell_agent: bool) {
        let Some(session) = self.state.tasks.get(id).map(|task| task.session.clone()) else { return };
        if !self.state.end_task(id, end) {
            return;
        }
        if tell_agent {
            self.send_cancel(&session, id);
        }
        self.log_end(id);
    }

    /// Journals a task's end.
    pub(crate) fn log_end(&mut self, id: &str) {
        let Some((task, end)) = self.state.tasks.get(id).and_then(|task| Some((task, task.end()?))) else {
            return;
        };
        let (status, note) = end.describe();
        let entry =
            Entry { llm: Some(task.llm.clone()), status: Some(status), ..Entry::new(Kind::TaskEnded) };
        let entry = entry.session(&task.session).task(id).note(note);
        self.log(|| entry);
    }

    fn send_cancel(&mut self, session: &str, task: &str) {
        let data = wire::json(&serde_json::json!({"taskId": task}));
        self.send(session, Event::Cancel, Entry::new(Kind::Cancel).task(task).body(data));
    }

    /// Ends what has outlived its time.
    fn expire(&mut self, ttl: Duration) {
        for id in self.state.expire_sessions(self.now, ttl) {
            self.check_heartbeats(&id);
            self.log(|| Entry::new(Kind::SessionExpired).session(&id));
            self.end_session_tasks(
                Some(&id),
                "provider_gone",
                "the provider's session stopped its heartbeats",
            );
        }
        for id in self.state.overdue_tasks(self.now) {
            let message = "the task's deadline has passed".to_owned();
            self.end_task(&id, TaskEnd::Failed { status: 504, code: "deadline", message }, true);
        }
    }

    /// When there is something to do next.
    fn next_deadline(&self, ttl: Duration) -> Option<Instant> {
        let faults = self.at_time.iter().map(|(at, _)| *at);
        faults.chain(self.state.next_deadline(ttl)).min()
    }

    fn take_due_faults(&mut self) -> Vec<Fault> {
        self.at_time.sort_by_key(|(at, _)| *at);
        let due = self.at_time.partition_point(|(at, _)| *at <= self.now);
        self.at_time.drain(..due).map(|(_, fault)| fault).collect()
    }

    fn end_session_tasks(&mut self, session: Option<&str>, code: &'static str, message: &str) {
        for id in self.state.under_way(session) {
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
    fn fault(&mut self, fault: Fault) -> bool {
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
                channel.control.broken.store(broken, std::sync::atomic::Ordering::Relaxed);
                self.log(|| Entry::new(Kind::ChannelClosed).session(&id).note("dropped"));
            }
        }
    }

    fn silence(&mut self, silent: bool) {
        for channel in self.state.sessions.values().filter_map(|session| session.channel.as_ref()) {
            channel.control.silent.store(silent, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn forget(&mut self) {
        self.end_session_tasks(None, "restarted", "mcpd forgot its sessions");
        self.drop_channels(false);
        self.state.forget();
    }

    /// Every session with a channel.
    fn connected(&self) -> Vec<String> {
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
            if !id.is_empty() && !self.state.tasks.contains_key(id) {
                let llm = value["llmName"].as_str().unwrap_or_default();
                let streaming = value["streaming"].as_bool().unwrap_or_default();
                self.state.add_unread_task(id, llm, &session, streaming);
            }
            self.send(&session, Event::Task, Entry::new(Kind::Task).task(id).body(data.clone()));
        }
    }

    fn cancel(&mut self, task: Option<String>) {
        for id in task.map_or_else(|| self.state.under_way(None), |id| vec![id]) {
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
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    Hello,
    Task,
    Cancel,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Task => "task",
            Self::Cancel => "cancel",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Hello => Kind::Hello,
            Self::Task => Kind::Task,
            Self::Cancel => Kind::Cancel,
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
        match (char, char == '\\').1.then(|| chars.next()).flatten() {
            None => out.push(char),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('\\') => out.push('\\'),
            Some(other) => out.extend(['\\', other]),
        }
    }
    Bytes::from(out)
}
