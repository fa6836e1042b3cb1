//! `mcprelay usage`: for whom this machine worked.

use std::{path::Path, time::Duration};

use chrono::Local;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    Stop,
    output::{self, Look},
    socket::{self, NoAgent},
};
use crate::{
    agent::usage,
    config::{self, HomeArgs, Lookup, Places, USAGE_FOLDER},
    pb::{GetUsageRequest, UsageBy, UsageRow},
};

/// Most characters of a bar.
const BAR: f64 = 20.0;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Arguments of `usage`.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// What to sum up by
    #[arg(long, value_enum, value_name = "WHAT", default_value = "caller")]
    pub by: By,
    /// How far back, in whole days with today as the last one, as 7d; at most 400 are kept [default: all]
    #[arg(long, value_name = "DURATION", value_parser = days)]
    pub since: Option<u32>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// What is summed up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// A row per caller, by the names that mcpd gives
    Caller,
    /// A row per LLM
    Llm,
    /// A row per day
    Day,
}

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table with bars for people
    Table,
    /// A list for scripts
    Json,
}

/// One row for scripts: fields may be added, but none is renamed or removed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    key: &'a str,
    tasks_ok: f64,
    tasks_failed: f64,
    tasks_cancelled: f64,
    input_tokens: f64,
    output_tokens: f64,
    inference_seconds: f64,
}

/// Prints the usage, as the agent tells it, or as its files do where none runs.
pub async fn run(args: UsageArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let Places { home, socket } = args.home.places(env)?;
    let by = match args.by {
        By::Caller => UsageBy::Caller,
        By::Llm => UsageBy::Llm,
        By::Day => UsageBy::Day,
    };
    let rows = rows(&home, &socket, by, args.since.unwrap_or_default()).await?;
    match args.output {
        Format::Table => output::print(&text(&rows, args.by, Look::of_stdout()))?,
        Format::Json => output::print_json(&rows.iter().map(row).collect::<Vec<_>>())?,
    }
    Ok(())
}

async fn rows(home: &Path, socket: &Path, by: UsageBy, days: u32) -> Result<Vec<UsageRow>, Stop> {
    let mut agent = match socket::connect(socket).await {
        Ok(agent) => agent,
        Err(NoAgent::NoSocket(_) | NoAgent::Stale(_)) => {
            let today = Local::now().date_naive();
            return Ok(usage::report(&home.join(USAGE_FOLDER), by, days, today, None));
        }
        Err(error) => return Err(error.into()),
    };
    let reply = agent.get_usage(GetUsageRequest { by: by.into(), days }).await;
    Ok(reply.map_err(|status| socket::call_failed(&status))?.into_inner().rows)
}

/// Whole days; a part of one counts as one.
fn days(text: &str) -> Result<u32, String> {
    let days = text.strip_suffix('d').and_then(|number| number.parse::<u32>().ok()).filter(|days| *days > 0);
    match days {
        Some(days) => Ok(days),
        None => Ok(u32::try_from(config::duration(text)?.as_secs().div_ceil(DAY.as_secs())).unwrap_or(1)),
    }
}

fn text(rows: &[UsageRow], by: By, look: Look) -> String {
    if rows.is_empty() {
        return "no usage is recorded for this time\n".to_owned();
    }
    let name = match by {
        By::Caller => "CALLER",
        By::Llm => "LLM",
        By::Day => "DAY",
    };
    let header = [name, "TASKS", "FAILED", "TOKENS IN", "TOKENS OUT", "TIME", ""];
    let most = rows.iter().map(|row| row.inference_seconds).fold(0.0, f64::max);
    let mut cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let key = if row.key.is_empty() { "(not named)" } else { &row.key };
            line(key, row, &bar(row.inference_seconds / most))
        })
        .collect();
    cells.push(line("total", &total(rows), " "));
    output::table(&header, &cells, look)
}

fn line(key: &str, row: &UsageRow, bar: &str) -> Vec<String> {
    let tasks = row.tasks_ok + row.tasks_failed + row.tasks_cancelled;
    let time = output::age(Duration::try_from_secs_f64(row.inference_seconds).unwrap_or_default());
    let numbers = [tasks, row.tasks_failed, row.input_tokens, row.output_tokens].map(|n| n.to_string());
    [key.to_owned()].into_iter().chain(numbers).chain([time, bar.to_owned()]).collect()
}

/// A bar for a share of the longest one; whatever there is shows.
fn bar(share: f64) -> String {
    // At most 20, and whatever is no number becomes 0.
    let length = (share * BAR).ceil().clamp(1.0, BAR) as usize;
    "█".repeat(length.max(1))
}

fn total(rows: &[UsageRow]) -> UsageRow {
    let sum = |of: fn(&UsageRow) -> f64| rows.iter().map(of).sum();
    UsageRow {
        key: String::new(),
        tasks_ok: sum(|row| row.tasks_ok),
        tasks_failed: sum(|row| row.tasks_failed),
        tasks_cancelled: sum(|row| row.tasks_cancelled),
        input_tokens: sum(|row| row.input_tokens),
        output_tokens: sum(|row| row.output_tokens),
        inference_seconds: sum(|row| row.inference_seconds),
    }
}

fn row(row: &UsageRow) -> Row<'_> {
    Row {
        key: &row.key,
        tasks_ok: row.tasks_ok,
        tasks_failed: row.tasks_failed,
        tasks_cancelled: row.tasks_cancelled,
        input_tokens: row.input_tokens,
        output_tokens: row.output_tokens,
        inference_seconds: row.inference_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, tasks_ok: f64, inference_seconds: f64) -> UsageRow {
        let row = UsageRow { key: key.to_owned(), tasks_ok, inference_seconds, ..UsageRow::default() };
        UsageRow { output_tokens: 100.0 * tasks_ok, ..row }
    }

    #[test]
    fn the_table_has_a_bar_per_row_and_a_total() {
        let rows = [of("alice", 40.0, 3600.0), of("", 1.0, 90.0)];
        let expected = "\
CALLER        TASKS   FAILED   TOKENS IN   TOKENS OUT   TIME   
alice         40      0        0           4000         60m    ████████████████████
(not named)   1       0        0           100          90s    █
total         41      0        0           4100         61m
";
        let text = text(&rows, By::Caller, Look::default());
        let lines = |text: &str| text.lines().map(str::trim_end).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&text), lines(expected));
        assert!(super::text(&[], By::Day, Look::default()).starts_with("no usage"));
    }

    #[test]
    fn since_is_in_days() {
        assert_eq!(["7d", "1d", "36h", "400d", "5m"].map(days), [7, 1, 2, 400, 1].map(Ok));
        assert!(days("0d").is_err() && days("yesterday").is_err());
    }
}
