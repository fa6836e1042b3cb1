//! What every OpenAI-compatible server has in common, in pieces that do not depend on each other.
//!
//! ```text
//! http       a server's base URL, the owner's key, the HTTP clients
//! readiness  whether a server can work now
//! models     a server's list of models
//! rewrite    the request: the entry's model, the stream and the usage put into the caller's body
//! relay      the answer: its events, chunk by chunk
//! failures   what a server's refusal means
//! ```

pub(super) mod failures;
pub(super) mod http;
pub(super) mod models;
pub(super) mod readiness;
pub(super) mod relay;
pub(super) mod rewrite;
