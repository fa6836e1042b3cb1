//! A collector in memory: for tests, and for the demo's waterfall.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::SdkMeterProvider,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter},
};

use super::page::Page;

/// What a telemetry in memory has recorded. Cheap to clone. It grows with every span until [`Collected::take`].
#[derive(Clone)]
pub struct Collected {
    spans: Memory,
    page: Option<Page>,
    /// Recording and measuring end with the last of these.
    _providers: (SdkTracerProvider, SdkMeterProvider),
}

#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<SpanData>>>);

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
        (Self { spans, page, _providers: (traces.clone(), meters.clone()) }, traces, meters)
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

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Vec<SpanData>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpanExporter for Memory {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.lock().extend(batch);
        Ok(())
    }
}
