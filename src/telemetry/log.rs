//! The log: lines on standard error, for people or for machines.

use std::{io::IsTerminal as _, time::Duration};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, filter_fn},
    fmt,
    registry::LookupSpan,
};

use crate::domain::{Printable, TaskId, Usage};

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Text on a terminal, JSON elsewhere.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// What is logged without `RUST_LOG`: our own doings. The SDK's own complaints are said once by the exporter's watch.
const DEFAULT_FILTER: &str = "warn,mcprelay=info,fake_mcpd=info";
/// Goes in front of the user's directives, which may turn the SDK on again.
const QUIET_SDK: &str = "opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off,opentelemetry_http=off,\
                         opentelemetry-otlp=off,opentelemetry-sdk=off,opentelemetry-prometheus=off";

/// The layer that writes the log, and a sentence if `rust_log` is not understood.
pub(super) fn layer<S>(
    format: LogFormat,
    rust_log: Option<&str>,
) -> (Box<dyn Layer<S> + Send + Sync>, Option<String>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let (filter, problem) = filter(rust_log);
    let filter = filter.and(filter_fn(may_be_logged));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
    };
    (layer, problem)
}

fn filter(rust_log: Option<&str>) -> (EnvFilter, Option<String>) {
    let build = |directives: &str| EnvFilter::builder().parse(format!("{QUIET_SDK},{directives}"));
    let user = rust_log.map(str::trim).filter(|d| !d.is_empty());
    let default = || build(DEFAULT_FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    match user.map(build) {
        None => (default(), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(_)) => {
            let problem = "RUST_LOG is not a list of target=level; the default is used.".to_owned();
            (default(), Some(problem))
        }
    }
}

/// Spans are for the trace: in the log they would repeat what its lines say. And no setting shows the innermost of the
/// libraries, which at the trace level print what goes over the wire.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().starts_with("mcprelay") || metadata.target().starts_with("fake_mcpd");
    metadata.is_event() && (ours || *metadata.level() <= Level::DEBUG)
}

/// The one line at a task's end.
#[derive(Clone, Copy, Debug)]
pub struct TaskLine<'a> {
    /// mcpd's id.
    pub task: &'a TaskId,
    /// The virtual LLM as mcpd wrote it.
    pub llm: &'a str,
    /// How it ended: "ok", "cancelled" or the failure's code. A failure's text is content and is not logged.
    pub outcome: &'static str,
    /// From arrival to end.
    pub took: Duration,
    /// From arrival to the first chunk, where there was one.
    pub first_chunk: Option<Duration>,
    /// What the provider counted.
    pub usage: Usage,
    /// The trace's id, where there is a trace.
    pub trace_id: Option<&'a str>,
}

/// Logs a task's end at info.
pub fn log_task_end(line: &TaskLine<'_>) {
    tracing::info!(
        target: "mcprelay::task",
        task_id = %line.task,
        llm = %Printable(line.llm),
        outcome = line.outcome,
        duration_ms = millis(line.took),
        first_chunk_ms = line.first_chunk.map(millis),
        input_tokens = line.usage.input_tokens,
        output_tokens = line.usage.output_tokens,
        trace_id = line.trace_id,
        "task ended"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
