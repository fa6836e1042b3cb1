//! The spans of tasks: what is known of one at its end, and where it goes then.
//!
//! A task's spans are not the SDK's. Their attributes are read from where they are anyway when the span ends, and written once; the SDK
//! would keep each as a tree of values of its own from the span's beginning on. What that saves:
//! `docs/decisions/0014-spans-are-encoded-where-they-end.md`.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    Array, Value,
    trace::{SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SdkTracer};
use tokio::time::Instant;

use super::{collect::Memory, otlp::Batches, settings::Sampling};

/// Longest text from a peer that becomes an attribute, in bytes: a name fits, a hostile megabyte does not.
const MAX_TEXT_BYTES: usize = 256;

/// How spans are made, and where they go.
pub(super) struct Spans {
    /// Has the layer of tracing-opentelemetry; `None` is the process's own.
    pub(super) dispatch: Option<tracing::Dispatch>,
    /// Of the spans that begin as `tracing`'s.
    pub(super) tracer: SdkTracer,
    pub(super) sampling: Sampling,
    pub(super) sink: Sink,
    /// Whether prompts, answers and error texts are recorded.
    pub(super) capture_content: bool,
}

/// Who takes the spans.
pub(super) enum Sink {
    /// A collector.
    Export(Batches),
    /// A test, or the demo.
    Memory(Memory),
}

impl Spans {
    /// A `tracing` span, made where our layer sees it.
    pub(super) fn root(&self, make: impl FnOnce() -> tracing::Span) -> tracing::Span {
        match &self.dispatch {
            None => make(),
            Some(dispatch) => tracing::dispatcher::with_default(dispatch, make),
        }
    }
}

/// What all spans of one task share.
pub(super) struct Trace {
    spans: Arc<Spans>,
    pub(super) id: TraceId,
    /// Whether its spans are recorded. The samplers decide by the caller's word or the trace's id, so all spans of a trace alike.
    pub(super) sampled: bool,
    pub(super) state: TraceState,
    /// The caller's span.
    pub(super) caller: Option<SpanId>,
    /// The task's own span.
    pub(super) root: SpanId,
    /// When it began, by both clocks. The wall clock is read once, so that it may jump while the task runs.
    wall_nanos: u64,
    pub(super) began: Instant,
}

impl Trace {
    /// Goes on from the caller's span, or begins anew.
    pub(super) fn start(spans: &Arc<Spans>, caller: Option<&SpanContext>) -> Self {
        let new = RandomIdGenerator::default();
        let id = caller.map_or_else(|| new.new_trace_id(), SpanContext::trace_id);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            spans: spans.clone(),
            id,
            sampled: spans.sampling.takes(caller, id),
            state: caller.map(|c| c.trace_state().clone()).unwrap_or_default(),
            caller: caller.map(SpanContext::span_id),
            root: new.new_span_id(),
            wall_nanos: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
            began: Instant::now(),
        }
    }

    pub(super) fn flags(&self) -> TraceFlags {
        if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() }
    }

    /// The context of one of its spans, for others.
    pub(super) fn context(&self, span: SpanId) -> SpanContext {
        SpanContext::new(self.id, span, self.flags(), false, self.state.clone())
    }

    /// Nanoseconds since 1970.
    pub(super) fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began).as_nanos();
        self.wall_nanos.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    pub(super) fn captures_content(&self) -> bool {
        self.spans.capture_content
    }

    /// Hands on a span of this trace.
    pub(super) fn ended(&self, span: &Ended<'_>) {
        match &self.spans.sink {
            _ if !self.sampled => {}
            Sink::Export(batches) => batches.add(self, span),
            Sink::Memory(memory) => memory.add(self, span),
        }
    }
}

/// A span that has begun.
#[derive(Clone, Copy)]
pub(super) struct Open {
    pub(super) id: SpanId,
    pub(super) began: Instant,
}

impl Open {
    /// A span begins.
    pub(super) fn new(began: Instant) -> Self {
        Self { id: RandomIdGenerator::default().new_span_id(), began }
    }
}

/// A span that has ended.
pub(super) struct Ended<'a> {
    pub(super) open: Open,
    pub(super) at: Instant,
    pub(super) name: &'a str,
    pub(super) kind: SpanKind,
    pub(super) parent: Option<SpanId>,
    /// Whether the parent is another process's.
    pub(super) parent_is_remote: bool,
    /// In as many parts as they come from; absent ones are `None`.
    pub(super) attributes: &'a [&'a [Option<Attribute<'a>>]],
    pub(super) event: Option<(&'a str, Instant)>,
    pub(super) link: Option<&'a SpanContext>,
    /// Why it is an error, if it is one; empty where the reason is content that nobody asked for.
    pub(super) error: Option<&'a str>,
}

impl<'a> Ended<'a> {
    /// Those that are there.
    pub(super) fn present(&self) -> impl Iterator<Item = Attribute<'a>> {
        self.attributes.iter().copied().flatten().copied().flatten()
    }

    /// One without anything that most spans do not have.
    pub(super) fn new(
        (open, at): (Open, Instant),
        (name, kind): (&'a str, SpanKind),
        parent: SpanId,
        attributes: &'a [&'a [Option<Attribute<'a>>]],
    ) -> Self {
        Self {
            open,
            at,
            name,
            kind,
            parent: Some(parent),
            parent_is_remote: false,
            attributes,
            event: None,
            link: None,
            error: None,
        }
    }
}

/// An attribute's key and value.
pub(super) type Attribute<'a> = (&'static str, Field<'a>);

/// An attribute's value, wherever it lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    Text(&'a str),
    Whole(i64),
    Real(f64),
    Flag(bool),
    /// Each of a peer's, so read them by [`Field::texts`].
    Texts(&'a [String]),
    /// The SDK's.
    Array(&'a Array),
}

impl<'a> Field<'a> {
    /// A peer's text, cut to what an attribute may cost.
    pub(super) fn peers(text: &'a str) -> Self {
        Self::Text(cut(text))
    }

    /// The texts of [`Field::Texts`], each cut likewise.
    pub(super) fn texts(all: &'a [String]) -> impl Iterator<Item = &'a str> {
        all.iter().map(|text| cut(text))
    }

    /// The API may get more types than are known here.
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        Some(match value {
            Value::String(text) => Self::Text(text.as_str()),
            Value::Bool(flag) => Self::Flag(*flag),
            Value::I64(number) => Self::Whole(*number),
            Value::F64(number) => Self::Real(*number),
            Value::Array(array) => Self::Array(array),
            _ => return None,
        })
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}
