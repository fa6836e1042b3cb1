//! The systems that are measured side by side, what each is called in the tables, and how it reaches mcpd.

use std::{fmt, path::PathBuf, time::Duration};

use clap::ValueEnum;

/// How often a traced agent exports what has not filled a batch: more often than by default, so that a load's last spans
/// are counted.
pub const EXPORT_INTERVAL: Duration = Duration::from_secs(1);

/// No relay, in the tables.
pub const DIRECT: &str = "direct";
/// The agent's I/O without its logic, in the tables.
pub const FLOOR: &str = "floor";
/// The agent, in the tables.
pub const AGENT: &str = "agent";
/// The agent with an mcpd that takes no uploads, in the tables.
pub const AGENT_POSTS: &str = "agent-posts";
/// The agent that exports over HTTP, in the tables.
pub const TRACED_HTTP: &str = "agent-otlp-http";
/// The agent that exports over gRPC, in the tables.
pub const TRACED_GRPC: &str = "agent-otlp-grpc";
/// A program with the Node package beside the agent, in the tables.
pub const AGENT_NODE: &str = "agent-node";
/// The registrar that posts a stream's answer whole, in the tables.
pub const NODE: &str = "node";
/// The registrar that posts every token, in the tables.
pub const NODE_PER_TOKEN: &str = "node-per-token";

/// One way from a caller to the provider, under the name that the tables give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Its name.
    pub name: String,
    /// What runs.
    pub kind: Kind,
}

/// What runs between the callers and the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Direct,
    /// The agent's I/O without its logic.
    Floor,
    /// `mcprelay run --provide`; with a protocol everything is traced and exported.
    Agent(PathBuf, Option<Otlp>),
    /// `mcprelay run --provide`, with an mcpd that takes no uploads.
    Posts(PathBuf),
    /// `mcprelay run`, and a Node program with the package in this folder, which is what is measured.
    Package(PathBuf),
    /// A registrar in Node.js.
    Registrar(Registrar),
}

/// What a Node.js developer writes with what Node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registrar {
    /// A stream's answer in one chunk.
    Whole,
    /// One awaited POST per token.
    PerToken,
}

impl System {
    /// `kind` under its name.
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self { name: name.into(), kind }
    }

    /// Whether it is an agent whose start and rest are measured.
    pub fn is_plain_agent(&self) -> bool {
        matches!(self.kind, Kind::Agent(_, None))
    }
}

/// How the relay reaches mcpd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    /// HTTP/1.1 without TLS.
    Http,
    /// HTTP/1.1 over TLS.
    H1,
    /// HTTP/2 over TLS.
    H2,
}

impl Scheme {
    /// Every one; what mcpd has in production first.
    pub const ALL: [Self; 3] = [Self::H2, Self::H1, Self::Http];
    /// Those over TLS.
    pub const TLS: &[Self] = &[Self::H2, Self::H1];

    /// What a server offers in TLS; `None` without TLS.
    pub fn alpn(self) -> Option<&'static str> {
        match self {
            Self::Http => None,
            Self::H1 => Some("http/1.1"),
            Self::H2 => Some("h2"),
        }
    }

    /// The URL of the server at "127.0.0.1:PORT".
    pub fn url(self, address: &str) -> String {
        let scheme = if self == Self::Http { "http" } else { "https" };
        format!("{scheme}://{address}")
    }

    /// Its name on the command line.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H1 => "h1",
            Self::H2 => "h2",
        }
    }
}

/// As the tables call it.
impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::H1 => "https h1",
            Self::H2 => "https h2",
        })
    }
}

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
