//! The trace and the measurements of one relayed task.
//!
//! ```text
//! process task    CONSUMER  parent = the task's own context, link = the control channel
//!   queue         INTERNAL  from arrival to offer; again after a task came back
//!   chat {model}  CLIENT    the provider host gets this span's context; the only one with usage
//!     Session     CLIENT    the task's leg on the bridge's stream
//!   POST          CLIENT    one per POST of a result part
//! ```
//!
//! The tree itself is in [`tree`].

mod tree;

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry::trace::SpanContext;
use tokio::time::Instant;

use self::tree::TaskSpans;
use super::{
    AnswerText, Handle, TraceWord, context,
    link::ChannelTrace,
    metrics::Series,
    posts::{Posts, Server},
};
use crate::domain::{CancelReason, Failure, FailureCode, Provider, Task, Usage};

/// How a task ended, as its owner reports it to [`TaskTrace::end`].
#[derive(Clone, Copy, Debug)]
pub enum Ending<'a> {
    /// The answer was delivered.
    Completed,
    /// It failed; the failure's text is content and recorded only on demand.
    Failed(&'a Failure),
    /// Somebody asked for its end, which is no error.
    Cancelled(CancelReason),
}

impl Ending<'_> {
    /// Its word in traces, metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed(_) => "failed",
            Self::Cancelled(_) => "cancelled",
        }
    }

    /// The error's kind, on errors only.
    pub fn error_type(&self) -> Option<&'static str> {
        match self {
            Self::Failed(failure) => Some(failure.code.as_str()),
            Self::Completed | Self::Cancelled(_) => None,
        }
    }
}

/// What is known of a task at its end. What the provider did not say stays empty; nothing is estimated.
#[derive(Clone, Copy, Debug)]
pub struct TaskReport<'a> {
    /// How it ended.
    pub ending: Ending<'a>,
    /// The answer's `id`.
    pub response_id: Option<&'a str>,
    /// The answer's `model`.
    pub response_model: Option<&'a str>,
    /// Each choice that has ended, and why.
    pub finish_reasons: &'a [(u32, String)],
    /// What the provider counted.
    pub usage: Usage,
    /// The answer's text; only looked at when [`Handle::wants_content`].
    pub answer: Option<&'a str>,
}

impl<'a> TaskReport<'a> {
    /// A report that knows the ending alone.
    pub fn new(ending: Ending<'a>) -> Self {
        Self {
            ending,
            response_id: None,
            response_model: None,
            finish_reasons: &[],
            usage: Usage::default(),
            answer: None,
        }
    }
}

/// One relayed task, from its arrival to its end. With telemetry off it holds the caller's context and nothing else: no
/// allocation, no clock.
pub struct TaskTrace {
    handle: Handle,
    /// What the task came with.
    caller: Option<SpanContext>,
    spans: Option<Box<TaskSpans>>,
    meter: Meter,
}

/// Where the task stands in the counts of running and queued tasks.
enum Meter {
    Off,
    Queued,
    Running(Running),
}

struct Running {
    series: Arc<Series>,
    offered: Instant,
    last_chunk: Option<Instant>,
}

impl TaskTrace {
    /// A task has arrived. Its trace goes on from the task's own context or, where that is absent or invalid, begins anew;
    /// the control channel is a link.
    pub fn start(handle: &Handle, task: &Arc<Task>, channel: &ChannelTrace) -> Self {
        let caller = if handle.propagate { context::extract(&task.trace_context) } else { None };
        let spans =
            handle.spans.as_ref().map(|s| Box::new(TaskSpans::start(s, task, caller.as_ref(), channel)));
        let meter = if handle.metrics.enabled() { Meter::Queued } else { Meter::Off };
        handle.metrics.queued(i64::from(!matches!(meter, Meter::Off)));
        Self { handle: handle.clone(), caller, spans, meter }
    }

    /// The task has its slot and is about to be offered: ends the queue, begins the inference.
    pub fn running(&mut self, provider: &Provider) {
        if self.is_off() {
            return;
        }
        let now = Instant::now();
        if let Some(spans) = &mut self.spans {
            spans.offered(now, provider);
        }
        if let (Meter::Queued, Some(series)) = (&self.meter, self.handle.metrics.series(provider)) {
            self.handle.metrics.queued(-1);
            self.handle.metrics.running(1, &series);
            self.meter = Meter::Running(Running { series, offered: now, last_chunk: None });
        }
    }

    /// The offer came back without an answer and the task waits again: this attempt's span bears the error, the task's does
    /// not.
    pub fn requeued(&mut self, why: FailureCode) {
        if let Some(spans) = &mut self.spans {
            spans.came_back(Instant::now(), why.as_str());
        }
        if let Meter::Running(running) = &self.meter {
            self.handle.metrics.running(-1, &running.series);
            self.handle.metrics.queued(1);
            self.meter = Meter::Queued;
        }
    }

    /// A chunk of output came just now; the first is marked on the trace.
    pub fn chunk(&mut self, now: Instant) {
        if let Some(spans) = &mut self.spans {
            spans.chunk(now);
        }
        if let Meter::Running(running) = &mut self.meter {
            let last = running.last_chunk.replace(now);
            self.handle.metrics.chunk(&running.series, last.is_none(), now - last.unwrap_or(running.offered));
        }
    }

    /// Nobody asked for spans or measurements: then not even the time is.
    fn is_off(&self) -> bool {
        self.spans.is_none() && matches!(self.meter, Meter::Off)
    }

    /// What the offer carries, so that the provider's spans become children of the inference. Without a trace of our own
    /// the caller's context goes on unchanged; empty if contexts are not to be propagated.
    pub fn offer_context(&self) -> BTreeMap<String, String> {
        if !self.handle.propagate {
            return BTreeMap::new();
        }
        let own = self.spans.as_ref().and_then(|s| s.inference());
        own.as_ref().or(self.caller.as_ref()).map(context::inject).unwrap_or_default()
    }

    /// Something to gather the answer's text with, if content is to be recorded.
    pub fn answer_text(&self) -> Option<AnswerText> {
        self.handle.wants_content().then(AnswerText::default)
    }

    /// The trace's id as 32 hexadecimal digits, for log lines.
    pub fn trace_id(&self) -> Option<TraceWord> {
        let own = self.spans.as_ref().map(|s| s.trace.id);
        own.or(self.caller.as_ref().map(SpanContext::trace_id)).map(TraceWord::new)
    }

    /// The parent of this task's POSTs to `path` (with a slash in front) of `server`, for whoever delivers its result.
    pub fn posts(&self, server: &Server, path: &str) -> Posts {
        let trace = self.spans.as_ref().map(|s| s.trace.clone());
        Posts::new(&self.handle, trace, server, path)
    }

    /// The task has ended.
    pub fn end(mut self, report: &TaskReport<'_>) {
        if self.is_off() {
            return;
        }
        let (now, error) = (Instant::now(), report.ending.error_type());
        if let Some(mut spans) = self.spans.take() {
            spans.end(now, Some(report));
        }
        let metrics = &self.handle.metrics;
        match &self.meter {
            Meter::Off => {}
            Meter::Queued => metrics.task_ended(None, report.ending.as_str(), error),
            Meter::Running(running) => {
                metrics.inference_ended(&running.series, now - running.offered, report.usage, error);
                metrics.task_ended(Some(&running.series), report.ending.as_str(), error);
            }
        }
    }
}

impl Drop for TaskTrace {
    /// Whichever way a task leaves, its spans end and the counts of running and queued tasks go back.
    fn drop(&mut self) {
        if let Some(mut spans) = self.spans.take() {
            spans.end(Instant::now(), None);
        }
        match &self.meter {
            Meter::Off => {}
            Meter::Queued => self.handle.metrics.queued(-1),
            Meter::Running(running) => self.handle.metrics.running(-1, &running.series),
        }
    }
}
