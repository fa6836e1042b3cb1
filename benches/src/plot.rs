//! What a task costs, depending on how many are under way, as a table and as a drawing.

use std::{fmt::Write as _, fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use crate::{
    cells::Cell,
    rig::{Rig, beside, build},
    system::{McpdKind, System},
};

/// Tasks under way at once.
const UNDER_WAY: [u32; 9] = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000];
/// Tasks that begin every second, whatever their number: more of them under way are longer ones, not more work.
const TASKS_PER_SECOND: u32 = 1000;
/// Tokens of a task.
const TOKENS: u32 = 4;
/// Tasks of one point at least; under 2 s of load the clock's ticks would show.
const LEAST_TASKS: u32 = 2500;
/// Tasks of each caller at least. While callers begin and stop, fewer events come at a time and each costs more of a wake-up: with one
/// task each that is all there is, and the point shows the rate and not the number.
const LEAST_EACH: u32 = 10;

/// Arguments of `plot`.
#[derive(Clone, Debug, Args)]
pub struct PlotArgs {
    /// Where the drawing goes
    #[arg(long, default_value = "docs/cost-by-tasks.svg")]
    svg: PathBuf,
}

/// One point: what a task costs the agent, and the provider host beside it.
struct Point {
    under_way: u32,
    agent: Cost,
    host: Cost,
}

/// CPU time, and the most memory beyond that of an idle process, per task.
struct Cost {
    cpu_ms: f64,
    kib: f64,
}

/// Measures, prints and draws.
pub async fn run(args: PlotArgs) -> Result<ExitCode, String> {
    build().await?;
    let system = System::Apart(beside("mcprelay")?);
    let mut points = Vec::new();
    println!(
        "| tasks under way | agent: CPU ms per task | agent: KiB per task | host: CPU ms per task | host: KiB per task |"
    );
    println!("|---|---|---|---|---|");
    for under_way in UNDER_WAY {
        let point = measure(&system, under_way).await?;
        let Point { agent, host, .. } = &point;
        println!(
            "| {under_way} | {:.3} | {:.1} | {:.3} | {:.1} |",
            agent.cpu_ms, agent.kib, host.cpu_ms, host.kib
        );
        points.push(point);
    }
    fs::write(&args.svg, svg(&points)).map_err(|error| format!("{}: {error}", args.svg.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// One load opens the connections that so many tasks need; the next one is what is measured.
async fn measure(system: &System, under_way: u32) -> Result<Point, String> {
    let rig = Rig::start(system, McpdKind::Lean).await?;
    let idle = [rig.usage()?, rig.host_usage()?];
    let lasts = Duration::from_secs(1) * under_way / TASKS_PER_SECOND;
    let delay_us = u64::try_from(lasts.as_micros()).unwrap_or(u64::MAX) / u64::from(TOKENS);
    rig.load_slowly(&Cell::streams(under_way, 1, TOKENS, delay_us), lasts).await?;
    let before = [rig.usage()?, rig.host_usage()?];
    let each = (LEAST_TASKS / under_way).max(LEAST_EACH);
    let load = rig.load_slowly(&Cell::streams(under_way, each, TOKENS, delay_us), lasts).await?;
    let after = [rig.usage()?, rig.host_usage()?];
    let [agent, host] = [0, 1].map(|process| Cost {
        cpu_ms: (after[process].cpu - before[process].cpu) / load.requests as f64 * 1e3,
        kib: after[process].peak_rss.saturating_sub(idle[process].rss) as f64 / f64::from(under_way),
    });
    Ok(Point { under_way, agent, host })
}

/// The drawing's size and margins, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 50.0;
const TOP: f64 = 30.0;

fn svg(points: &[Point]) -> String {
    let highest = points.iter().map(|point| point.agent.cpu_ms).fold(0.0, f64::max) * 1.2;
    let x = |under_way: u32| {
        let decades = f64::from(UNDER_WAY[UNDER_WAY.len() - 1]).log10();
        LEFT + f64::from(under_way).log10() / decades * (WIDTH - LEFT - 30.0)
    };
    let y = |cpu_ms: f64| HEIGHT - BOTTOM - cpu_ms / highest * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{LEFT}" y="18">CPU time of the agent per task (ms), by tasks under way</text>
"##
    );
    for step in 0..=4 {
        let value = highest * f64::from(step) / 4.0;
        let _ = writeln!(
            out,
            r##"<line x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{value:.2}</text>"##,
            WIDTH - 30.0,
            LEFT - 6.0,
            y(value) + 4.0,
            y = y(value),
        );
    }
    for point in points {
        let (x, y) = (x(point.under_way), y(point.agent.cpu_ms));
        let _ = writeln!(
            out,
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="#06c"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
            HEIGHT - BOTTOM + 18.0,
            point.under_way,
        );
    }
    let line: Vec<_> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.under_way), y(point.agent.cpu_ms)))
        .collect();
    let _ = writeln!(out, r##"<polyline points="{}" fill="none" stroke="#06c"/>"##, line.join(" "));
    out + "</svg>\n"
}
