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
    Array, KeyValue, Value,
    trace::{SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SdkTracer};
use tokio::time::Instant;

use super::{
    collect::Memory,
    otlp::{Batches, attributes},
    settings::Sampling,
};

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

/// Nanoseconds since 1970.
pub(super) type Time = u64;

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
    pub(super) began: Time,
    began_at: Instant,
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
            began: u64::try_from(wall.as_nanos()).unwrap_or(Time::MAX),
            began_at: Instant::now(),
        }
    }

    pub(super) fn flags(&self) -> TraceFlags {
        if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() }
    }

    /// The context of one of its spans, for others.
    pub(super) fn context(&self, span: SpanId) -> SpanContext {
        SpanContext::new(self.id, span, self.flags(), false, self.state.clone())
    }

    /// What this trace takes `at` for.
    pub(super) fn time(&self, at: Instant) -> Time {
        let since = at.saturating_duration_since(self.began_at).as_nanos();
        self.began.saturating_add(u64::try_from(since).unwrap_or(Time::MAX))
    }

    pub(super) fn captures_content(&self) -> bool {
        self.spans.capture_content
    }

    /// Hands on a span of this trace. `attributes` is asked only where somebody takes it.
    #[inline]
    pub(super) fn ended(&self, span: &Ended<'_>, attributes: impl FnOnce(&mut Attributes<'_>)) {
        match &self.spans.sink {
            _ if !self.sampled => {}
            Sink::Export(batches) => batches.add(self, span, attributes),
            Sink::Memory(memory) => memory.add(self, span, attributes),
        }
    }
}

/// A span that has begun.
#[derive(Clone, Copy)]
pub(super) struct Open {
    pub(super) id: SpanId,
    pub(super) began: Time,
}

impl Open {
    /// A span begins.
    pub(super) fn new(began: Time) -> Self {
        Self { id: RandomIdGenerator::default().new_span_id(), began }
    }
}

/// A span that has ended.
pub(super) struct Ended<'a> {
    pub(super) open: Open,
    pub(super) at: Time,
    /// In two pieces, of which the second may be empty.
    pub(super) name: [&'a str; 2],
    pub(super) kind: SpanKind,
    pub(super) parent: Option<SpanId>,
    /// Whether the parent is another process's.
    pub(super) parent_is_remote: bool,
    pub(super) event: Option<(&'a str, Time)>,
    pub(super) link: Option<&'a SpanContext>,
    /// Why it is an error, if it is one; empty where the reason is content that nobody asked for.
    pub(super) error: Option<&'a str>,
}

impl<'a> Ended<'a> {
    /// One without anything that most spans do not have.
    pub(super) fn new((open, at): (Open, Time), (name, kind): (&'a str, SpanKind), parent: SpanId) -> Self {
        Self {
            open,
            at,
            name: [name, ""],
            kind,
            parent: Some(parent),
            parent_is_remote: false,
            event: None,
            link: None,
            error: None,
        }
    }
}

/// Where a span's attributes go. Each is written where it is known, and those that are `None` are not: nothing is gathered in between.
pub(super) enum Attributes<'a> {
    /// Into a request to the collector.
    Wire(&'a mut Vec<u8>),
    /// To whoever looks at them in this process.
    Values(&'a mut Vec<KeyValue>),
}

impl Attributes<'_> {
    #[inline(always)]
    pub(super) fn text<'v>(&mut self, key: &'static str, value: impl Into<Option<&'v str>>) {
        match (self, value.into()) {
            (_, None) => {}
            (Self::Wire(out), Some(value)) => attributes::text(out, key, value),
            (Self::Values(all), Some(value)) => all.push(KeyValue::new(key, value.to_owned())),
        }
    }

    /// A text of a peer's, cut to what an attribute may cost.
    #[inline(always)]
    pub(super) fn peers<'v>(&mut self, key: &'static str, value: impl Into<Option<&'v str>>) {
        self.text(key, value.into().map(cut));
    }

    #[inline(always)]
    pub(super) fn whole(&mut self, key: &'static str, value: impl Into<Option<i64>>) {
        self.plain(key, value.into(), attributes::whole);
    }

    #[inline(always)]
    pub(super) fn real(&mut self, key: &'static str, value: impl Into<Option<f64>>) {
        self.plain(key, value.into(), attributes::real);
    }

    #[inline(always)]
    pub(super) fn flag(&mut self, key: &'static str, value: impl Into<Option<bool>>) {
        self.plain(key, value.into(), attributes::flag);
    }

    #[inline(always)]
    fn plain<V: Into<Value>>(
        &mut self,
        key: &'static str,
        value: Option<V>,
        write: impl FnOnce(&mut Vec<u8>, &str, V),
    ) {
        match (self, value) {
            (_, None) => {}
            (Self::Wire(out), Some(value)) => write(out, key, value),
            (Self::Values(all), Some(value)) => all.push(KeyValue::new(key, value)),
        }
    }

    /// A peer's texts, each cut likewise; none is no attribute.
    #[inline(always)]
    pub(super) fn peers_all<'v>(
        &mut self,
        key: &'static str,
        values: impl ExactSizeIterator<Item = &'v str> + Clone,
    ) {
        let values = values.map(cut);
        match self {
            _ if values.len() == 0 => {}
            Self::Wire(out) => attributes::texts(out, key, values),
            Self::Values(all) => {
                let values = values.map(|value| value.to_owned().into()).collect();
                all.push(KeyValue::new(key, Value::Array(Array::String(values))));
            }
        }
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}
