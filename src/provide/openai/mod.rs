//! What every OpenAI-compatible server has in common, in pieces that know nothing of each other.

pub(super) mod failures;
pub(super) mod http;
pub(super) mod peek;
pub(super) mod readiness;
pub(super) mod splice;
pub(super) mod sse;
