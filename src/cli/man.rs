//! `mcprelay man`: the manual pages.

use std::path::PathBuf;

use clap::Args;

use super::{Stop, output};

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write all pages, one a command, into this folder instead
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Prints the main page, or writes them all.
pub fn run(args: &ManArgs, command: clap::Command) -> Result<(), Stop> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_has_its_page() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let args = ManArgs { dir: Some(folder.path().to_owned()) };
        assert_eq!(run(&args, Cli::command()), Ok(()));
        for command in Cli::command().get_subcommands() {
            let page = format!("mcprelay-{}.1", command.get_name());
            assert!(folder.path().join(&page).exists(), "{page}");
        }
    }
}
