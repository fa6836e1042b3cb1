//! The tree of one task's spans, but for its delivery, which may outlast it.

use std::sync::Arc;

use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt as _, TraceId},
};
use tokio::time::Instant;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{
    attributes::Attributes,
    channel::ChannelTrace,
    content::{self, AnswerContent},
    metrics::provider_name,
    names::{self, key, span, value},
    spans::{self, Spans},
};
use crate::domain::{EndKind, Failure, Provider, RequestFacts, Task, Usage};

/// What is known of a task at its end. What the provider did not say stays empty; nothing is estimated.
#[derive(Clone, Copy, Debug)]
pub struct TaskReport<'a> {
    /// How it ended.
    pub end: EndKind,
    /// Why it failed, if it did; its text is content and recorded only on demand.
    pub failure: Option<&'a Failure>,
    /// The answer's `id`.
    pub response_id: Option<&'a str>,
    /// The answer's `model`.
    pub response_model: Option<&'a str>,
    /// Each choice that has ended, and why.
    pub finish_reasons: &'a [(u32, String)],
    /// What the provider counted.
    pub usage: Usage,
    /// What the answer says, where content is recorded.
    pub answer: Option<&'a AnswerContent>,
}

impl<'a> TaskReport<'a> {
    /// A report that knows the end alone.
    pub fn new(end: EndKind) -> Self {
        Self {
            end,
            failure: None,
            response_id: None,
            response_model: None,
            finish_reasons: &[],
            usage: Usage::default(),
            answer: None,
        }
    }
}

/// The open spans of a task.
pub(super) struct TaskSpans {
    pub(super) spans: Spans,
    root: Span,
    /// Of the root, for its children.
    pub(super) context: Context,
    task: Arc<Task>,
    captures_content: bool,
    queue: Option<Span>,
    chat: Option<Chat>,
}

/// One attempt to have the task answered.
struct Chat {
    span: Span,
    context: Context,
    began: Instant,
    /// Whether its first chunk is marked; only a stream's is.
    is_marked: bool,
}

impl TaskSpans {
    /// The task's trace goes on from the caller's span, or begins anew.
    pub(super) fn start(
        spans: &Spans,
        task: &Arc<Task>,
        caller: Option<&SpanContext>,
        channel: &ChannelTrace,
        captures_content: bool,
    ) -> Self {
        let process =
            || info_span!(target: names::TARGET, parent: None, span::PROCESS_TASK, otel.kind = "consumer");
        let caller = caller.map(|caller| Context::new().with_remote_span_context(caller.clone()));
        let root = spans.make(caller.as_ref(), process);
        if let Some(channel) = channel.context() {
            root.add_link(channel.clone());
        }
        let context = root.context();
        let queue = Some(queue(spans, &context));
        Self { spans: spans.clone(), root, context, task: task.clone(), captures_content, queue, chat: None }
    }

    /// The queue ends and the inference begins.
    pub(super) fn offered(&mut self, provider: &Provider) {
        self.queue = None;
        let name = format_args!("{} {}", span::CHAT, provider.model);
        let chat = || info_span!(target: names::TARGET, parent: None, span::CHAT, otel.name = %name, otel.kind = "client");
        let span = self.spans.make(Some(&self.context), chat);
        let context = span.context();
        if spans::is_sampled(&context) {
            spans::set(&span, self.asked(provider));
        }
        self.chat = Some(Chat { span, context, began: Instant::now(), is_marked: false });
    }

    /// What the inference is asked for.
    fn asked(&self, provider: &Provider) -> Attributes {
        let mut to = Attributes::default();
        to.add(key::OPERATION_NAME, value::CHAT);
        to.text(key::PROVIDER_NAME, provider_name(&provider.kind));
        to.text(key::REQUEST_MODEL, &*provider.model);
        if let Some(server) = &provider.server {
            to.text(key::SERVER_ADDRESS, &*server.host);
            to.add(key::SERVER_PORT, i64::from(server.port));
        }
        settings(&mut to, &self.task.asked);
        if self.captures_content {
            to.add_known(key::INPUT_MESSAGES, content::input_messages(&self.task.request));
        }
        to
    }

    /// The context of the inference, if there is one.
    pub(super) fn inference(&self) -> Option<SpanContext> {
        self.chat.as_ref().map(|chat| spans::identity(&chat.context))
    }

    pub(super) fn trace_id(&self) -> TraceId {
        self.context.span().span_context().trace_id()
    }

    /// A chunk of a stream came; the first is marked.
    pub(super) fn chunk(&mut self, now: Instant) {
        let Some(chat) = self.chat.as_mut().filter(|chat| !chat.is_marked) else { return };
        chat.is_marked = true;
        chat.span.add_event(span::FIRST_CHUNK, Vec::new());
        let waited = now.saturating_duration_since(chat.began).as_secs_f64();
        chat.span.set_attribute(key::RESPONSE_TIME_TO_FIRST_CHUNK, waited);
    }

    /// The attempt has failed, which the task has not: it waits again.
    pub(super) fn came_back(&mut self, why: &'static str) {
        if let Some(chat) = self.chat.take() {
            spans::fail(&chat.span, why, "");
        }
        self.queue = Some(queue(&self.spans, &self.context));
    }

    /// All that is open ends as the report says, the root last. Without a report nobody knows how.
    pub(super) fn end(mut self, report: &TaskReport<'_>) {
        self.queue = None;
        let chat = self.chat.take();
        if !spans::is_sampled(&self.context) {
            return;
        }
        if let Some(chat) = &chat {
            spans::set(&chat.span, self.answered(report));
        }
        spans::set(&self.root, self.ended(report));
        if let Some(kind) = report.end.error_type() {
            let detail = report.failure.filter(|_| self.captures_content);
            let detail = detail.map_or("", |failure| &failure.message);
            chat.iter().map(|chat| &chat.span).chain([&self.root]).for_each(|s| spans::fail(s, kind, detail));
        }
    }

    fn ended(&self, report: &TaskReport<'_>) -> Attributes {
        let mut to = Attributes::default();
        to.text(key::TASK_ID, self.task.id.as_str());
        to.text(key::LLM, &*self.task.llm);
        to.add(key::OUTCOME, report.end.as_str());
        if report.end == EndKind::Nobody {
            to.add(key::CANCEL_REASON, value::CALLER_GONE);
        }
        to
    }

    /// What the provider said of its answer, and no more.
    fn answered(&self, report: &TaskReport<'_>) -> Attributes {
        let mut to = Attributes::default();
        to.text(key::RESPONSE_ID, report.response_id);
        to.text(key::RESPONSE_MODEL, report.response_model);
        to.texts(key::RESPONSE_FINISH_REASONS, report.finish_reasons.iter().map(|(_, reason)| &**reason));
        for (key, tokens) in [
            (key::USAGE_INPUT_TOKENS, report.usage.input_tokens),
            (key::USAGE_OUTPUT_TOKENS, report.usage.output_tokens),
            (key::USAGE_CACHE_READ_INPUT_TOKENS, report.usage.cached_input_tokens),
            (key::USAGE_REASONING_OUTPUT_TOKENS, report.usage.reasoning_output_tokens),
        ] {
            to.add_known(key, tokens.map(i64::from));
        }
        if self.captures_content {
            let messages = report.answer.and_then(|answer| answer.messages(report.finish_reasons));
            to.add_known(key::OUTPUT_MESSAGES, messages);
        }
        to
    }
}

fn queue(spans: &Spans, root: &Context) -> Span {
    spans.make(Some(root), || info_span!(target: names::TARGET, parent: None, span::QUEUE))
}

/// Adds the `gen_ai.request.*` attributes of what was asked for.
fn settings(to: &mut Attributes, facts: &RequestFacts) {
    to.add_known(key::REQUEST_MAX_TOKENS, facts.max_tokens.map(i64::from));
    to.add_known(key::REQUEST_SEED, facts.seed);
    to.add_known(key::REQUEST_CHOICE_COUNT, facts.n.filter(|n| *n != 1).map(i64::from));
    to.add_known(key::REQUEST_TEMPERATURE, facts.temperature);
    to.add_known(key::REQUEST_TOP_P, facts.top_p);
    to.add_known(key::REQUEST_TOP_K, facts.top_k);
    to.add_known(key::REQUEST_FREQUENCY_PENALTY, facts.frequency_penalty);
    to.add_known(key::REQUEST_PRESENCE_PENALTY, facts.presence_penalty);
    to.add_known(key::REQUEST_STREAM, facts.stream);
    to.text(key::REQUEST_REASONING_LEVEL, facts.reasoning_effort.as_deref());
    to.text(key::OUTPUT_TYPE, facts.response_format.as_deref().map(output_type));
    to.texts(key::REQUEST_STOP_SEQUENCES, facts.stop.iter().map(String::as_str));
}

/// The registry's word for OpenAI's response format, where it has one.
fn output_type(format: &str) -> &str {
    match format {
        "json_object" | "json_schema" => value::JSON,
        "text" => value::TEXT,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(facts: &RequestFacts) -> Vec<String> {
        let mut attributes = Attributes::default();
        settings(&mut attributes, facts);
        attributes.into_vec().iter().map(|each| format!("{}={}", each.key, each.value)).collect()
    }

    #[test]
    fn what_was_asked_for_becomes_attributes_and_what_was_not_does_not() {
        let facts = RequestFacts {
            n: Some(2),
            temperature: Some(0.5),
            top_k: Some(40),
            reasoning_effort: Some("low".to_owned()),
            response_format: Some("json_schema".to_owned()),
            stop: vec!["END".to_owned()],
            ..RequestFacts::default()
        };
        assert_eq!(
            shown(&facts),
            [
                "gen_ai.request.choice.count=2",
                "gen_ai.request.temperature=0.5",
                "gen_ai.request.top_k=40",
                "gen_ai.request.reasoning.level=low",
                "gen_ai.output.type=json",
                "gen_ai.request.stop_sequences=[\"END\"]"
            ]
        );
        assert!(shown(&RequestFacts { n: Some(1), ..RequestFacts::default() }).is_empty());
    }
}
