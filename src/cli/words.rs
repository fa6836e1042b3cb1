//! The words for the bridge's enums, in the status and in JSON. They are stable: scripts compare them.

use crate::pb::{AgentState, ProviderState, TaskState, Verdict};

/// The word for a value that this program is too old to know.
const UNKNOWN: &str = "unknown";

/// The link's state.
pub fn agent_state(state: i32) -> &'static str {
    match AgentState::try_from(state).unwrap_or_default() {
        AgentState::Unspecified => UNKNOWN,
        AgentState::NoCredentials => "no_credentials",
        AgentState::Idle => "idle",
        AgentState::Connecting => "connecting",
        AgentState::Online => "online",
        AgentState::Backoff => "backoff",
        AgentState::Refused => "refused",
        AgentState::Draining => "draining",
    }
}

/// A provider's state; an unstated one is ready.
pub fn provider_state(state: i32) -> &'static str {
    match ProviderState::try_from(state) {
        Ok(ProviderState::Unspecified | ProviderState::Ready) => "ready",
        Ok(ProviderState::Loading) => "loading",
        Ok(ProviderState::Unavailable) => "unavailable",
        Err(_) => UNKNOWN,
    }
}

/// What became of a provider.
pub fn verdict(verdict: i32) -> &'static str {
    match Verdict::try_from(verdict).unwrap_or_default() {
        Verdict::Unspecified => UNKNOWN,
        Verdict::Published => "published",
        Verdict::NotOptedIn => "not_opted_in",
        Verdict::StandingBy => "standing_by",
        Verdict::Refused => "refused",
    }
}

/// The phase of a task.
pub fn task_state(state: i32) -> &'static str {
    match TaskState::try_from(state).unwrap_or_default() {
        TaskState::Unspecified => UNKNOWN,
        TaskState::Queued => "queued",
        TaskState::Running => "running",
        TaskState::Streaming => "streaming",
        TaskState::Cancelling => "cancelling",
        TaskState::Delivering => "delivering",
    }
}
