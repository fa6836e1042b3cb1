//! mcprelay: the local agent between mcpd and the LLM providers of a workstation.

pub mod agent;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod core;
pub mod credentials;
pub mod domain;
pub mod openai;
pub mod provide;
pub mod telemetry;
pub mod upstream;

/// The bridge's wire types and services, generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod pb {
    tonic::include_proto!("mcprelay.bridge.v1");
    /// The encoded descriptors, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bridge_descriptor.bin"));
}
