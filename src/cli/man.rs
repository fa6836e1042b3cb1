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
