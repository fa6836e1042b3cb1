//! The tables: every system under every load over every scheme, one after the other in one run, so that what else the
//! machine does hits all.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use tokio::time::sleep;

use crate::{
    cells::{CELLS, Cell, IDLE, metric},
    load::LoadReport,
    report::Report,
    rig::{Counts, Rig, beside, build, build_package},
    system::{
        AGENT, AGENT_NODE, AGENT_POSTS, DIRECT, FLOOR, Kind, NODE, NODE_PER_TOKEN, Otlp, Registrar, Scheme,
        System, TRACED_GRPC, TRACED_HTTP,
    },
};

/// How long an agent does nothing before its idle memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// For how long its wake-ups are counted.
const REST: Duration = Duration::from_secs(10);
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
    /// Only these ways to reach mcpd
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scheme::ALL)]
    over: Vec<Scheme>,
    /// How often everything is measured; the tables have the medians
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Another build of the agent, or the folder of another build of the Node package, measured beside the first:
    /// NAME=PATH; may be given several times
    #[arg(long = "also", value_name = "NAME=PATH", value_parser = named_path)]
    also: Vec<(String, PathBuf)>,
    /// Also write what every round gave to this file, as JSON, for `report`
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// What `run --json` wrote; the rounds of several runs count as those of one
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("a name, '=' and a path")?;
    let path = fs::canonicalize(path).map_err(|error| format!("{path}: {error}"))?;
    Ok((name.to_owned(), path))
}

/// One system's values under one load, by metric.
pub type Values = BTreeMap<String, f64>;

/// Measures and prints; the exit code is a failure if a goal was missed.
pub async fn run(args: RunArgs) -> Result<ExitCode, String> {
    build().await?;
    let systems = systems(&args)?;
    if systems.iter().any(|system| system.name == AGENT_NODE) {
        build_package().await?;
    }
    let mut report = Report::default();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        for cell in CELLS.iter().filter(|cell| wanted(&args.cells, cell.id)) {
            measure_cell(cell, &systems, &args.over, &mut report).await?;
        }
        if wanted(&args.cells, IDLE) {
            for system in systems.iter().filter(|system| system.is_plain_agent()) {
                for &scheme in &args.over {
                    report.add(IDLE, scheme, &system.name, idle(system, scheme).await?);
                }
            }
        }
    }
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    Ok(print(&report))
}

/// Prints what several runs wrote as if it were one.
pub fn report(args: &ReportArgs) -> Result<ExitCode, String> {
    let mut report = Report::default();
    args.files.iter().try_for_each(|path| report.read_json(path))?;
    Ok(print(&report))
}

fn print(report: &Report) -> ExitCode {
    let results = report.medians();
    print!("{}", results.tables());
    if results.goals_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn wanted(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|wanted| wanted == name)
}

fn systems(args: &RunArgs) -> Result<Vec<System>, String> {
    let agent = beside("mcprelay")?;
    let mut systems = vec![
        System::new(DIRECT, Kind::Direct),
        System::new(FLOOR, Kind::Floor),
        System::new(AGENT, Kind::Agent(agent.clone(), None)),
        System::new(AGENT_POSTS, Kind::Posts(agent.clone())),
        System::new(TRACED_HTTP, Kind::Agent(agent.clone(), Some(Otlp::Http))),
        System::new(TRACED_GRPC, Kind::Agent(agent, Some(Otlp::Grpc))),
        System::new(AGENT_NODE, Kind::Package(package())),
        System::new(NODE, Kind::Registrar(Registrar::Whole)),
        System::new(NODE_PER_TOKEN, Kind::Registrar(Registrar::PerToken)),
    ];
    systems.retain(|system| wanted(&args.systems, &system.name));
    systems.extend(args.also.iter().map(|(name, path)| {
        let program = if path.is_dir() { Kind::Package } else { |path| Kind::Agent(path, None) };
        System::new(name, program(path.clone()))
    }));
    Ok(systems)
}

/// The folder of this tree's Node package.
pub fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients/node")
}

/// The one that posts every token does not differ from the other in plain answers, and needs minutes under the largest load.
/// What telemetry costs shows where the load pushes, and in a paced stream.
fn takes_part(system: &System, cell: &Cell) -> bool {
    match system.kind {
        Kind::Agent(_, None) => true,
        Kind::Posts(_) => matches!(cell.id, "burst" | "paced64") || cell.rtt_ms > 0,
        _ if cell.rtt_ms > 0 => false,
        Kind::Registrar(Registrar::PerToken) => !matches!(cell.id, "plain" | "paced256"),
        Kind::Agent(_, Some(_)) => matches!(cell.id, "plain" | "burst" | "paced64"),
        _ => true,
    }
}

/// Without a relay there is no scheme to it: its values stand in the tables of all.
async fn measure_cell(
    cell: &Cell,
    systems: &[System],
    over: &[Scheme],
    report: &mut Report,
) -> Result<(), String> {
    for system in systems.iter().filter(|system| takes_part(system, cell)) {
        let once = &over[..over.len().min(1)];
        for &scheme in if system.kind == Kind::Direct { once } else { over } {
            eprintln!("{} over {scheme}: {}", cell.id, system.name);
            let values = measure(system, cell, scheme).await;
            let values = values
                .map_err(|error| format!("{} under {} over {scheme}: {error}", system.name, cell.id))?;
            let stands = if system.kind == Kind::Direct { over } else { &[scheme] };
            stands.iter().for_each(|&scheme| report.add(cell.id, scheme, &system.name, values.clone()));
        }
    }
    Ok(())
}

async fn measure(system: &System, cell: &Cell, scheme: Scheme) -> Result<Values, String> {
    let rig = Rig::start(system, scheme, cell.rtt_ms).await?;
    rig.warm_up(cell).await?;
    let before = rig.counts().await?;
    let load = rig.load(cell).await?;
    let after = rig.counts().await?;
    if after.late_posts > before.late_posts {
        return Err("results came for tasks that were over".to_owned());
    }
    let mut values = of_load(&load);
    if system.kind != Kind::Direct {
        of_relay(&mut values, &load, before, after);
    }
    Ok(values)
}

fn of_load(load: &LoadReport) -> Values {
    let mut values = vec![
        (metric::REQUESTS, load.requests as f64 / load.seconds),
        (metric::TOKENS, load.tokens as f64 / load.seconds),
        (metric::LATENCY_P50, load.latency.p50),
        (metric::LATENCY_P99, load.latency.p99),
    ];
    if load.chunks > 0 {
        values.extend([
            (metric::FIRST_P50, load.first_token.p50),
            (metric::FIRST_P99, load.first_token.p99),
            (metric::GAP_P50, load.gap.p50),
            (metric::GAP_P99, load.gap.p99),
            (metric::CHUNKS, load.chunks as f64 / load.requests as f64),
        ]);
    }
    named(values)
}

fn of_relay(values: &mut Values, load: &LoadReport, before: Counts, after: Counts) {
    let (requests, tokens) = (load.requests as f64, load.tokens as f64);
    let cpu = after.relay.cpu - before.relay.cpu;
    let since = |count: fn(&Counts) -> u64| (count(&after) - count(&before)) as f64;
    values.extend(named([
        (metric::CPU_REQUESTS, cpu / requests * 1e3),
        (metric::CPU_TOKENS, cpu / tokens * 1e6),
        (metric::CPU_MCPD, (after.mcpd.cpu - before.mcpd.cpu) / requests * 1e3),
        (metric::PEAK_RSS, after.relay.peak_rss as f64 / KIB_PER_MIB),
        (metric::POSTS, since(|counts| counts.posts) / tokens * 100.0),
        (metric::TO_MCPD, since(|counts| counts.to_mcpd)),
        (metric::TO_PROVIDER, since(|counts| counts.to_provider)),
    ]));
    if let (Some(before), Some(after)) = (before.beside, after.beside) {
        values.extend(named([(metric::CPU_BESIDE, (after.cpu - before.cpu) / requests * 1e3)]));
    }
    if let (Some(before), Some(after)) = (before.spans, after.spans) {
        values.extend(named([(metric::SPANS, (after - before) as f64 / requests)]));
    }
}

async fn idle(system: &System, scheme: Scheme) -> Result<Values, String> {
    let Kind::Agent(program, _) = &system.kind else { return Ok(Values::new()) };
    let size = fs::metadata(program).map_err(|error| format!("{}: {error}", program.display()))?.len();
    let rig = Rig::start(system, scheme, 0).await?;
    sleep(SETTLE).await;
    let before = rig.counts().await?.relay;
    sleep(REST).await;
    let after = rig.counts().await?.relay;
    Ok(named([
        (metric::IDLE_RSS, after.rss as f64 / KIB_PER_MIB),
        (metric::START, rig.start.as_secs_f64() * 1e3),
        (metric::WAKE_UPS, (after.sleeps - before.sleeps) as f64 * 60.0 / REST.as_secs_f64()),
        (metric::PROGRAM, size as f64 / KIB_PER_MIB / KIB_PER_MIB),
    ]))
}

fn named(values: impl IntoIterator<Item = (&'static str, f64)>) -> Values {
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
