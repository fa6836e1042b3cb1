//! `mcprelay completions`: a shell's completion script, and the names that it completes.
//!
//! The script asks this program for candidates, so that the names of LLMs and providers are those of
//! the moment.

use std::{env, time::Duration};

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::{
    CompletionCandidate,
    env::{CompleteEnv, Shells},
};

use super::{Cli, Stop, agent_status, http::Mcpd, llms, output};
use crate::config::{HomeArgs, McpdArgs, parse_args, process_environment};

/// The variable with which a completion script asks for candidates.
pub const VARIABLE: &str = "MCPRELAY_COMPLETE";
/// How long somebody who has pressed Tab waits for names.
const PATIENCE: Duration = Duration::from_millis(800);

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// The shells with a script.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(missing_docs, reason = "each is a shell's own name")]
pub enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<(), Stop> {
    Ok(output::print(&script(args.shell)?)?)
}

fn script(shell: Shell) -> Result<String, Stop> {
    let name = shell.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let shells = Shells::builtins();
    let Some(shell) = shells.completer(&name) else {
        return Err(Stop::Usage(format!("there is no script for {name}")));
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "mcprelay", "mcprelay", "mcprelay", &mut script)?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// Answers a completion script's question and ends the process; returns where none was asked.
pub fn answer() {
    if env::var_os(VARIABLE).is_some() {
        CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
    }
}

/// The names of the LLMs that mcpd lists.
pub fn llms() -> Vec<CompletionCandidate> {
    names(async {
        let home = parse_args::<HomeArgs>(&[], &process_environment).ok()?;
        let mcpd = parse_args::<McpdArgs>(&[], &process_environment).ok()?;
        let home = home.places(&process_environment).ok()?.home;
        let mcpd = Mcpd::new(&mcpd, &home, &process_environment).ok()?;
        Some(llms::list(&mcpd).await.ok()?.rows.into_iter().filter_map(|row| row.name).collect())
    })
}

/// The names of the providers that the agent knows.
pub fn providers() -> Vec<CompletionCandidate> {
    names(async {
        let home = parse_args::<HomeArgs>(&[], &process_environment).ok()?;
        let status = agent_status::once(&home.places(&process_environment).ok()?.socket).await.ok()?;
        Some(status.providers.into_iter().filter_map(|status| Some(status.provider?.name)).collect())
    })
}

/// Nobody to ask, or no answer in time, is no candidate: an error would be written into the command line.
fn names(ask: impl Future<Output = Option<Vec<String>>>) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await });
    asked.ok().flatten().unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shells_script_asks_this_program() {
        for shell in Shell::value_variants() {
            let script = script(*shell).expect("there is one");
            assert!(script.contains(VARIABLE) && script.contains("mcprelay"), "{shell:?}: {script}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_asked_for_is_no_candidate() {
        assert!(names(async { None }).is_empty());
        let given = names(async { Some(vec!["qwen3".to_owned()]) });
        assert_eq!(given, [CompletionCandidate::new("qwen3")]);
    }
}
