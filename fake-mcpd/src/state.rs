//! What an mcpd knows: sessions, the rows of its list of LLMs, the tasks under way. No I/O and no clock: the time
//! comes in as an argument, what happened goes out as a value.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::wire::{Part, ProviderSpec, ResultBody};

/// Ended tasks remembered, so that a repeated last part is known from a stranger's.
const ENDED_REMEMBERED: usize = 10_000;
/// Frames waiting for one control channel: more than any bench has tasks under way, so that only a dead reader fills it.
const CHANNEL_FRAMES: usize = 16_384;
/// Chunks waiting for one caller; beyond that the result's reply waits for the caller to read.
const CALLER_CHUNKS: usize = 256;

/// One provider session.
#[derive(Debug)]
pub(crate) struct Session {
    /// The last register or heartbeat.
    pub(crate) last_beat: Instant,
    /// False once heartbeats stopped for the time to live.
    pub(crate) live: bool,
    pub(crate) channel: Option<Channel>,
    /// The last registered set, which a heartbeat revives.
    names: BTreeSet<String>,
}

/// The sending half of a session's control channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) epoch: u64,
    pub(crate) opened: Instant,
    frames: mpsc::Sender<Bytes>,
    pub(crate) control: Arc<ChannelControl>,
}

/// What a fault may switch on an open channel, read by its body.
#[derive(Debug, Default)]
pub(crate) struct ChannelControl {
    /// Half-open: nothing is delivered any more, keep-alives included.
    pub(crate) silent: AtomicBool,
    /// Ends as a broken connection instead of a finished body.
    pub(crate) broken: AtomicBool,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Sent,
    /// The channel is half-open.
    Swallowed,
    /// There is no channel, or its reader does not read.
    Impossible,
}

impl Channel {
    fn send(&self, frame: Bytes) -> Delivery {
        if self.control.silent.load(Ordering::Relaxed) {
            return Delivery::Swallowed;
        }
        self.frames.try_send(frame).map_or(Delivery::Impossible, |()| Delivery::Sent)
    }
}

/// The receiving half, which becomes the response's body.
#[derive(Debug)]
pub(crate) struct OpenedChannel {
    pub(crate) epoch: u64,
    pub(crate) frames: mpsc::Receiver<Bytes>,
    pub(crate) control: Arc<ChannelControl>,
}

/// One LLM in the list.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) spec: ProviderSpec,
    pub(crate) owner: String,
    pub(crate) active: bool,
}

/// One inference, from its call to its end; ended ones are kept for a while.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) llm: String,
    pub(crate) session: String,
    pub(crate) streaming: bool,
    reader: Reader,
    end: Arc<OnceLock<TaskEnd>>,
    applied: BTreeSet<Part>,
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

/// Why a call names no LLM that could serve it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unavailable {
    #[error("there is no LLM named {0:?}")]
    UnknownLlm(String),
    #[error("the LLM {0:?} is inactive: its provider is not connected")]
    Inactive(String),
    #[error("the provider of the LLM {0:?} has no open control channel")]
    NoChannel(String),
}

/// Why a register call is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RegisterRefusal {
    /// Rows of other live sessions own these names.
    Conflicts(Vec<String>),
    /// The set names one LLM twice, or one without a name.
    BadName(String),
}

/// What became of a result part.
#[derive(Debug)]
pub(crate) enum Applied {
    Accepted,
    /// The key was applied before; dropped.
    Repeated,
    /// Nobody waits: unknown or ended.
    Gone,
    /// A chunk for a task that did not ask for a stream.
    NotStreaming,
    /// The caller is behind; try again when there is room.
    Full(mpsc::Sender<Bytes>),
}

/// All of it.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) sessions: BTreeMap<String, Session>,
    pub(crate) rows: BTreeMap<String, Row>,
    pub(crate) tasks: BTreeMap<String, Task>,
    deadlines: BTreeSet<(Instant, String)>,
    ended: VecDeque<String>,
    pub(crate) random: fastrand::Rng,
    task_prefix: String,
    tasks_made: u64,
    channels_made: u64,
}

impl State {
    /// An empty state whose ids follow from `random`.
    pub(crate) fn new(random: fastrand::Rng, task_prefix: String) -> Self {
        Self {
            sessions: BTreeMap::new(),
            rows: BTreeMap::new(),
            tasks: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ended: VecDeque::new(),
            random,
            task_prefix,
            tasks_made: 0,
            channels_made: 0,
        }
    }

    fn mint(&mut self, kind: &str) -> String {
        format!("{kind}-{:016x}", self.random.u64(..))
    }

    /// Replaces a session's whole set; the sticky id is honoured, or a new one minted. Gives the id.
    pub(crate) fn register(
        &mut self,
        now: Instant,
        sticky: Option<&str>,
        providers: Vec<ProviderSpec>,
    ) -> Result<String, RegisterRefusal> {
        self.check_names(sticky, &providers)?;
        let id = sticky.map_or_else(|| self.mint("ps"), str::to_owned);
        let names: BTreeSet<String> = providers.iter().map(|provider| provider.name.clone()).collect();
        for (name, row) in &mut self.rows {
            if row.owner == id && !names.contains(name) {
                row.active = false;
            }
        }
        for spec in providers {
            self.upsert_row(&id, spec);
        }
        let session = self.sessions.entry(id.clone()).or_insert_with(|| Session::new(now));
        session.names = names;
        session.last_beat = now;
        session.live = true;
        Ok(id)
    }

    fn check_names(&self, sticky: Option<&str>, providers: &[ProviderSpec]) -> Result<(), RegisterRefusal> {
        let mut seen = BTreeSet::new();
        for provider in providers {
            if provider.name.is_empty() || !seen.insert(&provider.name) {
                return Err(RegisterRefusal::BadName(provider.name.clone()));
            }
        }
        let taken = |name: &&String| {
            self.rows.get(*name).is_some_and(|row| row.active && Some(row.owner.as_str()) != sticky)
        };
        let conflicts: Vec<String> = seen.into_iter().filter(taken).cloned().collect();
        if conflicts.is_empty() { Ok(()) } else { Err(RegisterRefusal::Conflicts(conflicts)) }
    }

    fn upsert_row(&mut self, owner: &str, spec: ProviderSpec) {
        if let Some(row) = self.rows.get_mut(&spec.name) {
            (row.spec, row.owner, row.active) = (spec, owner.to_owned(), true);
            return;
        }
        let row = Row { id: self.mint("llm"), spec, owner: owner.to_owned(), active: true };
        self.rows.insert(row.spec.name.clone(), row);
    }

    /// Revives a session's last registered set; false if the session is unknown.
    pub(crate) fn heartbeat(&mut self, now: Instant, id: &str) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        session.last_beat = now;
        session.live = true;
        for name in &session.names {
            if let Some(row) = self.rows.get_mut(name).filter(|row| row.owner == id) {
                row.active = true;
            }
        }
        true
    }

    /// Opens a session's channel in place of any former one; `None` if the session is unknown.
    pub(crate) fn open_channel(&mut self, now: Instant, id: &str) -> Option<OpenedChannel> {
        let session = self.sessions.get_mut(id)?;
        self.channels_made += 1;
        let (frames, receiver) = mpsc::channel(CHANNEL_FRAMES);
        let control = Arc::new(ChannelControl::default());
        let epoch = self.channels_made;
        session.channel = Some(Channel { epoch, opened: now, frames, control: Arc::clone(&control) });
        Some(OpenedChannel { epoch, frames: receiver, control })
    }

    /// Since when a session's channel is open.
    pub(crate) fn channel_opened(&self, id: &str) -> Option<Instant> {
        Some(self.sessions.get(id)?.channel.as_ref()?.opened)
    }

    /// Which channel a session has open.
    pub(crate) fn channel_epoch(&self, id: &str) -> Option<u64> {
        Some(self.sessions.get(id)?.channel.as_ref()?.epoch)
    }

    /// Takes a session's channel away; its body ends once the handle is dropped.
    pub(crate) fn take_channel(&mut self, id: &str) -> Option<Channel> {
        self.sessions.get_mut(id)?.channel.take()
    }

    /// Puts a frame on a session's channel.
    pub(crate) fn send(&self, session: &str, frame: Bytes) -> Delivery {
        let channel = self.sessions.get(session).and_then(|session| session.channel.as_ref());
        channel.map_or(Delivery::Impossible, |channel| channel.send(frame))
    }

    /// The session that serves an LLM now.
    pub(crate) fn route(&self, llm: &str) -> Result<String, Unavailable> {
        let row = self.rows.get(llm).ok_or_else(|| Unavailable::UnknownLlm(llm.to_owned()))?;
        if !row.active {
            return Err(Unavailable::Inactive(llm.to_owned()));
        }
        let session = self.sessions.get(&row.owner).filter(|session| session.channel.is_some());
        session.map(|_| row.owner.clone()).ok_or_else(|| Unavailable::NoChannel(llm.to_owned()))
    }

    /// The next task's id and its number, from 1.
    pub(crate) fn next_task_id(&mut self) -> (String, u64) {
        self.tasks_made += 1;
        let id = format!("{}t{}-{:08x}", self.task_prefix, self.tasks_made, self.random.u32(..));
        (id, self.tasks_made)
    }

    /// Enters a task; what comes for it goes to the handle.
    pub(crate) fn add_task(
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
            applied: BTreeSet::new(),
            deadline,
        };
        self.deadlines.extend(deadline.map(|deadline| (deadline, id.to_owned())));
        self.tasks.insert(id.to_owned(), task);
        TaskHandle { id: id.to_owned(), chunks, end }
    }

    /// Enters a task without a caller.
    pub(crate) fn add_unread_task(&mut self, id: &str, llm: &str, session: &str, streaming: bool) {
        let unread = self.add_task(id, llm, session, streaming, None);
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
        if !task.streaming && matches!(body, ResultBody::Chunk(_) | ResultBody::Done) {
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
            self.end_task(id, end);
        }
        Applied::Accepted
    }

    /// Ends a task for its caller; false if it is unknown or had ended.
    pub(crate) fn end_task(&mut self, id: &str, end: TaskEnd) -> bool {
        let Some(task) = self.tasks.get_mut(id).filter(|task| task.is_under_way()) else { return false };
        // The end is there before the sender goes: the caller reads it when its chunks run out.
        let _ = task.end.set(end);
        task.reader = Reader::Ended;
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

    /// The tasks under way, of one session or of all.
    pub(crate) fn under_way(&self, session: Option<&str>) -> Vec<String> {
        let of_session = |task: &Task| session.is_none_or(|session| task.session == session);
        let under_way = self.tasks.iter().filter(|(_, task)| task.is_under_way() && of_session(task));
        under_way.map(|(id, _)| id.clone()).collect()
    }

    /// Turns the sessions inactive whose heartbeats stopped for `ttl`; gives their ids.
    pub(crate) fn expire_sessions(&mut self, now: Instant, ttl: Duration) -> Vec<String> {
        let mut expired = Vec::new();
        for (id, session) in &mut self.sessions {
            if session.live && session.last_beat + ttl <= now {
                session.live = false;
                expired.push(id.clone());
            }
        }
        for row in self.rows.values_mut().filter(|row| expired.contains(&row.owner)) {
            row.active = false;
        }
        expired
    }

    /// The tasks whose deadline has passed.
    pub(crate) fn overdue_tasks(&self, now: Instant) -> Vec<String> {
        let overdue = self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now);
        overdue.map(|(_, id)| id.clone()).collect()
    }

    /// When [`Self::expire_sessions`] or [`Self::overdue_tasks`] has something to give next.
    pub(crate) fn next_deadline(&self, ttl: Duration) -> Option<Instant> {
        let live = self.sessions.values().filter(|session| session.live);
        let session = live.map(|session| session.last_beat + ttl).min();
        let task = self.deadlines.first().map(|(deadline, _)| *deadline);
        session.into_iter().chain(task).min()
    }

    /// Forgets every session and task, as a restart does; rows stay, inactive, as a database keeps them.
    pub(crate) fn forget(&mut self) {
        self.sessions.clear();
        self.tasks.clear();
        self.ended.clear();
        self.deadlines.clear();
        self.rows.values_mut().for_each(|row| row.active = false);
    }
}

impl Session {
    fn new(now: Instant) -> Self {
        Self { last_beat: now, live: true, channel: None, names: BTreeSet::new() }
    }
}

fn end_of(body: &ResultBody) -> Option<TaskEnd> {
    Some(match body {
        ResultBody::Chunk(_) => return None,
        ResultBody::Done => TaskEnd::Done,
        ResultBody::Status { status, retry_after, body } => {
            TaskEnd::Reply { status: *status, retry_after: retry_after.clone(), body: body.clone() }
        }
        ResultBody::Error(message) => {
            TaskEnd::Failed { status: 502, code: "provider_error", message: message.clone() }
        }
    })
}
