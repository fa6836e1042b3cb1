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
mod task;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, sync::Arc};

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, Tracer as _},
};
use opentelemetry_sdk::trace::SdkTracer;

pub use answer::AnswerText;
pub use collect::Collected;
pub use link::{ChannelOpening, ChannelTrace};
pub use log::{LastLines, LogFormat, TaskLine, log_task_end, say};
pub use metrics::Metrics;
pub use posts::{PostTrace, Posts, Server};
pub use setup::{Content, Settings, SetupError, Telemetry, in_memory, init};
pub use task::{Ending, TaskReport, TaskTrace};

/// Where an agent's spans and measurements go. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    /// Whether trace contexts are taken from tasks and handed on.
    propagate: bool,
    spans: Option<Arc<Spans>>,
    metrics: Metrics,
}

/// How spans are made.
struct Spans {
    /// Has the layer of tracing-opentelemetry; `None` is the process's own.
    dispatch: Option<tracing::Dispatch>,
    tracer: SdkTracer,
    /// Whether prompts, answers and error texts are recorded.
    capture_content: bool,
}

impl Spans {
    /// A `tracing` span, made where our layer sees it.
    fn root(&self, make: impl FnOnce() -> tracing::Span) -> tracing::Span {
        match &self.dispatch {
            None => make(),
            Some(dispatch) => tracing::dispatcher::with_default(dispatch, make),
        }
    }

    fn child(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        attributes: Vec<KeyValue>,
        parent: &Context,
    ) -> opentelemetry_sdk::trace::Span {
        self.linked(name, kind, attributes, parent, None)
    }

    fn linked(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        attributes: Vec<KeyValue>,
        parent: &Context,
        link: Option<Link>,
    ) -> opentelemetry_sdk::trace::Span {
        let mut builder = self.tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        builder.links = link.map(|link| vec![link]);
        self.tracer.build_with_context(builder, parent)
    }
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

    /// Whether [`TaskReport::answer`] is looked at, so that nobody collects it in vain.
    pub fn wants_content(&self) -> bool {
        self.spans.as_ref().is_some_and(|s| s.capture_content)
    }
}
