//! The way to a collector: a thread of its own with a small runtime, an HTTP client on it, and the count of what is lost.
//!
//! The SDK's batch thread is no tokio thread, so an async client panics on it ("no reactor running"), and its blocking client
//! would bring a second one. Both protocols therefore do their I/O on the [`Worker`]; neither the relay's runtime nor its
//! shutdown ever waits for a collector.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{SpanData, SpanProcessor},
};
use tokio::{runtime, sync::oneshot};
use tonic::transport::ClientTlsConfig;

use super::settings::{Export, Protocol};
use crate::domain::Printable;

/// Most that is read of a collector's reply, in bytes: a reply is empty or says in a few words what was refused.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// The thread that does a collector's I/O and serves the metrics page. Ends when dropped.
pub(super) struct Worker {
    handle: runtime::Handle,
    _stop: oneshot::Sender<()>,
}

impl Worker {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name("telemetry".into()).spawn(move || {
            // Comes back when the sender is dropped, which is an error of the channel and the end here.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop })
    }

    pub(super) fn handle(&self) -> &runtime::Handle {
        &self.handle
    }

    pub(super) fn span_exporter(&self, export: &Export) -> Result<SpanExporter, ExporterBuildError> {
        match export.protocol {
            Protocol::Grpc => {
                let _on_the_worker = self.handle.enter();
                configured(SpanExporter::builder().with_tonic().with_tls_config(system_roots()), export)
                    .build()
            }
            Protocol::HttpProtobuf => {
                let builder = SpanExporter::builder().with_http().with_http_client(self.client(export)?);
                configured(builder.with_protocol(opentelemetry_otlp::Protocol::HttpBinary), export).build()
            }
        }
    }

    pub(super) fn metric_exporter(&self, export: &Export) -> Result<MetricExporter, ExporterBuildError> {
        match export.protocol {
            Protocol::Grpc => {
                let _on_the_worker = self.handle.enter();
                configured(MetricExporter::builder().with_tonic().with_tls_config(system_roots()), export)
                    .build()
            }
            Protocol::HttpProtobuf => {
                let builder = MetricExporter::builder().with_http().with_http_client(self.client(export)?);
                configured(builder.with_protocol(opentelemetry_otlp::Protocol::HttpBinary), export).build()
            }
        }
    }

    fn client(&self, export: &Export) -> Result<Client, ExporterBuildError> {
        // Reading the system's certificates is what costs most of a start with telemetry, and http:// has no use for them.
        let tls = export.endpoint.as_deref().is_some_and(|url| !url.trim_start().starts_with("http://"));
        let http = reqwest::Client::builder()
            .timeout(export.timeout)
            .tls_built_in_root_certs(tls)
            // The headers hold the collector's credentials, which are for it alone.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| ExporterBuildError::InternalFailure(e.to_string()))?;
        Ok(Client { http, worker: self.handle.clone() })
    }
}

/// The exporter's own default trusts nobody.
fn system_roots() -> ClientTlsConfig {
    ClientTlsConfig::new().with_enabled_roots()
}

fn configured<B: WithExportConfig>(builder: B, export: &Export) -> B {
    let builder = builder.with_timeout(export.timeout);
    match &export.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    }
}

/// The agent's own HTTP client in the exporter's hands.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    worker: runtime::Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let http = self.http.clone();
        // The join handle can be awaited on any thread; the I/O stays on the worker.
        let reply = self.worker.spawn(exchange(http, request)).await?;
        // The exporter makes "network error" of all of them.
        reply.inspect_err(
            |e| tracing::debug!(reason = %Printable(&chain(&**e)), "A collector was not reached."),
        )
    }
}

/// An error and what is behind it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn exchange(http: reqwest::Client, request: reqwest::Request) -> Result<Response<Bytes>, HttpError> {
    let mut reply = http.execute(request).await.map_err(reqwest::Error::without_url)?;
    let mut body = Vec::new();
    while let Some(piece) = reply.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + piece.len() > MAX_REPLY_BYTES {
            return Err("the collector's reply is too long".into());
        }
        body.extend_from_slice(&piece);
    }
    let mut response = Response::new(body.into());
    *response.status_mut() = reply.status();
    *response.headers_mut() = reply.headers().clone();
    Ok(response)
}

/// How many spans ended and how many of them a collector took.
#[derive(Debug, Default)]
pub(super) struct Losses {
    ended: AtomicU64,
    delivered: AtomicU64,
}

impl Losses {
    /// Spans that no collector took so far: refused, dropped from a full queue, or still waiting.
    pub(super) fn lost(&self) -> u64 {
        self.ended.load(Relaxed).saturating_sub(self.delivered.load(Relaxed))
    }
}

/// Counts the spans that go into a processor.
#[derive(Debug)]
pub(super) struct Counting<P> {
    pub(super) inner: P,
    pub(super) losses: Arc<Losses>,
}

impl<P: SpanProcessor> SpanProcessor for Counting<P> {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, cx: &Context) {
        self.inner.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        self.losses.ended.fetch_add(1, Relaxed);
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts what comes out of an exporter, and says once that it fails and once that it works again: the SDK would say it at
/// every batch.
#[derive(Debug)]
pub(super) struct Watched<E> {
    inner: E,
    signal: &'static str,
    failing: AtomicBool,
    losses: Arc<Losses>,
}

impl<E> Watched<E> {
    pub(super) fn new(inner: E, signal: &'static str, losses: Arc<Losses>) -> Self {
        Self { inner, signal, failing: AtomicBool::new(false), losses }
    }

    fn note(&self, result: &OTelSdkResult) {
        let failed = result.is_err();
        if self.failing.swap(failed, Relaxed) == failed {
            return;
        }
        match result {
            Ok(()) => tracing::info!(signal = self.signal, "The collector takes telemetry again."),
            Err(e) => tracing::warn!(
                signal = self.signal,
                reason = %Printable(&reason(e)),
                "The collector does not take telemetry; the relay goes on without. Check OTEL_EXPORTER_OTLP_ENDPOINT; RUST_LOG=mcprelay=debug shows each failure."
            ),
        }
    }
}

fn reason(error: &OTelSdkError) -> String {
    match error {
        OTelSdkError::InternalFailure(text) => text.clone(),
        OTelSdkError::Timeout(_) => "no reply in time".into(),
        OTelSdkError::AlreadyShutdown => "already shut down".into(),
    }
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let result = self.inner.export(batch).await;
        if result.is_ok() {
            self.losses.delivered.fetch_add(count, Relaxed);
        }
        self.note(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.inner.export(metrics).await;
        self.note(&result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}
