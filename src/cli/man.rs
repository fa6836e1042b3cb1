//! `mcprelay man`: the manual pages.

use std::path::PathBuf;

use clap::Args;

use super::{Stop, output};
use crate::domain::Printable;

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command whose page is wanted; the main page where it is missing
    pub command: Option<String>,
    /// Write all pages, one a command, into this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

/// Prints one page, or writes them all.
pub fn run(args: &ManArgs, mut command: clap::Command) -> Result<(), Stop> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        if let Some(name) = &args.command {
            command.build();
            command = command.find_subcommand(name).cloned().ok_or_else(|| unknown(name))?;
            let title = command.get_display_name().unwrap_or(name).to_owned();
            command = command.name(title);
        }
        clap_mangen::Man::new(command).render(&mut page)?;
        return Ok(output::print(&String::from_utf8_lossy(&page))?);
    };
    clap_mangen::generate_to(command, dir).map_err(|error| {
        Stop::Failed(format!(
            "cannot write the manual pages into {} ({error}): create the folder",
            dir.display()
        ))
    })
}

fn unknown(name: &str) -> Stop {
    Stop::Usage(format!("there is no command \"{}\": see `mcprelay --help`", Printable(name)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_command_that_there_is_not_is_wrong_usage() {
        let args = ManArgs { command: Some("rnu".into()), dir: None };
        assert!(matches!(run(&args, Cli::command()), Err(Stop::Usage(why)) if why.contains("\"rnu\"")));
    }

    #[test]
    fn every_command_has_its_page() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let args = ManArgs { command: None, dir: Some(folder.path().to_owned()) };
        assert_eq!(run(&args, Cli::command()), Ok(()));
        for command in Cli::command().get_subcommands() {
            let page = format!("mcprelay-{}.1", command.get_name());
            assert!(folder.path().join(&page).exists(), "{page}");
        }
    }
}
