//! The flags, their variables and their defaults.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Args, ValueEnum,
    builder::{BoolishValueParser, EnumValueParser, PathBufValueParser},
    value_parser,
};

use super::values::{Trimmed, duration, duration_or_zero, event_limit, loopback, mcpd_url, socket_mode};
use crate::credentials::McpdUrl;

/// Where mcpctl keeps its files.
const HOME: &str = "~/.mcpctl";
/// The contract's interval; mcpd gives up a session after three missed heartbeats.
const HEARTBEAT_INTERVAL: &str = "30s";
/// The contract's first and last pause between attempts.
const RECONNECT: [&str; 2] = ["5s", "60s"];
/// Long enough for most answers to end; service managers must wait longer than this (150 s in our units).
const DRAIN_TIMEOUT: &str = "120s";
/// One task event contains a whole chat, and a chat can contain images.
const EVENT_LIMIT: &str = "32MiB";
/// Browsers do not wait longer for a whole answer.
const TASK_TIMEOUT: &str = "10m";
/// Half of that: a long prompt on a slow machine takes minutes before its first token without being dead.
const TOKEN_TIMEOUT: &str = "5m";
/// How long a caller accepts that nothing happens at all.
const QUEUE_TIMEOUT: &str = "30s";
/// Four missed keep-alives of the contract's 15 s.
const CHANNEL_IDLE_TIMEOUT: &str = "60s";
/// How many inferences the common local servers run at once on one GPU.
const MAX_IN_FLIGHT: &str = "4";
/// Enough for a burst, and few enough to be served within the queue timeout.
const MAX_QUEUED: &str = "64";

/// The most of anything that is counted per provider: a larger number is a typing error.
const MAX_COUNT: i64 = 1_000_000;

/// Where the files are, for commands that do not contact the agent.
#[derive(Clone, Debug, Args)]
pub struct FolderArgs {
    /// Folder with config.json, credentials, provider-session and the socket
    #[arg(long, env = "MCPRELAY_HOME", value_name = "DIR", default_value = HOME, value_parser = Trimmed(PathBufValueParser::new()))]
    pub home: PathBuf,
    /// Not used; taken so that one set of flags fits every command.
    #[arg(long, value_name = "PATH", hide = true)]
    pub socket: Option<PathBuf>,
}

/// Where the agent's files and its socket are, for commands that contact it.
#[derive(Clone, Debug, Args)]
pub struct HomeArgs {
    /// Folder with config.json, credentials, provider-session and the socket
    #[arg(long, env = "MCPRELAY_HOME", value_name = "DIR", default_value = HOME, value_parser = Trimmed(PathBufValueParser::new()))]
    pub home: PathBuf,
    /// The agent's unix socket [default: mcprelay.sock in the home]
    #[arg(long, env = "MCPRELAY_SOCKET", value_name = "PATH", value_parser = Trimmed(PathBufValueParser::new()))]
    pub socket: Option<PathBuf>,
}

/// How mcpd is reached, for commands that call it.
#[derive(Clone, Debug, Args)]
pub struct McpdArgs {
    /// Where mcpd is [default: from credentials in the home, else from config.json there]. The token comes from the
    /// environment variable MCPRELAY_TOKEN, else from credentials
    #[arg(long, env = "MCPRELAY_MCPD_URL", value_name = "URL", value_parser = Trimmed(mcpd_url))]
    pub mcpd_url: Option<McpdUrl>,
    /// PEM file with the certificate authorities to trust besides the system's [default: none]
    #[arg(long, env = "MCPRELAY_CA_FILE", value_name = "FILE", value_parser = Trimmed(PathBufValueParser::new()))]
    pub ca_file: Option<PathBuf>,
    /// Send the token over plain http to other machines too [default: false]
    #[arg(long, env = "MCPRELAY_ALLOW_INSECURE_HTTP", value_parser = Trimmed(BoolishValueParser::new()))]
    pub allow_insecure_http: bool,
}

/// Every setting of the agent.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
    /// How mcpd is reached.
    #[command(flatten)]
    pub mcpd: McpdArgs,
    /// Pause between heartbeats to mcpd
    #[arg(long, env = "MCPRELAY_HEARTBEAT_INTERVAL", value_name = "DURATION", default_value = HEARTBEAT_INTERVAL, value_parser = Trimmed(duration))]
    pub heartbeat_interval: Duration,
    /// First pause before mcpd is tried again; it doubles up to --reconnect-max
    #[arg(long, env = "MCPRELAY_RECONNECT_MIN", value_name = "DURATION", default_value = RECONNECT[0], value_parser = Trimmed(duration))]
    pub reconnect_min: Duration,
    /// Longest pause before mcpd is tried again
    #[arg(long, env = "MCPRELAY_RECONNECT_MAX", value_name = "DURATION", default_value = RECONNECT[1], value_parser = Trimmed(duration))]
    pub reconnect_max: Duration,
    /// How long running tasks may go on after SIGTERM; a second signal ends at once
    #[arg(long, env = "MCPRELAY_DRAIN_TIMEOUT", value_name = "DURATION", default_value = DRAIN_TIMEOUT, value_parser = Trimmed(duration_or_zero))]
    pub drain_timeout: Duration,
    /// Largest event on mcpd's channel, so largest request
    #[arg(long, env = "MCPRELAY_EVENT_LIMIT", value_name = "SIZE", default_value = EVENT_LIMIT, value_parser = Trimmed(event_limit))]
    pub event_limit: usize,
    /// Longest time for a whole task
    #[arg(long, env = "MCPRELAY_TASK_TIMEOUT", value_name = "DURATION", default_value = TASK_TIMEOUT, value_parser = Trimmed(duration))]
    pub task_timeout: Duration,
    /// Longest time from a streaming task's start at its provider to the first token
    #[arg(long, env = "MCPRELAY_FIRST_TOKEN_TIMEOUT", value_name = "DURATION", default_value = TOKEN_TIMEOUT, value_parser = Trimmed(duration))]
    pub first_token_timeout: Duration,
    /// Longest time between two tokens
    #[arg(long, env = "MCPRELAY_IDLE_TOKEN_TIMEOUT", value_name = "DURATION", default_value = TOKEN_TIMEOUT, value_parser = Trimmed(duration))]
    pub idle_token_timeout: Duration,
    /// Longest time a task waits for a free slot
    #[arg(long, env = "MCPRELAY_QUEUE_TIMEOUT", value_name = "DURATION", default_value = QUEUE_TIMEOUT, value_parser = Trimmed(duration))]
    pub queue_timeout: Duration,
    /// Silence after which mcpd's channel is reopened, once it has shown a keep-alive
    #[arg(long, env = "MCPRELAY_CHANNEL_IDLE_TIMEOUT", value_name = "DURATION", default_value = CHANNEL_IDLE_TIMEOUT, value_parser = Trimmed(duration))]
    pub channel_idle_timeout: Duration,
    /// Inferences at once on a provider that states no number of its own
    #[arg(long, env = "MCPRELAY_MAX_IN_FLIGHT", value_name = "N", default_value = MAX_IN_FLIGHT, value_parser = Trimmed(value_parser!(u32).range(1..=MAX_COUNT)))]
    pub max_in_flight: u32,
    /// Tasks that may wait for one provider; beyond, callers get 429
    #[arg(long, env = "MCPRELAY_MAX_QUEUED", value_name = "N", default_value = MAX_QUEUED, value_parser = Trimmed(value_parser!(u32).range(0..=MAX_COUNT)))]
    pub max_queued: u32,
    /// Of them, tasks of one caller whom mcpd names; beyond, that caller gets 429 [default: half of --max-queued]
    #[arg(long, env = "MCPRELAY_MAX_QUEUED_PER_CALLER", value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MAX_COUNT))]
    pub max_queued_per_caller: Option<u32>,
    /// Whether the home keeps for whom this machine worked: `mcprelay usage` shows it
    #[arg(long, env = "MCPRELAY_USAGE_LEDGER", value_name = "SWITCH", default_value = "on")]
    pub usage_ledger: Switch,
    /// Whether the machine is kept from sleeping of idleness while tasks run, where the system has a way
    #[arg(long, env = "MCPRELAY_KEEP_AWAKE", value_name = "WHEN", default_value = "auto")]
    pub keep_awake: KeepAwake,
    /// How logs look on standard error; auto is text on a terminal, else json. RUST_LOG filters them
    #[arg(long, env = "MCPRELAY_LOG_FORMAT", value_name = "FORMAT", default_value = "auto", value_parser = Trimmed(EnumValueParser::<LogFormat>::new()))]
    pub log_format: LogFormat,
    /// Loopback address with a Prometheus page of the metrics [default: none]
    #[arg(long, env = "MCPRELAY_METRICS_LISTEN", value_name = "ADDRESS:PORT", value_parser = Trimmed(loopback))]
    pub metrics_listen: Option<SocketAddr>,
    /// Users besides you and root that may use the socket, by number; they need a --socket-mode too [default: none]
    #[arg(long, env = "MCPRELAY_ALLOW_UID", value_name = "UID", value_delimiter = ',', value_parser = Trimmed(value_parser!(u32)))]
    pub allow_uid: Vec<u32>,
    /// The socket's permissions, octal: 0660 for its group, 0666 for all that --allow-uid names
    #[arg(long, env = "MCPRELAY_SOCKET_MODE", value_name = "MODE", default_value = "0600", value_parser = Trimmed(socket_mode))]
    pub socket_mode: u32,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// When the machine is kept awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepAwake {
    /// While tasks run.
    Auto,
    /// Never.
    Never,
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Whether logs are JSON, given whether they go to a terminal.
    pub fn is_json(self, to_terminal: bool) -> bool {
        match self {
            Self::Auto => !to_terminal,
            Self::Text => false,
            Self::Json => true,
        }
    }
}
