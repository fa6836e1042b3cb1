//! `mcprelay provide`: the provider host, as a process of its own.

use clap::Args;

use crate::config::HomeArgs;

/// Arguments of `provide`.
#[derive(Clone, Debug, Args)]
pub struct ProvideArgs {
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
    /// Look for model servers on their usual ports and print config.json entries for them, instead of serving
    #[arg(long)]
    pub detect: bool,
    /// What the agent knows this host by; a second one of the same name replaces the first
    #[arg(long, env = "MCPRELAY_CLIENT_ID", value_name = "ID", default_value = "mcprelay/provide")]
    pub client_id: String,
}
