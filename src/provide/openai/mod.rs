//! What every OpenAI-compatible server has in common, in pieces that do not depend on each other.
//!
//! ```text
//! http       a server's base URL, the owner's key, the HTTP clients
//! readiness  whether a server can work now
//! splice     the request: the entry's model and the wish for usage put into the caller's body
//! sse        the event stream of an answer
//! peek       what a chunk or an answer says besides its text
//! failures   what a server's refusal means
//! ```

pub(super) mod failures;
pub(super) mod http;
pub(super) mod peek;
pub(super) mod readiness;
pub(super) mod splice;
pub(super) mod sse;
