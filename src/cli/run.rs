//! `mcprelay run`: the agent, in the foreground.

use clap::Args;

use crate::config::AgentArgs;

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The agent's settings.
    #[command(flatten)]
    pub config: AgentArgs,
    /// Also serve the providers of config.json in the home, for an mcplocal that does not speak gRPC yet
    #[arg(long, env = "MCPRELAY_PROVIDE", value_parser = clap::builder::FalseyValueParser::new())]
    pub provide: bool,
}
