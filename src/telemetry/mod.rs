//! Tracing, metrics and logs of the agent.
//!
//! [`Telemetry`] owns the exporters of the process and ends them; [`Handle`] is what the rest of the agent holds. A handle
//! is a value, not a global, so that many agents of one test process trace into their own collectors.
//!
//! | | |
//! | --- | --- |
//! | `settings`, `setup`, `export` | what the environment asks for, what is made of it, and what both kinds of export share |
//! | `names` | every name of the conventions and of our own, in one place |
//! | `task`, `posts`, `link` | the spans and measurements of a task, of its POSTs, and of the control channel |
//! | `spans`, `otlp`, `collect` | how a span becomes bytes, and who takes it: a collector, or this process |
//! | `request`, `answer`, `context` | what a trace tells of a request and an answer, and the W3C context |
//! | `metrics`, `page` | the instruments and their labels, and the page for Prometheus |
//! | `log` | the log's lines, and the thread that writes them |

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
