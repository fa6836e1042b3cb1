//! What the conditions of tests are evaluated on: a copy of the state at one moment.

use serde::Serialize;

use crate::core::Core;
use crate::hub::Hub;
use crate::wire::LlmView;

/// The state at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Every session, by id.
    pub sessions: Vec<SessionView>,
    /// Every row of the list, by name.
    pub llms: Vec<LlmView>,
    /// The tasks under way, by id.
    pub tasks: Vec<TaskView>,
}

/// A session at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// Whether its heartbeats keep coming.
    pub live: bool,
    /// Whether its control channel is open.
    pub connected: bool,
}

/// A task under way.
#[derive(Debug, Clone, Serialize)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// The LLM it runs on.
    pub llm: String,
    /// The session it was sent to.
    pub session: String,
    /// Whether its caller asked for a stream.
    pub streaming: bool,
}

impl Snapshot {
    pub(crate) fn new(hub: &Hub, core: &Core) -> Self {
        let sessions = core.state.sessions.iter().map(|(id, session)| SessionView {
            id: id.clone(),
            live: session.live,
            connected: session.channel.is_some(),
        });
        let under_way = core.state.tasks.iter_under_way();
        let tasks = under_way.map(|(id, task)| TaskView {
            id: id.clone(),
            llm: task.llm.clone(),
            session: task.session.clone(),
            streaming: task.streaming,
        });
        Self { sessions: sessions.collect(), llms: hub.llms(core, None), tasks: tasks.collect() }
    }

    /// Whether a row of this name is active and its session's channel open, so that an inference would be sent.
    pub fn is_active(&self, llm: &str) -> bool {
        let row = self.llms.iter().find(|row| row.spec.name == llm && row.status == "active");
        let connected = |row: &LlmView| {
            self.sessions.iter().any(|session| session.id == row.provider_session_id && session.connected)
        };
        row.is_some_and(connected)
    }
}
