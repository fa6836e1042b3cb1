//! Tracing, metrics and logs of the agent.
//!
//! [`Telemetry`] owns the exporters of the process and ends them; [`Handle`] is what the rest of the agent holds. A handle
//! is a value, not a global, so that many agents of one test process trace into their own collectors.
//!
//! Spans are `tracing`'s, and go through tracing-opentelemetry to the SDK's batches and exporters; so do the metrics to
//! theirs, and the log's lines to tracing-subscriber's formats. What is ours is the names, the tree, and what a task's
//! facts are called in it.
//!
//! | | |
//! | --- | --- |
//! | `names`, `attributes` | every name of the conventions and of our own, and the attributes of one span |
//! | `task`, `tree`, `deliver`, `channel` | the spans and measurements of a task, of its delivery, and of the control channel |
//! | `content`, `context`, `server` | prompts and answers, the W3C context, and mcpd as they are told |
//! | `spans`, `metrics` | how spans are made, the instruments and their labels |
//! | `settings`, `setup`, `collector`, `memory`, `page` | what the environment asks for, what is made of it, and who takes it |
//! | `log` | the log's format, filter and output |

mod attributes;
mod channel;
mod collector;
mod content;
mod context;
mod deliver;
mod error;
mod log;
mod memory;
mod metrics;
pub mod names;
mod page;
mod server;
mod settings;
mod setup;
mod spans;
mod task;
#[cfg(test)]
mod tests;
mod tree;

pub use channel::{ChannelOpening, ChannelTrace};
pub use content::AnswerContent;
pub use deliver::{PostTrace, Posts};
pub use error::SetupError;
pub use log::{LastLines, LogFormat, TaskLine, log_task_end, log_warnings, say};
pub use memory::Collected;
pub use metrics::{Metrics, PROVIDER_STATES};
pub use opentelemetry::trace::TraceId;
pub use server::Server;
pub use setup::{Content, Settings, Telemetry, in_memory, init};
pub use spans::PostSpans;
pub use task::TaskTrace;
pub use tree::TaskReport;

use spans::Spans;

/// Where an agent's spans and measurements go. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    /// Whether trace contexts are taken from tasks and handed on.
    propagate: bool,
    /// Whether prompts, answers and error texts may be told.
    captures_content: bool,
    spans: Option<Spans>,
    metrics: Metrics,
}

impl Handle {
    /// Records nothing; a caller's trace context still goes through to the provider.
    pub fn off() -> Self {
        Self { propagate: true, captures_content: false, spans: None, metrics: Metrics::default() }
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
    fn wants_content(&self) -> bool {
        self.captures_content && self.traces()
    }
}
