//! Flags and environment become one validated [`Config`]. Nothing here opens, creates or reads a file.
//!
//! Every setting is a flag, else an environment variable `MCPRELAY_<FLAG>`, else a default; `mcprelay run --help` shows all
//! three. Each value is checked where it is parsed; what concerns several of them is checked in [`Config::new`].

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{
    Args, ValueEnum,
    builder::{FalseyValueParser, Resettable},
};
use secrecy::SecretString;

use crate::credentials::{self, McpdUrl};

/// The socket's name in the home.
pub const SOCKET_FILE: &str = "mcprelay.sock";
/// The sticky session's file in the home.
pub const SESSION_FILE: &str = "provider-session";
/// The file of the tasks under way, in the home.
pub const TASKS_FILE: &str = "mcprelay.tasks";
/// The environment variable with the token. It has no flag because process lists show flags.
pub const TOKEN_VARIABLE: &str = "MCPRELAY_TOKEN";

/// Where mcpctl keeps its files.
const HOME: &str = "~/.mcpctl";
/// The contract's pace; mcpd gives a session up after three missed ones.
const HEARTBEAT_INTERVAL: &str = "30s";
/// The contract's first and last pause between attempts.
const RECONNECT: [&str; 2] = ["5s", "60s"];
/// Long enough for most answers to end; service managers must wait longer than this (150 s in our units).
const DRAIN_TIMEOUT: &str = "120s";
/// One task event holds a whole chat, and a chat can hold images.
const EVENT_LIMIT: &str = "32MiB";
/// Nobody's browser waits longer for a whole answer.
const TASK_TIMEOUT: &str = "10m";
/// Half the whole: a long prompt on a slow machine takes minutes before its first token, and is not dead.
const TOKEN_TIMEOUT: &str = "5m";
/// What a caller puts up with before anything happens at all.
const QUEUE_TIMEOUT: &str = "30s";
/// Four missed keep-alives of the contract's 15 s.
const CHANNEL_IDLE_TIMEOUT: &str = "60s";
/// What the common local servers run at once on one GPU.
const MAX_IN_FLIGHT: &str = "4";
/// Enough for a burst, and few enough to be answered within the queue timeout.
const MAX_QUEUED: &str = "64";

/// The longest of any duration: milliseconds of it still fit the proto's 32 bits.
const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The least and the most of the event limit: below, no chat fits; above, the bridge's own limit leaves 32 bits.
const EVENT_LIMIT_RANGE: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 30;
/// The most bytes a socket's path may have: `sun_path` without its terminating NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The most of anything counted per provider: beyond it is a typing error.
const MAX_COUNT: i64 = 1_000_000;

/// Where the agent's files and its socket are: for every command that meets it.
#[derive(Clone, Debug, Args)]
pub struct HomeArgs {
    /// Folder with config.json, credentials, provider-session and the socket
    #[arg(long, env = "MCPRELAY_HOME", value_name = "DIR", default_value = HOME)]
    pub home: PathBuf,
    /// The agent's unix socket [default: mcprelay.sock in the home]
    #[arg(long, env = "MCPRELAY_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// How mcpd is reached: for every command that calls it.
#[derive(Clone, Debug, Args)]
pub struct McpdArgs {
    /// Where mcpd is [default: from credentials in the home, else from config.json there]. The token comes from the
    /// environment variable MCPRELAY_TOKEN, else from credentials
    #[arg(long, env = "MCPRELAY_MCPD_URL", value_name = "URL", value_parser = mcpd_url)]
    pub mcpd_url: Option<McpdUrl>,
    /// PEM file with the certificate authorities to trust besides the system's [default: none]
    #[arg(long, env = "MCPRELAY_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Send the token over plain http to other machines too [default: false]
    #[arg(long, env = "MCPRELAY_ALLOW_INSECURE_HTTP", value_parser = FalseyValueParser::new())]
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
    #[arg(long, env = "MCPRELAY_HEARTBEAT_INTERVAL", value_name = "DURATION", default_value = HEARTBEAT_INTERVAL, value_parser = duration)]
    pub heartbeat_interval: Duration,
    /// First pause before mcpd is tried again; it doubles up to --reconnect-max
    #[arg(long, env = "MCPRELAY_RECONNECT_MIN", value_name = "DURATION", default_value = RECONNECT[0], value_parser = duration)]
    pub reconnect_min: Duration,
    /// Longest pause before mcpd is tried again
    #[arg(long, env = "MCPRELAY_RECONNECT_MAX", value_name = "DURATION", default_value = RECONNECT[1], value_parser = duration)]
    pub reconnect_max: Duration,
    /// How long running tasks may go on after SIGTERM; a second signal ends at once
    #[arg(long, env = "MCPRELAY_DRAIN_TIMEOUT", value_name = "DURATION", default_value = DRAIN_TIMEOUT, value_parser = duration_or_zero)]
    pub drain_timeout: Duration,
    /// Largest event on mcpd's channel, so largest request
    #[arg(long, env = "MCPRELAY_EVENT_LIMIT", value_name = "SIZE", default_value = EVENT_LIMIT, value_parser = event_limit)]
    pub event_limit: usize,
    /// Longest time for a whole task
    #[arg(long, env = "MCPRELAY_TASK_TIMEOUT", value_name = "DURATION", default_value = TASK_TIMEOUT, value_parser = duration)]
    pub task_timeout: Duration,
    /// Longest time from a streaming task's start at its provider to the first token
    #[arg(long, env = "MCPRELAY_FIRST_TOKEN_TIMEOUT", value_name = "DURATION", default_value = TOKEN_TIMEOUT, value_parser = duration)]
    pub first_token_timeout: Duration,
    /// Longest time between two tokens
    #[arg(long, env = "MCPRELAY_IDLE_TOKEN_TIMEOUT", value_name = "DURATION", default_value = TOKEN_TIMEOUT, value_parser = duration)]
    pub idle_token_timeout: Duration,
    /// Longest time a task waits for a free slot
    #[arg(long, env = "MCPRELAY_QUEUE_TIMEOUT", value_name = "DURATION", default_value = QUEUE_TIMEOUT, value_parser = duration)]
    pub queue_timeout: Duration,
    /// Silence after which mcpd's channel is reopened, once it has shown a keep-alive
    #[arg(long, env = "MCPRELAY_CHANNEL_IDLE_TIMEOUT", value_name = "DURATION", default_value = CHANNEL_IDLE_TIMEOUT, value_parser = duration)]
    pub channel_idle_timeout: Duration,
    /// Inferences at once on a provider that states no number of its own
    #[arg(long, env = "MCPRELAY_MAX_IN_FLIGHT", value_name = "N", default_value = MAX_IN_FLIGHT, value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
    pub max_in_flight: u32,
    /// Tasks that may wait for one provider; beyond, callers get 429
    #[arg(long, env = "MCPRELAY_MAX_QUEUED", value_name = "N", default_value = MAX_QUEUED, value_parser = clap::value_parser!(u32).range(0..=MAX_COUNT))]
    pub max_queued: u32,
    /// How logs look on standard error; auto is text on a terminal, else json. RUST_LOG filters them
    #[arg(long, env = "MCPRELAY_LOG_FORMAT", value_name = "FORMAT", default_value = "auto")]
    pub log_format: LogFormat,
    /// Loopback address with a Prometheus page of the metrics [default: none]
    #[arg(long, env = "MCPRELAY_METRICS_LISTEN", value_name = "ADDRESS:PORT", value_parser = loopback)]
    pub metrics_listen: Option<SocketAddr>,
    /// Users besides you and root that may use the socket, by number; for containers [default: none]
    #[arg(long, env = "MCPRELAY_ALLOW_UID", value_name = "UID", value_delimiter = ',')]
    pub allow_uid: Vec<u32>,
    /// The socket's permissions, octal
    #[arg(long, env = "MCPRELAY_SOCKET_MODE", value_name = "MODE", default_value = "0600", value_parser = socket_mode)]
    pub socket_mode: u32,
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

/// The agent's settings, each within its bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the agent's files; absolute. It may not exist.
    pub home: PathBuf,
    /// The socket's path; absolute, and short enough to be bound.
    pub socket: PathBuf,
    /// Where mcpd is, if flag or environment say so.
    pub mcpd_url: Option<McpdUrl>,
    /// The token, if the environment has it.
    pub token: Option<SecretString>,
    /// Pause between heartbeats.
    pub heartbeat_interval: Duration,
    /// First pause before a new attempt.
    pub reconnect_min: Duration,
    /// Longest pause before a new attempt; at least `reconnect_min`.
    pub reconnect_max: Duration,
    /// How long running tasks may go on when the agent stops; may be zero.
    pub drain_timeout: Duration,
    /// Largest event on the control channel, in bytes.
    pub event_limit: usize,
    /// Longest time for a whole task.
    pub task_timeout: Duration,
    /// Longest time to a streaming task's first token.
    pub first_token_timeout: Duration,
    /// Longest time between two tokens.
    pub idle_token_timeout: Duration,
    /// Longest time a task waits for a slot.
    pub queue_timeout: Duration,
    /// Silence after which a channel that has shown a keep-alive is reopened.
    pub channel_idle_timeout: Duration,
    /// Inferences at once on a provider that states no number; at least 1.
    pub max_in_flight: u32,
    /// Tasks that may wait for one provider.
    pub max_queued: u32,
    /// How logs look.
    pub log_format: LogFormat,
    /// Where to serve metrics; a loopback address.
    pub metrics_listen: Option<SocketAddr>,
    /// Certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the token may go over plain http to other machines.
    pub allow_insecure_http: bool,
    /// Users besides the own and root that may use the socket.
    pub allow_uid: Vec<u32>,
    /// The socket's permission bits.
    pub socket_mode: u32,
}

/// Why settings that are each well-formed do not make a [`Config`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The default home is below HOME.
    #[error(
        "HOME is not set, so ~ in --home (MCPRELAY_HOME) means nothing: set HOME or pass an absolute path"
    )]
    NoHome,
    /// A relative path is relative to nothing.
    #[error("{flag} is empty or relative to a folder that is gone: pass an absolute path")]
    NoPath {
        /// The flag.
        flag: &'static str,
    },
    /// The kernel takes no longer path.
    #[error(
        "the socket's path has {0} bytes and the system takes {MAX_SOCKET_PATH_BYTES}: pass a shorter --socket (MCPRELAY_SOCKET)"
    )]
    SocketTooLong(usize),
    /// The first pause is longer than the longest.
    #[error(
        "--reconnect-min (MCPRELAY_RECONNECT_MIN) is more than --reconnect-max (MCPRELAY_RECONNECT_MAX): make it less"
    )]
    ReconnectOrder,
    /// The token cannot travel in a header.
    #[error("{TOKEN_VARIABLE} has characters that no token has: set it to the token alone")]
    BadToken,
}

/// Looks a variable up in the environment. Tests and the demo bring their own.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process.
pub fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The home and the socket, resolved; both absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Folder of the agent's files.
    pub home: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
}

impl HomeArgs {
    /// Resolves `~` and the socket's default.
    pub fn places(&self, env: Lookup<'_>) -> Result<Places, ConfigError> {
        let home = absolute(&self.home, "--home (MCPRELAY_HOME)", env)?;
        let socket = match &self.socket {
            Some(path) => absolute(path, "--socket (MCPRELAY_SOCKET)", env)?,
            None => home.join(SOCKET_FILE),
        };
        match socket.as_os_str().len() {
            n if n > MAX_SOCKET_PATH_BYTES => Err(ConfigError::SocketTooLong(n)),
            _ => Ok(Places { home, socket }),
        }
    }
}

impl McpdArgs {
    /// Where the commands that call mcpd look for its URL and token.
    pub fn sources(&self, home: &Path, env: Lookup<'_>) -> Result<credentials::Sources, ConfigError> {
        Ok(credentials::Sources {
            mcpd_url: self.mcpd_url.clone(),
            token: token_of(env)?,
            home: home.to_owned(),
            allow_insecure_http: self.allow_insecure_http,
        })
    }
}

impl Config {
    /// Checks what concerns several settings, and takes the token from the environment.
    pub fn new(args: AgentArgs, env: Lookup<'_>) -> Result<Self, ConfigError> {
        let Places { home, socket } = args.home.places(env)?;
        if args.reconnect_min > args.reconnect_max {
            return Err(ConfigError::ReconnectOrder);
        }
        Ok(Self {
            home,
            socket,
            mcpd_url: args.mcpd.mcpd_url,
            token: token_of(env)?,
            heartbeat_interval: args.heartbeat_interval,
            reconnect_min: args.reconnect_min,
            reconnect_max: args.reconnect_max,
            drain_timeout: args.drain_timeout,
            event_limit: args.event_limit,
            task_timeout: args.task_timeout,
            first_token_timeout: args.first_token_timeout,
            idle_token_timeout: args.idle_token_timeout,
            queue_timeout: args.queue_timeout,
            channel_idle_timeout: args.channel_idle_timeout,
            max_in_flight: args.max_in_flight,
            max_queued: args.max_queued,
            log_format: args.log_format,
            metrics_listen: args.metrics_listen,
            ca_file: args.mcpd.ca_file,
            allow_insecure_http: args.mcpd.allow_insecure_http,
            allow_uid: args.allow_uid,
            socket_mode: args.socket_mode,
        })
    }

    /// The defaults in `home`, whatever the environment says: for the demo and for tests.
    pub fn defaults(home: &Path) -> Result<Self, ConfigError> {
        let nothing: Lookup<'_> = &|_| None;
        let mut args: AgentArgs = parse_args(&[], nothing).expect("the defaults parse");
        args.home.home = home.to_owned();
        Self::new(args, nothing)
    }

    /// Where the agent looks for mcpd's URL and token.
    pub fn credential_sources(&self) -> credentials::Sources {
        credentials::Sources {
            mcpd_url: self.mcpd_url.clone(),
            token: self.token.clone(),
            home: self.home.clone(),
            allow_insecure_http: self.allow_insecure_http,
        }
    }
}

/// Parses a command line with an environment that is not this process's own.
pub(crate) fn parse_args<A: Args>(command_line: &[&str], env: Lookup<'_>) -> Result<A, clap::Error> {
    let with_env = |arg: clap::Arg| {
        let given = arg.get_env().and_then(|name| env(name.to_str()?));
        let arg = arg.env(Resettable::Reset);
        match given {
            Some(value) => arg.default_value(value.into_string().unwrap_or_default()),
            None => arg,
        }
    };
    let command = A::augment_args(clap::Command::new("mcprelay").no_binary_name(true)).mut_args(with_env);
    A::from_arg_matches(&command.try_get_matches_from(command_line)?)
}

fn token_of(env: Lookup<'_>) -> Result<Option<SecretString>, ConfigError> {
    match env(TOKEN_VARIABLE) {
        Some(text) if !text.is_empty() => {
            let token = text.to_str().and_then(credentials::usable_token);
            token.map(Some).ok_or(ConfigError::BadToken)
        }
        _ => Ok(None),
    }
}

/// `path` from the root on; `~` is the environment's HOME, as a service's settings file has no shell to expand it.
fn absolute(path: &Path, flag: &'static str, env: Lookup<'_>) -> Result<PathBuf, ConfigError> {
    let path = match path.strip_prefix("~") {
        Ok(rest) => {
            let home = env("HOME").filter(|home| !home.is_empty()).ok_or(ConfigError::NoHome)?;
            PathBuf::from(home).join(rest)
        }
        Err(_) => path.to_owned(),
    };
    std::path::absolute(path).map_err(|_| ConfigError::NoPath { flag })
}

/// A duration as people write it, more than nothing: for flags.
pub fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("it must be more than nothing".into()),
        duration => Ok(duration),
    }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|_| "write a number with a unit, as 500ms, 30s or 10m")?;
    if duration > MAX_DURATION {
        return Err("it must be at most 30 days".into());
    }
    Ok(duration)
}

fn event_limit(text: &str) -> Result<usize, String> {
    let size = size(text).ok_or("write a number of bytes or one with a unit, as 512KiB or 32MiB")?;
    if !EVENT_LIMIT_RANGE.contains(&size) {
        return Err("it must be from 64KiB to 1GiB".into());
    }
    Ok(size)
}

/// A size in bytes, bare or with a binary unit.
fn size(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift)
}

fn mcpd_url(text: &str) -> Result<McpdUrl, String> {
    McpdUrl::parse(text).map_err(|why| format!("it {why}; write it like https://mcpd.example.com"))
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => {
            Err("only loopback is served, because the page has no password: write it like 127.0.0.1:9464"
                .into())
        }
        Err(_) => Err("write an address and a port, as 127.0.0.1:9464".into()),
    }
}

fn socket_mode(text: &str) -> Result<u32, String> {
    let mode =
        u32::from_str_radix(text.trim_start_matches("0o"), 8).map_err(|_| "write it octal, as 0600")?;
    if mode & !0o666 != 0 || mode & 0o600 != 0o600 {
        return Err(
            "the owner must have both read and write, and nobody more than that: write 0600, 0660 or 0666"
                .into(),
        );
    }
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn parse(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, String> {
        let mut table: BTreeMap<_, _> = env.iter().copied().collect();
        table.entry("HOME").or_insert("/home/u");
        let lookup: Lookup<'_> =
            &|name| table.get(name).filter(|value| **value != "unset").map(OsString::from);
        let args = parse_args(flags, lookup).map_err(|error| error.to_string())?;
        Config::new(args, lookup).map_err(|error| error.to_string())
    }

    fn refusal(flags: &[&str]) -> String {
        parse(flags, &[]).expect_err("must be refused")
    }

    #[test]
    fn the_defaults_are_those_of_the_table() {
        let config = parse(&[], &[]).expect("defaults");
        let seconds = Duration::from_secs;
        assert_eq!(config.home, Path::new("/home/u/.mcpctl"));
        assert_eq!(config.socket, Path::new("/home/u/.mcpctl/mcprelay.sock"));
        assert_eq!((config.reconnect_min, config.reconnect_max), (seconds(5), seconds(60)));
        assert_eq!((config.heartbeat_interval, config.drain_timeout), (seconds(30), seconds(120)));
        assert_eq!((config.task_timeout, config.queue_timeout), (seconds(600), seconds(30)));
        assert_eq!((config.first_token_timeout, config.idle_token_timeout), (seconds(300), seconds(300)));
        assert_eq!((config.channel_idle_timeout, config.event_limit), (seconds(60), 32 << 20));
        assert_eq!((config.max_in_flight, config.max_queued, config.socket_mode), (4, 64, 0o600));
        assert!(config.mcpd_url.is_none() && config.token.is_none() && config.metrics_listen.is_none());
        assert!(!config.allow_insecure_http && config.allow_uid.is_empty() && config.ca_file.is_none());
    }

    #[test]
    fn a_flag_comes_before_the_environment_and_the_environment_before_the_default() {
        let env = [
            ("MCPRELAY_QUEUE_TIMEOUT", "1m"),
            ("MCPRELAY_ALLOW_UID", "5,6"),
            ("MCPRELAY_ALLOW_INSECURE_HTTP", "1"),
        ];
        let config = parse(&[], &env).expect("good");
        assert_eq!((config.queue_timeout, config.allow_insecure_http), (Duration::from_secs(60), true));
        assert_eq!(config.allow_uid, [5, 6]);
        let config = parse(&["--queue-timeout=2s", "--allow-uid=7"], &env).expect("good");
        assert_eq!((config.queue_timeout, config.allow_uid), (Duration::from_secs(2), vec![7]));
    }

    #[test]
    fn every_flag_has_its_variable_and_says_its_default() {
        for arg in AgentArgs::augment_args(clap::Command::new("mcprelay")).get_arguments() {
            let flag = arg.get_long().expect("a long flag");
            let variable = format!("MCPRELAY_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(&*variable));
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!arg.get_default_values().is_empty() || help.contains("[default: "), "{flag}");
        }
    }

    #[test]
    fn the_token_comes_from_the_environment_only_and_an_empty_one_is_none() {
        let token = |value| parse(&[], &[("MCPRELAY_TOKEN", value)]).map(|config| config.token);
        assert_eq!(token("abc").expect("good").expect("there").expose_secret(), "abc");
        assert!(token("").expect("good").is_none());
        let refused = token("s3cret s3cret").expect_err("refused");
        assert!(refused.contains("MCPRELAY_TOKEN") && !refused.contains("s3cret"));
        assert!(refusal(&["--token=abc"]).contains("unexpected argument"));
    }

    #[test]
    fn a_bad_value_is_refused_with_what_to_write() {
        for (flag, hint) in [
            ("--heartbeat-interval=0s", "more than nothing"),
            ("--task-timeout=5", "30s or 10m"),
            ("--task-timeout=31days", "at most 30 days"),
            ("--event-limit=1KiB", "64KiB to 1GiB"),
            ("--event-limit=18446744073709551615GiB", "512KiB or 32MiB"),
            ("--max-in-flight=0", "1..=1000000"),
            ("--metrics-listen=0.0.0.0:1", "only loopback"),
            ("--metrics-listen=9464", "127.0.0.1:9464"),
            ("--socket-mode=0777", "0600, 0660 or 0666"),
            ("--socket-mode=0400", "0600, 0660 or 0666"),
            ("--mcpd-url=ftp://h", "neither http nor https"),
            ("--log-format=xml", "auto, text, json"),
        ] {
            let refused = refusal(&[flag]);
            assert!(refused.contains(hint), "{flag}: {refused}");
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_with_both_names() {
        let refused = refusal(&["--reconnect-min=2m"]);
        assert!(refused.contains("--reconnect-min") && refused.contains("MCPRELAY_RECONNECT_MAX"));
        assert!(refusal(&[&format!("--home=/{}", "x".repeat(100))]).contains("--socket"));
        assert!(parse(&[], &[("HOME", "unset")]).expect_err("no HOME").contains("pass an absolute path"));
        assert!(parse(&["--home=/h"], &[("HOME", "unset")]).is_ok());
    }

    #[test]
    fn zero_is_a_drain_timeout_and_logs_are_json_off_a_terminal() {
        assert_eq!(parse(&["--drain-timeout=0s"], &[]).expect("good").drain_timeout, Duration::ZERO);
        assert!(LogFormat::Auto.is_json(false) && !LogFormat::Auto.is_json(true));
        assert!(LogFormat::Json.is_json(true) && !LogFormat::Text.is_json(false));
    }

    #[test]
    fn the_defaults_of_a_home_ignore_the_environment() {
        let config = Config::defaults(Path::new("/tmp/x")).expect("good");
        assert_eq!(config.socket, Path::new("/tmp/x/mcprelay.sock"));
    }
}
