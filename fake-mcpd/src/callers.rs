//! The callers' side: the list of LLMs, and an inference from its request to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{HeaderName, RETRY_AFTER};
use serde_json::value::RawValue;

use crate::core::{Core, Event};
use crate::hub::Hub;
use crate::journal::{Entry, Kind};
use crate::reply::{Cut, Reply, json_reply, set_header, sse_reply};
use crate::request::Seen;
use crate::state::Unavailable;
use crate::tasks::{CALLER_GONE, TaskEnd, TaskHandle};
use crate::trace::TraceContext;
use crate::wire::{self, CallerPeek, TaskData};

/// What a caller of an LLM without a provider is told to wait, in seconds: an agent's first backoff.
const UNAVAILABLE_FOR: &str = "5";

/// `GET /api/v1/llms`.
pub(crate) fn list(hub: &Hub, seen: &Seen) -> Reply {
    let llms = hub.act(|core| {
        core.log(|| seen.answered(200));
        hub.llms(core, None)
    });
    json_reply(200, wire::json(&llms))
}

/// `POST /api/v1/llms/{name}/infer`.
pub(crate) async fn infer(hub: &Arc<Hub>, seen: &Seen, llm: &str) -> Reply {
    let deadline = seen.header(wire::DEADLINE_HEADER).and_then(|value| value.parse().ok());
    let request = InferRequest {
        llm: llm.to_owned(),
        body: seen.body.clone(),
        traceparent: seen.header(wire::TRACEPARENT_HEADER).map(str::to_owned),
        tracestate: seen.header(wire::TRACESTATE_HEADER).map(str::to_owned),
        deadline: deadline.map(Duration::from_millis),
        caller: seen.header(wire::CALLER_HEADER).map(str::to_owned),
    };
    hub.act(|core| core.log(|| Entry { llm: Some(llm.to_owned()), ..seen.entry.clone() }));
    match submit(hub, request) {
        Ok(call) => reply(call).await,
        Err(refusal) => {
            let (status, body) = refusal.answer();
            let mut reply = json_reply(status, body);
            if status == 503 {
                set_header(&mut reply, RETRY_AFTER, UNAVAILABLE_FOR);
            }
            reply
        }
    }
}

/// The HTTP reply of a call: what it begins with decides between a stream and a whole reply.
async fn reply(mut call: Call) -> Reply {
    let id = call.task_id().to_owned();
    let mut reply = match call.next_frame().await {
        Some(first) => sse_reply(CallStream::new(call, Some(first))),
        None => match call.take_end() {
            TaskEnd::Done => sse_reply(CallStream::new(call, None)),
            end => {
                let (status, retry_after, body) = whole(end);
                let mut reply = json_reply(status, body);
                if let Some(value) = retry_after {
                    set_header(&mut reply, RETRY_AFTER, &value);
                }
                reply
            }
        },
    };
    set_header(&mut reply, HeaderName::from_static(wire::REQUEST_ID_HEADER), &id);
    reply
}

/// The status, `Retry-After` and body of an end that came before any output.
pub(crate) fn whole(end: TaskEnd) -> (u16, Option<String>, Bytes) {
    match end {
        TaskEnd::Reply { status, retry_after, body } => (status, retry_after, body),
        TaskEnd::Failed { status, code, message } => {
            (status, None, wire::openai_error(&message, "upstream_error", code))
        }
        TaskEnd::Done | TaskEnd::CallerGone => {
            (CALLER_GONE, None, wire::openai_error("the call was cancelled", "cancelled", "cancelled"))
        }
    }
}

/// An inference as a caller asks for it.
#[derive(Debug, Clone, Default)]
pub struct InferRequest {
    /// The virtual LLM's name.
    pub llm: String,
    /// The OpenAI body; `"stream": true` in it asks for a stream.
    pub body: Bytes,
    /// The caller's W3C trace context.
    pub traceparent: Option<String>,
    /// Its vendor state.
    pub tracestate: Option<String>,
    /// How long the caller waits; the task ends with 504 then.
    pub deadline: Option<Duration>,
    /// The caller's display name.
    pub caller: Option<String>,
}

/// Why a call never became a task.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("the body is no JSON object: {0}")]
    BadBody(String),
}

impl Refusal {
    /// Status and body.
    pub(crate) fn answer(&self) -> (u16, Bytes) {
        let (status, kind, code) = match self {
            Self::Unavailable(Unavailable::UnknownLlm(_)) => {
                (404, "invalid_request_error", "model_not_found")
            }
            Self::Unavailable(_) => (503, "server_error", "llm_unavailable"),
            Self::BadBody(_) => (400, "invalid_request_error", "invalid_json"),
        };
        (status, wire::openai_error(&self.to_string(), kind, code))
    }
}

/// Makes a task of a request and sends it to its provider.
pub(crate) fn submit(hub: &Arc<Hub>, request: InferRequest) -> Result<Call, Refusal> {
    let submitted = try_submit(hub, &request);
    if let Err(refusal) = &submitted {
        let (status, note) = (refusal.answer().0, refusal.to_string());
        hub.act(|core| {
            core.log(|| {
                Entry { llm: Some(request.llm.clone()), ..Entry::new(Kind::TaskEnded) }
                    .status(status)
                    .note(note)
            });
        });
    }
    submitted
}

fn try_submit(hub: &Arc<Hub>, request: &InferRequest) -> Result<Call, Refusal> {
    let (body, peek) = CallerPeek::parse(&request.body).map_err(Refusal::BadBody)?;
    let (id, number) = hub.act(|core| {
        // Only what can be delivered counts as a task.
        core.state.route(&request.llm)?;
        Ok::<_, Unavailable>(core.state.next_task_id())
    })?;
    hub.faults_at_task(number, false);
    let handle = hub.act(|core| deliver(core, &id, body, peek.stream == Some(true), request))?;
    // Its own, or that of a task which waits to be overtaken.
    hub.deadline_set();
    hub.faults_at_task(number, true);
    Ok(Call { hub: Arc::clone(hub), handle, streaming: peek.stream == Some(true) })
}

fn deliver(
    core: &mut Core,
    id: &str,
    body: &RawValue,
    streaming: bool,
    request: &InferRequest,
) -> Result<TaskHandle, Unavailable> {
    let session = core.state.route(&request.llm)?;
    let trace = TraceContext::new(request.traceparent.as_deref(), &mut core.state.random);
    let traceparent = trace.traceparent();
    let data = wire::json(&TaskData {
        kind: "infer",
        task_id: id,
        llm_name: &request.llm,
        streaming,
        request: body,
        traceparent: traceparent.clone(),
        tracestate: request.tracestate.as_deref().filter(|_| trace.is_continued()),
        deadline_ms: request.deadline.map(|deadline| deadline.as_millis() as u64),
        caller: request.caller.as_deref(),
    });
    let deadline = request.deadline.and_then(|deadline| core.now.checked_add(deadline));
    let handle = core.state.tasks.add(id, &request.llm, &session, streaming, deadline);
    let mut entry = Entry::new(Kind::Task).task(id).body(data);
    (entry.llm, entry.traceparent) = (Some(request.llm.clone()), Some(traceparent));
    let times = if core.armed.delivers_twice() { 2 } else { 1 };
    for _ in 0..times {
        if !core.send(&session, Event::Task, entry.clone()) {
            core.state.tasks.end(id, TaskEnd::CallerGone);
            return Err(Unavailable::NoChannel(request.llm.clone()));
        }
    }
    Ok(handle)
}

/// An inference under way, seen by its caller. Dropping it before its end is the caller going away.
#[derive(Debug)]
pub struct Call {
    hub: Arc<Hub>,
    handle: TaskHandle,
    streaming: bool,
}

impl Call {
    /// The task's id.
    pub fn task_id(&self) -> &str {
        &self.handle.id
    }

    /// Whether the request asked for a stream.
    pub fn is_streaming(&self) -> bool {
        self.streaming
    }

    /// The next chunk as an SSE frame; `None` once there are no more.
    pub(crate) async fn next_frame(&mut self) -> Option<Bytes> {
        self.handle.chunks.recv().await
    }

    /// How it ended; to be asked once the chunks have run out.
    pub(crate) fn take_end(&self) -> TaskEnd {
        self.handle.end.get().cloned().unwrap_or(TaskEnd::CallerGone)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.handle.end.get().is_none() {
            self.hub.act(|core| core.end_task(&self.handle.id, TaskEnd::CallerGone, true));
        }
    }
}

/// The rest of a streamed reply as SSE frames.
#[derive(Debug)]
pub(crate) struct CallStream {
    call: Call,
    first: Option<Bytes>,
    ended: bool,
}

impl CallStream {
    fn new(call: Call, first: Option<Bytes>) -> Self {
        Self { call, first, ended: false }
    }

    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(self.call.handle.chunks.poll_recv(context));
        if frame.is_some() {
            return Poll::Ready(frame);
        }
        self.ended = true;
        Poll::Ready(match self.call.take_end() {
            TaskEnd::Done => Some(Bytes::from_static(wire::DONE_FRAME)),
            end => Some(wire::data_frame(&whole(end).2)),
        })
    }
}

impl Body for CallStream {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.poll_bytes(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
