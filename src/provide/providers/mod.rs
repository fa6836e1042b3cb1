//! The kinds of providers, one file per kind.
//!
//! To add one, write a file with a `KINDS` table next to the others, and list that table in `ALL`. Nothing else knows the kinds.

pub mod echo;
pub mod openai_compatible;

use std::sync::Arc;

use tokio::sync::watch;

use super::{config_file::Entry, openai::http::Clients, task::Provider};
use crate::domain::ProviderState;

/// Every kind, by the file it is in.
const ALL: [&[Kind]; 2] = [openai_compatible::KINDS, echo::KINDS];

/// One value of `type` in config.json.
pub struct Kind {
    /// The value.
    pub name: &'static str,
    /// Whether an entry has to name a model.
    pub needs_model: bool,
    /// Makes the provider of an entry. It starts what watches its readiness only if the entry is opted in.
    pub open: fn(&Entry, &Clients) -> Result<Opened, CannotOpen>,
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
    pub detail: String,
    /// Its context window in tokens, if the server tells.
    pub context_tokens: Option<u32>,
    /// Whether anything has been found out yet.
    pub known: bool,
}

impl Readiness {
    /// What has been found out.
    pub fn new(state: ProviderState, detail: impl Into<String>) -> Self {
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
    let unknown = || CannotOpen(format!("has the unknown type {:?}", entry.kind));
    kind(&entry.kind).ok_or_else(unknown).and_then(|kind| (kind.open)(entry, clients))
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
    ALL.into_iter().flatten().find(|kind| kind.name == name)
}

/// Every value of `type`, for people: "openai, ollama, ...".
pub fn kind_names() -> String {
    ALL.into_iter().flatten().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}
