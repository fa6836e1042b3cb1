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
pub fn run(args: &CompletionsArgs, command: clap::Command) -> Result<(), Stop> {
    Ok(output::print(&script(args.shell, command))?)
}

fn script(shell: Shell, mut command: clap::Command) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "mcprelay", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, ValueEnum as _};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_shells_script_knows_the_commands() {
        for shell in Shell::value_variants() {
            assert!(script(*shell, Cli::command()).contains("check-mcpd"), "{shell}");
        }
    }
}
