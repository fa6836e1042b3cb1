//! A collector in memory: for tests, and for the demo's waterfall.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use opentelemetry::trace::{Event, Link, SpanId, Status};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::SdkMeterProvider,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanEvents, SpanExporter, SpanLinks},
};

use super::{
    page::Page,
    setup::scope,
    spans::{Attributes, Ended, Sink, Trace},
};

/// What a telemetry in memory has recorded. Cheap to clone. It grows with every span until [`Collected::take`].
#[derive(Clone)]
pub struct Collected {
    spans: Memory,
    page: Option<Page>,
    /// Measuring ends with the last of these.
    _meters: SdkMeterProvider,
}

/// The spans, as the SDK would have them.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<Vec<SpanData>>>);

impl Collected {
    pub(super) fn new(resource: Resource) -> (Self, SdkTracerProvider, SdkMeterProvider) {
        let spans = Memory::default();
        let traces = SdkTracerProvider::builder()
            .with_simple_exporter(spans.clone())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource.clone())
            .build();
        let meters = SdkMeterProvider::builder().with_resource(resource);
        let (page, meters) = match Page::new() {
            Ok((page, reader)) => (Some(page), meters.with_reader(reader)),
            Err(_) => (None, meters),
        };
        let meters = meters.build();
        (Self { spans, page, _meters: meters.clone() }, traces, meters)
    }

    pub(super) fn sink(&self) -> Sink {
        Sink::Memory(self.spans.clone())
    }

    /// The spans that have ended since the last call, in the order of their ends.
    pub fn take(&self) -> Vec<SpanData> {
        mem::take(&mut *self.spans.lock())
    }

    /// The metrics as Prometheus would see them.
    pub fn metrics(&self) -> String {
        self.page.as_ref().and_then(|p| p.text().ok()).unwrap_or_default()
    }
}

impl SpanExporter for Memory {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.lock().extend(batch);
        Ok(())
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Vec<SpanData>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a span of a task.
    pub(super) fn add(&self, trace: &Trace, span: &Ended<'_>, attributes: impl FnOnce(&mut Attributes<'_>)) {
        let mut values = Vec::new();
        attributes(&mut Attributes::Values(&mut values));
        let time = |at| UNIX_EPOCH + Duration::from_nanos(at);
        let mut events = SpanEvents::default();
        events.events.extend(span.event.map(|(name, at)| Event::new(name.to_owned(), time(at), vec![], 0)));
        let mut links = SpanLinks::default();
        links.links.extend(span.link.map(|context| Link::with_context(context.clone())));
        self.lock().push(SpanData {
            span_context: trace.context(span.open.id),
            parent_span_id: span.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: span.parent_is_remote,
            span_kind: span.kind.clone(),
            name: span.name.concat().into(),
            start_time: time(span.open.began),
            end_time: time(span.at),
            attributes: values,
            dropped_attributes_count: 0,
            events,
            links,
            status: span.error.map_or(Status::Unset, |error| Status::error(error.to_owned())),
            instrumentation_scope: scope(),
        });
    }
}
