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
//! These spans are made by the SDK's tracer: to carry each over from a `tracing` span costs twice as much (measured: 4.5 µs for
//! the whole tree against 2.1), and nothing is logged inside them.

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value,
    trace::{Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt as _},
};
use tokio::time::Instant;

use super::{
    AnswerText, Handle, Spans, context,
    link::ChannelTrace,
    metrics::{Series, provider_kind},
    names::{key, span, value},
    posts::{Posts, Server},
    request,
};
use crate::{
    domain::{CancelReason, Failure, FailureCode, Provider, Task, Usage},
    openai::RequestFacts,
};

/// Longest text from a peer that becomes an attribute, in bytes: a name fits, a hostile megabyte does not.
const MAX_TEXT_BYTES: usize = 256;

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
    /// Why each choice ended, in the order of the choices.
    pub finish_reasons: &'a [String],
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

/// The open spans of a task.
struct TaskSpans {
    queue: Option<opentelemetry_sdk::trace::Span>,
    chat: Option<Chat>,
    root: Context,
}

struct Chat {
    leg: opentelemetry_sdk::trace::Span,
    context: Context,
    offered: Instant,
    chunks: i64,
}

/// Where the task stands in the counts of running and queued tasks.
enum Meter {
    Off,
    Queued,
    Running(Box<Running>),
}

struct Running {
    series: Arc<Series>,
    offered: Instant,
    last_chunk: Option<Instant>,
}

impl TaskTrace {
    /// A task has arrived. Its trace goes on from the task's own context or, where that is absent or invalid, begins anew;
    /// the control channel is a link.
    pub fn start(handle: &Handle, task: &Task, channel: &ChannelTrace) -> Self {
        let caller = if handle.propagate { context::extract(&task.trace_context) } else { None };
        let spans =
            handle.spans.as_ref().map(|s| Box::new(TaskSpans::start(s, task, caller.clone(), channel)));
        let meter = if handle.metrics.enabled() { Meter::Queued } else { Meter::Off };
        handle.metrics.queued(i64::from(!matches!(meter, Meter::Off)));
        Self { handle: handle.clone(), caller, spans, meter }
    }

    /// Whether [`Self::running`] looks at what was read of the request.
    pub fn wants_facts(&self) -> bool {
        self.spans.is_some()
    }

    /// The task has its slot and is about to be offered: ends the queue, begins the inference. `request` is the OpenAI
    /// body and `facts` what was read of it.
    pub fn running(&mut self, provider: &Provider, facts: &RequestFacts, request: &[u8]) {
        if let (Some(open), Some(spans)) = (&mut self.spans, &self.handle.spans) {
            open.queue = None;
            open.chat = Some(Chat::start(spans, &open.root, provider, facts, request));
        }
        if let (Meter::Queued, Some(series)) = (&self.meter, self.handle.metrics.series(provider)) {
            self.handle.metrics.queued(-1);
            self.handle.metrics.running(1, &series);
            self.meter =
                Meter::Running(Box::new(Running { series, offered: Instant::now(), last_chunk: None }));
        }
    }

    /// The offer came back without an answer and the task waits again: this attempt's span bears the error, the task's does
    /// not.
    pub fn requeued(&mut self, why: FailureCode) {
        if let (Some(open), Some(spans)) = (&mut self.spans, &self.handle.spans) {
            if let Some(chat) = open.chat.take() {
                fail(&chat.context, why.as_str(), "");
            }
            open.queue = Some(spans.child(span::QUEUE, SpanKind::Internal, vec![], &open.root));
        }
        if let Meter::Running(running) = &self.meter {
            self.handle.metrics.running(-1, &running.series);
            self.handle.metrics.queued(1);
            self.meter = Meter::Queued;
        }
    }

    /// A chunk of output came; the first is marked on the trace.
    pub fn chunk(&mut self) {
        if let Some(chat) = self.spans.as_mut().and_then(|s| s.chat.as_mut()) {
            chat.chunk();
        }
        if let Meter::Running(running) = &mut self.meter {
            let now = Instant::now();
            let gap = running.last_chunk.replace(now).map(|last| now - last);
            self.handle.metrics.chunk(&running.series, gap, now - running.offered);
        }
    }

    /// What the offer carries, so that the provider's spans become children of the inference. Without a trace of our own
    /// the caller's context goes on unchanged; empty if contexts are not to be propagated.
    pub fn offer_context(&self) -> BTreeMap<String, String> {
        if !self.handle.propagate {
            return BTreeMap::new();
        }
        let own = self.spans.as_ref().and_then(|s| s.chat.as_ref());
        match own {
            Some(chat) => context::inject(chat.context.span().span_context()),
            None => self.caller.as_ref().map(context::inject).unwrap_or_default(),
        }
    }

    /// Something to gather the answer's text with, if content is to be recorded.
    pub fn answer_text(&self) -> Option<AnswerText> {
        self.handle.wants_content().then(AnswerText::default)
    }

    /// The trace's id as 32 hexadecimal digits, for log lines.
    pub fn trace_id(&self) -> Option<String> {
        let own = self.spans.as_ref().map(|s| s.root.span().span_context().trace_id());
        own.or(self.caller.as_ref().map(SpanContext::trace_id)).map(context::hex_of)
    }

    /// The parent of this task's POSTs to `path` (with a slash in front) of `server`, for whoever delivers its result.
    pub fn posts(&self, server: &Server, path: &str) -> Posts {
        let parent = self.spans.as_ref().map(|s| s.root.clone());
        Posts::new(&self.handle, parent, server, path)
    }

    /// The task has ended.
    pub fn end(mut self, report: &TaskReport<'_>) {
        let error = report.ending.error_type();
        if let Some(open) = &mut self.spans {
            open.end(report, self.handle.wants_content());
        }
        let metrics = &self.handle.metrics;
        match &self.meter {
            Meter::Off => {}
            Meter::Queued => metrics.task_ended(None, report.ending.as_str(), error),
            Meter::Running(running) => {
                metrics.inference_ended(&running.series, running.offered.elapsed(), report.usage, error);
                metrics.task_ended(Some(&running.series), report.ending.as_str(), error);
            }
        }
    }
}

impl Drop for TaskTrace {
    /// Whichever way a task leaves, the counts of running and queued tasks go back.
    fn drop(&mut self) {
        match &self.meter {
            Meter::Off => {}
            Meter::Queued => self.handle.metrics.queued(-1),
            Meter::Running(running) => self.handle.metrics.running(-1, &running.series),
        }
    }
}

impl TaskSpans {
    fn start(spans: &Spans, task: &Task, caller: Option<SpanContext>, channel: &ChannelTrace) -> Self {
        let parent = caller.map_or_else(Context::new, |c| Context::new().with_remote_span_context(c));
        // Room for the outcome, and for why.
        let mut attributes = Vec::with_capacity(4);
        attributes.push(KeyValue::new(key::TASK_ID, text(task.id.as_str())));
        attributes.push(KeyValue::new(key::LLM, text(&task.llm)));
        let channel = channel.context().map(|channel| Link::with_context(channel.clone()));
        let root = spans.linked(span::PROCESS_TASK, SpanKind::Consumer, attributes, &parent, channel);
        let root = parent.with_span(root);
        let queue = spans.child(span::QUEUE, SpanKind::Internal, vec![], &root);
        Self { queue: Some(queue), chat: None, root }
    }

    fn end(&mut self, report: &TaskReport<'_>, capture: bool) {
        self.queue = None;
        let (error, detail) = match report.ending {
            Ending::Failed(failure) => {
                (Some(failure.code.as_str()), if capture { failure.message.as_str() } else { "" })
            }
            _ => (None, ""),
        };
        if let Some(chat) = self.chat.take() {
            chat.end(report, capture, error, detail);
        }
        let root = self.root.span();
        root.set_attribute(KeyValue::new(key::OUTCOME, report.ending.as_str()));
        if let Ending::Cancelled(reason) = report.ending {
            root.set_attribute(KeyValue::new(key::CANCEL_REASON, cancel_word(reason)));
        }
        if let Some(error) = error {
            fail(&self.root, error, detail);
        }
    }
}

impl Drop for TaskSpans {
    /// The root ends with its task, and after what is in it, whoever else still has its context.
    fn drop(&mut self) {
        (self.queue, self.chat) = (None, None);
        self.root.span().end();
    }
}

impl Chat {
    fn start(spans: &Spans, root: &Context, provider: &Provider, facts: &RequestFacts, body: &[u8]) -> Self {
        // Room for the answer's too.
        let mut attributes = Vec::with_capacity(16);
        attributes.extend([
            KeyValue::new(key::OPERATION_NAME, value::CHAT),
            KeyValue::new(key::PROVIDER_NAME, provider_kind(provider)),
            KeyValue::new(key::REQUEST_MODEL, text(&provider.model)),
        ]);
        if root.span().is_recording() {
            attributes.extend(request::settings(facts));
            attributes.extend(spans.capture_content.then(|| request::input_messages(body)).flatten());
        }
        let name = format!("{} {}", span::CHAT, provider.model);
        let context = root.with_span(spans.child(name, SpanKind::Client, attributes, root));
        let rpc = vec![
            KeyValue::new(key::RPC_SYSTEM_NAME, value::GRPC),
            KeyValue::new(key::RPC_METHOD, span::SESSION),
        ];
        let leg = spans.child(span::SESSION, SpanKind::Client, rpc, &context);
        Self { leg, context, offered: Instant::now(), chunks: 0 }
    }

    fn chunk(&mut self) {
        self.chunks += 1;
        if self.chunks == 1 {
            let waited = self.offered.elapsed();
            self.set(key::RESPONSE_TIME_TO_FIRST_CHUNK, waited.as_secs_f64());
            self.context.span().add_event(span::FIRST_CHUNK, vec![]);
        }
    }

    fn set(&self, key: &'static str, value: impl Into<Value>) {
        self.context.span().set_attribute(KeyValue::new(key, value));
    }

    fn end(mut self, report: &TaskReport<'_>, capture: bool, error: Option<&'static str>, detail: &str) {
        if !self.context.span().is_recording() {
            return;
        }
        self.set(key::CHUNKS, self.chunks);
        self.describe(report);
        if capture && let Some(answer) = report.answer {
            let finish = report.finish_reasons.first().map_or("", String::as_str);
            self.context.span().set_attributes(request::output_messages(answer, finish));
        }
        if let Some(error) = error {
            self.leg.set_attribute(KeyValue::new(key::ERROR_TYPE, error));
            self.leg.set_status(Status::error(detail.to_owned()));
            fail(&self.context, error, detail);
        }
    }

    /// Only what the provider said.
    fn describe(&self, report: &TaskReport<'_>) {
        if let Some(id) = report.response_id {
            self.set(key::RESPONSE_ID, text(id));
        }
        if let Some(model) = report.response_model {
            self.set(key::RESPONSE_MODEL, text(model));
        }
        if !report.finish_reasons.is_empty() {
            let reasons = report.finish_reasons.iter().map(|r| StringValue::from(text(r)));
            self.set(key::RESPONSE_FINISH_REASONS, Value::Array(Array::String(reasons.collect())));
        }
        if let Some(tokens) = report.usage.input_tokens {
            self.set(key::USAGE_INPUT_TOKENS, i64::from(tokens));
        }
        if let Some(tokens) = report.usage.output_tokens {
            self.set(key::USAGE_OUTPUT_TOKENS, i64::from(tokens));
        }
    }
}

/// Marks the span of `context` as failed. `detail` is content, so it is empty unless that is asked for.
fn fail(context: &Context, error: &'static str, detail: &str) {
    let span = context.span();
    span.set_attribute(KeyValue::new(key::ERROR_TYPE, error));
    span.set_status(Status::error(detail.to_owned()));
}

/// A peer's text, cut to what an attribute may cost.
fn text(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned()
}

fn cancel_word(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::CallerGone => "caller_gone",
        CancelReason::Deadline => "deadline",
        CancelReason::UpstreamLost => "upstream_lost",
        CancelReason::Shutdown => "shutdown",
    }
}
