//! Tracing, metrics and logs of the agent.
//!
//! [`Telemetry`] owns the exporters of the process and ends them; [`Handle`] is what the rest of the agent holds. A handle
//! is a value, not a global, so that many agents of one test process trace into their own collectors.

mod answer;
mod collect;
mod context;
mod export;
mod link;
mod log;
mod metrics;
pub mod names;
mod otlp;
mod page;
mod posts;
mod request;
mod settings;
mod setup;
mod spans;
mod task;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use answer::AnswerText;
pub use collect::Collected;
pub use context::TraceWord;
pub use link::{ChannelOpening, ChannelTrace};
pub use log::{LastLines, LogFormat, TaskLine, log_task_end, say};
pub use metrics::Metrics;
pub use posts::{PostTrace, Posts, Server};
pub use setup::{Content, Settings, SetupError, Telemetry, in_memory, init};
pub use task::{Ending, TaskReport, TaskTrace};

use spans::Spans;

/// Where an agent's spans and measurements go. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    /// Whether trace contexts are taken from tasks and handed on.
    propagate: bool,
    spans: Option<Arc<Spans>>,
    metrics: Metrics,
}

impl Handle {
    /// Records nothing; a caller's trace context still goes through to the provider.
    pub fn off() -> Self {
        Self { propagate: true, spans: None, metrics: Metrics::default() }
    }

    /// The counters and histograms.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether tasks have spans.
    pub fn traces(&self) -> bool {
        self.spans.is_some()
    }

    /// Whether [`TaskReport::answer`] is looked at, so that nobody collects it in vain.
    pub fn wants_content(&self) -> bool {
        self.spans.as_ref().is_some_and(|s| s.capture_content)
    }
}
