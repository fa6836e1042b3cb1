//! The control channel's span. It is what tasks link to, never what they descend from: a channel lives for days, and a
//! trace of days is of no use to anybody.

use opentelemetry::trace::SpanContext;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{Handle, names, spans};

/// The opening of one control channel. A span is exported when it ends, so this one covers the opening only: then the
/// collector knows it before the first task that links to it.
pub struct ChannelOpening(Option<Span>);

/// The link from a task to the control channel it came by; empty without a trace. Cheap to clone.
#[derive(Clone, Default)]
pub struct ChannelTrace(Option<SpanContext>);

impl ChannelOpening {
    /// The agent begins to open the channel.
    pub fn start(handle: &Handle) -> Self {
        let open = || info_span!(target: names::TARGET, parent: None, names::span::OPEN_CHANNEL, otel.kind = "client");
        Self(handle.spans.as_ref().map(|spans| spans.make(None, open)))
    }

    /// The channel is open.
    pub fn opened(self) -> ChannelTrace {
        ChannelTrace(self.0.as_ref().map(|span| spans::identity(&span.context())))
    }

    /// It could not be opened; `error` is a word out of a fixed set, such as an HTTP status.
    pub fn failed(self, error: &'static str) {
        if let Some(span) = self.0 {
            spans::fail(&span, error, "");
        }
    }
}

impl ChannelTrace {
    pub(super) fn context(&self) -> Option<&SpanContext> {
        self.0.as_ref()
    }
}
