//! How often the agent and its provider host allocate for one relayed token: a count that no noisy machine disturbs.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use mcprelay::{
    agent::{Agent, Deps, Stop},
    config::Config,
    provide::host::{Host, HostConfig},
};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mcprelay-bench");
/// Streams of one load, one after the other.
const STREAMS: u64 = 4;
/// The token counts of two loads; what differs between them is the tokens' own.
const FEW: u64 = 8;
const MANY: u64 = 40;
/// A pause between tokens in which one is posted even by this slow build.
const PAUSE_US: u64 = 20_000;
/// The most allocations of one POST with its token: an HTTP request and its reply are most of it.
const MOST_POSTED: f64 = 130.0;
/// The most of a token that merges with others.
const MOST_MERGED: f64 = 12.0;

#[tokio::test]
async fn a_relayed_token_costs_few_allocations() {
    let (_mock, provider) = serve("mock");
    let (_mcpd, mcpd) = serve("mcpd");
    let home = tempfile::tempdir().unwrap();
    write_home(home.path(), &mcpd, &provider);
    let _profiler = dhat::Profiler::builder().testing().build();
    let stop = Stop::default();
    let agent = start_agent(home.path(), &stop);
    wait_until_online(&mcpd).await;
    load(&mcpd, FEW, 0).await;
    let (few, many) = (load(&mcpd, FEW, PAUSE_US).await, load(&mcpd, MANY, PAUSE_US).await);
    let posted = (many.allocations - few.allocations) / (many.chunks - few.chunks);
    // Four times as many, so that there are POSTs enough for the rest to merge.
    let (few, many) = (load(&mcpd, 4 * FEW, 0).await, load(&mcpd, 4 * MANY, 0).await);
    let posts = posted * (many.chunks - few.chunks);
    let merged = (many.allocations - few.allocations - posts) / (many.tokens - few.tokens);
    println!("allocations: {posted:.1} per POST, {merged:.1} per token that merges");
    assert!(posted < MOST_POSTED, "{posted}");
    assert!(merged < MOST_MERGED, "{merged}");
    stop.abort.cancel();
    agent.await.unwrap();
}

/// What one load came to.
struct Load {
    allocations: f64,
    chunks: f64,
    tokens: f64,
}

/// Lets one caller loose and counts what this process allocates meanwhile.
async fn load(mcpd: &str, tokens: u64, delay_us: u64) -> Load {
    let before = dhat::HeapStats::get().total_blocks;
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["load", "--address", mcpd, "--path", "/api/v1/llms/bench/infer", "--stream"]);
    for (flag, value) in
        [("--callers", 1), ("--each", STREAMS), ("--tokens", tokens), ("--delay-us", delay_us)]
    {
        command.args([flag, &value.to_string()]);
    }
    let output = command.output().await.unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["errors"], 0, "{report}");
    let number = |name: &str| report[name].as_f64().unwrap();
    let allocations = (dhat::HeapStats::get().total_blocks - before) as f64;
    Load { allocations, chunks: number("chunks"), tokens: number("tokens") }
}

/// A server of the bench, ended with its handle.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(what: &str) -> (Server, String) {
    let mut child = Command::new(PROGRAM).arg(what).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Server(child), line.trim().rsplit('/').next().unwrap().to_owned())
}

fn write_home(home: &Path, mcpd: &str, provider: &str) {
    let credentials = home.join("credentials");
    fs::write(&credentials, format!(r#"{{"mcpdUrl":"http://{mcpd}","token":"bench"}}"#)).unwrap();
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).unwrap();
    let entry = format!(
        r#"{{"name":"bench","type":"openai","model":"m","url":"http://{provider}","publish":true,"maxInFlight":64}}"#
    );
    fs::write(home.join("config.json"), format!(r#"{{"llm":{{"providers":[{entry}]}}}}"#)).unwrap();
}

fn start_agent(home: &Path, stop: &Stop) -> tokio::task::JoinHandle<()> {
    let config = Config::defaults(home).unwrap();
    let agent = Agent::new(&config, Deps::default()).unwrap();
    let host = Host::new(HostConfig::new(home, &config.socket).built_in());
    tokio::spawn(host.run(CancellationToken::new()));
    let running = agent.run(stop.clone());
    tokio::spawn(async move {
        running.await.unwrap();
    })
}

async fn wait_until_online(mcpd: &str) {
    let rows = format!("http://{mcpd}/api/v1/llms");
    let online = async {
        while !reqwest::get(&rows).await.unwrap().text().await.unwrap().contains("active") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), online).await.unwrap();
}
