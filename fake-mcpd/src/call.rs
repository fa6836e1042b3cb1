//! Callers inside the test's own process: the same tasks as over HTTP, without the HTTP.

use bytes::Bytes;
use serde_json::Value;

use crate::callers::{Call, InferRequest, whole};
use crate::tasks::TaskEnd;
use crate::wire;

impl InferRequest {
    /// An inference on an LLM with an OpenAI body.
    pub fn new(llm: impl Into<String>, body: &Value) -> Self {
        Self { llm: llm.into(), body: wire::json(body), ..Self::default() }
    }

    /// The same, asking for a stream.
    pub fn streaming(llm: impl Into<String>, body: &Value) -> Self {
        let mut body = body.clone();
        body["stream"] = true.into();
        Self::new(llm, &body)
    }
}

/// What a caller of a plain inference gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferReply {
    /// The HTTP status.
    pub status: u16,
    /// The `Retry-After` header.
    pub retry_after: Option<String>,
    /// The JSON body, byte for byte.
    pub body: Bytes,
}

impl InferReply {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl From<TaskEnd> for InferReply {
    fn from(end: TaskEnd) -> Self {
        let (status, retry_after, body) = whole(end);
        Self { status, retry_after, body }
    }
}

/// A stream that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// The task's id.
    pub task_id: String,
    /// Every chunk's JSON text, in the order of arrival.
    pub chunks: Vec<Bytes>,
    /// How it ended.
    pub end: TaskEnd,
}

impl Collected {
    /// The text of all deltas, of the first choice.
    pub fn text(&self) -> String {
        let content = |chunk: &Bytes| -> Option<String> {
            let chunk: Value = serde_json::from_slice(chunk).ok()?;
            Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())
        };
        self.chunks.iter().filter_map(content).collect()
    }

    /// Whether it ended with `[DONE]`.
    pub fn is_done(&self) -> bool {
        self.end == TaskEnd::Done
    }
}

impl Call {
    /// The next chunk's JSON text as it arrives; `None` once the task ended.
    pub async fn chunk(&mut self) -> Option<Bytes> {
        Some(wire::frame_data(&self.next_frame().await?))
    }

    /// Waits for the end and gives everything.
    pub async fn collect(mut self) -> Collected {
        let mut chunks = Vec::new();
        while let Some(chunk) = self.chunk().await {
            chunks.push(chunk);
        }
        Collected { task_id: self.task_id().to_owned(), chunks, end: self.take_end() }
    }
}
