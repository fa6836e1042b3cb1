//! The tree of one task's spans, but for its POSTs, which may outlast it.

use std::sync::Arc;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind};
use tokio::time::Instant;

use super::{Ending, TaskReport};
use crate::{
    domain::{CancelReason, Provider, Task},
    openai::RequestFacts,
    telemetry::{
        link::ChannelTrace,
        metrics::provider_kind,
        names::{key, span, value},
        request,
        spans::{Attribute, Ended, Field, Open, Spans, Trace},
    },
};

/// The open spans of a task.
pub(super) struct TaskSpans {
    pub(super) trace: Arc<Trace>,
    task: Arc<Task>,
    channel: ChannelTrace,
    queue: Option<Open>,
    chat: Option<Chat>,
}

/// One attempt to have the task answered.
struct Chat {
    open: Open,
    leg: Open,
    /// "chat {model}".
    name: String,
    provider_kind: Arc<str>,
    asked: RequestFacts,
    /// Only where content is asked for.
    messages: Option<String>,
    chunks: i64,
    first_chunk: Option<Instant>,
}

/// An error's kind, and a detail that is content and so mostly empty.
type Error<'a> = (&'static str, &'a str);

impl TaskSpans {
    pub(super) fn start(
        spans: &Arc<Spans>,
        task: &Arc<Task>,
        caller: Option<&SpanContext>,
        channel: &ChannelTrace,
    ) -> Self {
        let trace = Arc::new(Trace::start(spans, caller));
        Self {
            task: Arc::clone(task),
            channel: channel.clone(),
            queue: Some(Open::new(trace.began)),
            chat: None,
            trace,
        }
    }

    /// The queue ends and the inference begins.
    pub(super) fn offered(&mut self, now: Instant, provider: &Provider, facts: &RequestFacts, body: &[u8]) {
        self.end_queue(now);
        let recorded = self.trace.sampled && self.trace.captures_content();
        self.chat = Some(Chat {
            open: Open::new(now),
            leg: Open::new(now),
            name: [span::CHAT, " ", &provider.model].concat(),
            provider_kind: provider_kind(provider),
            asked: facts.clone(),
            messages: recorded.then(|| request::input_messages(body)).flatten(),
            chunks: 0,
            first_chunk: None,
        });
    }

    /// The context of the inference, if there is one.
    pub(super) fn inference(&self) -> Option<SpanContext> {
        self.chat.as_ref().map(|chat| self.trace.context(chat.open.id))
    }

    pub(super) fn chunk(&mut self, now: Instant) {
        if let Some(chat) = &mut self.chat {
            chat.chunks += 1;
            chat.first_chunk.get_or_insert(now);
        }
    }

    /// The attempt has failed, which the task has not: it waits again.
    pub(super) fn came_back(&mut self, now: Instant, why: &'static str) {
        if let Some(chat) = self.chat.take() {
            chat.end(&self.trace, now, None, None, Some((why, "")));
        }
        self.queue = Some(Open::new(now));
    }

    /// All that is open ends: the root after what is in it. Without a report nobody knows how.
    pub(super) fn end(&mut self, now: Instant, report: Option<&TaskReport<'_>>) {
        self.end_queue(now);
        let failure = report.and_then(|report| match report.ending {
            Ending::Failed(failure) => Some(failure),
            _ => None,
        });
        let content = self.trace.captures_content();
        let error = failure.map(|f| (f.code.as_str(), if content { f.message.as_str() } else { "" }));
        if let Some(chat) = self.chat.take() {
            chat.end(&self.trace, now, report, error, error);
        }
        self.end_root(now, report, error);
    }

    fn end_queue(&mut self, now: Instant) {
        if let Some(queue) = self.queue.take() {
            let what = (span::QUEUE, SpanKind::Internal);
            self.trace.ended(&Ended::new((queue, now), what, self.trace.root, &[]));
        }
    }

    fn end_root(&self, now: Instant, report: Option<&TaskReport<'_>>, error: Option<Error<'_>>) {
        let trace = &self.trace;
        let cancelled = report.and_then(|report| match report.ending {
            Ending::Cancelled(reason) => Some(cancel_word(reason)),
            _ => None,
        });
        let attributes = [
            Some((key::TASK_ID, Field::peers(self.task.id.as_str()))),
            Some((key::LLM, Field::peers(&self.task.llm))),
            report.map(|report| (key::OUTCOME, Field::Text(report.ending.as_str()))),
            cancelled.map(|reason| (key::CANCEL_REASON, Field::Text(reason))),
            error_type(error),
        ];
        let open = Open { id: trace.root, began: trace.began };
        let what = (span::PROCESS_TASK, SpanKind::Consumer);
        trace.ended(&Ended {
            parent: trace.caller,
            parent_is_remote: trace.caller.is_some(),
            link: self.channel.context(),
            error: error.map(|(_, detail)| detail),
            ..Ended::new((open, now), what, SpanId::INVALID, &[&attributes])
        });
    }
}

impl Chat {
    /// `leg` is what was wrong with the provider host's part in it, `error` with the inference as a whole.
    fn end(
        self,
        trace: &Trace,
        now: Instant,
        report: Option<&TaskReport<'_>>,
        leg: Option<Error<'_>>,
        error: Option<Error<'_>>,
    ) {
        if trace.sampled {
            self.end_leg(trace, now, leg);
            self.end_inference(trace, now, report, error);
        }
    }

    fn end_leg(&self, trace: &Trace, now: Instant, error: Option<Error<'_>>) {
        let attributes = [
            Some((key::RPC_SYSTEM_NAME, Field::Text(value::GRPC))),
            Some((key::RPC_METHOD, Field::Text(span::SESSION))),
            error_type(error),
        ];
        let what = (span::SESSION, SpanKind::Client);
        trace.ended(&Ended {
            error: error.map(|(_, detail)| detail),
            ..Ended::new((self.leg, now), what, self.open.id, &[&attributes])
        });
    }

    fn end_inference(
        &self,
        trace: &Trace,
        now: Instant,
        report: Option<&TaskReport<'_>>,
        error: Option<Error<'_>>,
    ) {
        let answered = report.filter(|_| trace.captures_content()).and_then(|report| {
            let finish = report.finish_reasons.first().map_or("", String::as_str);
            request::output_messages(report.answer?, finish)
        });
        let waited = self.first_chunk.map(|at| (at - self.open.began).as_secs_f64());
        let model = &self.name[span::CHAT.len() + 1..];
        let own = [
            Some((key::OPERATION_NAME, Field::Text(value::CHAT))),
            Some((key::PROVIDER_NAME, Field::Text(&self.provider_kind))),
            Some((key::REQUEST_MODEL, Field::peers(model))),
            self.messages.as_deref().map(|json| (key::INPUT_MESSAGES, Field::Text(json))),
            waited.map(|seconds| (key::RESPONSE_TIME_TO_FIRST_CHUNK, Field::Real(seconds))),
            report.map(|_| (key::CHUNKS, Field::Whole(self.chunks))),
            answered.as_deref().map(|json| (key::OUTPUT_MESSAGES, Field::Text(json))),
            error_type(error),
        ];
        let (asked, said) = (request::settings(&self.asked), report.map(said).unwrap_or_default());
        trace.ended(&Ended {
            event: self.first_chunk.map(|at| (span::FIRST_CHUNK, at)),
            error: error.map(|(_, detail)| detail),
            ..Ended::new((self.open, now), (&self.name, SpanKind::Client), trace.root, &[&own, &asked, &said])
        });
    }
}

/// What the provider said of its answer, and no more.
fn said<'a>(report: &TaskReport<'a>) -> [Option<Attribute<'a>>; 5] {
    let reasons = report.finish_reasons;
    [
        report.response_id.map(|id| (key::RESPONSE_ID, Field::peers(id))),
        report.response_model.map(|model| (key::RESPONSE_MODEL, Field::peers(model))),
        (!reasons.is_empty()).then_some((key::RESPONSE_FINISH_REASONS, Field::Texts(reasons))),
        report.usage.input_tokens.map(|tokens| (key::USAGE_INPUT_TOKENS, Field::Whole(tokens.into()))),
        report.usage.output_tokens.map(|tokens| (key::USAGE_OUTPUT_TOKENS, Field::Whole(tokens.into()))),
    ]
}

fn error_type(error: Option<Error<'_>>) -> Option<Attribute<'static>> {
    error.map(|(kind, _)| (key::ERROR_TYPE, Field::Text(kind)))
}

fn cancel_word(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::CallerGone => "caller_gone",
        CancelReason::Deadline => "deadline",
        CancelReason::UpstreamLost => "upstream_lost",
        CancelReason::Shutdown => "shutdown",
    }
}
