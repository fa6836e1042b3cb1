//! The log: lines on standard error, for people or for machines, by tracing-subscriber's own formats.

mod output;

use std::{io::IsTerminal as _, time::Duration};

use opentelemetry::trace::TraceId;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    fmt::{self, MakeWriter, time::ChronoLocal},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

pub use output::{LastLines, say};
pub(super) use output::{install, to_stderr};

use crate::domain::{EndKind, Printable, TaskId, Usage};

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a service logs without `RUST_LOG`: our own doings.
pub(super) const OF_A_SERVICE: &str = "warn,mcprelay=info,fake_mcpd=info";
/// What a command that ends by itself logs without `RUST_LOG`.
const OF_A_COMMAND: &str = "warn";
/// Goes in front of the user's directives, which may turn the SDK on again. Its complaints about an export are said
/// once, by whoever watches the exporter.
const QUIET_SDK: &str = "opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off,opentelemetry_http=off,\
                         opentelemetry-otlp=off,opentelemetry-sdk=off,opentelemetry-prometheus=off";
/// A line's time for people: on their clock, to the second.
const CLOCK: &str = "%Y-%m-%d %H:%M:%S";

/// The log of a command that ends by itself: warnings, straight to standard error; `RUST_LOG` asks for more.
pub fn log_warnings() {
    let rust_log = std::env::var("RUST_LOG").ok();
    let (lines, problem) = layer(LogFormat::Text, OF_A_COMMAND, rust_log.as_deref(), std::io::stderr);
    // The only error is a log that is there already.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
}

/// The layer that writes the log as `rust_log` filters it, else as `default` does, and a sentence if `rust_log` is
/// not understood.
pub(super) fn layer<S, W>(
    format: LogFormat,
    default: &str,
    rust_log: Option<&str>,
    writer: W,
) -> (Box<dyn Layer<S> + Send + Sync>, Option<String>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, problem) = filter(default, rust_log);
    // Without a hint of its own the second filter would take the first one's away, and every library's innermost lines be asked about.
    let filter = filter.and(filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE));
    let lines = fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            let lines =
                lines.with_ansi(ansi).with_target(false).with_timer(ChronoLocal::new(CLOCK.to_owned()));
            lines.with_filter(filter).boxed()
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            lines.with_filter(filter).boxed()
        }
    };
    (layer, problem)
}

fn filter(default: &str, rust_log: Option<&str>) -> (EnvFilter, Option<String>) {
    let build = |directives: &str| EnvFilter::builder().parse(format!("{QUIET_SDK},{directives}"));
    let user = rust_log.map(str::trim).filter(|d| !d.is_empty());
    let default = || build(default).unwrap_or_else(|_| EnvFilter::new("info"));
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
    /// How it ended.
    pub end: EndKind,
    /// Why it failed, if it did, as the owner may read it.
    pub reason: Option<&'a str>,
    /// From arrival to end.
    pub took: Duration,
    /// From arrival to the first chunk, where there was one.
    pub first_chunk: Option<Duration>,
    /// What the provider counted.
    pub usage: Usage,
    /// The trace's id, where there is a trace.
    pub trace_id: Option<TraceId>,
}

/// Logs a task's end: at info, or at warn where it failed, which its owner should know.
pub fn log_task_end(line: &TaskLine<'_>) {
    // A macro's level is fixed where it stands.
    macro_rules! log_at {
        ($level:expr) => {
            tracing::event!(
                target: "mcprelay::task",
                $level,
                task_id = %line.task,
                llm = %Printable(line.llm),
                outcome = line.end.as_str(),
                reason = line.reason,
                duration_ms = millis(line.took),
                first_chunk_ms = line.first_chunk.map(millis),
                input_tokens = line.usage.input_tokens,
                output_tokens = line.usage.output_tokens,
                trace_id = line.trace_id.map(tracing::field::display),
                "task ended",
            )
        };
    }
    match line.end {
        EndKind::Failed(_) => log_at!(Level::WARN),
        EndKind::Answered | EndKind::Nobody => log_at!(Level::INFO),
    }
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
        let (layer, problem) = layer(format, OF_A_SERVICE, rust_log, move || writer.clone());
        assert_eq!(problem, None);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), speak);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn end_a_task() {
        log_task_end(&TaskLine {
            task: &TaskId::new("t\n1").unwrap(),
            llm: "evil\u{1b}[2J",
            end: EndKind::Failed(FailureCode::ProviderLost),
            reason: Some("the provider went away"),
            took: Duration::from_millis(1500),
            first_chunk: Some(Duration::from_millis(20)),
            usage: Usage::new(Some(5), None),
            trace_id: TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736").ok(),
        });
    }

    #[test]
    fn a_tasks_end_is_one_json_line_with_its_ids_and_its_outcome() {
        let text = logged(LogFormat::Json, None, end_a_task);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["task_id"], "t\\u{a}1");
        assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((&line["outcome"], &line["level"]), (&"provider_lost".into(), &"WARN".into()));
        assert_eq!(
            (&line["message"], &line["reason"]),
            (&"task ended".into(), &"the provider went away".into())
        );
        assert_eq!((&line["duration_ms"], &line["first_chunk_ms"]), (&1500.into(), &20.into()));
        assert_eq!((&line["input_tokens"], line.get("output_tokens")), (&5.into(), None));
    }

    #[test]
    fn a_text_line_cannot_move_the_terminals_cursor() {
        let text = logged(LogFormat::Text, None, end_a_task);
        assert!(text.contains("trace_id=") && text.lines().count() == 1, "{text}");
        assert!(!text.contains("mcprelay::task"), "no module's path: {text}");
        let time = chrono::NaiveDateTime::parse_from_str(&text[..19], CLOCK).unwrap();
        let now = chrono::Local::now().naive_local();
        assert!((now - time).num_seconds().abs() < 60 && text[19..].starts_with(' '), "{text}");
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
        let (_, problem) = filter(OF_A_SERVICE, Some("mcprelay=loud=louder"));
        assert!(problem.unwrap().starts_with("RUST_LOG"));
    }
}
