//! From settings to a running telemetry, and its end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use opentelemetry::{
    InstrumentationScope, KeyValue, metrics::MeterProvider as _, trace::TracerProvider as _,
};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
    resource::{ResourceDetector, TelemetryResourceDetector},
    trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider},
};
use tokio::sync::oneshot;
use tracing::Subscriber;
use tracing_subscriber::{Layer, Registry, layer::SubscriberExt as _};

use super::{
    Handle, Metrics,
    collector::{Counted, Losses, Worker},
    error::SetupError,
    log::{self, LogFormat},
    memory::Collected,
    names,
    page::{self, Page},
    settings::Otel,
    spans::{self, PostSpans, Spans},
};

/// What the command line says about telemetry; the rest is in the environment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What a log line looks like.
    pub log_format: LogFormat,
    /// Where Prometheus finds the metrics, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
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
    let (output, last_lines) = log::to_stderr(settings.log_format).map_err(SetupError::Log)?;
    let rust_log = get("RUST_LOG");
    let (lines, problem) =
        log::layer(settings.log_format, log::OF_A_SERVICE, rust_log.as_deref(), output.clone());
    problems.extend(problem);
    let subscriber = subscriber(&telemetry.handle, lines);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| SetupError::AlreadySet)?;
    log::install(output, last_lines);
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
    let spans = handle.spans.as_ref().map(|s| spans::layer(s.tracer.clone()).boxed());
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
    let (meters, page) = setup.meters(settings.metrics_listen)?;
    let handle = Handle {
        propagate: setup.otel.propagate,
        captures_content: setup.otel.capture_content,
        spans: traces.as_ref().map(|provider| Spans {
            dispatch: None,
            tracer: tracer(provider),
            posts: PostSpans::Telling,
        }),
        metrics: meters.as_ref().map(metrics).unwrap_or_default(),
    };
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

    /// Where spans go. Batches, limits and the sampler are the SDK's, as the environment has them.
    fn traces(&mut self) -> Option<SdkTracerProvider> {
        let (worker, export) = (self.worker.as_ref()?, self.otel.traces.as_ref()?);
        let Ok(exporter) = worker.span_exporter(export, self.losses.clone()) else {
            self.cannot_export("traces");
            return None;
        };
        let batches = BatchSpanProcessor::builder(exporter).build();
        let counted = Counted { batches, losses: self.losses.clone() };
        let builder = SdkTracerProvider::builder().with_span_processor(counted);
        Some(builder.with_resource(self.resource.clone()).build())
    }

    fn meters(
        &mut self,
        listen: Option<SocketAddr>,
    ) -> Result<(Option<SdkMeterProvider>, Option<SocketAddr>), SetupError> {
        let reader = self.metric_reader();
        let page = listen.map(|address| self.page(address)).transpose()?;
        if reader.is_none() && page.is_none() {
            return Ok((None, None));
        }
        let mut builder = SdkMeterProvider::builder().with_resource(self.resource.clone());
        if let Some(reader) = reader {
            builder = builder.with_reader(reader);
        }
        let address = page.as_ref().map(|(address, _)| *address);
        if let Some((_, reader)) = page {
            builder = builder.with_reader(reader);
        }
        Ok((Some(builder.build()), address))
    }

    fn metric_reader(
        &mut self,
    ) -> Option<PeriodicReader<impl opentelemetry_sdk::metrics::exporter::PushMetricExporter + use<>>> {
        match self.worker.as_ref()?.metric_exporter(self.otel.metrics.as_ref()?) {
            Ok(exporter) => Some(PeriodicReader::builder(exporter).build()),
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
             OTEL_EXPORTER_OTLP_ENDPOINT, and that OTEL_EXPORTER_OTLP_COMPRESSION is gzip if it is set."
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
pub fn in_memory(content: Content, posts: PostSpans) -> (Handle, Collected) {
    let (collected, traces, meters) = Collected::new(resource(Otel::read(&|_| None).resource));
    let tracer = tracer(&traces);
    let dispatch = tracing_subscriber::registry().with(spans::layer(tracer.clone())).into();
    let handle = Handle {
        propagate: true,
        captures_content: content == Content::Recorded,
        spans: Some(Spans { dispatch: Some(dispatch), tracer, posts }),
        metrics: metrics(&meters),
    };
    (handle, collected)
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

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(names::SCOPE).with_version(env!("CARGO_PKG_VERSION")).build()
}

fn tracer(provider: &SdkTracerProvider) -> SdkTracer {
    provider.tracer_with_scope(scope())
}

fn metrics(provider: &SdkMeterProvider) -> Metrics {
    Metrics::new(&provider.meter_with_scope(scope()))
}
