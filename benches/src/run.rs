//! The table: every system under every load, one after the other in one run, so that what else the machine does hits all.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use tokio::time::sleep;

use crate::{
    cells::{CELLS, Cell, metric},
    load::LoadReport,
    mcpd::Stats,
    process::Usage,
    rathole,
    report::Report,
    rig::{Rig, beside, build},
    system::{McpdKind, Otlp, Registrar, System},
};

/// How long a relay does nothing before its idle memory is read.
const SETTLE: Duration = Duration::from_secs(2);
/// The spans of a task beside one for every POST: the task, its queue, the inference, its leg on the bridge.
const SPANS_PER_TASK: u64 = 4;
const KIB_PER_MIB: f64 = 1024.0;

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Only these loads, by name; "idle" is one of them
    #[arg(long, value_delimiter = ',', value_name = "CELL")]
    cells: Vec<String>,
    /// Only these systems
    #[arg(long, value_delimiter = ',', value_name = "SYSTEM")]
    systems: Vec<String>,
    /// How often everything is measured; the table has the medians
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Another build of the agent, measured beside the first: NAME=PATH; may be given several times
    #[arg(long = "also", value_name = "NAME=PATH", value_parser = named_program)]
    also: Vec<(String, PathBuf)>,
    /// Which mcpd the load goes through
    #[arg(long, value_enum, default_value = "lean")]
    mcpd: McpdKind,
    /// Also write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn named_program(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("a name, '=' and the path of a mcprelay")?;
    Ok((name.to_owned(), path.into()))
}

/// One system's values under one load.
pub type Values = BTreeMap<&'static str, f64>;

/// Measures and prints; the exit code is a failure if a goal was missed.
pub async fn run(args: RunArgs) -> Result<ExitCode, String> {
    build().await?;
    let systems = systems(&args)?;
    let mut report = Report::default();
    for round in 1..=args.rounds {
        for cell in CELLS.iter().filter(|cell| wanted(&args.cells, cell.id)) {
            for system in systems.iter().filter(|system| takes_part(system, cell)) {
                eprintln!("round {round} of {}: {} under {}", args.rounds, system.name(), cell.id);
                let values = measure(system, cell, args.mcpd).await;
                let values =
                    values.map_err(|error| format!("{} under {}: {error}", system.name(), cell.id))?;
                report.add(cell.id, system.name(), values);
            }
        }
        if wanted(&args.cells, "idle") {
            for system in
                systems.iter().filter(|system| system.is_relay() && !matches!(system, System::Traced(..)))
            {
                report.add("idle", system.name(), idle(system, args.mcpd).await?);
            }
        }
    }
    let results = report.medians();
    print!("{}", results.tables());
    if let Some(path) = &args.json {
        results.write_json(path)?;
    }
    Ok(if results.goals_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wanted(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|wanted| wanted == name)
}

fn systems(args: &RunArgs) -> Result<Vec<System>, String> {
    let agent = beside("mcprelay")?;
    let also = args.also.iter().map(|(name, path)| System::Agent(name.clone(), path.clone()));
    let mut systems = vec![System::Direct, System::Tunnel];
    systems.extend(rathole::installed().map(System::Rathole));
    systems.extend([System::Floor, System::Agent("agent".to_owned(), agent.clone())]);
    systems.extend(also);
    systems.extend([Otlp::Http, Otlp::Grpc].map(|otlp| System::Traced(otlp, agent.clone())));
    systems.extend([Registrar::Whole, Registrar::PerToken, Registrar::Fetch].map(System::Node));
    systems.retain(|system| wanted(&args.systems, system.name()) || is_also(system, args));
    Ok(systems)
}

fn is_also(system: &System, args: &RunArgs) -> bool {
    args.also.iter().any(|(name, _)| name == system.name())
}

/// The one that posts every token does not differ from the other in plain answers, and needs minutes under the largest load. What
/// telemetry costs shows where the load pushes.
fn takes_part(system: &System, cell: &Cell) -> bool {
    match system {
        System::Node(Registrar::PerToken) => !matches!(cell.id, "plain" | "paced256"),
        System::Node(Registrar::Fetch) => cell.pushes(),
        System::Traced(..) => cell.pushes(),
        _ => true,
    }
}

async fn measure(system: &System, cell: &Cell, mcpd: McpdKind) -> Result<Values, String> {
    let rig = Rig::start(system, mcpd).await?;
    if cell.pushes() {
        rig.warm_up(cell).await?;
    }
    let spans = rig.spans().await;
    let (usage, stats) = (rig.usage()?, rig.stats().await);
    let load = rig.load(cell).await?;
    let mut values = of_load(&load);
    let arrived = rig.spans().await.zip(spans).map(|(after, before)| after - before);
    if *system != System::Direct {
        of_relay(&mut values, &load, usage, rig.usage()?);
    }
    if let (Some(before), Some(after)) = (stats, rig.stats().await) {
        of_mcpd(&mut values, &load, before, after)?;
        if let Some(arrived) = arrived {
            let made = SPANS_PER_TASK * load.requests + after.posts - before.posts;
            values.insert(metric::SPANS, 100.0 * arrived as f64 / made as f64);
        }
    }
    Ok(values)
}

fn of_load(load: &LoadReport) -> Values {
    let mut values = Values::from([
        (metric::REQUESTS, load.requests as f64 / load.seconds),
        (metric::TOKENS, load.tokens as f64 / load.seconds),
        (metric::LATENCY_P50, load.latency.p50),
        (metric::LATENCY_P99, load.latency.p99),
    ]);
    if load.chunks > 0 {
        values.extend([
            (metric::FIRST_P50, load.first_token.p50),
            (metric::FIRST_P99, load.first_token.p99),
            (metric::GAP_P50, load.gap.p50),
            (metric::GAP_P99, load.gap.p99),
            (metric::CHUNKS, load.chunks as f64 / load.requests as f64),
        ]);
    }
    values
}

fn of_relay(values: &mut Values, load: &LoadReport, before: Usage, after: Usage) {
    let cpu = after.cpu - before.cpu;
    values.insert(metric::CPU_REQUESTS, cpu / load.requests as f64 * 1e3);
    values.insert(metric::CPU_TOKENS, cpu / load.tokens as f64 * 1e6);
    values.insert(metric::PEAK_RSS, after.peak_rss as f64 / KIB_PER_MIB);
}

fn of_mcpd(values: &mut Values, load: &LoadReport, before: Stats, after: Stats) -> Result<(), String> {
    if after.late_posts > before.late_posts {
        return Err("results came for tasks that were over".to_owned());
    }
    values.insert(metric::POSTS, (after.posts - before.posts) as f64 / load.tokens as f64 * 100.0);
    values.insert(metric::CONNECTIONS, (after.result_connections - before.result_connections) as f64);
    Ok(())
}

async fn idle(system: &System, mcpd: McpdKind) -> Result<Values, String> {
    let rig = Rig::start(system, mcpd).await?;
    sleep(SETTLE).await;
    let rss = rig.usage()?.rss as f64 / KIB_PER_MIB;
    Ok(Values::from([(metric::IDLE_RSS, rss), (metric::START, rig.start.as_secs_f64() * 1e3)]))
}
