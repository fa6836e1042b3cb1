//! The commands, one file each, and what they share: how they end ([`Stop`]), print ([`output`]) and reach the agent
//! ([`socket`]) and mcpd ([`http`]).

mod agent_status;
mod answer;
pub mod check_mcpd;
pub mod completions;
pub mod demo;
pub mod deregister;
pub mod doctor;
mod environment;
pub mod get;
pub mod http;
pub mod infer;
pub mod llms;
pub mod man;
mod notify;
pub mod output;
pub mod pause;
pub mod provide;
pub mod publish;
pub mod rates;
pub mod report;
pub mod run;
pub mod service;
mod signals;
pub mod socket;
pub mod status;
pub mod status_json;
#[cfg(test)]
mod stub;
pub mod usage;
mod version;
pub mod view;
pub mod watch;
mod waterfall;
pub mod words;

use std::{io, process::ExitCode};

use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::config::{ConfigError, Lookup, process_environment};

/// The text below the help: where to begin, and what scripts need to know.
const BEGIN: &str = "Begin with `mcprelay demo`. `mcprelay doctor` says what to do about trouble.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not online in time.";

/// The local agent between mcpd and the LLM providers of a workstation
#[derive(Debug, Parser)]
#[command(name = "mcprelay", version, max_term_width = 110, after_help = BEGIN)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// When to use colours
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", global = true)]
    pub color: output::Color,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground
    Run(run::RunArgs),
    /// Serve the providers of config.json through the agent's socket
    Provide(provide::ProvideArgs),
    /// Show all of it at work, with a fake mcpd in this process, and trace one inference
    Demo(demo::DemoArgs),
    /// List what mcpd offers
    Get(get::GetArgs),
    /// Call a virtual LLM through mcpd and stream its answer
    Infer(infer::InferArgs),
    /// Show the running agent: its link to mcpd, providers and tasks
    Status(status::StatusArgs),
    /// Check files, socket, mcpd and providers, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Try the whole provider contract on a live mcpd, with a throw-away provider
    CheckMcpd(check_mcpd::CheckArgs),
    /// Give a provider, or all, no new work until resumed or for a time
    Pause(pause::PauseArgs),
    /// Give a paused provider, or all, work again
    Resume(pause::ResumeArgs),
    /// Publish an entry of config.json: sets its one flag there
    Publish(publish::PublishArgs),
    /// Publish an entry of config.json no longer
    Unpublish(publish::PublishArgs),
    /// Show for whom this machine worked
    Usage(usage::UsageArgs),
    /// Run the agent as your own service, from now on and at every login
    Service(service::ServiceArgs),
    /// Withdraw this home's LLMs from mcpd, for an uninstall; refuses while its agent runs
    Deregister(deregister::DeregisterArgs),
    /// Print a shell's completion script
    Completions(completions::CompletionsArgs),
    /// Print the manual page
    Man(man::ManArgs),
}

/// Why a command ends before it has done what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It failed: one sentence. Exit 1.
    Failed(String),
    /// It was used wrongly: one sentence. Exit 2.
    Usage(String),
    /// The agent did not get online in time: one sentence. Exit 3.
    NotOnline(String),
    /// It failed and has already said why. Exit 1.
    Reported,
    /// The reader of the output has closed it, which is not a failure. Exit 0.
    NobodyReads,
}

impl Stop {
    /// Reports it on standard error, and returns the exit code.
    pub fn report(self) -> ExitCode {
        let (message, code) = match self {
            Self::Failed(message) => (message, 1),
            Self::Usage(message) => (message, 2),
            Self::NotOnline(message) => (message, 3),
            Self::Reported => return ExitCode::from(1),
            Self::NobodyReads => return ExitCode::SUCCESS,
        };
        output::complain(&message);
        ExitCode::from(code)
    }
}

impl From<ConfigError> for Stop {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Trouble with the command's own output.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// Parses this process's command line. Help and usage errors are printed here, and the exit code is returned.
pub fn parse() -> Result<Cli, ExitCode> {
    let command = without_empty_variables(Cli::command(), &process_environment);
    let parsed = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| match value_complaint(&error) {
        Some(message) => Stop::Usage(message).report(),
        None => {
            // If even this cannot be printed, nobody can be told.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    })
}

/// A variable that is set to nothing counts as unset, as OpenTelemetry and kubectl take theirs: that is what a unit file or a compose
/// file makes of a setting that nobody filled in.
fn without_empty_variables(command: clap::Command, env: Lookup<'_>) -> clap::Command {
    let is_empty = |argument: &clap::Arg| {
        let name = argument.get_env().and_then(|name| name.to_str());
        name.and_then(env).is_some_and(|value| value.is_empty())
    };
    command
        .mut_args(|argument| if is_empty(&argument) { argument.env(Resettable::Reset) } else { argument })
        .mut_subcommands(|command| without_empty_variables(command, env))
}

/// One sentence about an invalid value: clap's own message does not say that it may have come from the environment. The value is left out,
/// because it may contain a password.
fn value_complaint(error: &clap::Error) -> Option<String> {
    let ContextValue::String(argument) = error.get(ContextKind::InvalidArg)? else { return None };
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let flag = argument.split(' ').next().unwrap_or(argument);
    let name = flag.strip_prefix("--")?;
    let why = std::error::Error::source(error)?;
    let from = variable_of(&Cli::command(), name)
        .map(|variable| format!(" (or of the environment variable {variable})"));
    Some(format!("the value of {flag}{} is not usable: {why}", from.unwrap_or_default()))
}

/// The environment variable of a flag of some command.
fn variable_of(command: &clap::Command, flag: &str) -> Option<String> {
    let own = command.get_arguments().find(|argument| argument.get_long() == Some(flag));
    let variable = own.and_then(|argument| argument.get_env()?.to_str().map(str::to_owned));
    variable.or_else(|| command.get_subcommands().find_map(|command| variable_of(command, flag)))
}

/// Whether the command is a service, which has its own settings for the log and telemetry.
pub fn sets_up_its_own_log(cli: &Cli) -> bool {
    match &cli.command {
        Command::Run(_) => true,
        Command::Provide(args) => !args.detect,
        _ => false,
    }
}

/// Runs the command.
pub async fn dispatch(cli: Cli) -> Result<(), Stop> {
    let env = &process_environment;
    output::set_color(cli.color);
    match cli.command {
        Command::Run(args) => run::run(args, env).await,
        Command::Provide(args) => provide::run(args, env).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Get(args) => get::run(args, env).await,
        Command::Infer(args) => infer::run(args, env).await,
        Command::Status(args) => status::run(args, env).await,
        Command::Doctor(args) => doctor::run(args, env).await,
        Command::CheckMcpd(args) => check_mcpd::run(args, env).await,
        Command::Pause(args) => pause::run(args, env).await,
        Command::Resume(args) => pause::resume(args, env).await,
        Command::Publish(args) => publish::run(&args, true, env),
        Command::Unpublish(args) => publish::run(&args, false, env),
        Command::Usage(args) => usage::run(args, env).await,
        Command::Service(args) => service::run(args, env).await,
        Command::Deregister(args) => deregister::run(args, env).await,
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let alone = || clap::Command::new("mcprelay");
        run::RunArgs::augment_args(alone()).debug_assert();
        provide::ProvideArgs::augment_args(alone()).debug_assert();
        demo::DemoArgs::augment_args(alone()).debug_assert();
    }

    #[test]
    fn a_bad_value_is_one_sentence_with_flag_and_variable_and_without_the_value() {
        let error =
            Cli::try_parse_from(["mcprelay", "get", "llm", "--mcpd-url=https://u:s3cret@h"]).unwrap_err();
        assert_eq!(
            value_complaint(&error).as_deref(),
            Some(
                "the value of --mcpd-url (or of the environment variable MCPRELAY_MCPD_URL) is not usable: it has a user \
                 name or password in it; write it like https://mcpd.example.com"
            )
        );
    }

    #[test]
    fn a_variable_that_is_set_to_nothing_is_not_read_whatever_command_has_it() {
        let env: Lookup<'_> = &|name| Some(if name == "MCPRELAY_HOME" { "" } else { "/x" }.into());
        let command = without_empty_variables(Cli::command(), env);
        for name in ["run", "status", "get"] {
            assert_eq!(variable_of(command.find_subcommand(name).unwrap(), "home"), None, "{name}");
        }
        assert_eq!(variable_of(&command, "socket").as_deref(), Some("MCPRELAY_SOCKET"), "has a value");
    }

    #[test]
    fn a_flag_without_a_variable_names_none() {
        let error = Cli::try_parse_from(["mcprelay", "status", "--wait=online", "--timeout=5"]).unwrap_err();
        let expected =
            "the value of --timeout is not usable: write a number with a unit, as 500ms, 30s or 10m";
        assert_eq!(value_complaint(&error).as_deref(), Some(expected));
    }

    #[test]
    fn a_reader_that_has_enough_is_no_failure() {
        assert_eq!(Stop::from(io::Error::from(io::ErrorKind::BrokenPipe)), Stop::NobodyReads);
        assert!(matches!(Stop::from(io::Error::other("full")), Stop::Failed(_)));
    }
}
