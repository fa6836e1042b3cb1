//! From settings to a running telemetry, and its end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use opentelemetry::{
    InstrumentationScope, KeyValue, metrics::MeterProvider as _, trace::TracerProvider as _,
};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
    resource::{ResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracer, SdkTracerProvider},
};
use tokio::sync::oneshot;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, filter_fn},
    layer::SubscriberExt as _,
    registry::LookupSpan,
};

use super::{
    Handle, Metrics,
    collect::Collected,
    export::{Losses, Watched, Worker},
    log::{self, LogFormat},
    names::{self, target},
    otlp::{Batches, Frame, Sender},
    page::{self, Page},
    settings::{Otel, Sampling},
    spans::{Sink, Spans},
};

/// What the command line says about telemetry; the rest is in the environment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What a log line looks like.
    pub log_format: LogFormat,
    /// Where Prometheus finds the metrics, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
}

/// Why telemetry cannot start. Anything wrong with a collector is a warning instead: the relay works without.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The metrics page has no credentials, so it is for this machine alone.
    #[error("--metrics-listen {0} is not a loopback address; use one such as 127.0.0.1:9464")]
    NotLoopback(SocketAddr),
    /// The address is taken or not ours.
    #[error("cannot serve metrics on {0}: {1}; give --metrics-listen another address")]
    Listen(SocketAddr, io::Error),
    /// There is no thread left for it.
    #[error("cannot start the telemetry thread: {0}")]
    Thread(io::Error),
    /// There is no thread or descriptor left for it.
    #[error("cannot start the log: {0}")]
    Log(io::Error),
    /// The metrics page has no reader.
    #[error("cannot set up the metrics page: {0}")]
    Page(String),
    /// Somebody set up the log before.
    #[error("the log is already set up in this process")]
    AlreadySet,
}

/// The exporters of the process. Give its [`Handle`] to the agent, drain the agent, then [`Telemetry::shutdown`].
pub struct Telemetry {
    handle: Handle,
    traces: Option<SdkTracerProvider>,
    meters: Option<SdkMeterProvider>,
    losses: Arc<Losses>,
    page: Option<SocketAddr>,
    _worker: Option<Worker>,
}

/// What is being set up.
struct Setup {
    otel: Otel,
    resource: Resource,
    losses: Arc<Losses>,
    worker: Option<Worker>,
}

/// Sets up log, traces and metrics from `settings` and the environment, once in a process. What is wrong with the
/// environment is logged and otherwise ignored. The last lines need a [`LastLines`](super::LastLines) in `main`.
///
/// # Errors
/// If the metrics page has no address to listen on, a thread cannot be started, or this process has set it up before.
pub fn init(settings: &Settings) -> Result<Telemetry, SetupError> {
    let get = |name: &str| std::env::var(name).ok();
    let (telemetry, mut problems) = start(settings, &get)?;
    let queue = log::to_stderr(settings.log_format).map_err(SetupError::Log)?;
    let (lines, problem) = log::layer(settings.log_format, get("RUST_LOG").as_deref(), Arc::clone(&queue));
    problems.extend(problem);
    let subscriber = subscriber(&telemetry.handle, lines);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| SetupError::AlreadySet)?;
    log::install(queue);
    for problem in problems {
        tracing::warn!("{problem}");
    }
    Ok(telemetry)
}

/// What `tracing` hands spans and events to: the trace, where there is one, and the log.
pub(super) fn subscriber(
    handle: &Handle,
    lines: Box<dyn Layer<Registry> + Send + Sync>,
) -> impl Subscriber + Send + Sync {
    let spans = handle.spans.as_ref().map(|s| otel_layer(s.tracer.clone()).boxed());
    // Not an `Option` of a layer: `None` would pass for a layer that wants every span of every library.
    let layers: Vec<_> = spans.into_iter().chain([lines]).collect();
    tracing_subscriber::registry().with(layers)
}

/// All of [`init`] that is not global, and a sentence for each thing that is wrong with the environment.
pub(super) fn start(
    settings: &Settings,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<(Telemetry, Vec<String>), SetupError> {
    let mut setup = Setup::new(Otel::read(get), settings)?;
    let traces = setup.traces();
    let sampling = setup.otel.sampling;
    let (meters, page) = setup.meters(settings.metrics_listen)?;
    let capture_content = setup.otel.capture_content;
    let (traces, spans) = traces
        .map(|(provider, batches)| {
            let (dispatch, tracer, sink) = (None, tracer(&provider), Sink::Export(batches));
            (provider, Arc::new(Spans { dispatch, tracer, sampling, sink, capture_content }))
        })
        .unzip();
    let metrics = meters.as_ref().map(metrics).unwrap_or_default();
    let handle = Handle { propagate: setup.otel.propagate, spans, metrics };
    let (losses, _worker) = (setup.losses, setup.worker);
    Ok((Telemetry { handle, traces, meters, losses, page, _worker }, setup.otel.problems))
}

impl Setup {
    fn new(otel: Otel, settings: &Settings) -> Result<Self, SetupError> {
        let needed = otel.traces.is_some() || otel.metrics.is_some() || settings.metrics_listen.is_some();
        let worker = if needed { Some(Worker::start().map_err(SetupError::Thread)?) } else { None };
        let resource = resource(otel.resource.clone());
        Ok(Self { otel, resource, losses: Arc::default(), worker })
    }

    /// Where spans go, and the provider of those that the SDK makes.
    fn traces(&mut self) -> Option<(SdkTracerProvider, Batches)> {
        let (worker, export) = (self.worker.as_ref()?, self.otel.traces.as_ref()?);
        let frame = Frame::new(&self.resource, &scope());
        let Ok(sender) = Sender::new(worker, export, frame, self.losses.clone()) else {
            self.cannot_export("traces");
            return None;
        };
        let batches = Batches::start(self.otel.batching, sender, worker.handle());
        let sampler = self.otel.sampling.sampler();
        let builder = SdkTracerProvider::builder().with_span_processor(batches.clone()).with_sampler(sampler);
        Some((builder.with_resource(self.resource.clone()).build(), batches))
    }

    fn meters(
        &mut self,
        listen: Option<SocketAddr>,
    ) -> Result<(Option<SdkMeterProvider>, Option<SocketAddr>), SetupError> {
        let exporter = self.metric_exporter();
        let page = listen.map(|address| self.page(address)).transpose()?;
        if exporter.is_none() && page.is_none() {
            return Ok((None, None));
        }
        let mut builder = SdkMeterProvider::builder().with_resource(self.resource.clone());
        if let Some(exporter) = exporter {
            let reader = PeriodicReader::builder(exporter).with_interval(self.otel.metric_interval);
            builder = builder.with_reader(reader.build());
        }
        let address = page.as_ref().map(|(address, _)| *address);
        if let Some((_, reader)) = page {
            builder = builder.with_reader(reader);
        }
        Ok((Some(builder.build()), address))
    }

    fn metric_exporter(&mut self) -> Option<Watched<MetricExporter>> {
        match self.worker.as_ref()?.metric_exporter(self.otel.metrics.as_ref()?) {
            Ok(exporter) => Some(Watched::new(exporter, "metrics")),
            Err(_) => {
                self.cannot_export("metrics");
                None
            }
        }
    }

    /// What is wrong is said without a value, which may hold a secret.
    fn cannot_export(&mut self, signal: &str) {
        self.otel.problems.push(format!(
            "The exporter of {signal} cannot be set up, so nothing is exported; check the URL in \
             OTEL_EXPORTER_OTLP_ENDPOINT, and that OTEL_EXPORTER_OTLP_COMPRESSION is not set."
        ));
    }

    fn page(
        &self,
        address: SocketAddr,
    ) -> Result<(SocketAddr, opentelemetry_prometheus::PrometheusExporter), SetupError> {
        let listener = page::bind(address)?;
        let bound = listener.local_addr().map_err(|e| SetupError::Listen(address, e))?;
        let (page, reader) = Page::new().map_err(|e| SetupError::Page(e.to_string()))?;
        if let Some(worker) = &self.worker {
            page.serve(worker.handle(), listener)?;
        }
        Ok((bound, reader))
    }
}

impl Telemetry {
    /// What the agent traces and measures with.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where the metrics page is served, if anywhere: the port is real even if port 0 was asked for.
    pub fn page_address(&self) -> Option<SocketAddr> {
        self.page
    }

    #[cfg(test)]
    pub(super) fn losses(&self) -> Arc<Losses> {
        self.losses.clone()
    }

    /// Hands over what is still queued, for at most `bound`, and says once what was lost. Call it when all tasks have ended;
    /// what ends after it is not exported.
    pub async fn shutdown(self, bound: Duration) {
        // A blocking task would hold up the runtime's own end, and the SDK's wait knows no bound for metrics: plain threads,
        // left behind when the time is up.
        let traces = self.traces.map(|t| detached(move || drop(t.shutdown_with_timeout(bound))));
        let meters = self.meters.map(|m| detached(move || drop(m.shutdown_with_timeout(bound))));
        let both = async {
            for done in [traces, meters].into_iter().flatten() {
                // An error is a thread that could not start; the loss below tells.
                let _ = done.await;
            }
        };
        let in_time = tokio::time::timeout(bound, both).await.is_ok();
        let lost = self.losses.lost();
        if lost > 0 || !in_time {
            tracing::warn!(lost_spans = lost, in_time, "Telemetry ended with a loss: no collector took it.");
        }
    }
}

/// A telemetry without log, environment and globals, whose spans and metrics stay in memory: for tests and for the demo.
/// It has no thread and no timer, so it fits tokio's paused clock, and one process may have many.
pub fn in_memory(content: Content) -> (Handle, Collected) {
    let (collected, traces, meters) = Collected::new(resource(Otel::read(&|_| None).resource));
    let tracer = tracer(&traces);
    let dispatch = tracing_subscriber::registry().with(otel_layer(tracer.clone())).into();
    let capture_content = content == Content::Recorded;
    let (sampling, sink) = (Sampling::default(), collected.sink());
    let spans = Spans { dispatch: Some(dispatch), tracer, sampling, sink, capture_content };
    (Handle { propagate: true, spans: Some(Arc::new(spans)), metrics: metrics(&meters) }, collected)
}

/// Whether prompts, answers and error texts are recorded in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// They are.
    Recorded,
    /// They are not: the default everywhere.
    LeftOut,
}

fn detached(work: impl FnOnce() + Send + 'static) -> oneshot::Receiver<()> {
    let (done, ended) = oneshot::channel();
    let run = move || {
        work();
        // Nobody listens any more when the bound has passed.
        let _ = done.send(());
    };
    // Without a thread `done` is dropped, which the receiver sees.
    let _ = std::thread::Builder::new().name("telemetry-end".into()).spawn(run);
    ended
}

fn resource(attributes: Vec<KeyValue>) -> Resource {
    let sdk: [Box<dyn ResourceDetector>; 1] = [Box::new(TelemetryResourceDetector)];
    Resource::builder_empty().with_detectors(&sdk).with_attributes(attributes).build()
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(names::SCOPE)
        .with_version(env!("CARGO_PKG_VERSION"))
        .with_schema_url(names::SCHEMA_URL)
        .build()
}

fn tracer(provider: &SdkTracerProvider) -> SdkTracer {
    provider.tracer_with_scope(scope())
}

fn metrics(provider: &SdkMeterProvider) -> Metrics {
    Metrics::new(&provider.meter_with_scope(scope()))
}

/// Carries our `tracing` spans over, and ours alone: an exporter that traced its own calls would feed itself. No events:
/// a log line may hold what a trace must not.
pub(super) fn otel_layer<S>(tracer: SdkTracer) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let ours = |m: &Metadata<'_>| m.is_span() && m.target() == target::LINK;
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::INFO))
}
