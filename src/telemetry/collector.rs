//! The way to a collector: the exporters, a thread with a small runtime for their I/O, and the count of what is lost.
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
    ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{BatchSpanProcessor, Span, SpanData, SpanExporter as ExportSpans, SpanProcessor},
};
use tokio::{runtime, sync::oneshot};
use tonic::transport::{self, Channel, ClientTlsConfig, Endpoint};

use super::settings::{Export, Protocol};
use crate::domain::Printable;

/// Most that is read of a collector's reply, in bytes: a reply is empty or says in a few words what was refused.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// What the standard wants exporters to say of themselves: who, in which language, which version.
const USER_AGENT: &str = concat!("mcprelay-OTLP-Exporter-Rust/", env!("CARGO_PKG_VERSION"));

/// The standard's port on this machine.
const DEFAULT_GRPC: &str = "http://localhost:4317";

/// Which part of an export's time a silent HTTP/2 connection is believed. One whose peer vanished looks alive for a quarter of an hour, and
/// every export would go into it; a third, twice, leaves a third for another connection.
const PATIENCE_PART: u32 = 3;

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

    /// The exporter of spans; its failures are said once, and what it delivers is counted in `losses`.
    pub(super) fn span_exporter(
        &self,
        export: &Export,
        losses: Arc<Losses>,
    ) -> Result<Watched<SpanExporter>, ExporterBuildError> {
        let builder = SpanExporter::builder();
        let exporter = match export.protocol {
            Protocol::Grpc => {
                configured(builder.with_tonic().with_channel(self.channel(export)?), export).build()
            }
            Protocol::HttpProtobuf => {
                let builder = builder.with_http().with_http_client(self.client(export)?);
                configured(builder.with_protocol(opentelemetry_otlp::Protocol::HttpBinary), export).build()
            }
        };
        Ok(Watched::new(exporter?, "traces", losses))
    }

    /// The exporter of metrics; its failures are said once.
    pub(super) fn metric_exporter(
        &self,
        export: &Export,
    ) -> Result<Watched<MetricExporter>, ExporterBuildError> {
        let builder = MetricExporter::builder();
        let exporter = match export.protocol {
            Protocol::Grpc => {
                configured(builder.with_tonic().with_channel(self.channel(export)?), export).build()
            }
            Protocol::HttpProtobuf => {
                let builder = builder.with_http().with_http_client(self.client(export)?);
                configured(builder.with_protocol(opentelemetry_otlp::Protocol::HttpBinary), export).build()
            }
        };
        Ok(Watched::new(exporter?, "metrics", Arc::default()))
    }

    /// An HTTP client for `export`'s collector.
    fn client(&self, export: &Export) -> Result<Client, ExporterBuildError> {
        // Reading the system's certificates is what costs most of a start with telemetry, and http:// has no use for them.
        let tls = export.endpoint.as_deref().is_some_and(|url| !url.trim_start().starts_with("http://"));
        let http = reqwest::Client::builder()
            .timeout(export.timeout)
            .user_agent(USER_AGENT)
            .tls_built_in_root_certs(tls)
            // The headers hold the collector's credentials, which are for it alone.
            .redirect(reqwest::redirect::Policy::none())
            .http2_keep_alive_interval(patience(export))
            .http2_keep_alive_timeout(patience(export))
            .build()
            .map_err(|e| ExporterBuildError::InternalFailure(chain(&e)))?;
        Ok(Client { http, worker: self.handle.clone() })
    }

    /// A gRPC channel to `export`'s collector, which connects when it is first used.
    fn channel(&self, export: &Export) -> Result<Channel, ExporterBuildError> {
        let endpoint = endpoint(export).map_err(|e| ExporterBuildError::InternalFailure(chain(&e)))?;
        let _on_the_worker = self.handle.enter();
        Ok(endpoint.connect_lazy())
    }
}

fn endpoint(export: &Export) -> Result<Endpoint, transport::Error> {
    let endpoint = Endpoint::from_shared(export.endpoint.clone().unwrap_or_else(|| DEFAULT_GRPC.into()))?
        .user_agent(USER_AGENT)?
        .connect_timeout(export.timeout)
        .timeout(export.timeout)
        .http2_keep_alive_interval(patience(export))
        .keep_alive_timeout(patience(export));
    match endpoint.uri().scheme_str() {
        // tonic's own default trusts nobody.
        Some("https") => endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots()),
        _ => Ok(endpoint),
    }
}

/// How long an HTTP/2 connection may say nothing while it owes a reply before it is asked for a sign of life, and how long it then has.
fn patience(export: &Export) -> Duration {
    export.timeout / PATIENCE_PART
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
    let body = read_reply(&mut reply).await?;
    let mut response = Response::new(body.into());
    *response.status_mut() = reply.status();
    *response.headers_mut() = reply.headers().clone();
    Ok(response)
}

/// A collector's reply. One that is too long is as good as none.
async fn read_reply(reply: &mut reqwest::Response) -> Result<Vec<u8>, HttpError> {
    let mut body = Vec::new();
    while let Some(piece) = reply.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + piece.len() > MAX_REPLY_BYTES {
            return Err("the collector's reply is too long".into());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
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

/// The SDK's batches, with a count of the spans that are to be exported: the SDK tells nobody what it drops.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) batches: BatchSpanProcessor,
    pub(super) losses: Arc<Losses>,
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.losses.ended.fetch_add(1, Relaxed);
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// An exporter of the SDK's whose failure is said once, and once that it works again: the SDK would say it at
/// every export.
#[derive(Debug)]
pub(super) struct Watched<E> {
    inner: E,
    signal: &'static str,
    failing: AtomicBool,
    losses: Arc<Losses>,
}

impl<E> Watched<E> {
    fn new(inner: E, signal: &'static str, losses: Arc<Losses>) -> Self {
        Self { inner, signal, failing: AtomicBool::new(false), losses }
    }

    /// An export ended, and how.
    fn note(&self, result: &OTelSdkResult) {
        let failure = result.as_ref().err().map(reason);
        if let Some(reason) = failure {
            tracing::debug!(signal = self.signal, reason = %Printable(reason), "An export failed.");
        }
        if self.failing.swap(failure.is_some(), Relaxed) == failure.is_some() {
            return;
        }
        match failure {
            None => tracing::info!(signal = self.signal, "The collector takes telemetry again."),
            Some(reason) => tracing::warn!(
                signal = self.signal,
                reason = %Printable(reason),
                "The collector does not take telemetry; the relay goes on without. Check OTEL_EXPORTER_OTLP_ENDPOINT; RUST_LOG=mcprelay=debug shows each failure."
            ),
        }
    }
}

fn reason(error: &OTelSdkError) -> &str {
    match error {
        OTelSdkError::InternalFailure(text) => text,
        OTelSdkError::Timeout(_) => "no reply in time",
        OTelSdkError::AlreadyShutdown => "already shut down",
    }
}

impl<E: ExportSpans> ExportSpans for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        if result.is_ok() {
            self.losses.delivered.fetch_add(spans, Relaxed);
        }
        self.note(&result);
        result
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
