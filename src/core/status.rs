//! What the core contributes to the status.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Core, Paused,
    providers::Life,
    shutdown::Drain,
    tasks::{Entry, Local, Upstream},
};
use crate::domain::{Activity, LinkStatus, Provider, SessionKey, TaskId, TaskKey, Verdict};

/// One connected local program.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Its key.
    pub key: SessionKey,
    /// From its Hello.
    pub client_id: String,
    /// From its Hello.
    pub client_version: String,
    /// How many providers its last snapshot had.
    pub providers: usize,
    /// Whether it has said goodbye.
    pub draining: bool,
}

/// One pushed provider and its load.
#[derive(Clone, Debug)]
pub struct ProviderView {
    /// As pushed.
    pub provider: Provider,
    /// By whom.
    pub session: SessionKey,
    /// What became of it.
    pub verdict: Verdict,
    /// Inferences running on it.
    pub running: u32,
    /// Tasks waiting for its name.
    pub queued: u32,
    /// The most that may run at once.
    pub max_in_flight: u32,
    /// The most that may wait.
    pub max_queued: u32,
    /// What keeps it from work, if it is paused.
    pub paused: Option<Paused>,
    /// Whether its session is gone and it is only listed for the grace period.
    pub lost: bool,
}

impl ProviderView {
    /// The one word for whether it works now: "paused", "lost", or its own state's.
    pub fn state(&self) -> &'static str {
        match self {
            Self { paused: Some(_), .. } => "paused",
            Self { lost: true, .. } => "lost",
            Self { provider, .. } => provider.state.as_str(),
        }
    }
}

/// Where a task under way stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskPhase {
    /// It waits for a slot.
    Queued,
    /// It is offered; no output yet.
    Running,
    /// Output is flowing.
    Streaming,
    /// It was asked to stop.
    Cancelling,
    /// Its end is on the way to mcpd.
    Delivering,
}

/// One task under way.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// The agent's key.
    pub key: TaskKey,
    /// mcpd's id.
    pub id: TaskId,
    /// The virtual LLM.
    pub llm: String,
    /// Where it stands.
    pub phase: TaskPhase,
    /// Since it arrived.
    pub age: Duration,
    /// Who called, if mcpd says.
    pub caller: Option<Arc<str>>,
    /// Whether the caller wants a stream.
    pub streaming: bool,
}

impl Core {
    /// The link to mcpd.
    pub fn link_status(&self, now: Instant) -> LinkStatus {
        let status = self.link.status(now);
        match self.drain {
            Drain::Finishing(until) => {
                LinkStatus { next_attempt: Some(until.saturating_duration_since(now)), ..status }
            }
            _ => status,
        }
    }

    /// The sticky id of the session in mcpd, once there is one.
    pub fn provider_session(&self) -> Option<&str> {
        self.link.session()
    }

    /// How often a control channel was opened in the place of one that was lost.
    pub fn reconnects(&self) -> u64 {
        self.link.reconnects()
    }

    /// How many tasks are under way.
    pub fn tasks_under_way(&self) -> usize {
        self.tasks.iter().count()
    }

    /// Whether a provider works on a task.
    pub fn runs(&self) -> bool {
        self.providers.any_running()
    }

    /// The connected local programs.
    pub fn sessions(&self) -> Vec<SessionView> {
        let connected = self.providers.sessions.iter().filter(|(_, s)| !matches!(s.life, Life::Lost(_)));
        let view = |(key, s): (&SessionKey, &super::providers::Session)| SessionView {
            key: *key,
            client_id: s.hello.client_id.clone(),
            client_version: s.hello.client_version.clone(),
            providers: s.providers.len(),
            draining: s.life.is_draining(),
        };
        connected.map(view).collect()
    }

    /// Every pushed provider.
    pub fn providers(&self) -> Vec<ProviderView> {
        let sessions = self.providers.sessions.iter();
        sessions
            .flat_map(|(key, s)| s.providers.values().map(|p| self.provider_view(*key, s.life, p)))
            .collect()
    }

    fn provider_view(&self, session: SessionKey, life: Life, provider: &Provider) -> ProviderView {
        ProviderView {
            provider: provider.clone(),
            session,
            verdict: self.providers.verdict(session, provider),
            running: self.providers.running(&provider.name, session),
            queued: self.providers.queued(&provider.name),
            max_in_flight: self.providers.limit(provider),
            max_queued: self.providers.max_queued(),
            paused: self.providers.paused(provider),
            lost: matches!(life, Life::Lost(_)),
        }
    }

    /// The tasks under way, oldest first.
    pub fn tasks(&self, now: Instant, activity: impl Fn(TaskKey) -> Activity) -> Vec<TaskView> {
        let view = |(key, entry): (TaskKey, &Entry)| TaskView {
            key,
            id: entry.task.id.clone(),
            llm: entry.task.llm.clone(),
            phase: phase(entry, activity(key)),
            age: now.duration_since(entry.arrived),
            caller: entry.task.caller.clone(),
            streaming: entry.task.streaming,
        };
        self.tasks.iter().map(view).collect()
    }
}

fn phase(entry: &Entry, activity: Activity) -> TaskPhase {
    match (entry.local, entry.upstream) {
        (Local::Cancelling { .. }, _) => TaskPhase::Cancelling,
        (_, Upstream::Ending | Upstream::Settled) => TaskPhase::Delivering,
        (Local::Queued { .. }, _) => TaskPhase::Queued,
        _ if activity.any_output => TaskPhase::Streaming,
        _ => TaskPhase::Running,
    }
}
