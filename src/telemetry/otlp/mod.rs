//! Spans on their way to a collector, as OTLP.
//!
//! ```text
//! a span ends ──encode──▶ Batches ──a full batch, or what 5 s brought──▶ Sender ──HTTP or gRPC──▶ collector
//! (the relay's thread)      │                                           (the telemetry thread)
//!                           └── counts what is dropped when 8192 spans wait
//! ```
//!
//! The SDK's batch processor and the exporter crate would keep each span as a tree of small allocations, hand it to another thread, copy it
//! into a second tree of OTLP's types, and free both there. A span that is encoded where it ends is a few hundred bytes behind the previous
//! one. What that saves: `docs/decisions/0014-spans-are-encoded-where-they-end.md`.

pub(super) mod attributes;
mod batches;
mod encode;
mod send;
#[cfg(test)]
mod tests;
mod wire;

pub(super) use batches::{Batches, Batching};
pub(super) use encode::Frame;
pub(super) use send::Sender;
