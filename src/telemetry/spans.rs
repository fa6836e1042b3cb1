//! How spans are made: as `tracing` spans, which tracing-opentelemetry hands to the SDK.
//!
//! A span of ours is never entered: it lives across many polls, and tracing-opentelemetry takes the last exit
//! for the end. So it ends when its last handle is dropped. Its times are those of the wall clock.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    Context,
    trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::trace::SdkTracer;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, filter_fn},
    registry::LookupSpan,
};

use super::{attributes::Attributes, names};

/// Makes spans where our layer sees them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Spans {
    /// What has the layer; `None` is the process's own subscriber.
    pub(super) dispatch: Option<tracing::Dispatch>,
    /// Of the spans that are only known when they are over.
    pub(super) tracer: SdkTracer,
    /// Which POSTs become spans.
    pub(super) posts: PostSpans,
}

/// Which POSTs of result parts become spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostSpans {
    /// Those that tell something: the first, the terminal one, and each that failed, was repeated or was slow.
    Telling,
    /// All of them, up to the most that a task may have: for a picture of a short answer.
    All,
}

impl Spans {
    /// The span that `make` makes, below `parent`. The parent is not `tracing`'s, whose registry closes the parent
    /// of a span in whatever subscriber is the default by then.
    pub(super) fn make(&self, parent: Option<&Context>, make: impl FnOnce() -> Span) -> Span {
        let span = match &self.dispatch {
            None => make(),
            Some(dispatch) => tracing::dispatcher::with_default(dispatch, make),
        };
        if let Some(parent) = parent {
            // The only error is a span that has begun, which this one has not.
            let _ = span.set_parent(parent.clone());
        }
        span
    }

    /// Records a span that ends now, after `took`, below `parent`. An error is marked without a description.
    pub(super) fn past(&self, past: Past, took: Duration, parent: &Context) {
        let now = SystemTime::now();
        let builder = SpanBuilder::from_name(past.name)
            .with_kind(SpanKind::Client)
            .with_start_time(now.checked_sub(took).unwrap_or(now))
            .with_attributes(past.attributes.into_vec());
        let mut span = self.tracer.build_with_context(builder, parent);
        if past.is_error {
            span.set_status(Status::error(""));
        }
        span.end_with_timestamp(now);
    }
}

/// A span of which only its end tells whether it is worth one, so that `tracing` cannot have begun it.
pub(super) struct Past {
    pub(super) name: &'static str,
    pub(super) attributes: Attributes,
    pub(super) is_error: bool,
}

/// The layer that makes OpenTelemetry spans of ours. It sees no other span and no event, whatever else looks at
/// them: an exporter that traced its own calls would feed itself, and a log line may hold what a trace must not.
pub(super) fn layer<S>(tracer: SdkTracer) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let ours = |m: &Metadata<'_>| m.is_span() && m.target() == names::TARGET;
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::INFO))
}

/// What others may know of the span in `context`.
pub(super) fn identity(context: &Context) -> SpanContext {
    context.span().span_context().clone()
}

/// Whether the span in `context` is recorded.
pub(super) fn is_sampled(context: &Context) -> bool {
    context.span().span_context().is_sampled()
}

/// Adds to a span what has become known of it.
pub(super) fn set(span: &Span, attributes: Attributes) {
    let context = span.context();
    let span = context.span();
    if span.is_recording() {
        attributes.into_vec().into_iter().for_each(|attribute| span.set_attribute(attribute));
    }
}

/// Marks a span as an error of this kind; `detail` is content, and so mostly empty.
pub(super) fn fail(span: &Span, kind: &'static str, detail: &str) {
    span.set_attribute(names::key::ERROR_TYPE, kind);
    span.set_status(Status::error(detail.to_owned()));
}
