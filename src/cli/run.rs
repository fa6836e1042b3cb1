//! `mcprelay run`: the agent, in the foreground.

use std::{io::IsTerminal as _, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Stop, environment, notify, signals::Signals};
use crate::{
    agent::{self, Agent, Deps, Stopped},
    bridge::listener::BoundSocket,
    config::{AgentArgs, Config, Lookup, Trimmed},
    provide::host::{Host, HostConfig},
    telemetry::{self, Telemetry},
};

/// How long the last spans may take to be sent: a collector that hangs must not delay the stop.
const TELEMETRY_BOUND: Duration = Duration::from_secs(3);
/// How long the provider host may take to end after the agent: its tasks are over by then.
const HOST_BOUND: Duration = Duration::from_secs(2);

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The agent's settings.
    #[command(flatten)]
    pub config: AgentArgs,
    /// Also serve the providers of config.json in the home, for an mcplocal that does not speak gRPC yet
    #[arg(long, env = "MCPRELAY_PROVIDE", value_parser = Trimmed(BoolishValueParser::new()))]
    pub provide: bool,
}

/// Runs the agent until SIGTERM, SIGINT or the end of its terminal; a second signal ends it at once.
pub async fn run(args: RunArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let config = Config::new(args.config, env)?;
    let telemetry = start_telemetry(&config)?;
    environment::warn_of_unread();
    let deps = Deps { telemetry: telemetry.handle(), ..Deps::default() };
    let status = tokio::spawn(notify::status(deps.health.subscribe()));
    let stop = agent::Stop::default();
    // Before the socket exists: whoever sees the socket may send a signal, which must not kill an agent that has just started.
    let signals = tokio::spawn(follow_signals(stop.clone())?);
    let agent = new_agent(&config, deps).map_err(|error| Stop::Failed(error.to_string()))?;
    info!(socket = %config.socket.display(), pid = std::process::id(), "mcprelay {} runs", env!("CARGO_PKG_VERSION"));
    // The host says goodbye when the drain begins, and lets its tasks finish as the agent does.
    let host = args.provide.then(|| spawn_host(&config, stop.drain.child_token()));
    notify::ready();
    let watchdog = tokio::spawn(notify::watchdog());
    let stopped = agent.run(stop).await;
    if let Some((shutdown, host)) = host {
        shutdown.cancel();
        if tokio::time::timeout(HOST_BOUND, host).await.is_err() {
            warn!("the provider host did not end in time");
        }
    }
    watchdog.abort();
    status.abort();
    signals.abort();
    if let Ok(Stopped::Drained) = stopped {
        info!("stopped");
    }
    telemetry.shutdown(TELEMETRY_BOUND).await;
    match stopped {
        Ok(Stopped::Drained) => Ok(()),
        Ok(Stopped::Aborted) => Err(Stop::Failed("stopped at once; running tasks were cut off".to_owned())),
        Err(error) => Err(Stop::Failed(error.to_string())),
    }
}

/// The log and the exporters, as the settings and the environment say.
pub(super) fn start_telemetry(config: &Config) -> Result<Telemetry, Stop> {
    let json = config.log_format.is_json(std::io::stderr().is_terminal());
    let log_format = if json { telemetry::LogFormat::Json } else { telemetry::LogFormat::Text };
    let settings = telemetry::Settings { log_format, metrics_listen: config.metrics_listen };
    let telemetry = telemetry::init(&settings).map_err(|error| Stop::Failed(error.to_string()))?;
    if let Some(address) = telemetry.page_address() {
        info!("metrics at http://{address}/metrics");
    }
    Ok(telemetry)
}

fn new_agent(config: &Config, deps: Deps) -> Result<Agent, agent::AgentError> {
    match notify::inherited_socket() {
        Some(listener) => Agent::with_socket(config, deps, BoundSocket::inherited(listener, &config.socket)?),
        None => Agent::new(config, deps),
    }
}

/// What the first signal does, and what the second.
fn follow_signals(stop: agent::Stop) -> Result<impl Future<Output = ()> + Send, Stop> {
    let mut signals = Signals::new()?;
    Ok(async move {
        signals.stop().await;
        info!("told to stop; a second signal stops at once");
        notify::stopping();
        stop.drain.cancel();
        signals.insist().await;
        stop.abort.cancel();
    })
}

fn spawn_host(
    config: &Config,
    shutdown: CancellationToken,
) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let host = HostConfig {
        drain_timeout: config.drain_timeout,
        ca_file: config.ca_file.clone(),
        ..HostConfig::new(&config.home, &config.socket)
    };
    (shutdown.clone(), tokio::spawn(Host::new(host.built_in()).run(shutdown)))
}
