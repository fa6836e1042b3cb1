//! Variables that look like settings of ours and are none: a slip in a name must not go unnoticed.

use clap::CommandFactory as _;

use super::{Cli, completions};
use crate::{config::TOKEN_VARIABLE, domain::nearest};

/// How the names of all our variables begin.
const PREFIX: &str = "MCPRELAY_";

/// How the variables begin that Kubernetes puts into every container where there is a Service called "mcprelay".
const KUBERNETES: [&str; 2] = ["MCPRELAY_SERVICE_", "MCPRELAY_PORT"];

/// A variable that nobody reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Unread {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// The variables of this process that nobody reads.
pub fn unread() -> Vec<Unread> {
    among(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))
}

/// Warns of them in the log.
pub fn warn_of_unread() {
    for Unread { what, advice } in unread() {
        tracing::warn!("{what}; {advice}");
    }
}

fn among(names: impl Iterator<Item = String>) -> Vec<Unread> {
    let mut known = vec![TOKEN_VARIABLE.to_owned(), completions::VARIABLE.to_owned()];
    collect(&Cli::command(), &mut known);
    let unread = |name: String| Unread {
        advice: match nearest(&name, known.iter().map(String::as_str)) {
            Some(near) => format!("{near} may be meant"),
            None => "`mcprelay run --help` names those that are".to_owned(),
        },
        what: format!("the environment variable {name} is not read"),
    };
    let ours = names.filter(|name| name.starts_with(PREFIX) && !known.contains(name));
    let ours = ours.filter(|name| !KUBERNETES.iter().any(|prefix| name.starts_with(prefix)));
    let mut found: Vec<_> = ours.map(unread).collect();
    found.sort_by(|one, other| one.what.cmp(&other.what));
    found
}

fn collect(command: &clap::Command, known: &mut Vec<String>) {
    let variables = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
    known.extend(variables.map(str::to_owned));
    command.get_subcommands().for_each(|command| collect(command, known));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_nobody_reads_is_told_with_the_one_that_may_be_meant() {
        let read = ["MCPRELAY_TOKEN", "MCPRELAY_PROVIDE", "PATH"];
        let of_kubernetes = ["MCPRELAY_SERVICE_HOST", "MCPRELAY_PORT_9464_TCP_ADDR", "MCPRELAY_PORT"];
        let unread = ["MCPRELAY_MAX_IN_FLIHGT", "MCPRELAY_XYZ"];
        let names = [&read[..], &of_kubernetes, &unread].concat();
        let found = among(names.into_iter().map(str::to_owned));
        let told: Vec<_> = found.iter().map(|unread| format!("{}; {}", unread.what, unread.advice)).collect();
        assert_eq!(
            told,
            [
                "the environment variable MCPRELAY_MAX_IN_FLIHGT is not read; MCPRELAY_MAX_IN_FLIGHT may be meant",
                "the environment variable MCPRELAY_XYZ is not read; `mcprelay run --help` names those that are",
            ]
        );
    }
}
