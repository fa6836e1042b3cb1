//! The tree of one task's spans, but for its POSTs, which may outlast it.

use std::{sync::Arc, time::Duration};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind};
use tokio::time::Instant;

use super::{Ending, TaskReport};
use crate::{
    domain::{CancelReason, Provider, RequestFacts, Task},
    telemetry::{
        link::ChannelTrace,
        metrics::provider_kind,
        names::{key, span, value},
        request,
        spans::{Attributes, Ended, Open, Spans, Time, Trace},
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
    kind: Arc<str>,
    model: Arc<str>,
    /// Only where content is asked for.
    messages: Option<String>,
    chunks: i64,
    first_chunk: Option<Time>,
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
    pub(super) fn offered(&mut self, now: Instant, provider: &Provider) {
        let now = self.trace.time(now);
        self.end_queue(now);
        let recorded = self.trace.sampled && self.trace.captures_content();
        self.chat = Some(Chat {
            open: Open::new(now),
            leg: Open::new(now),
            kind: Arc::clone(&provider.kind),
            model: Arc::clone(&provider.model),
            messages: recorded.then(|| request::input_messages(&self.task.request)).flatten(),
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
            chat.first_chunk.get_or_insert_with(|| self.trace.time(now));
        }
    }

    /// The attempt has failed, which the task has not: it waits again.
    pub(super) fn came_back(&mut self, now: Instant, why: &'static str) {
        let now = self.trace.time(now);
        if let Some(chat) = self.chat.take() {
            chat.end((&self.trace, &self.task.asked), now, None, None, Some((why, "")));
        }
        self.queue = Some(Open::new(now));
    }

    /// All that is open ends: the root after what is in it. Without a report nobody knows how.
    pub(super) fn end(&mut self, now: Instant, report: Option<&TaskReport<'_>>) {
        let now = self.trace.time(now);
        self.end_queue(now);
        let failure = report.and_then(|report| match report.ending {
            Ending::Failed(failure) => Some(failure),
            _ => None,
        });
        let content = self.trace.captures_content();
        let error = failure.map(|f| (f.code.as_str(), if content { f.message.as_str() } else { "" }));
        if let Some(chat) = self.chat.take() {
            chat.end((&self.trace, &self.task.asked), now, report, error, error);
        }
        self.end_root(now, report, error);
    }

    fn end_queue(&mut self, now: Time) {
        if let Some(queue) = self.queue.take() {
            let what = (span::QUEUE, SpanKind::Internal);
            self.trace.ended(&Ended::new((queue, now), what, self.trace.root), |_| {});
        }
    }

    fn end_root(&self, now: Time, report: Option<&TaskReport<'_>>, error: Option<Error<'_>>) {
        let trace = &self.trace;
        let open = Open { id: trace.root, began: trace.began };
        let span = Ended {
            parent: trace.caller,
            parent_is_remote: trace.caller.is_some(),
            link: self.channel.context(),
            error: error.map(|(_, detail)| detail),
            ..Ended::new((open, now), (span::PROCESS_TASK, SpanKind::Consumer), SpanId::INVALID)
        };
        trace.ended(&span, |to| {
            to.peers(key::TASK_ID, self.task.id.as_str());
            to.peers(key::LLM, &*self.task.llm);
            if let Some(report) = report {
                to.text(key::OUTCOME, report.ending.as_str());
                if let Ending::Cancelled(reason) = report.ending {
                    to.text(key::CANCEL_REASON, cancel_word(reason));
                }
            }
            to.text(key::ERROR_TYPE, error.map(|(kind, _)| kind));
        });
    }
}

impl Chat {
    /// `leg` is what was wrong with the provider host's part in it, `error` with the inference as a whole.
    fn end(
        &self,
        (trace, asked): (&Trace, &RequestFacts),
        now: Time,
        report: Option<&TaskReport<'_>>,
        leg: Option<Error<'_>>,
        error: Option<Error<'_>>,
    ) {
        if trace.sampled {
            self.end_leg(trace, now, leg);
            self.end_inference((trace, asked), now, report, error);
        }
    }

    fn end_leg(&self, trace: &Trace, now: Time, error: Option<Error<'_>>) {
        let span = Ended {
            error: error.map(|(_, detail)| detail),
            ..Ended::new((self.leg, now), (span::SESSION, SpanKind::Client), self.open.id)
        };
        trace.ended(&span, |to| {
            to.text(key::RPC_SYSTEM_NAME, value::GRPC);
            to.text(key::RPC_METHOD, span::SESSION);
            to.text(key::ERROR_TYPE, error.map(|(kind, _)| kind));
        });
    }

    fn end_inference(
        &self,
        (trace, asked): (&Trace, &RequestFacts),
        now: Time,
        report: Option<&TaskReport<'_>>,
        error: Option<Error<'_>>,
    ) {
        let span = Ended {
            name: [span::CHAT, &self.model],
            event: self.first_chunk.map(|at| (span::FIRST_CHUNK, at)),
            error: error.map(|(_, detail)| detail),
            ..Ended::new((self.open, now), ("", SpanKind::Client), trace.root)
        };
        let waited = self.first_chunk.map(|at| Duration::from_nanos(at.saturating_sub(self.open.began)));
        trace.ended(&span, |to| {
            to.text(key::OPERATION_NAME, value::CHAT);
            to.peers(key::PROVIDER_NAME, provider_kind(&self.kind));
            to.peers(key::REQUEST_MODEL, &*self.model);
            request::settings(to, asked);
            to.text(key::INPUT_MESSAGES, self.messages.as_deref());
            to.real(key::RESPONSE_TIME_TO_FIRST_CHUNK, waited.map(|waited| waited.as_secs_f64()));
            if let Some(report) = report {
                to.whole(key::CHUNKS, self.chunks);
                answered(to, report, trace.captures_content());
            }
            to.text(key::ERROR_TYPE, error.map(|(kind, _)| kind));
        });
    }
}

/// What the provider said of its answer, and no more.
fn answered(to: &mut Attributes<'_>, report: &TaskReport<'_>, content: bool) {
    let reasons = report.finish_reasons.iter().map(|(_, reason)| &**reason);
    to.peers(key::RESPONSE_ID, report.response_id);
    to.peers(key::RESPONSE_MODEL, report.response_model);
    to.peers_all(key::RESPONSE_FINISH_REASONS, reasons.clone());
    to.whole(key::USAGE_INPUT_TOKENS, report.usage.input_tokens.map(i64::from));
    to.whole(key::USAGE_OUTPUT_TOKENS, report.usage.output_tokens.map(i64::from));
    if let Some(answer) = report.answer.filter(|_| content) {
        let messages = request::output_messages(answer, reasons.clone().next().unwrap_or_default());
        to.text(key::OUTPUT_MESSAGES, messages.as_deref());
    }
}

fn cancel_word(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::CallerGone => "caller_gone",
        CancelReason::Deadline => "deadline",
        CancelReason::UpstreamLost => "upstream_lost",
        CancelReason::Shutdown => "shutdown",
    }
}
