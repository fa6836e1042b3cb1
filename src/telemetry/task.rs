//! The trace and the measurements of one relayed task.
//!
//! ```text
//! process task    CONSUMER  parent = the task's own context, link = the control channel
//!   queue         INTERNAL  from arrival to offer; again after a task came back
//!   chat {model}  CLIENT    the provider host gets this span's context; the only one with usage
//!   deliver       INTERNAL  from the first part of the output to the accepted end
//!     POST        CLIENT    the first part, the terminal one, and each that failed, was repeated or was slow
//! ```

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry::trace::{SpanContext, TraceId};
use tokio::time::Instant;

use super::{
    AnswerContent, Handle,
    channel::ChannelTrace,
    context,
    deliver::Posts,
    metrics::Series,
    server::Server,
    tree::{TaskReport, TaskSpans},
};
use crate::domain::{FailureCode, Provider, Task};

/// One relayed task, from its arrival to its end. With telemetry off it holds the caller's context and nothing else: no
/// allocation, no clock.
pub struct TaskTrace {
    handle: Handle,
    /// What the task came with.
    caller: Option<SpanContext>,
    streaming: bool,
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
        let spans = handle.spans.as_ref().map(|spans| {
            Box::new(TaskSpans::start(spans, task, caller.as_ref(), channel, handle.captures_content))
        });
        let meter = if handle.metrics.enabled() { Meter::Queued } else { Meter::Off };
        handle.metrics.queued(i64::from(!matches!(meter, Meter::Off)));
        Self { handle: handle.clone(), caller, streaming: task.streaming, spans, meter }
    }

    /// The task has its slot and is about to be offered: ends the queue, begins the inference.
    pub fn running(&mut self, provider: &Provider) {
        if let Some(spans) = &mut self.spans {
            spans.offered(provider);
        }
        if let (Meter::Queued, Some(series)) = (&self.meter, self.handle.metrics.series(provider)) {
            self.handle.metrics.queued(-1);
            self.handle.metrics.running(1, &series);
            self.meter = Meter::Running(Running { series, offered: Instant::now(), last_chunk: None });
        }
    }

    /// The offer came back without an answer and the task waits again: this attempt's span bears the error, the task's does
    /// not.
    pub fn requeued(&mut self, why: FailureCode) {
        if let Some(spans) = &mut self.spans {
            spans.came_back(why.as_str());
        }
        if let Meter::Running(running) = &self.meter {
            self.handle.metrics.running(-1, &running.series);
            self.handle.metrics.queued(1);
            self.meter = Meter::Queued;
        }
    }

    /// A chunk of output came just now. How long a stream's chunks take is measured, and its first is marked on
    /// the trace; the pieces of an answer that is gathered are only counted.
    pub fn chunk(&mut self, now: Instant) {
        if let Some(spans) = self.spans.as_mut().filter(|_| self.streaming) {
            spans.chunk(now);
        }
        if let Meter::Running(running) = &mut self.meter {
            let last = running.last_chunk.replace(now);
            let took = self.streaming.then(|| now - last.unwrap_or(running.offered));
            self.handle.metrics.chunk(&running.series, last.is_none(), took);
        }
    }

    /// What the offer carries, so that the provider's spans become children of the inference. Without a trace of our own
    /// the caller's context goes on unchanged; empty if contexts are not to be propagated.
    pub fn offer_context(&self) -> BTreeMap<String, String> {
        if !self.handle.propagate {
            return BTreeMap::new();
        }
        let own = self.spans.as_ref().and_then(|spans| spans.inference());
        own.or(self.caller.clone()).as_ref().map(context::inject).unwrap_or_default()
    }

    /// Something to gather the answer with, if content is to be recorded.
    pub fn answer_content(&self) -> Option<AnswerContent> {
        self.handle.wants_content().then(AnswerContent::default)
    }

    /// Whether prompts, answers and error texts may be told.
    pub fn captures_content(&self) -> bool {
        self.handle.captures_content
    }

    /// The trace's id, for log lines.
    pub fn trace_id(&self) -> Option<TraceId> {
        let own = self.spans.as_ref().map(|spans| spans.trace_id());
        own.or(self.caller.as_ref().map(SpanContext::trace_id))
    }

    /// Begins the delivery of this task's result by POSTs to `path` (with a slash in front) of `server`.
    pub fn deliver(&self, server: &Server, path: &str) -> Posts {
        let task = self.spans.as_ref().map(|task| (&task.spans, &task.context));
        Posts::new(&self.handle, task, server, path)
    }

    /// The task has ended.
    pub fn end(mut self, report: &TaskReport<'_>) {
        if let Some(spans) = self.spans.take() {
            spans.end(report);
        }
        let metrics = &self.handle.metrics;
        match &self.meter {
            Meter::Off => {}
            Meter::Queued => metrics.task_ended(None, report.end),
            Meter::Running(running) => {
                metrics.inference_ended(&running.series, running.offered.elapsed(), report.usage, report.end);
                metrics.task_ended(Some(&running.series), report.end);
            }
        }
    }
}

impl Drop for TaskTrace {
    /// Whichever way a task leaves, the counts of running and queued tasks go back; its spans end by themselves.
    fn drop(&mut self) {
        match &self.meter {
            Meter::Off => {}
            Meter::Queued => self.handle.metrics.queued(-1),
            Meter::Running(running) => self.handle.metrics.running(-1, &running.series),
        }
    }
}
