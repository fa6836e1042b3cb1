//! `mcprelay get llm`: what mcpd lists.

use std::time::SystemTime;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;

use super::{
    Stop, completions,
    http::Mcpd,
    llms::{List, list},
    output::{self, Look},
};
use crate::{
    config::{FolderArgs, Lookup, McpdArgs},
    domain::Printable,
    upstream::contract::LlmRow,
};

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to list
    #[arg(value_enum)]
    pub resource: Resource,
    /// Only the one with this name
    #[arg(add = ArgValueCandidates::new(completions::llms))]
    pub name: Option<String>,
    /// How to print; AGE is the time since the last sign of life
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
    /// How mcpd is reached.
    #[command(flatten)]
    pub mcpd: McpdArgs,
    /// Where the files are.
    #[command(flatten)]
    pub folder: FolderArgs,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Resource {
    /// LLMs, virtual ones included
    #[value(alias = "llms")]
    Llm,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// A document for scripts, in mcpd's words
    Json,
}

const COLUMNS: [&str; 7] = ["NAME", "KIND", "TYPE", "MODEL", "TIER", "STATUS", "AGE"];
const WIDE_COLUMNS: [&str; 10] =
    ["NAME", "KIND", "TYPE", "MODEL", "TIER", "STATUS", "AGE", "ID", "SESSION", "DESCRIPTION"];

/// Lists LLMs, or one.
pub async fn run(args: GetArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let mcpd = Mcpd::new(&args.mcpd, &args.folder.path(env)?, env)?;
    let List { rows, now } = list(&mcpd).await?;
    let Some(name) = &args.name else {
        return print_all(&rows, args.output, now);
    };
    let row =
        rows.iter().find(|row| row.name.as_ref() == Some(name)).ok_or_else(|| not_found(&mcpd, name))?;
    match args.output {
        Format::Json => Ok(output::print_json(row)?),
        format => Ok(output::print(&render(std::slice::from_ref(row), format, now, Look::of_stdout()))?),
    }
}

fn print_all(rows: &[LlmRow], format: Format, now: SystemTime) -> Result<(), Stop> {
    match format {
        Format::Json => output::print_json(&rows)?,
        _ if rows.is_empty() => output::note("No LLMs found."),
        _ => output::print(&render(rows, format, now, Look::of_stdout()))?,
    }
    Ok(())
}

fn not_found(mcpd: &Mcpd, name: &str) -> Stop {
    let (name, url) = (Printable(name), mcpd.url());
    Stop::Failed(format!(
        "there is no LLM \"{name}\" in mcpd at {url}: `mcprelay get llm` lists those that exist"
    ))
}

fn render(rows: &[LlmRow], format: Format, now: SystemTime, look: Look) -> String {
    let wide = format == Format::Wide;
    let cells: Vec<_> = rows.iter().map(|row| cells(row, wide, now)).collect();
    output::table(if wide { &WIDE_COLUMNS } else { &COLUMNS }, &cells, look)
}

fn cells(row: &LlmRow, wide: bool, now: SystemTime) -> Vec<String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let mut cells: Vec<_> =
        [&row.name, &row.kind, &row.provider_type, &row.model, &row.tier, &row.status].map(text).into();
    cells.push(row.last_heartbeat_at.as_ref().map(|at| output::age_since(at, now)).unwrap_or_default());
    if wide {
        cells.extend([&row.id, &row.provider_session_id, &row.description].map(text));
    }
    cells
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{Json, Router, http::HeaderMap, routing};
    use serde_json::json;

    use super::*;
    use crate::{
        cli::stub::{Stub, mcpd},
        upstream::contract::LLMS_PATH,
    };

    fn stub() -> Router {
        let rows = json!([
            {"id": "1", "name": "qwen3", "kind": "virtual", "type": "ollama", "model": "qwen3:8b", "tier": "fast",
             "status": "active", "providerSessionId": "s", "lastHeartbeatAt": "2026-01-01T00:00:00.000Z", "new": 1},
            {"id": "2", "name": "gpt", "kind": "static"}
        ]);
        let handler = async move |headers: HeaderMap| {
            assert_eq!(headers["authorization"], "Bearer t0ken");
            ([("date", "Thu, 01 Jan 2026 00:03:12 GMT")], Json(rows.clone()))
        };
        Router::new().route(LLMS_PATH, routing::get(handler))
    }

    #[tokio::test]
    async fn the_list_looks_like_kubectls_and_its_ages_go_by_mcpds_clock() {
        let stub = Stub::serve(stub()).await;
        let List { rows, now } = list(&stub.mcpd()).await.expect("lists");
        assert_eq!(
            render(&rows, Format::Table, now, Look::default()),
            "NAME    KIND      TYPE     MODEL      TIER     STATUS   AGE\n\
             qwen3   virtual   ollama   qwen3:8b   fast     active   3m12s\n\
             gpt     static    <none>   <none>     <none>   <none>   <none>\n"
        );
        assert!(
            render(&rows, Format::Wide, now, Look::default()).starts_with("NAME    KIND      TYPE     MODEL")
        );
    }

    #[tokio::test]
    async fn each_failure_is_one_sentence_without_the_token() {
        for (answer, expected) in [
            ((401, ""), "refuses the token in MCPRELAY_TOKEN (401): correct that variable"),
            ((404, ""), "answers 404 to /api/v1/llms: check --mcpd-url"),
            ((500, r#"{"error":"no database"}"#), "answers 500 to /api/v1/llms (no database): see its log"),
            ((200, "<html>"), "is not an mcpd (its reply is not the JSON that was asked for)"),
            ((302, ""), "redirects to somewhere else"),
        ] {
            let status = axum::http::StatusCode::from_u16(answer.0).expect("a status");
            let router = Router::new().route(LLMS_PATH, routing::get(async move || (status, answer.1)));
            let stub = Stub::serve(router).await;
            let message = list(&stub.mcpd()).await.err().expect("fails").to_string();
            assert!(message.contains(expected) && !message.contains("t0ken"), "{message}");
        }
    }

    #[tokio::test]
    async fn an_mcpd_that_is_not_there_is_named_with_the_cause() {
        let message = list(&mcpd("http://127.0.0.1:1")).await.err().expect("fails").to_string();
        assert!(
            message.starts_with("mcpd at http://127.0.0.1:1 does not answer (Connection refused"),
            "{message}"
        );
    }

    #[test]
    fn a_row_from_the_future_is_new() {
        let row = LlmRow { last_heartbeat_at: Some("2026-01-01T00:00:00Z".into()), ..LlmRow::default() };
        assert_eq!(cells(&row, false, SystemTime::UNIX_EPOCH + Duration::from_secs(1))[6], "0s");
    }
}
