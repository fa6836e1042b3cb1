//! Everything that mcpd and the agent have to agree on by name: paths, headers, events, features and JSON.
//!
//! No other module of the agent spells out one of these names, so a name that turns out to be different is changed here alone.
//! Bodies that are written as bytes ([`CHUNK_HEAD`], [`status_body`], [`RESTARTED`]) are tested against [`ResultPart`].
//! Fields that mcpd adds are ignored, and a field that it leaves out counts as absent, never as an error, unless the type says otherwise.

mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, value::RawValue};

pub use self::task::{ReadFacts, TaskEvent, readable_task_id};
use crate::domain::{Provider, TaskId};

/// `POST`: registers the whole set of this session's providers.
pub const REGISTER_PATH: &str = "/api/v1/llms/_provider-register";
/// `GET`: the control channel, a `text/event-stream` that stays open.
pub const STREAM_PATH: &str = "/api/v1/llms/_provider-stream";
/// `POST`: keeps the session's rows alive.
pub const HEARTBEAT_PATH: &str = "/api/v1/llms/_provider-heartbeat";
/// `GET`: the list of all LLMs, for callers.
pub const LLMS_PATH: &str = "/api/v1/llms";

/// Carries the session's id when the control channel is opened.
pub const SESSION_HEADER: &str = "x-mcpctl-provider-session";
/// Carries [`idempotency_key`] on every result `POST`.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";
/// The media type of an upload: a JSON object per line.
pub const NDJSON: &str = "application/x-ndjson";
/// The media type of the control channel and of a streamed inference.
pub const EVENT_STREAM: &str = "text/event-stream";

/// First event of the control channel; its data is a [`HelloEvent`].
pub const HELLO_EVENT: &str = "hello";
/// Work; its data is a [`TaskEvent`].
pub const TASK_EVENT: &str = "task";
/// A caller went away; its data is a [`CancelEvent`].
pub const CANCEL_EVENT: &str = "cancel";
/// What mcpd has of an upload; its data is a [`ReceivedEvent`].
pub const RECEIVED_EVENT: &str = "received";
/// Keep-alive.
pub const PING_EVENT: &str = "ping";

/// The one [`TaskEvent::kind`] there is: an inference.
pub const INFER_KIND: &str = "infer";
/// The `kind` of the rows that providers publish.
pub const VIRTUAL_KIND: &str = "virtual";
/// The `status` of a row that takes work.
pub const ACTIVE_STATUS: &str = "active";
/// A [`RegisterReply::features`] word: mcpd drops a result part whose key it has already applied.
pub const IDEMPOTENT_RESULTS: &str = "idempotent-results";
/// A [`RegisterReply::features`] word: a streamed answer may come as one upload.
pub const RESULT_STREAM: &str = "result-stream";
/// The data of the last chunk of a streamed answer.
pub const DONE: &str = "[DONE]";

/// Where one task's result parts go; `None` for an id that no URL can carry.
pub fn result_path(task: &TaskId) -> Option<String> {
    const AROUND: [&str; 2] = ["/api/v1/llms/_provider-task/", "/result"];
    is_answerable(task).then(|| {
        let mut path =
            String::with_capacity(AROUND.map(str::len).iter().sum::<usize>() + task.as_str().len());
        path.push_str(AROUND[0]);
        push_encoded(&mut path, task.as_str());
        path.push_str(AROUND[1]);
        path
    })
}

/// Where one task's upload goes; `None` for an id that no URL can carry.
pub fn result_stream_path(task: &TaskId) -> Option<String> {
    result_path(task).map(|path| path + "-stream")
}

/// A line of an upload: a result part with its number.
pub fn push_line(out: &mut Vec<u8>, number: u32, part: &[u8]) {
    use std::io::Write as _;
    write!(out, r#"{{"n":{number},"#).expect("a Vec takes everything");
    out.extend_from_slice(&part[1..]);
    out.push(b'\n');
}

/// Whether a URL can carry the id, so that an answer can reach the caller.
pub fn is_answerable(task: &TaskId) -> bool {
    is_segment(task.as_str())
}

/// Where callers infer on one LLM; `None` for a name that no URL can carry.
pub fn infer_path(llm: &str) -> Option<String> {
    is_segment(llm).then(|| format!("{LLMS_PATH}/{}/infer", percent_encoded(llm)))
}

/// The key of a task's `part`, counted from 0: a part that is sent again has the same key.
pub fn idempotency_key(task: &TaskId, part: u32) -> String {
    use std::fmt::Write as _;
    let mut key = String::with_capacity(task.as_str().len() + 4);
    push_encoded(&mut key, task.as_str());
    write!(key, "/{part}").expect("a String takes everything");
    key
}

/// The key under which a restarted agent ends a task that its predecessor left behind.
pub fn restart_key(task: &TaskId) -> String {
    format!("{}/restart", percent_encoded(task.as_str()))
}

/// The full URL of `path` at an mcpd that may itself live below a path.
pub fn endpoint(mcpd_url: &str, path: &str) -> String {
    format!("{}{path}", mcpd_url.trim_end_matches('/'))
}

/// Whether `text` can be one path segment. "." and ".." cannot: every URL parser resolves them away, even percent-encoded.
fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
}

/// `text` with everything but RFC 3986's unreserved characters percent-encoded, so fit for a path segment and a header.
pub fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_encoded(&mut out, text);
    out
}

fn push_encoded(out: &mut String, text: &str) {
    use std::fmt::Write as _;
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| !is_unreserved(byte)) {
        let end = rest.ceil_char_boundary(at + 1);
        out.push_str(&rest[..at]);
        for byte in rest[at..end].bytes() {
            write!(out, "%{byte:02X}").expect("a String takes everything");
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The body of a register call: the whole set of the session.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisterRequest<'a> {
    /// The sticky id of an earlier registration; null the first time.
    pub provider_session_id: Option<&'a str>,
    /// Every opted-in provider; empty deregisters.
    pub providers: Vec<PublishedProvider<'a>>,
}

/// One provider of a [`RegisterRequest`].
#[derive(Clone, Debug, Serialize)]
pub struct PublishedProvider<'a> {
    /// The name of the virtual LLM.
    pub name: &'a str,
    /// The kind of server behind it.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The model it serves.
    pub model: &'a str,
    /// Its class; left out where empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub tier: &'a str,
    /// For people; left out where empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub description: &'a str,
}

impl<'a> From<&'a Provider> for PublishedProvider<'a> {
    fn from(provider: &'a Provider) -> Self {
        Self {
            name: provider.name.as_str(),
            kind: &provider.kind,
            model: &provider.model,
            tier: &provider.tier,
            description: &provider.description,
        }
    }
}

/// The reply to a register call. A reply without an id means that there is no session: the caller has to check.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegisterReply {
    /// The session's sticky id.
    #[serde(deserialize_with = "text_or_none")]
    pub provider_session_id: Option<String>,
    /// The session's rows.
    #[serde(deserialize_with = "readable_items")]
    pub llms: Vec<LlmRow>,
    /// What this mcpd can do beyond the contract's minimum: [`IDEMPOTENT_RESULTS`], [`RESULT_STREAM`].
    #[serde(deserialize_with = "readable_items")]
    pub features: Vec<String>,
}

/// The body of a 409 to a register call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conflicts {
    /// The names that belong to somebody else; empty if mcpd does not say.
    #[serde(deserialize_with = "readable_items")]
    pub conflicts: Vec<String>,
}

/// The body of a heartbeat.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatRequest<'a> {
    /// The session to keep alive.
    pub provider_session_id: &'a str,
}

/// One row of mcpd's list of LLMs. Any field may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LlmRow {
    /// mcpd's id of the row; it survives a restart of the provider.
    #[serde(deserialize_with = "text_or_none")]
    pub id: Option<String>,
    /// What callers ask for.
    #[serde(deserialize_with = "text_or_none")]
    pub name: Option<String>,
    /// [`VIRTUAL_KIND`] for what providers publish.
    #[serde(deserialize_with = "text_or_none")]
    pub kind: Option<String>,
    /// The kind of server behind it.
    #[serde(rename = "type", deserialize_with = "text_or_none")]
    pub provider_type: Option<String>,
    /// The model it serves.
    #[serde(deserialize_with = "text_or_none")]
    pub model: Option<String>,
    /// Its class.
    #[serde(deserialize_with = "text_or_none")]
    pub tier: Option<String>,
    /// For people.
    #[serde(deserialize_with = "text_or_none")]
    pub description: Option<String>,
    /// [`ACTIVE_STATUS`] or "inactive".
    #[serde(deserialize_with = "text_or_none")]
    pub status: Option<String>,
    /// The session that publishes it.
    #[serde(deserialize_with = "text_or_none")]
    pub provider_session_id: Option<String>,
    /// When its session last gave a sign of life, RFC 3339.
    #[serde(deserialize_with = "text_or_none")]
    pub last_heartbeat_at: Option<String>,
}

/// The data of a [`CANCEL_EVENT`].
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelEvent {
    /// The task whose caller went away.
    pub task_id: String,
}

/// The data of a [`RECEIVED_EVENT`].
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceivedEvent {
    /// The task whose upload it is about.
    pub task_id: String,
    /// The number of the first part that has not come.
    pub next: u32,
}

/// What an upload is answered.
#[derive(Clone, Debug, Deserialize)]
pub struct UploadReply {
    /// The number of the first part that has not come.
    pub next: u32,
}

/// The data of a [`HELLO_EVENT`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HelloEvent {
    /// The session that the channel belongs to.
    #[serde(deserialize_with = "text_or_none")]
    pub provider_session_id: Option<String>,
}

/// The body of one result `POST`.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum ResultPart<'a> {
    /// The whole answer, or a failure with an HTTP meaning before any chunk.
    Status {
        /// The status the caller gets.
        status: u16,
        /// The body the caller gets: an OpenAI completion, or `{"error": ...}`.
        body: &'a RawValue,
        /// Headers the caller gets: `retry-after`.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<&'a str, String>,
    },
    /// A piece of a streamed answer.
    Chunk {
        /// The piece.
        chunk: ChunkPart<'a>,
    },
    /// A failure in the middle of a stream, or where no status fits.
    Error {
        /// One sentence.
        error: &'a str,
    },
}

impl ResultPart<'static> {
    /// The end of a streamed answer.
    pub const DONE: Self = Self::Chunk { chunk: ChunkPart { data: DONE, done: true } };
}

/// What comes before the escaped JSON text of a chunk in its `POST`: a chunk is escaped into its body in one pass.
pub const CHUNK_HEAD: &[u8] = br#"{"chunk":{"data":""#;
/// What comes after it.
pub const CHUNK_TAIL: &[u8] = br#""}}"#;

/// The body that ends a task which a killed agent left behind.
pub const RESTARTED: &[u8] = br#"{"error":"the agent was restarted while it ran this task; try again"}"#;

/// A [`ResultPart::Status`] around a body that is JSON already, written without a copy for serde.
pub fn status_body(status: u16, body: &[u8], retry_after_seconds: Option<u64>) -> Bytes {
    let head = format!(r#"{{"status":{status},"body":"#);
    let headers = retry_after_seconds.map(|seconds| format!(r#","headers":{{"retry-after":"{seconds}"}}"#));
    [head.as_bytes(), body, headers.unwrap_or_default().as_bytes(), b"}"].concat().into()
}

/// One piece of a streamed answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChunkPart<'a> {
    /// One OpenAI chunk as JSON text, or [`DONE`].
    pub data: &'a str,
    /// Whether the answer ends here; left out where not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
}

/// Reads a text. Anything else counts as absent: a field of an unexpected type must not cost the whole message.
fn text_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

/// Reads a number. Anything else counts as absent.
fn number_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(Value::deserialize(from)?.as_f64())
}

/// Reads the items of a list that have the right type. Anything but a list counts as an empty one.
fn readable_items<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    Ok(match Value::deserialize(from)? {
        Value::Array(items) => items.into_iter().filter_map(|item| T::deserialize(item).ok()).collect(),
        _ => Vec::new(),
    })
}
