//! The status as text: what `status` prints once and `status --watch` again and again.

use std::time::{Duration, SystemTime};

use chrono::Local;

use super::{
    agent_status::reason,
    output::{self, Look},
    words,
};
use crate::{
    domain::{Printable, counted},
    pb::{
        AgentState, EndedTask, ProviderState, ProviderStatus, SessionStatus, TaskStatus, Verdict,
        WatchStatusResponse,
    },
};

/// A heading with a table.
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// The table's columns.
    pub header: &'static [&'static str],
    /// The table's cells.
    pub rows: Vec<Vec<String>>,
    /// Sentences that belong to the rows and are too long for a cell.
    pub notes: Vec<String>,
}

/// Tokens per second of one provider, if known; pieces of output count as tokens.
pub type Rate<'a> = &'a dyn Fn(&str) -> Option<f64>;

const PROVIDERS: &[&str] = &["PROVIDER", "MODEL", "STATE", "VERDICT", "RUNNING", "QUEUED"];
const PROVIDERS_RATE: &[&str] = &["PROVIDER", "MODEL", "STATE", "VERDICT", "RUNNING", "QUEUED", "TOK/S"];
const TASKS: &[&str] = &["TASK", "LLM", "STATE", "AGE", "FIRST TOKEN", "CHUNKS", "CALLER"];
const SESSIONS: &[&str] = &["SESSION", "CLIENT", "VERSION", "PROVIDERS", "CONNECTED"];
const RECENT: &[&str] = &["ENDED", "LLM", "OUTCOME", "TOOK", "FIRST", "TOKENS", "CALLER"];

/// The state of a provider that is not opted in: nobody asks whether it can work.
const NOT_ASKED: &str = "-";
/// How many of the last failures stand below the table with their reasons.
const REASONS: usize = 5;

/// The whole status, to be printed once.
pub fn text(status: &WatchStatusResponse, now: SystemTime, look: Look) -> String {
    let mut text = head(status, now).join("\n") + "\n";
    for section in sections(status, now, None) {
        text += &format!("\n{}", section_text(&section, look));
    }
    text
}

/// One section; without rows it is one line that says so. Only tables are cut to the width.
pub fn section_text(section: &Section, look: Look) -> String {
    if section.rows.is_empty() {
        return format!("{}: none\n", section.title);
    }
    let table = output::table(section.header, &section.rows, look);
    section.notes.iter().fold(table, |text, note| text + &format!("  {}\n", Printable(note)))
}

/// The lines above the tables: who, for how long, and the link to mcpd.
pub fn head(status: &WatchStatusResponse, now: SystemTime) -> Vec<String> {
    let up = output::age_since(&status.started_at, now);
    let mut lines = vec![
        format!("mcprelay {}, pid {}, up {up}", Printable(&status.agent_version), status.pid),
        format!("mcpd: {}", link(status)),
    ];
    lines.extend(why(status).map(|why| format!("      {why}")));
    lines.push(totals(status));
    lines.extend(status.awake.then(|| "kept awake while tasks run".to_owned()));
    lines
}

fn link(status: &WatchStatusResponse) -> String {
    let state = words::agent_state(status.agent.as_ref().map_or(0, |agent| agent.state));
    let url = (!status.mcpd_url.is_empty()).then(|| Printable(&status.mcpd_url).to_string());
    let next = status.agent.as_ref().and_then(|agent| agent.next_attempt_ms);
    let next = next.map(|ms| (is_draining(status), ms.div_ceil(1000))).map(|next| match next {
        (false, seconds) => format!("next attempt in {seconds}s"),
        (true, seconds) => format!("{} left, for {seconds}s at most", counted(status.tasks.len(), "task")),
    });
    let parts: Vec<_> = [Some(state.to_owned()), url, next].into_iter().flatten().collect();
    parts.join(", ")
}

/// The reason for the link's state, if there is one.
fn why(status: &WatchStatusResponse) -> Option<String> {
    Some(reason(status)).filter(|reason| !reason.is_empty()).map(|reason| reason.to_string())
}

fn is_draining(status: &WatchStatusResponse) -> bool {
    status.agent.as_ref().is_some_and(|agent| agent.state() == AgentState::Draining)
}

/// The counts, of which those after the colon add up to the one before it.
fn totals(status: &WatchStatusResponse) -> String {
    let totals = status.totals.unwrap_or_default();
    let overloaded = match totals.tasks_overloaded {
        0.0 => String::new(),
        overloaded => format!(" ({overloaded} overloaded)"),
    };
    format!(
        "{} {}: {} ok, {} failed{overloaded}, {} cancelled, {} under way; reconnects: {}",
        totals.tasks,
        if totals.tasks == 1.0 { "task" } else { "tasks" },
        totals.tasks_ok,
        totals.tasks_failed,
        totals.tasks_cancelled,
        status.tasks.len(),
        totals.reconnects
    )
}

/// The status as one line, for logs.
pub fn line(status: &WatchStatusResponse, rate: Rate<'_>) -> String {
    let mut line = link(status);
    line.extend(why(status).map(|why| format!(" ({why})")));
    for provider in &status.providers {
        let name = provider.provider.as_ref().map_or("", |pushed| &pushed.name);
        let (running, most, queued) = (provider.running, provider.max_in_flight, provider.queued);
        let state = match state_word(provider) {
            NOT_ASKED => Some("not opted in"),
            "paused" if !provider.detail.is_empty() => Some(&*provider.detail),
            state => Some(state).filter(|state| *state != "ready"),
        };
        let state = state.map(|state| format!("{state}, ")).unwrap_or_default();
        line += &format!("; {}: {state}{running}/{most} running, {queued} queued", Printable(name));
        line.extend(rate(name).map(|rate| format!(", {rate:.1} tok/s")));
    }
    line + "; " + &totals(status)
}

/// The tables, the most wanted first.
pub fn sections(status: &WatchStatusResponse, now: SystemTime, rate: Option<Rate<'_>>) -> Vec<Section> {
    vec![
        Section {
            title: "Providers",
            header: if rate.is_some() { PROVIDERS_RATE } else { PROVIDERS },
            rows: status
                .providers
                .iter()
                .map(|provider| provider_row(provider, is_draining(status), rate))
                .collect(),
            notes: status.providers.iter().filter_map(provider_note).collect(),
        },
        Section {
            title: "Tasks under way",
            header: TASKS,
            rows: status.tasks.iter().map(task_row).collect(),
            notes: Vec::new(),
        },
        Section {
            title: "Sessions",
            header: SESSIONS,
            rows: status.sessions.iter().map(|session| session_row(session, now)).collect(),
            notes: Vec::new(),
        },
        Section {
            title: "Tasks that ended",
            header: RECENT,
            rows: status.recent.iter().map(|task| ended_row(task, now)).collect(),
            notes: status.recent.iter().filter_map(|task| ended_note(task, now)).take(REASONS).collect(),
        },
    ]
}

fn provider_row(status: &ProviderStatus, draining: bool, rate: Option<Rate<'_>>) -> Vec<String> {
    let pushed = status.provider.clone().unwrap_or_default();
    let state = state_word(status);
    let verdict = match is_withdrawn(status, draining) {
        true => "withdrawn".to_owned(),
        false => words::verdict(status.verdict).replace('_', " "),
    };
    let per_second =
        rate.map(|rate| rate(&pushed.name).map_or_else(|| "-".into(), |rate| format!("{rate:.1}")));
    let mut row = vec![pushed.name, pushed.model, state.to_owned(), verdict];
    row.push(format!("{}/{}", status.running, status.max_in_flight));
    row.push(format!("{}/{}", status.queued, status.max_queued));
    row.extend(per_second);
    row
}

fn state_word(status: &ProviderStatus) -> &'static str {
    match status.verdict() {
        _ if status.paused => "paused",
        Verdict::NotOptedIn => NOT_ASKED,
        _ => words::provider_state(status.provider.as_ref().map_or(0, |pushed| pushed.state)),
    }
}

/// Whether it would be published if it were neither paused nor away, and the agent were not stopping: mcpd does not list it.
fn is_withdrawn(status: &ProviderStatus, draining: bool) -> bool {
    let state = status.provider.as_ref().map(|pushed| pushed.state());
    let rests = draining || status.paused || state == Some(ProviderState::Unavailable);
    status.verdict() == Verdict::Published && rests
}

/// What is to be said about a provider: why it does not work, or may not work.
fn provider_note(status: &ProviderStatus) -> Option<String> {
    let pushed = status.provider.as_ref()?;
    // What is not opted in has its reason in the table.
    let own = pushed.publish.then(|| pushed.state_detail.clone());
    let until = Some(&*status.paused_until).filter(|until| !until.is_empty());
    let until = until.map(|until| format!(" until {}", output::time_of_day(until, &Local::now())));
    let ours = status.detail.clone() + &until.unwrap_or_default();
    let reasons: Vec<_> = own.into_iter().chain([ours]).filter(|why| !why.is_empty()).collect();
    (!reasons.is_empty()).then(|| format!("{}: {}", pushed.name, reasons.join("; ")))
}

fn task_row(task: &TaskStatus) -> Vec<String> {
    vec![
        task.task_id.clone(),
        task.llm_name.clone(),
        words::task_state(task.state).to_owned(),
        output::age(Duration::from_millis(task.age_ms.into())),
        task.first_token_ms.map_or_else(|| "-".into(), output::latency),
        task.chunks.to_string(),
        or_dash(&task.caller),
    ]
}

fn session_row(session: &SessionStatus, now: SystemTime) -> Vec<String> {
    let connected = output::age_since(&session.connected_at, now);
    vec![
        session.session_id.clone(),
        session.client_id.clone(),
        session.client_version.clone(),
        session.providers.to_string(),
        if session.draining { format!("{connected}, draining") } else { connected },
    ]
}

fn ended_row(task: &EndedTask, now: SystemTime) -> Vec<String> {
    let tokens = task.usage.and_then(|usage| usage.output_tokens);
    vec![
        format!("{} ago", output::age_since(&task.ended_at, now)),
        task.llm_name.clone(),
        task.outcome.clone(),
        output::latency(task.duration_ms),
        task.first_token_ms.map_or_else(|| "-".into(), output::latency),
        tokens.map_or_else(|| "-".into(), |tokens| tokens.to_string()),
        or_dash(&task.caller),
    ]
}

/// Why a task failed.
fn ended_note(task: &EndedTask, now: SystemTime) -> Option<String> {
    let ago = output::age_since(&task.ended_at, now);
    (!task.reason.is_empty())
        .then(|| format!("{} {ago} ago, {}: {}", task.llm_name, task.outcome, task.reason))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pb::{AgentStatus, Provider, TaskState, Totals, Usage};

    /// A moment with one of everything.
    pub(crate) fn example() -> WatchStatusResponse {
        let provider = |name: &str, publish| Provider {
            name: name.into(),
            r#type: "ollama".into(),
            model: "qwen3:8b-q4_K_M".into(),
            publish,
            ..Provider::default()
        };
        let ended = |outcome: &str, usage| EndedTask {
            task_id: "t-8".into(),
            llm_name: "qwen3".into(),
            ended_at: "2026-01-01T00:00:55Z".into(),
            outcome: outcome.into(),
            duration_ms: 3_140,
            first_token_ms: Some(85),
            usage,
            caller: "alice".into(),
            ..EndedTask::default()
        };
        WatchStatusResponse {
            agent: Some(AgentStatus {
                state: AgentState::Backoff.into(),
                advice: String::new(),
                detail: "connection refused".into(),
                next_attempt_ms: Some(4_200),
            }),
            agent_version: "0.1.0".into(),
            pid: 77,
            started_at: "2025-12-31T21:00:00Z".into(),
            mcpd_url: "https://mcpd.example.com".into(),
            provider_session_id: "s-1".into(),
            sessions: vec![SessionStatus {
                session_id: "s1".into(),
                client_id: "mcplocal-4711".into(),
                client_version: "mcplocal/1.4.0".into(),
                connected_at: "2026-01-01T00:00:00Z".into(),
                providers: 2,
                draining: false,
            }],
            providers: vec![
                ProviderStatus {
                    provider: Some(provider("qwen3", true)),
                    session_id: "s1".into(),
                    verdict: Verdict::Published.into(),
                    running: 1,
                    max_in_flight: 4,
                    max_queued: 64,
                    ..ProviderStatus::default()
                },
                ProviderStatus {
                    provider: Some(provider("private", false)),
                    session_id: "s1".into(),
                    verdict: Verdict::NotOptedIn.into(),
                    paused: true,
                    max_in_flight: 4,
                    max_queued: 64,
                    ..ProviderStatus::default()
                },
            ],
            tasks: vec![TaskStatus {
                task_id: "0f8fad5b-d9cb-469f-a165-70867728950e-and-more".into(),
                llm_name: "qwen3".into(),
                state: TaskState::Streaming.into(),
                age_ms: 12_400,
                first_token_ms: Some(1_250),
                chunks: 200,
                caller: String::new(),
                streaming: true,
            }],
            recent: vec![
                ended(
                    "ok",
                    Some(Usage { input_tokens: Some(9), output_tokens: Some(128), ..Usage::default() }),
                ),
                ended("queue_timeout", None),
            ],
            awake: false,
            totals: Some(Totals { tasks: 43.0, tasks_ok: 41.0, tasks_failed: 1.0, ..Totals::default() }),
        }
    }

    /// One minute into 2026.
    pub(crate) fn now() -> SystemTime {
        humantime::parse_rfc3339("2026-01-01T00:01:00Z").expect("a time")
    }

    #[test]
    fn the_status_fits_80_columns_and_reads_as_it_should() {
        let text = text(&example(), now(), Look { width: Some(80), ..Look::default() });
        let expected = "\
mcprelay 0.1.0, pid 77, up 3h1m
mcpd: backoff, https://mcpd.example.com, next attempt in 5s
      connection refused
43 tasks: 41 ok, 1 failed, 0 cancelled, 1 under way; reconnects: 0

PROVIDER   MODEL             STATE    VERDICT        RUNNING   QUEUED
qwen3      qwen3:8b-q4_K_M   ready    published      1/4       0/64
private    qwen3:8b-q4_K_M   paused   not opted in   0/4       0/64

";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("5s ago   qwen3   queue_timeout   3.1s   85ms    -        alice\n"), "{text}");
    }

    #[test]
    fn why_a_provider_does_not_work_stands_below_the_table_and_is_never_cut() {
        let mut status = example();
        let reason = "http://127.0.0.1:11434/v1 does not answer: Connection refused (os error 111)";
        let pushed = status.providers[0].provider.get_or_insert_default();
        pushed.set_state(ProviderState::Unavailable);
        pushed.state_detail = reason.into();
        status.providers[1].detail = "paused by its owner".into();
        let text = text(&status, now(), Look { width: Some(80), ..Look::default() });
        assert!(text.contains(&format!("0/64\n  qwen3: {reason}\n")), "{text}");
        assert!(text.contains("unavailable   withdrawn "), "mcpd does not list it: {text}");
        assert!(text.contains("\n  private: paused by its owner\n"), "{text}");
    }

    #[test]
    fn a_paused_provider_is_called_withdrawn_and_an_idle_link_says_why() {
        let mut status = example();
        status.agent.get_or_insert_default().set_state(AgentState::Idle);
        status.providers.truncate(1);
        status.providers[0].paused = true;
        let text = text(&status, now(), Look { width: Some(80), ..Look::default() });
        assert!(text.contains("paused   withdrawn   "), "{text}");
        assert!(
            text.contains("\n      every opted-in provider is paused; let them work again with"),
            "{text}"
        );
    }

    #[test]
    fn a_provider_that_is_not_opted_in_has_no_state_and_refusals_for_overload_are_failures() {
        let mut status = example();
        status.providers[1].paused = false;
        let totals = status.totals.get_or_insert_default();
        (totals.tasks, totals.tasks_failed, totals.tasks_overloaded) = (55.0, 13.0, 12.0);
        let text = text(&status, now(), Look { width: Some(80), ..Look::default() });
        assert!(text.contains("private    qwen3:8b-q4_K_M   -       not opted in   0/4"), "{text}");
        let counts = "55 tasks: 41 ok, 13 failed (12 overloaded), 0 cancelled, 1 under way; reconnects: 0";
        assert!(text.lines().any(|line| line == counts), "{text}");
        assert!(line(&status, &|_| None).contains("; private: not opted in, 0/4 running"));
    }

    #[test]
    fn a_stopping_agent_says_what_is_left_and_how_long_and_that_nothing_is_published() {
        let mut status = example();
        let agent = status.agent.get_or_insert_default();
        agent.set_state(AgentState::Draining);
        agent.detail = "stopping: no new tasks are taken".into();
        agent.next_attempt_ms = Some(96_500);
        let text = text(&status, now(), Look { width: Some(80), ..Look::default() });
        let head = "mcpd: draining, https://mcpd.example.com, 1 task left, for 97s at most\n      stopping: ";
        assert!(text.contains(head) && text.contains("ready    withdrawn "), "{text}");
    }

    #[test]
    fn without_a_terminal_nothing_is_cut() {
        assert!(
            text(&example(), now(), Look::default())
                .contains("0f8fad5b-d9cb-469f-a165-70867728950e-and-more")
        );
    }

    #[test]
    fn a_line_holds_link_load_and_totals() {
        assert_eq!(
            line(&example(), &|name| (name == "qwen3").then_some(12.34)),
            "backoff, https://mcpd.example.com, next attempt in 5s (connection refused); \
             qwen3: 1/4 running, 0 queued, 12.3 tok/s; private: paused, 0/4 running, 0 queued; \
             43 tasks: 41 ok, 1 failed, 0 cancelled, 1 under way; reconnects: 0"
        );
    }

    #[test]
    fn an_empty_agent_says_so() {
        let text = text(&WatchStatusResponse::default(), now(), Look { width: Some(80), ..Look::default() });
        assert!(text.contains("\nProviders: none\n\nTasks under way: none\n"), "{text}");
    }
}
