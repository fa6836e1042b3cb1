//! `mcprelay completions`: a shell's completion script.

use clap::Args;
use clap_complete::Shell;

use super::{Stop, output};

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs, mut command: clap::Command) -> Result<(), Stop> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mcprelay", &mut script);
    Ok(output::print(&String::from_utf8_lossy(&script))?)
}
