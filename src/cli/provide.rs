//! `mcprelay provide`: the provider host, as a process of its own.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, builder::PathBufValueParser};
use tokio_util::sync::CancellationToken;

use super::{Stop, environment, signals::Signals};
use crate::{
    config::{HomeArgs, Lookup, Places, Trimmed},
    credentials::CONFIG_FILE,
    provide::{
        detect,
        host::{Host, HostConfig},
    },
    telemetry,
};

/// Arguments of `provide`.
#[derive(Clone, Debug, Args)]
pub struct ProvideArgs {
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
    /// Look for model servers on their usual ports and print config.json entries for them, instead of serving
    #[arg(long)]
    pub detect: bool,
    /// PEM file with the certificate authorities to trust besides the system's [default: none]
    #[arg(long, env = "MCPRELAY_CA_FILE", value_name = "FILE", value_parser = Trimmed(PathBufValueParser::new()))]
    pub ca_file: Option<PathBuf>,
    /// What the agent knows this host by; a second one of the same name replaces the first
    #[arg(long, env = "MCPRELAY_CLIENT_ID", value_name = "ID", default_value = "mcprelay/provide")]
    pub client_id: String,
}

/// Serves config.json's providers through the agent's socket until it is told to stop, or only looks for model servers.
pub async fn run(args: ProvideArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let Places { home, socket } = args.home.places(env)?;
    if args.detect {
        return print_detected(&home.join(CONFIG_FILE)).await;
    }
    let log_format =
        if io::stderr().is_terminal() { telemetry::LogFormat::Text } else { telemetry::LogFormat::Json };
    let settings = telemetry::Settings { log_format, metrics_listen: None };
    let _log = telemetry::init(&settings).map_err(|error| Stop::Failed(error.to_string()))?;
    environment::warn_of_unread();
    let mut signals = Signals::new()?;
    let shutdown = CancellationToken::new();
    let config =
        HostConfig { client_id: args.client_id, ca_file: args.ca_file, ..HostConfig::new(home, socket) };
    let mut host = std::pin::pin!(Host::new(config).run(shutdown.clone()));
    tokio::select! {
        () = &mut host => return Ok(()),
        () = signals.stop() => shutdown.cancel(),
    }
    tokio::select! {
        () = host => Ok(()),
        () = signals.insist() => Err(Stop::Failed("stopped at once; running tasks were cut off".to_owned())),
    }
}

async fn print_detected(config: &Path) -> Result<(), Stop> {
    let found = detect::detect(&detect::usual_places()).await.map_err(Stop::Failed)?;
    if found.is_empty() {
        return Err(Stop::Failed(
            "no model server answers on a usual loopback port; start Ollama, llama.cpp, vLLM, LM Studio or another one, or write its entry by hand"
                .to_owned(),
        ));
    }
    for server in &found {
        eprintln!("found {server}");
    }
    let config = config.display();
    eprintln!("put the entries you want into {config} and set \"publish\": true on them:");
    writeln!(io::stdout(), "{}", detect::entries(&found))?;
    Ok(())
}
