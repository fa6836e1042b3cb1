//! `fake-mcpd`: the library as a process, for tests in any language.

mod healthcheck;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use fake_mcpd::{Builder, FakeMcpd, GRAMMAR, PingStyle, Profile, Step, Tls, VerdictView, scenario};
use tokio::signal::unix::{SignalKind, signal};

/// Violations found, or the process could not do its work.
const FAILED: u8 = 1;

/// An mcpd for tests: the provider contract, its callers' side, a journal, faults and a verdict.
///
/// The first line on standard output says where it listens. It runs until SIGINT or SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "fake-mcpd", version, after_long_help = GRAMMAR)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Where to listen: an address with a port, localhost:PORT, or a port of 127.0.0.1; port 0 takes a free one
    #[arg(long, env = "FAKE_MCPD_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS", value_parser = address)]
    listen: SocketAddr,

    /// Serve https with a throw-away authority, over HTTP/2 and HTTP/1.1
    #[arg(long)]
    tls: bool,

    /// Where to write the authority as PEM, for the agent's --ca-file; a temporary file without it
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca_file: Option<PathBuf>,

    /// Offer no HTTP/2
    #[arg(long, requires = "tls", conflicts_with = "no_http1")]
    no_http2: bool,

    /// Offer no HTTP/1.1
    #[arg(long, requires = "tls")]
    no_http1: bool,

    /// The one bearer token to accept; without it any is accepted, but none missing
    #[arg(long, env = "FAKE_MCPD_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// How often the control channel is kept alive; 0s for never
    #[arg(long, default_value = "15s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    ping_interval: Duration,

    /// Keep the channel alive with comment lines instead of ping events
    #[arg(long)]
    ping_comments: bool,

    /// How long a session lives without a heartbeat
    #[arg(long, default_value = "90s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    session_ttl: Duration,

    /// The interval at which the verdict expects heartbeats
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    heartbeat_interval: Duration,

    /// Announce `Keep-Alive: timeout=` and close idle connections after it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    keep_alive: Option<Duration>,

    /// Neither announce idempotent-results nor drop repeated result parts
    #[arg(long)]
    no_idempotent_results: bool,

    /// Neither announce result-stream nor take an answer as one upload
    #[arg(long)]
    no_result_stream: bool,

    /// Make every id follow from this number, so that a run can be replayed
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Journal entries to keep; 0 keeps none, for benches
    #[arg(long, default_value_t = 16_384, value_name = "ENTRIES")]
    journal: usize,

    /// A fault, as below; may be given several times
    #[arg(long = "fault", value_name = "SPEC", value_parser = Step::parse)]
    faults: Vec<Step>,

    /// A file of faults by time or by task: [{"atMs": 5000, "fault": "drop"}, {"atTask": 3, "fault": "silent"}]
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,

    /// At the end write the verdict as JSON to FILE, or to standard output, and exit with 1 if the agent under test
    /// broke the contract
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    verdict: Option<PathBuf>,

    /// What the verdict holds the agent to: given is only what the mcpctl system itself fixes, so that a program with a
    /// registrar of its own passes; chosen is the whole contract
    #[arg(long, value_enum, default_value = "chosen")]
    profile: ProfileArg,

    /// Find fault with a run in which fewer tasks than these ended with the agent's result
    #[arg(long, default_value_t = 0, value_name = "N")]
    expect_tasks: u64,

    /// This process follows an earlier one: a heartbeat of a session it never saw is no violation
    #[arg(long)]
    restarted: bool,
}

/// What it does instead of serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a running fake-mcpd for its verdict: exit code 0 if it answers, for a container's health check
    Healthcheck(healthcheck::HealthcheckArgs),
}

/// The words for [`Profile`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProfileArg {
    Given,
    Chosen,
}

/// Reads `--listen`.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let bad = "write it like 127.0.0.1:0, localhost:8080, [::1]:0 or 8080";
    match text.rsplit_once(':') {
        Some(("localhost", port)) => {
            let port = port.parse::<u16>().map_err(|_| bad.to_owned())?;
            Ok((Ipv4Addr::LOCALHOST, port).into())
        }
        _ => text.parse().map_err(|_| bad.to_owned()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.command {
        Some(Command::Healthcheck(args)) => healthcheck::check(args).map(|()| ExitCode::SUCCESS),
        None => run(&args, steps(&args).unwrap_or_else(|message| usage_error(message))).await,
    };
    done.unwrap_or_else(|message| {
        eprintln!("fake-mcpd: {message}");
        ExitCode::from(FAILED)
    })
}

/// Ends the process as clap ends it on wrong usage: exit code 2.
fn usage_error(message: String) -> ! {
    clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n")).exit()
}

/// The faults of the command line and of the scenario file.
fn steps(args: &Args) -> Result<Vec<Step>, String> {
    let mut steps = args.faults.clone();
    if let Some(path) = &args.scenario {
        let json = std::fs::read_to_string(path)
            .map_err(|error| format!("the scenario {} cannot be read: {error}", path.display()))?;
        steps.extend(scenario::parse(&json).map_err(|error| format!("{}: {error}", path.display()))?);
    }
    Ok(steps)
}

/// Serves until a signal, then gives the verdict.
async fn run(args: &Args, steps: Vec<Step>) -> Result<ExitCode, String> {
    if let Some(path) = args.verdict.as_deref().filter(|path| *path != Path::new("-")) {
        // At the end it would be too late: the run would be for nothing.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(format!("there is no folder {} for the verdict: create it", folder.display()));
        }
    }
    let no_signals = |error: io::Error| format!("signals cannot be waited for: {error}");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mcpd = builder(args).steps(steps).start().await;
    let mcpd = mcpd.map_err(|error| cannot_start(args, &error))?;
    if let Some(path) = mcpd.ca_file() {
        eprintln!("fake-mcpd: its authority is in {}", path.display());
    }
    say(&format!("fake-mcpd listening on {}", mcpd.url()))?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let verdict = mcpd.verdict();
    drop(mcpd);
    match &args.verdict {
        None => Ok(ExitCode::SUCCESS),
        Some(path) => conclude(path, &verdict),
    }
}

fn cannot_start(args: &Args, error: &io::Error) -> String {
    let advice = if args.ca_file.is_some() { "another --listen or --ca-file" } else { "another --listen" };
    format!("cannot listen on {}: {error}; try {advice}", args.listen)
}

fn builder(args: &Args) -> Builder {
    let mut builder = FakeMcpd::builder()
        .listen(args.listen)
        .ping_interval(args.ping_interval)
        .session_ttl(args.session_ttl)
        .heartbeat_interval(args.heartbeat_interval)
        .idempotent_results(!args.no_idempotent_results)
        .result_stream(!args.no_result_stream)
        .journal(args.journal)
        .restarted(args.restarted)
        .expect_tasks(args.expect_tasks)
        .profile(match args.profile {
            ProfileArg::Given => Profile::Given,
            ProfileArg::Chosen => Profile::Chosen,
        });
    builder = match &args.token {
        Some(token) => builder.token(token),
        None => builder.any_token(),
    };
    if args.ping_comments {
        builder = builder.ping_style(PingStyle::Comment);
    }
    if let Some(timeout) = args.keep_alive {
        builder = builder.keep_alive(timeout);
    }
    if let Some(seed) = args.seed {
        builder = builder.seed(seed);
    }
    match tls(args) {
        Some(tls) => builder.tls(tls),
        None => builder,
    }
}

fn tls(args: &Args) -> Option<Tls> {
    let mut tls = args.tls.then(Tls::default)?;
    if args.no_http2 {
        tls = tls.without_http2();
    }
    if args.no_http1 {
        tls = tls.without_http1();
    }
    match &args.ca_file {
        Some(path) => Some(tls.ca_file(path)),
        None => Some(tls),
    }
}

/// Writes the verdict where it is wanted.
fn conclude(path: &Path, verdict: &VerdictView) -> Result<ExitCode, String> {
    let json =
        serde_json::to_string_pretty(verdict).map_err(|error| format!("the verdict is no JSON: {error}"))?;
    if path == Path::new("-") {
        say(&json)?;
    } else {
        std::fs::write(path, json + "\n")
            .map_err(|error| format!("the verdict cannot be written to {}: {error}", path.display()))?;
    }
    Ok(if verdict.ok { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A line on standard output, flushed at once: whoever started us waits for it.
fn say(line: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| format!("standard output cannot be written: {error}"))
}
