//! What `mcprelay status -o json` prints. Scripts read it: fields may be added, but none is renamed or removed.
//!
//! The names are those of the bridge's proto in camelCase; durations are in milliseconds, points in time in RFC 3339; what is unknown is
//! null or an empty text, and every field is always present.

use serde::Serialize;

use super::words;
use crate::pb;

/// The whole status.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusJson<'a> {
    agent: Agent<'a>,
    agent_version: &'a str,
    pid: u32,
    started_at: &'a str,
    mcpd_url: &'a str,
    provider_session_id: &'a str,
    sessions: Vec<Session<'a>>,
    providers: Vec<Provider<'a>>,
    tasks: Vec<Task<'a>>,
    recent: Vec<Ended<'a>>,
    totals: Totals,
    awake: bool,
}

/// `state`: no_credentials, idle, connecting, online, backoff, refused or draining.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Agent<'a> {
    state: &'static str,
    detail: &'a str,
    advice: &'a str,
    next_attempt_ms: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Session<'a> {
    session_id: &'a str,
    client_id: &'a str,
    client_version: &'a str,
    connected_at: &'a str,
    providers: u32,
    draining: bool,
}

/// `state`: ready, loading or unavailable, or null where it is not opted in and so not asked; `verdict`: published, not_opted_in, standing_by or refused.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Provider<'a> {
    name: &'a str,
    r#type: &'a str,
    model: &'a str,
    tier: &'a str,
    description: &'a str,
    publish: bool,
    state: Option<&'static str>,
    state_detail: &'a str,
    features: &'a [String],
    context_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    session_id: &'a str,
    verdict: &'static str,
    detail: &'a str,
    running: u32,
    queued: u32,
    max_in_flight: u32,
    max_queued: u32,
    paused: bool,
    paused_until: &'a str,
}

/// `state`: queued, running, streaming, cancelling or delivering.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Task<'a> {
    task_id: &'a str,
    llm_name: &'a str,
    state: &'static str,
    age_ms: u32,
    first_token_ms: Option<u32>,
    chunks: u32,
    caller: &'a str,
    streaming: bool,
}

/// `outcome`: ok, cancelled or the failure's code.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended<'a> {
    task_id: &'a str,
    llm_name: &'a str,
    ended_at: &'a str,
    outcome: &'a str,
    duration_ms: u32,
    first_token_ms: Option<u32>,
    input_tokens: Option<u32>,
    output_tokens: Option<u32>,
    chunks: u32,
    caller: &'a str,
    reason: &'a str,
}

/// Counts since the agent started; `tasksOverloaded` is a part of `tasksFailed`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Totals {
    tasks: u64,
    tasks_ok: u64,
    tasks_failed: u64,
    tasks_cancelled: u64,
    tasks_overloaded: u64,
    chunks: u64,
    posts: u64,
    late_chunks: u64,
    reconnects: u64,
    tasks_repeated: u64,
}

impl<'a> From<&'a pb::WatchStatusResponse> for StatusJson<'a> {
    fn from(status: &'a pb::WatchStatusResponse) -> Self {
        Self {
            agent: agent(status.agent.as_ref()),
            agent_version: &status.agent_version,
            pid: status.pid,
            started_at: &status.started_at,
            mcpd_url: &status.mcpd_url,
            provider_session_id: &status.provider_session_id,
            sessions: status.sessions.iter().map(session).collect(),
            providers: status.providers.iter().filter_map(provider).collect(),
            tasks: status.tasks.iter().map(task).collect(),
            recent: status.recent.iter().map(ended).collect(),
            totals: status.totals.as_ref().map(totals).unwrap_or_default(),
            awake: status.awake,
        }
    }
}

fn agent(agent: Option<&pb::AgentStatus>) -> Agent<'_> {
    Agent {
        state: words::agent_state(agent.map_or(0, |agent| agent.state)),
        detail: agent.map_or("", |agent| &agent.detail),
        advice: agent.map_or("", |agent| &agent.advice),
        next_attempt_ms: agent.and_then(|agent| agent.next_attempt_ms),
    }
}

fn session(session: &pb::SessionStatus) -> Session<'_> {
    Session {
        session_id: &session.session_id,
        client_id: &session.client_id,
        client_version: &session.client_version,
        connected_at: &session.connected_at,
        providers: session.providers,
        draining: session.draining,
    }
}

fn provider(status: &pb::ProviderStatus) -> Option<Provider<'_>> {
    let pushed = status.provider.as_ref()?;
    Some(Provider {
        name: &pushed.name,
        r#type: &pushed.r#type,
        model: &pushed.model,
        tier: &pushed.tier,
        description: &pushed.description,
        publish: pushed.publish,
        state: (status.verdict() != pb::Verdict::NotOptedIn).then(|| words::provider_state(pushed.state)),
        state_detail: &pushed.state_detail,
        features: &pushed.features,
        context_tokens: pushed.context_tokens,
        max_output_tokens: pushed.max_output_tokens,
        session_id: &status.session_id,
        verdict: words::verdict(status.verdict),
        detail: &status.detail,
        running: status.running,
        queued: status.queued,
        max_in_flight: status.max_in_flight,
        max_queued: status.max_queued,
        paused: status.paused,
        paused_until: &status.paused_until,
    })
}

fn task(task: &pb::TaskStatus) -> Task<'_> {
    Task {
        task_id: &task.task_id,
        llm_name: &task.llm_name,
        state: words::task_state(task.state),
        age_ms: task.age_ms,
        first_token_ms: task.first_token_ms,
        chunks: task.chunks,
        caller: &task.caller,
        streaming: task.streaming,
    }
}

fn ended(task: &pb::EndedTask) -> Ended<'_> {
    Ended {
        task_id: &task.task_id,
        llm_name: &task.llm_name,
        ended_at: &task.ended_at,
        outcome: &task.outcome,
        duration_ms: task.duration_ms,
        first_token_ms: task.first_token_ms,
        input_tokens: task.usage.and_then(|usage| usage.input_tokens),
        output_tokens: task.usage.and_then(|usage| usage.output_tokens),
        chunks: task.chunks,
        caller: &task.caller,
        reason: &task.reason,
    }
}

fn totals(totals: &pb::Totals) -> Totals {
    // The proto's doubles are whole numbers; `as` brings whatever else a peer may send within bounds.
    let count = |number: f64| number as u64;
    Totals {
        tasks: count(totals.tasks),
        tasks_ok: count(totals.tasks_ok),
        tasks_failed: count(totals.tasks_failed),
        tasks_cancelled: count(totals.tasks_cancelled),
        tasks_overloaded: count(totals.tasks_overloaded),
        chunks: count(totals.chunks),
        posts: count(totals.posts),
        late_chunks: count(totals.late_chunks),
        reconnects: count(totals.reconnects),
        tasks_repeated: count(totals.tasks_repeated),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::view::tests::example;

    #[test]
    fn the_document_has_stable_names_and_numbers() {
        let status = example();
        let value = serde_json::to_value(StatusJson::from(&status)).expect("serialises");
        assert_eq!(
            value["agent"],
            json!({"state": "backoff", "detail": "connection refused", "advice": "", "nextAttemptMs": 4200})
        );
        assert_eq!(value["providers"][0]["maxInFlight"], json!(4));
        assert_eq!(value["providers"][0]["type"], json!("ollama"));
        assert_eq!(value["providers"][0]["state"], json!("ready"));
        assert_eq!(value["providers"][1]["verdict"], json!("not_opted_in"));
        assert_eq!(value["providers"][1]["state"], Value::Null);
        assert_eq!(value["tasks"][0]["state"], json!("streaming"));
        assert_eq!(value["recent"][0]["outputTokens"], json!(128));
        assert_eq!(value["recent"][1]["outputTokens"], Value::Null);
        assert_eq!(value["totals"]["tasksOk"], json!(41));
    }

    #[test]
    fn an_empty_status_has_every_field_too() {
        let value =
            serde_json::to_value(StatusJson::from(&pb::WatchStatusResponse::default())).expect("serialises");
        assert_eq!(value["agent"]["state"], json!("unknown"));
        assert_eq!(value["totals"]["tasks"], json!(0));
    }
}
