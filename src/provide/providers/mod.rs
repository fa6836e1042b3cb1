//! The kinds of providers: [`KINDS`] is the one table of them, with where each listens and how it is asked.

pub mod echo;
pub mod openai_compatible;

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    config_file::Entry,
    openai::{http::Clients, readiness::Probe},
    task::Provider,
};
use crate::domain::{ProviderState, Reason};

/// One value of `type` in config.json.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The value.
    pub name: &'static str,
    /// What serves it.
    backend: Backend,
    /// What the owner of its models is called in its list of models: so it is told from others that listen at the same place.
    pub(super) owners: &'static [&'static str],
}

/// What serves a kind.
#[derive(Clone, Copy, Debug)]
enum Backend {
    /// This program itself.
    Echo,
    /// A server with OpenAI's interface: where it is unless the entry says otherwise, and how it is asked whether it is ready.
    Server { url: &'static str, probe: Probe },
}

/// Every kind. A kind of a server on this machine is looked for at its address by `mcprelay provide --detect`; of several at one address
/// the first one is meant unless the server's models have an owner of another one.
pub const KINDS: [Kind; 16] = [
    server("openai", "https://api.openai.com", Probe::Models, &[]),
    server("ollama", "http://127.0.0.1:11434", Probe::Models, &["library"]),
    server("vllm", "http://127.0.0.1:8000", Probe::Models, &["vllm"]),
    server("llamacpp", "http://127.0.0.1:8080", Probe::LlamaCpp, &["llamacpp"]),
    server("lmstudio", "http://127.0.0.1:1234", Probe::Models, &["organization_owner"]),
    server("deepseek", "https://api.deepseek.com", Probe::Models, &[]),
    server("anthropic", "https://api.anthropic.com", Probe::AnthropicModels, &[]),
    server("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", Probe::Models, &[]),
    server("sglang", "http://127.0.0.1:30000", Probe::Models, &["sglang"]),
    server("dockermodelrunner", "http://127.0.0.1:12434/engines/v1", Probe::Models, &["docker"]),
    server("llamaswap", "http://127.0.0.1:8080", Probe::Models, &["llama-swap"]),
    server("localai", "http://127.0.0.1:8080", Probe::Models, &["localai"]),
    server("mlx", "http://127.0.0.1:8080", Probe::Models, &["mlx", "mlx-lm"]),
    server("jan", "http://127.0.0.1:1337", Probe::Models, &["jan"]),
    server("koboldcpp", "http://127.0.0.1:5001", Probe::Models, &["koboldcpp"]),
    Kind { name: "echo", backend: Backend::Echo, owners: &[] },
];

const fn server(
    name: &'static str,
    url: &'static str,
    probe: Probe,
    owners: &'static [&'static str],
) -> Kind {
    Kind { name, backend: Backend::Server { url, probe }, owners }
}

impl Kind {
    /// Whether an entry has to name a model.
    pub fn needs_model(&self) -> bool {
        matches!(self.backend, Backend::Server { .. })
    }

    /// Where its server is unless the entry says otherwise; `None` for what is no server.
    pub fn url(&self) -> Option<&'static str> {
        match self.backend {
            Backend::Server { url, .. } => Some(url),
            Backend::Echo => None,
        }
    }

    fn open(&self, entry: &Entry, clients: &Clients) -> Result<Opened, CannotOpen> {
        match self.backend {
            Backend::Echo => Ok(echo::open(entry)),
            Backend::Server { url, probe } => openai_compatible::open(entry, url, probe, clients),
        }
    }
}

/// Why an entry cannot be served at all: one sentence for its owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CannotOpen(pub String);

/// A provider that is there, whether or not it can work now.
pub struct Opened {
    /// What runs the inferences.
    pub provider: Arc<dyn Provider>,
    /// Whether it can work now; changes while it lives.
    pub readiness: watch::Receiver<Readiness>,
}

/// Whether a provider can work now, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether it can work.
    pub state: ProviderState,
    /// Why, for people; may be empty.
    pub detail: Reason,
    /// Its context window in tokens, if the server tells.
    pub context_tokens: Option<u32>,
    /// Whether anything has been found out yet.
    pub known: bool,
}

impl Readiness {
    /// What has been found out.
    pub fn new(state: ProviderState, detail: impl Into<Reason>) -> Self {
        Self { state, detail: detail.into(), context_tokens: None, known: true }
    }

    /// Before the first answer.
    pub fn unknown() -> Self {
        Self { known: false, ..Self::new(ProviderState::Unavailable, "has not answered yet") }
    }
}

/// Makes the provider of an entry, whatever its kind.
///
/// # Errors
/// If there is no such kind, or it cannot serve the entry.
pub fn open(entry: &Entry, clients: &Clients) -> Result<Opened, CannotOpen> {
    if let Some(why) = &entry.unshared {
        return Err(CannotOpen(why.clone()));
    }
    let unknown = || CannotOpen(format!("has the unknown type {:?}", entry.kind));
    kind(&entry.kind).ok_or_else(unknown)?.open(entry, clients)
}

/// What the host would say about an opted-in entry: asks its server once, as the host does before it pushes the entry.
pub async fn ask(entry: &Entry, clients: &Clients) -> Readiness {
    match open(entry, clients) {
        // The prober lives as long as what was opened, so it cannot be gone before its first answer.
        Ok(mut opened) => match opened.readiness.wait_for(|readiness| readiness.known).await {
            Ok(readiness) => readiness.clone(),
            Err(_) => Readiness::unknown(),
        },
        Err(CannotOpen(why)) => Readiness::new(ProviderState::Unavailable, why),
    }
}

/// The kind that config.json calls `name`.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// Every value of `type`, for people: "openai, ollama, ...".
pub fn kind_names() -> String {
    KINDS.map(|kind| kind.name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_server_has_an_address_of_its_own_and_nobody_elses_on_the_internet() {
        for kind in KINDS.iter().filter(|kind| kind.needs_model()) {
            let url = kind.url().expect("a server has an address");
            let shared = KINDS.iter().filter(|other| other.url() == kind.url()).count() > 1;
            assert!(!shared || url.starts_with("http://127.0.0.1:"), "{} shares {url}", kind.name);
        }
        assert!(
            KINDS
                .iter()
                .filter(|kind| kind.url() == Some("https://api.openai.com"))
                .all(|kind| kind.name == "openai")
        );
    }
}
