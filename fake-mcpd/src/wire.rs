//! Everything that has a name on the wire: paths, headers, events and JSON shapes of the provider contract.
//!
//! A name that turns out to be different in a real mcpd is changed only here.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::Method;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The prefix of every call about LLMs, on the providers' and on the callers' side.
const LLMS: &str = "/api/v1/llms";
/// The prefix of every call on the providers' side.
pub(crate) const PROVIDER_PREFIX: &str = "/api/v1/llms/_provider-";
/// Names the session on the control channel's request.
pub(crate) const SESSION_HEADER: &str = "x-mcpctl-provider-session";
/// Numbers a result part: `<percent-encoded taskId>/<n>`.
pub(crate) const KEY_HEADER: &str = "idempotency-key";
/// A caller's deadline in milliseconds from now; becomes the task's `deadlineMs`.
pub(crate) const DEADLINE_HEADER: &str = "x-mcpctl-deadline-ms";
/// A caller's display name; becomes the task's `caller`.
pub(crate) const CALLER_HEADER: &str = "x-mcpctl-caller";
/// W3C trace context of a caller.
pub(crate) const TRACEPARENT_HEADER: &str = "traceparent";
/// W3C vendor state of a caller, forwarded unread.
pub(crate) const TRACESTATE_HEADER: &str = "tracestate";
/// Tells a caller which task served it, so that it can be found in the journal.
pub(crate) const REQUEST_ID_HEADER: &str = "x-request-id";
/// The feature that tells agents a repeated result part is dropped.
pub(crate) const IDEMPOTENT_RESULTS: &str = "idempotent-results";
/// The feature that tells agents that a stream may come as one upload.
pub(crate) const RESULT_STREAM: &str = "result-stream";
/// The last frame of a stream that ended well.
pub(crate) const DONE_FRAME: &[u8] = b"data: [DONE]\n\n";
/// A keep-alive as an event.
pub(crate) const PING_EVENT: &[u8] = b"event: ping\ndata: {}\n\n";
/// A keep-alive as a comment, which SSE parsers do not show to applications.
pub(crate) const PING_COMMENT: &[u8] = b": ping\n\n";

/// What kind of call a request is; faults are aimed and the journal is sorted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallKind {
    /// `POST /api/v1/llms/_provider-register`
    Register,
    /// `GET /api/v1/llms/_provider-stream`
    Stream,
    /// `POST /api/v1/llms/_provider-heartbeat`
    Heartbeat,
    /// `POST /api/v1/llms/_provider-task/{taskId}/result`
    Result,
    /// `POST /api/v1/llms/_provider-task/{taskId}/result-stream`
    ResultStream,
    /// `GET /api/v1/llms`
    List,
    /// `POST /api/v1/llms/{name}/infer`
    Infer,
    /// `GET /v1/models`
    Models,
    /// `POST /v1/chat/completions`
    Chat,
}

/// A request's target, read once; names and ids are percent-decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Register,
    Stream,
    Heartbeat,
    Result(String),
    ResultStream(String),
    List,
    Infer(String),
    Models(Option<String>),
    Chat,
    /// `/_fake/...`, with what follows the prefix.
    Fake(String),
    /// No such path, or not with this method.
    Unknown,
}

impl Route {
    /// Reads a method and a raw path.
    pub(crate) fn parse(method: &Method, path: &str) -> Self {
        if let Some(rest) = path.strip_prefix("/_fake/") {
            return Self::Fake(rest.to_owned());
        }
        let post = method == Method::POST;
        let get = method == Method::GET;
        match path.strip_prefix(LLMS) {
            Some("") if get => Self::List,
            Some("/_provider-register") if post => Self::Register,
            Some("/_provider-heartbeat") if post => Self::Heartbeat,
            Some("/_provider-stream") if get => Self::Stream,
            Some(rest) if post => Self::parse_named(rest).unwrap_or(Self::Unknown),
            _ => Self::parse_openai(get, post, path),
        }
    }

    fn parse_named(rest: &str) -> Option<Self> {
        if let Some(rest) = rest.strip_prefix("/_provider-task/") {
            if let Some(task) = rest.strip_suffix("/result-stream") {
                return Some(Self::ResultStream(decode(one_segment(task)?)));
            }
            return Some(Self::Result(decode(one_segment(rest.strip_suffix("/result")?)?)));
        }
        let name = rest.strip_prefix('/')?.strip_suffix("/infer")?;
        Some(Self::Infer(decode(one_segment(name)?)))
    }

    fn parse_openai(get: bool, post: bool, path: &str) -> Self {
        match path.strip_prefix("/v1/") {
            Some("models") if get => Self::Models(None),
            Some("chat/completions") if post => Self::Chat,
            Some(rest) if get => match rest.strip_prefix("models/") {
                Some(name) => Self::Models(Some(decode(name))),
                None => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }

    /// The kind of call, if the target belongs to the contract.
    pub(crate) fn call(&self) -> Option<CallKind> {
        Some(match self {
            Self::Register => CallKind::Register,
            Self::Stream => CallKind::Stream,
            Self::Heartbeat => CallKind::Heartbeat,
            Self::Result(_) => CallKind::Result,
            Self::ResultStream(_) => CallKind::ResultStream,
            Self::List => CallKind::List,
            Self::Infer(_) => CallKind::Infer,
            Self::Models(_) => CallKind::Models,
            Self::Chat => CallKind::Chat,
            Self::Fake(_) | Self::Unknown => return None,
        })
    }
}

fn one_segment(text: &str) -> Option<&str> {
    (!text.is_empty() && !text.contains('/')).then_some(text)
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// One entry of a register call's `providers`. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderSpec {
    /// The name of the virtual LLM; unique in the list.
    pub name: String,
    /// What serves it, such as `openai` or `ollama`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The model behind it.
    #[serde(default)]
    pub model: String,
    /// The tier it is offered in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// A text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The body of a register call.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RegisterBody {
    #[serde(default)]
    pub(crate) provider_session_id: Option<String>,
    pub(crate) providers: Vec<ProviderSpec>,
}

/// The one field that heartbeats (and, for the journal, registers) are read for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionBody {
    #[serde(default)]
    pub(crate) provider_session_id: Option<String>,
}

/// One LLM as `GET /api/v1/llms` and a register's reply list it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LlmView {
    /// The row's id; stays the same as long as the name lives.
    pub id: String,
    /// What the provider said of itself.
    #[serde(flatten)]
    pub spec: ProviderSpec,
    /// Always `virtual`.
    #[serde(rename = "kind")]
    pub llm_kind: &'static str,
    /// `active` or `inactive`.
    pub status: &'static str,
    /// The session that owns the row.
    pub provider_session_id: String,
    /// When that session was last heard of, RFC 3339.
    pub last_heartbeat_at: String,
}

/// A register call's reply; the id is left out by a fault only.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RegisterReply {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) provider_session_id: Option<String>,
    pub(crate) llms: Vec<LlmView>,
    pub(crate) features: Vec<&'static str>,
}

/// The data of a `task` event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaskData<'a> {
    pub(crate) kind: &'static str,
    pub(crate) task_id: &'a str,
    pub(crate) llm_name: &'a str,
    pub(crate) streaming: bool,
    pub(crate) request: &'a RawValue,
    pub(crate) traceparent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tracestate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) caller: Option<&'a str>,
}

/// The number of an upload's line; the rest of it is a part.
#[derive(Debug, Deserialize)]
pub(crate) struct LineNumber {
    pub(crate) n: u64,
}

/// What an upload is answered, and the data of a `received` event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Received<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task_id: Option<&'a str>,
    /// The number of the first part that has not come.
    pub(crate) next: u64,
}

/// What callers' bodies are read for; the rest goes to the agent unread.
#[derive(Debug)]
pub(crate) struct CallerPeek<'a> {
    pub(crate) stream: Option<bool>,
    pub(crate) model: Option<Cow<'a, str>>,
}

impl<'a> CallerPeek<'a> {
    /// Reads a body, which has to be an object. Of a name that comes twice the last counts, as in JavaScript. The error says
    /// what is wrong with it.
    pub(crate) fn parse(body: &'a [u8]) -> Result<(&'a RawValue, Self), String> {
        let raw: &RawValue = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        // serde would take a list for an object too.
        if !raw.get().starts_with('{') {
            return Err("it is another kind of value".to_owned());
        }
        let members = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
        Ok((raw, Self { stream: member(&members, "stream")?, model: member(&members, "model")? }))
    }
}

/// The members of an object, unparsed.
type Members<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

fn member<'a, T: Deserialize<'a>>(members: &Members<'a>, name: &str) -> Result<Option<T>, String> {
    let value = members.get(name).map_or("null", |value| value.get());
    serde_json::from_str(value).map_err(|error| format!("{name}: {error}"))
}

/// The SSE frame of one JSON text. Line ends, which JSON has between its tokens only, become spaces.
pub(crate) fn data_frame(json: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(json.len() + FRAME_START.len() + FRAME_END.len());
    frame.put_slice(FRAME_START);
    frame.extend(json.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    frame.put_slice(FRAME_END);
    frame.freeze()
}

/// The JSON text of a frame that [`data_frame`] made.
pub(crate) fn frame_data(frame: &Bytes) -> Bytes {
    frame.slice(FRAME_START.len()..frame.len() - FRAME_END.len())
}

const FRAME_START: &[u8] = b"data: ";
const FRAME_END: &[u8] = b"\n\n";

/// A frame of the control channel.
pub(crate) fn event_frame(event: &str, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(event.len() + data.len() + 16);
    frame.put_slice(b"event: ");
    frame.put_slice(event.as_bytes());
    frame.put_slice(b"\n");
    frame.unsplit(BytesMut::from(data_frame(data)));
    frame.freeze()
}

/// An error in the OpenAI shape, which every caller gets.
pub(crate) fn openai_error(message: &str, kind: &str, code: &str) -> Bytes {
    json(&serde_json::json!({"error": {"message": message, "type": kind, "code": code}}))
}

/// Serialises a value of ours, whose serialisation cannot fail.
pub(crate) fn json<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("our own types have string keys and no failing serialisers"))
}
