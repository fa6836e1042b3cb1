//! mcprelay: the local agent between mcpd and the LLM providers of a workstation.

pub mod cli;
pub mod config;
pub mod credentials;
pub mod domain;
pub mod upstream;

/// The bridge's wire types and services, generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod pb {
    tonic::include_proto!("mcprelay.bridge.v1");
    /// The encoded descriptors, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bridge_descriptor.bin"));
}
