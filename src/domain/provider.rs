//! A provider as its owner pushed it, the session that pushed it, and what became of it.

use std::sync::Arc;

use super::{Failure, ProviderName, Rule};

/// What a session said in its Hello.
#[derive(Clone, Debug)]
pub struct SessionHello {
    /// Stable per installation.
    pub client_id: String,
    /// For people.
    pub client_version: String,
    /// The largest message the client accepts, in bytes.
    pub max_message_bytes: usize,
    /// Whether it is the agent's own provider host, which any session from outside outranks.
    pub builtin: bool,
}

/// One entry of a snapshot: a provider, or the name as pushed and why it is refused.
pub type Pushed = Result<Provider, (String, Failure)>;

/// What became of the providers of one snapshot, in its order.
pub type Verdicts = Vec<(String, Verdict)>;

/// One LLM as its owner pushed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Its name, unique among what is published.
    pub name: ProviderName,
    /// The kind of server behind it: "ollama", "vllm", ... May be empty. Each inference's trace keeps it, and the model.
    pub kind: Arc<str>,
    /// The model it serves.
    pub model: Arc<str>,
    /// The owner's word for its class; may be empty.
    pub tier: String,
    /// For people; may be empty.
    pub description: String,
    /// The owner's consent to publish it upstream.
    pub publish: bool,
    /// When it works for others: only while every rule is fulfilled.
    pub sharing: Vec<Rule>,
    /// How many inferences may run at once; with `None` the agent's setting applies, and 0 means none for now.
    pub max_in_flight: Option<u32>,
    /// Whether it can work now.
    pub state: ProviderState,
    /// Why, for people; may be empty.
    pub state_detail: String,
    /// What it can do: "tools", "vision", ...
    pub features: Vec<String>,
    /// Its context window in tokens, where known.
    pub context_tokens: Option<u32>,
    /// The most tokens it gives in one answer, where known.
    pub max_output_tokens: Option<u32>,
    /// The server behind it, where there is one and it is known; for traces alone.
    pub server: Option<ServerAddress>,
}

/// A server's host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// A name or an IP address.
    pub host: Arc<str>,
    /// The port, also where the URL leaves it out.
    pub port: u16,
}

impl ServerAddress {
    /// The server of an HTTP URL, whatever else is in it; `None` for what is not one.
    pub fn of(url: &str) -> Option<Self> {
        let url = url::Url::parse(url).ok()?;
        Some(Self { host: url.host_str()?.into(), port: url.port_or_known_default()? })
    }
}

/// Whether a provider can work now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderState {
    /// Takes work.
    Ready,
    /// Will take work soon: stays published, its tasks wait.
    Loading,
    /// Takes no work: withdrawn from mcpd.
    Unavailable,
}

impl ProviderState {
    /// Its word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Loading => "loading",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What became of one provider of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serves under its name.
    Published,
    /// Pushed without consent: shown, not published.
    NotOptedIn,
    /// Another session serves under this name.
    StandingBy,
    /// Not taken.
    Refused(Failure),
}
