//! What an mcpd knows: sessions, the rows of its list of LLMs, the tasks under way. No I/O and no clock: the time
//! comes in as an argument, what happened goes out as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::tasks::Tasks;
use crate::wire::ProviderSpec;

/// Frames waiting for one control channel: more than any bench has tasks under way, so that only a dead reader fills it.
const CHANNEL_FRAMES: usize = 16_384;

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

/// All of it.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) sessions: BTreeMap<String, Session>,
    pub(crate) rows: BTreeMap<String, Row>,
    pub(crate) tasks: Tasks,
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
            tasks: Tasks::default(),
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

    /// Turns the sessions inactive whose heartbeats stopped for `ttl`; gives their ids.
    pub(crate) fn expire_sessions(&mut self, now: Instant, ttl: Duration) -> Vec<String> {
        let mut expired = Vec::new();
        for (id, session) in &mut self.sessions {
            if session.live && now.duration_since(session.last_beat) >= ttl {
                session.live = false;
                expired.push(id.clone());
            }
        }
        for row in self.rows.values_mut().filter(|row| expired.contains(&row.owner)) {
            row.active = false;
        }
        expired
    }

    /// When the next session expires or the next task is overdue.
    pub(crate) fn next_deadline(&self, ttl: Duration) -> Option<Instant> {
        let live = self.sessions.values().filter(|session| session.live);
        let sessions = live.filter_map(|session| session.last_beat.checked_add(ttl));
        sessions.chain(self.tasks.next_deadline()).min()
    }

    /// Forgets every session and task, as a restart does; rows stay, inactive, as a database keeps them.
    pub(crate) fn forget(&mut self) {
        self.sessions.clear();
        self.tasks = Tasks::default();
        self.rows.values_mut().for_each(|row| row.active = false);
    }
}

impl Session {
    fn new(now: Instant) -> Self {
        Self { last_beat: now, live: true, channel: None, names: BTreeSet::new() }
    }
}
