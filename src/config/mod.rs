//! Flags and environment become one validated [`Config`]. Nothing here opens, creates or reads a file.
//!
//! Every setting is taken from a flag, else from an environment variable `MCPRELAY_<FLAG>`, else from a default; `mcprelay run --help`
//! shows all three. A single value is checked where it is parsed; what concerns several values is checked in [`Config::new`].

mod flags;
#[cfg(test)]
mod tests;
mod values;

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, builder::Resettable};
use secrecy::SecretString;

use crate::{
    credentials::{self, McpdUrl},
    platform::MAX_SOCKET_PATH_BYTES,
};

pub use flags::{AgentArgs, FolderArgs, HomeArgs, KeepAwake, LogFormat, McpdArgs, Switch};
pub use values::{Trimmed, duration};

/// The socket's name in the home.
pub const SOCKET_FILE: &str = "mcprelay.sock";
/// The sticky session's file in the home.
pub const SESSION_FILE: &str = "provider-session";
/// The file of the tasks under way, in the home.
pub const TASKS_FILE: &str = "mcprelay.tasks";
/// The file of the owner's pauses, in the home.
pub const PAUSES_FILE: &str = "mcprelay.pauses";
/// The folder of the usage ledger, in the home.
pub const USAGE_FOLDER: &str = "usage";
/// The environment variable with the token. There is no flag for it, because process lists show flags.
pub const TOKEN_VARIABLE: &str = "MCPRELAY_TOKEN";

/// The agent's settings, each within its bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder of the agent's files; absolute. It may not exist.
    pub home: PathBuf,
    /// The socket's path; absolute, and short enough to be bound.
    pub socket: PathBuf,
    /// Where mcpd is, if the flag or the environment says so.
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
    /// Of them, tasks of one caller.
    pub max_queued_per_caller: u32,
    /// Whether it is kept for whom the machine worked.
    pub usage_ledger: bool,
    /// Whether the machine is kept from sleeping of idleness while tasks run.
    pub keep_awake: bool,
    /// How logs look.
    pub log_format: LogFormat,
    /// Where to serve metrics; a loopback address.
    pub metrics_listen: Option<SocketAddr>,
    /// Certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the token may be sent over plain HTTP to other machines.
    pub allow_insecure_http: bool,
    /// Users besides the agent's own and root that may use the socket.
    pub allow_uid: Vec<u32>,
    /// The socket's permission bits.
    pub socket_mode: u32,
}

/// Why settings that are each well-formed do not make a [`Config`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The default home is below HOME.
    #[error(
        "HOME is not set, so ~ in --home (MCPRELAY_HOME) cannot be resolved: set HOME or pass an absolute path"
    )]
    NoHome,
    /// A relative path, which has no meaning for a service.
    #[error("{flag} is empty or relative to a folder that is gone: pass an absolute path")]
    NoPath {
        /// The flag.
        flag: &'static str,
    },
    /// The path is longer than the kernel accepts.
    #[error(
        "the socket's path has {0} bytes and the system takes {MAX_SOCKET_PATH_BYTES}: pass a shorter --socket (MCPRELAY_SOCKET)"
    )]
    SocketTooLong(usize),
    /// The first pause is longer than the longest.
    #[error(
        "--reconnect-min (MCPRELAY_RECONNECT_MIN) is more than --reconnect-max (MCPRELAY_RECONNECT_MAX): make it less"
    )]
    ReconnectOrder,
    /// The token cannot be sent in a header.
    #[error(
        "{TOKEN_VARIABLE} contains a space or another character that no token can have: set it to the token alone"
    )]
    BadToken,
}

/// Looks up a variable in the environment. Tests and the demo supply their own.
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

fn home(path: &Path, env: Lookup<'_>) -> Result<PathBuf, ConfigError> {
    absolute(path, "--home (MCPRELAY_HOME)", env)
}

impl FolderArgs {
    /// Resolves `~`.
    ///
    /// # Errors
    /// If the path needs HOME and that is not set, or is relative to a folder that is gone.
    pub fn path(&self, env: Lookup<'_>) -> Result<PathBuf, ConfigError> {
        home(&self.home, env)
    }
}

impl HomeArgs {
    /// Resolves `~` and the socket's default.
    ///
    /// # Errors
    /// As [`FolderArgs::path`], for either path; and if the path of the socket is too long.
    pub fn places(&self, env: Lookup<'_>) -> Result<Places, ConfigError> {
        let home = home(&self.home, env)?;
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
    ///
    /// # Errors
    /// If the token in the environment cannot be sent in a header.
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
    ///
    /// # Errors
    /// If a path cannot be resolved, the settings contradict each other, or the token cannot be sent in a header.
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
            max_queued_per_caller: args.max_queued_per_caller.unwrap_or(args.max_queued.div_ceil(2)),
            usage_ledger: args.usage_ledger == Switch::On,
            keep_awake: args.keep_awake == KeepAwake::Auto,
            log_format: args.log_format,
            metrics_listen: args.metrics_listen,
            ca_file: args.mcpd.ca_file,
            allow_insecure_http: args.mcpd.allow_insecure_http,
            allow_uid: args.allow_uid,
            socket_mode: args.socket_mode,
        })
    }

    /// The defaults in `home`, whatever the environment says, for the demo and for tests.
    ///
    /// # Errors
    /// If `home` is relative to a folder that is gone, or too long for a socket in it.
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
        let given = arg.get_env().and_then(|name| env(name.to_str()?)).filter(|value| !value.is_empty());
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

/// `path` as an absolute path; `~` becomes the environment's HOME, because no shell expands it in a service's settings file.
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
