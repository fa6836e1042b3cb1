//! The systems that are measured side by side, and what each is called in the tables.

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;

/// How often a traced agent exports what has not filled a batch: more often than by default, so that a load's last spans are counted.
pub const EXPORT_INTERVAL: Duration = Duration::from_secs(1);

/// One way from a caller to the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// No relay.
    Direct,
    /// The data path of a reverse tunnel.
    Tunnel,
    /// A real reverse tunnel; the relay is the end beside the provider.
    Rathole(PathBuf),
    /// The agent's I/O without its logic.
    Floor,
    /// `mcprelay run --provide`, under the name that the table gives it.
    Agent(String, PathBuf),
    /// The same with everything traced and exported.
    Traced(Otlp, PathBuf),
    /// `mcprelay run` and `mcprelay provide`, each a process of its own; the relay is the first.
    Apart(PathBuf),
    /// A registrar in Node.js.
    Node(Registrar),
}

/// What a Node.js developer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registrar {
    /// `node:http` with a keep-alive agent; a stream's answer in one chunk.
    Whole,
    /// The same, one awaited POST per token.
    PerToken,
    /// `fetch`, which is what one writes first; a stream's answer in one chunk.
    Fetch,
}

impl System {
    /// Its name in the table.
    pub fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Rathole(_) => RATHOLE,
            Self::Floor => "floor",
            Self::Agent(name, _) => name,
            Self::Traced(Otlp::Http, _) => TRACED_HTTP,
            Self::Traced(Otlp::Grpc, _) => TRACED_GRPC,
            Self::Apart(_) => "agent-apart",
            Self::Node(Registrar::Whole) => "node",
            Self::Node(Registrar::PerToken) => "node-per-token",
            Self::Node(Registrar::Fetch) => "node-fetch",
        }
    }

    /// Whether it speaks with mcpd, and does not only carry bytes.
    pub fn is_relay(&self) -> bool {
        !matches!(self, Self::Direct | Self::Tunnel | Self::Rathole(_))
    }
}

/// The real tunnel, in the table.
pub const RATHOLE: &str = "rathole";
/// The agent that exports over HTTP, in the table.
pub const TRACED_HTTP: &str = "agent-otlp-http";
/// The agent that exports over gRPC, in the table.
pub const TRACED_GRPC: &str = "agent-otlp-grpc";

/// How telemetry goes to its collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otlp {
    /// `http/protobuf`.
    Http,
    /// `grpc`.
    Grpc,
}

impl Otlp {
    /// What makes an agent export every span to the collector at `address`.
    pub(crate) fn variables(self, address: &str) -> [(&'static str, String); 5] {
        let protocol = match self {
            Self::Http => "http/protobuf",
            Self::Grpc => "grpc",
        };
        let interval = EXPORT_INTERVAL.as_millis().to_string();
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_TRACES_SAMPLER", "always_on".to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", interval.clone()),
            ("OTEL_METRIC_EXPORT_INTERVAL", interval),
        ]
    }
}

/// Which mcpd the load goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum McpdKind {
    /// The bench's own stand-in: the contract's happy path and nothing else.
    Lean,
    /// `fake-mcpd --journal 0`.
    Fake,
}
