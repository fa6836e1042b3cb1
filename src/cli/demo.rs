//! `mcprelay demo`: the whole path in one process, with real loopback HTTP, a real socket and a real stream.

use std::{
    future::Future,
    io::{self, Write as _},
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use clap::Args;
use fake_mcpd::{FakeMcpd, Snapshot};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Stop, get, infer, status, waterfall::Waterfall};
use crate::{
    agent::{self, Agent, Deps, files::write_atomically},
    config::{Config, Lookup, parse_args},
    domain::ProviderName,
    pb::ProviderState,
    provide::{
        config_file::Entry,
        host::{Host, HostConfig},
    },
    telemetry::{self, Collected, Content, names},
};

/// The demo's virtual LLM.
const LLM: &str = "demo";
/// The pause between two words of the embedded provider: slow enough to be seen as a stream, fast enough for a short demo.
const TOKEN_DELAY: Duration = Duration::from_millis(25);
/// How long a real server may take to answer at all: its first probe has ended by then.
const ANSWERED: Duration = Duration::from_secs(6);
/// How long the LLM may take to be listed after that; a real server may have to load its model first.
const LISTED: Duration = Duration::from_secs(60);
/// The environment of the demo's commands: the reader's own settings must not lead them to another mcpd.
const NOTHING: Lookup<'static> = &|_| None;
/// How long the parts of the demo may take to stop.
const END: Duration = Duration::from_secs(5);

/// Arguments of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// An OpenAI-compatible server in the place of the embedded provider: http://localhost:11434
    #[arg(long, value_name = "URL", requires = "model")]
    pub url: Option<String>,
    /// The model to ask for
    #[arg(long, value_name = "MODEL", requires = "url")]
    pub model: Option<String>,
    /// Also write the trace as an image to this file
    #[arg(long, value_name = "FILE")]
    pub trace_svg: Option<PathBuf>,
    /// What to ask
    #[arg(default_value = "Say hello to the reader of this demo.")]
    pub prompt: String,
}

/// Sets everything up, lists the LLM, streams one inference, draws its trace, and ends everything.
pub async fn run(args: DemoArgs) -> Result<(), Stop> {
    let begun = Instant::now();
    let failed = |error: String| Stop::Failed(format!("the demo cannot run: {error}"));
    let home = tempfile::tempdir().map_err(|e| failed(format!("no temporary folder: {e}")))?;
    let mcpd = FakeMcpd::start().await.map_err(|e| failed(format!("no loopback port: {e}")))?;
    write_credentials(home.path(), &mcpd).map_err(|e| failed(e.to_string()))?;
    let (handle, spans) = telemetry::in_memory(Content::LeftOut);
    let config = Config::defaults(home.path())?;
    let deps = Deps { telemetry: handle, ..Deps::default() };
    let agent = Agent::new(&config, deps).map_err(|e| failed(e.to_string()))?;
    let stop = agent::Stop::default();
    let agent = tokio::spawn(agent.run(stop.clone()));
    let shutdown = CancellationToken::new();
    let host = Host::new(HostConfig::new(home.path(), &config.socket)).with_providers(vec![entry(&args)?]);
    let host = tokio::spawn(host.run(shutdown.clone()));

    listed(&mcpd, &config.socket).await.map_err(failed)?;
    println!(
        "fake mcpd at {}, agent on a socket in a temporary home, one provider: ready in {}\n",
        mcpd.url(),
        millis(begun.elapsed())
    );
    show(home.path(), &["get", "llm"]).await?;
    println!();
    show(home.path(), &["infer", LLM, &args.prompt]).await?;

    // The provider stops first, or it would try to find the agent again.
    shutdown.cancel();
    ended("the provider", host).await;
    stop.drain.cancel();
    ended("the agent", agent).await;
    println!("\nThe inference as the agent traced it:\n");
    draw(&spans, args.trace_svg.as_deref())?;
    println!("\nDone in {}.", millis(begun.elapsed()));
    Ok(())
}

/// Waits for mcpd to list the LLM. It does not wait for a server that does not answer, but does for one that is loading its model.
async fn listed(mcpd: &FakeMcpd, socket: &Path) -> Result<(), String> {
    let online = |state: &Snapshot| state.is_active(LLM) && state.sessions.iter().any(|s| s.connected);
    let mut listed = pin!(mcpd.wait_until(online));
    if timeout(ANSWERED, &mut listed).await.is_ok() {
        return Ok(());
    }
    if let Some(why) = away(socket).await {
        return Err(why);
    }
    let late = |_| format!("the provider did not get ready within {} s", LISTED.as_secs());
    timeout(LISTED, listed).await.map(drop).map_err(late)
}

/// Why the provider is not available, if it is not.
async fn away(socket: &Path) -> Option<String> {
    let pushed = status::once(socket).await.ok()?.providers.into_iter().find_map(|status| status.provider)?;
    (pushed.state() == ProviderState::Unavailable).then_some(pushed.state_detail)
}

fn write_credentials(home: &Path, mcpd: &FakeMcpd) -> io::Result<()> {
    let text = json!({"mcpdUrl": mcpd.url(), "token": mcpd.token()}).to_string();
    write_atomically(&home.join(crate::credentials::CREDENTIALS_FILE), text.as_bytes())
}

fn entry(args: &DemoArgs) -> Result<Entry, Stop> {
    let name = ProviderName::new(LLM).map_err(|e| Stop::Failed(e.to_string()))?;
    Ok(match (&args.url, &args.model) {
        (Some(url), Some(model)) => Entry { url: Some(url.clone()), ..Entry::new(name, "openai", model) },
        _ => Entry {
            token_delay: Some(TOKEN_DELAY),
            tier: "fast".to_owned(),
            ..Entry::new(name, "echo", "echo-1")
        },
    })
}

/// Runs a command of this program against the demo's home, as its reader would.
async fn show(home: &Path, command: &[&str]) -> Result<(), Stop> {
    println!("$ mcprelay {}", command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    io::stdout().flush()?;
    match command {
        ["get", words @ ..] => get::run(parsed(words, home)?, NOTHING).await,
        ["infer", words @ ..] => infer::run(parsed(words, home)?, NOTHING).await,
        _ => Ok(()),
    }
}

/// The arguments of a command in the demo's home.
fn parsed<A: Args>(words: &[&str], home: &Path) -> Result<A, Stop> {
    let home = home.to_string_lossy();
    let words = [words, &["--home", &home]].concat();
    parse_args(&words, NOTHING).map_err(|error| Stop::Usage(error.to_string()))
}

fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("\"{word}\"") } else { word.to_owned() }
}

async fn ended<T>(what: &str, part: impl Future<Output = T>) {
    if timeout(END, part).await.is_err() {
        eprintln!("{what} did not end in time");
    }
}

fn draw(collected: &Collected, svg: Option<&Path>) -> Result<(), Stop> {
    let spans = collected.take();
    let Some(picture) = Waterfall::of(&spans, names::span::PROCESS_TASK) else {
        return Err(Stop::Failed("the inference left no trace".to_owned()));
    };
    print!("{}", picture.text());
    if let Some(path) = svg {
        let written =
            write_atomically(path, picture.svg("One streamed inference, as mcprelay traces it").as_bytes());
        written.map_err(|e| Stop::Failed(format!("cannot write {}: {e}", path.display())))?;
    }
    Ok(())
}

fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}
