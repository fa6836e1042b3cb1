//! The status, assembled from what the core knows and what the agent has seen.

use std::time::SystemTime;

use tokio::time::Instant;

use super::{
    relay::{Ended, Relay},
    relays::Relays,
    sessions::Sessions,
};
use crate::{
    bridge::convert,
    core::{Core, Paused, ProviderView, SessionView, TaskPhase, TaskView},
    domain::Pause,
    pb,
};

/// What the status is assembled from.
pub(super) struct Parts<'a> {
    pub(super) core: &'a Core,
    pub(super) relays: &'a Relays,
    pub(super) sessions: &'a Sessions,
    pub(super) mcpd_url: &'a str,
    pub(super) started: SystemTime,
    pub(super) awake: bool,
}

/// The whole status at this moment.
pub(super) fn of(parts: &Parts<'_>) -> pb::WatchStatusResponse {
    let now = Instant::now();
    let Parts { core, relays, sessions, .. } = parts;
    let tasks = core.tasks(now.into_std(), |key| relays.activity(key)).into_iter();
    pb::WatchStatusResponse {
        agent: Some(convert::link_status(&core.link_status(now.into_std()))),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: timestamp(parts.started),
        mcpd_url: parts.mcpd_url.to_owned(),
        provider_session_id: core.provider_session().unwrap_or_default().to_owned(),
        sessions: core.sessions().into_iter().map(|view| session_status(view, sessions)).collect(),
        providers: core.providers().into_iter().map(provider_status).collect(),
        tasks: tasks.map(|view| task_status(&view, relays.get(view.key))).collect(),
        recent: relays.history().recent.iter().map(ended_task).collect(),
        totals: Some(totals(parts)),
        awake: parts.awake,
    }
}

fn session_status(view: SessionView, sessions: &Sessions) -> pb::SessionStatus {
    pb::SessionStatus {
        session_id: view.key.to_string(),
        client_id: view.client_id,
        client_version: view.client_version,
        connected_at: sessions.since(view.key).map(timestamp).unwrap_or_default(),
        providers: u32::try_from(view.providers).unwrap_or(u32::MAX),
        draining: view.draining,
    }
}

fn totals(parts: &Parts<'_>) -> pb::Totals {
    let history = parts.relays.history();
    pb::Totals {
        tasks: count(history.tasks),
        tasks_ok: count(history.ok),
        tasks_failed: count(history.failed),
        tasks_cancelled: count(history.cancelled),
        tasks_overloaded: count(history.overloaded),
        chunks: count(parts.relays.chunks()),
        posts: count(history.posts),
        late_chunks: count(history.late_chunks + parts.sessions.late_chunks()),
        reconnects: count(parts.core.reconnects()),
        tasks_repeated: count(history.repeated),
    }
}

/// Exact up to 2^53, which no agent reaches.
#[allow(clippy::cast_precision_loss)]
fn count(n: u64) -> f64 {
    n as f64
}

fn timestamp(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn provider_status(view: ProviderView) -> pb::ProviderStatus {
    let (verdict, error) = convert::verdict(&view.verdict);
    let detail = match error {
        Some(error) => error.message,
        None if view.paused.is_some() => view.paused.map(|paused| paused.to_string()).unwrap_or_default(),
        None if view.lost => "its program went away; listed for a few seconds more".to_owned(),
        None => String::new(),
    };
    pb::ProviderStatus {
        provider: Some(convert::provider_to_pb(&view.provider)),
        session_id: view.session.to_string(),
        verdict: verdict.into(),
        detail,
        running: view.running,
        queued: view.queued,
        max_in_flight: view.max_in_flight,
        max_queued: view.max_queued,
        paused: view.paused.is_some(),
        paused_until: match view.paused {
            Some(Paused::ByOwner(Pause { until: Some(until) })) => timestamp(until.into()),
            _ => String::new(),
        },
    }
}

fn task_status(view: &TaskView, relay: Option<&Relay>) -> pb::TaskStatus {
    let state = match view.phase {
        TaskPhase::Queued => pb::TaskState::Queued,
        TaskPhase::Running => pb::TaskState::Running,
        TaskPhase::Streaming => pb::TaskState::Streaming,
        TaskPhase::Cancelling => pb::TaskState::Cancelling,
        TaskPhase::Delivering => pb::TaskState::Delivering,
    };
    let (chunks, first_token_at) = relay.map_or((0, None), |r| r.outbox.progress());
    pb::TaskStatus {
        task_id: view.id.as_str().to_owned(),
        llm_name: view.llm.clone(),
        state: state.into(),
        age_ms: convert::millis(view.age),
        first_token_ms: relay
            .zip(first_token_at)
            .map(|(r, at)| convert::millis(at.duration_since(r.arrived))),
        chunks,
        caller: view.caller.as_deref().unwrap_or_default().to_owned(),
        streaming: view.streaming,
    }
}

fn ended_task(ended: &Ended) -> pb::EndedTask {
    pb::EndedTask {
        task_id: ended.id.as_str().to_owned(),
        llm_name: ended.llm.clone(),
        ended_at: timestamp(ended.at),
        outcome: ended.summary.outcome.as_str().to_owned(),
        duration_ms: convert::millis(ended.duration),
        first_token_ms: ended.first_token.map(convert::millis),
        usage: convert::usage_to_pb(ended.summary.usage),
        chunks: ended.summary.chunks,
        caller: ended.caller.as_deref().unwrap_or_default().to_owned(),
        reason: ended.summary.reason.clone().unwrap_or_default(),
    }
}
