//! What a client of the bridge offers, and who it is.

use std::{path::PathBuf, sync::Arc};

use super::task::Provider;
use crate::domain;

/// Who this client is and where the agent listens.
#[derive(Clone, Debug)]
pub struct RegistrarConfig {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Stable per installation: a second session with the same id replaces the first.
    pub client_id: String,
    /// For people who read the status, "mcplocal/1.4.0".
    pub client_version: String,
    /// The largest message this client accepts, in bytes.
    pub max_message_bytes: u32,
}

/// One provider as it is offered to the agent, and what runs its tasks.
#[derive(Clone)]
pub struct Offered {
    /// What the agent shows and publishes.
    pub info: domain::Provider,
    /// What runs the inferences.
    pub provider: Arc<dyn Provider>,
}

/// The whole set of offered providers; replaced as a whole, never edited.
pub(super) type ProviderSet = Arc<[Offered]>;
