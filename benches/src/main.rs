//! `mcprelay-bench`: how fast the relay is, and what it costs, measured side by side with other ways to do the same.
//!
//! `run` starts every program of a cell as a process of its own (most of them this very program under another command),
//! lets callers load them, and prints a table. `docs/performance.md` says how to read it.

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};
use mcprelay_bench::hot;
use tokio::{net::TcpListener, task::LocalSet};

mod cells;
mod delay;
mod floor;
mod goals;
mod http;
mod load;
mod mcpd;
mod mock;
mod process;
mod report;
mod rig;
mod run;
mod sink;
mod stats;
mod system;

/// The load bench of mcprelay.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the cells of the table, side by side, and prints it
    Run(run::RunArgs),
    /// Prints the tables of what earlier runs wrote with --json, together
    Report(run::ReportArgs),
    /// The provider: an OpenAI-compatible server whose answers are known
    Mock,
    /// The lean stand-in for mcpd
    Mcpd(mcpd::McpdArgs),
    /// A relay that delays, as distance does
    Delay(delay::DelayArgs),
    /// A collector that only counts
    Sink,
    /// The floor: the agent's I/O without its logic
    Floor(floor::FloorArgs),
    /// The callers
    Load(load::LoadArgs),
    /// Goes one of the agent's hot paths so many times, for callgrind
    Hot {
        /// Which
        path: hot::Path,
        /// How many times
        times: u32,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => LocalSet::new().block_on(&runtime, dispatch(args.command)),
        Err(error) => Err(format!("cannot start: {error}")),
    };
    match ended {
        Ok(code) => code,
        Err(message) => {
            eprintln!("mcprelay-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> Result<ExitCode, String> {
    let ended = match command {
        Command::Run(args) => return run::run(args).await,
        Command::Report(args) => return run::report(&args),
        Command::Load(args) => {
            let report = serde_json::to_string(&load::run(args).await);
            println!("{}", report.map_err(|error| error.to_string())?);
            return Ok(ExitCode::SUCCESS);
        }
        Command::Hot { path, times } => {
            let mut bench = hot::Bench::new();
            (0..times).for_each(|_| bench.once(path));
            return Ok(ExitCode::SUCCESS);
        }
        Command::Floor(args) => floor::run(args).await.map_err(|error| error.to_string()),
        Command::Mock => mock::serve(listen("mock").await?).await.map_err(|error| error.to_string()),
        Command::Mcpd(args) => {
            mcpd::serve(listen("mcpd").await?, args).await.map_err(|error| error.to_string())
        }
        Command::Delay(args) => {
            delay::serve(listen("delay").await?, args).await.map_err(|error| error.to_string())
        }
        Command::Sink => sink::serve(listen("sink").await?).await.map_err(|error| error.to_string()),
    };
    ended.map(|()| ExitCode::SUCCESS)
}

/// Listens on a free port and says on standard output which one it is.
async fn listen(what: &str) -> Result<TcpListener, String> {
    let listening = async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{what} listening on http://{}", listener.local_addr()?);
        io::Result::Ok(listener)
    };
    listening.await.map_err(|error| format!("cannot listen: {error}"))
}
