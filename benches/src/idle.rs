//! A start, and an agent that has nothing to do.

use std::{fs, process::ExitCode, time::Duration};

use clap::Args;
use tokio::time::sleep;

use crate::{
    rig::{Rig, beside, build},
    stats::median,
    system::{McpdKind, System},
};

/// How long a started agent is left alone before anything is counted.
const SETTLE: Duration = Duration::from_secs(3);

/// Arguments of `idle`.
#[derive(Clone, Debug, Args)]
pub struct IdleArgs {
    /// For how many seconds wake-ups are counted
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// How many starts are timed
    #[arg(long, default_value_t = 5)]
    starts: u32,
}

/// Measures and prints.
pub async fn run(args: IdleArgs) -> Result<ExitCode, String> {
    build().await?;
    let program = beside("mcprelay")?;
    let size = fs::metadata(&program).map_err(|error| format!("{}: {error}", program.display()))?.len();
    let agent = System::Agent("agent".to_owned(), program);
    let mut starts = Vec::new();
    for _ in 0..args.starts {
        starts.push(Rig::start(&agent, McpdKind::Lean).await?.start.as_secs_f64() * 1e3);
    }
    let rig = Rig::start(&agent, McpdKind::Lean).await?;
    sleep(SETTLE).await;
    let before = rig.usage()?;
    sleep(Duration::from_secs(args.seconds.into())).await;
    let after = rig.usage()?;
    let minutes = f64::from(args.seconds) / 60.0;
    println!(
        "start to online:       {:.1} ms, median of {}",
        median(starts).unwrap_or_default(),
        args.starts
    );
    println!("idle RSS:              {:.1} MiB", after.rss as f64 / 1024.0);
    println!("wake-ups per minute:   {:.0}", (after.sleeps - before.sleeps) as f64 / minutes);
    println!("CPU s per hour:        {:.2}", (after.cpu - before.cpu) / minutes * 60.0);
    println!("size of the program:   {:.1} MiB", size as f64 / 1024.0 / 1024.0);
    Ok(ExitCode::SUCCESS)
}
