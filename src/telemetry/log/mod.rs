//! The log: lines on standard error, for people or for machines.

mod json;
mod process;
mod queue;

use std::{io::IsTerminal as _, time::Duration};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    fmt::{self, MakeWriter},
    registry::LookupSpan,
};

pub use process::{LastLines, say};
pub(super) use process::{install, to_stderr};

use self::json::JsonLine;
use crate::domain::{Printable, TaskId, Usage};

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged without `RUST_LOG`: our own doings. The SDK's own complaints are said once by the exporter's watch.
const DEFAULT_FILTER: &str = "warn,mcprelay=info,fake_mcpd=info";
/// Goes in front of the user's directives, which may turn the SDK on again.
const QUIET_SDK: &str = "opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off,opentelemetry_http=off,\
                         opentelemetry-otlp=off,opentelemetry-sdk=off,opentelemetry-prometheus=off";

/// The layer that writes the log, and a sentence if `rust_log` is not understood.
pub(super) fn layer<S, W>(
    format: LogFormat,
    rust_log: Option<&str>,
    writer: W,
) -> (Box<dyn Layer<S> + Send + Sync>, Option<String>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, problem) = filter(rust_log);
    // Without a hint of its own the second filter would take the first one's away, and every library's innermost lines be asked about.
    let filter = filter.and(filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE));
    let lines = fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => lines.event_format(JsonLine).with_filter(filter).boxed(),
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
        // As a field: in its usual place it would be formatted each time.
        message = "task ended",
        task_id = %line.task,
        llm = %Printable(line.llm),
        outcome = line.outcome,
        duration_ms = millis(line.took),
        first_chunk_ms = line.first_chunk.map(millis),
        input_tokens = line.usage.input_tokens,
        output_tokens = line.usage.output_tokens,
        trace_id = line.trace_id,
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::domain::FailureCode;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    pub(super) fn logged(format: LogFormat, rust_log: Option<&str>, speak: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let (layer, problem) = layer(format, rust_log, move || writer.clone());
        assert_eq!(problem, None);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), speak);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn end_a_task() {
        log_task_end(&TaskLine {
            task: &TaskId::new("t\n1").unwrap(),
            llm: "evil\u{1b}[2J",
            outcome: FailureCode::ProviderLost.as_str(),
            took: Duration::from_millis(1500),
            first_chunk: Some(Duration::from_millis(20)),
            usage: Usage { input_tokens: Some(5), output_tokens: None },
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        });
    }

    #[test]
    fn a_tasks_end_is_one_json_line_with_its_ids_and_its_outcome() {
        let text = logged(LogFormat::Json, None, end_a_task);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["task_id"], "t\\u{a}1");
        assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(line["outcome"], "provider_lost");
        assert_eq!((&line["duration_ms"], &line["first_chunk_ms"]), (&1500.into(), &20.into()));
        assert_eq!((&line["input_tokens"], line.get("output_tokens")), (&5.into(), None));
    }

    #[test]
    fn a_text_line_cannot_move_the_terminals_cursor() {
        let text = logged(LogFormat::Text, None, end_a_task);
        assert!(text.contains("trace_id=") && text.lines().count() == 1, "{text}");
        assert!(!text.contains("\u{1b}[2J"), "{text:?}");
    }

    #[test]
    fn no_setting_shows_the_innermost_of_a_library_or_the_sdks_own_repetitions() {
        let text = logged(LogFormat::Text, Some("trace"), || {
            tracing::trace!(target: "h2::codec", "on the wire");
            tracing::error!(target: "opentelemetry_sdk", "again and again");
            tracing::debug!(target: "h2::codec", "a library's debug");
            tracing::trace!(target: "mcprelay::agent", "our own trace");
        });
        assert!(!text.contains("on the wire") && !text.contains("again and again"), "{text}");
        assert!(text.contains("a library's debug") && text.contains("our own trace"), "{text}");
    }

    #[test]
    fn a_filter_that_is_not_one_is_said_and_the_default_used() {
        let (_, problem) = filter(Some("mcprelay=loud=louder"));
        assert!(problem.unwrap().starts_with("RUST_LOG"));
    }
}
