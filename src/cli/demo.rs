//! `mcprelay demo`: the whole path in one process.

use clap::Args;

/// Arguments of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// An OpenAI-compatible server in the place of the embedded provider: http://localhost:11434
    #[arg(long, value_name = "URL", requires = "model")]
    pub url: Option<String>,
    /// The model to ask for
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// What to ask
    #[arg(default_value = "Say hello to the reader of this demo.")]
    pub prompt: String,
}
