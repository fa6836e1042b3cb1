//! Result parts as agents post them: which part a key names, and what the body says.

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::value::RawValue;

use crate::wire::{DONE_FRAME, LineNumber, data_frame};

/// A result call as it was posted.
#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) task: String,
    /// What its key names; `None` if it has no key of this task.
    pub(crate) part: Option<Part>,
    /// The key as it came.
    pub(crate) key: Option<String>,
    /// The error says what is wrong with the body.
    pub(crate) body: Result<ResultBody, String>,
    /// Whether it came as a line of an upload.
    pub(crate) is_line: bool,
}

impl Posted {
    /// Reads the key and the body that came for a task.
    pub(crate) fn read(task: &str, key: Option<&str>, body: &[u8]) -> Self {
        let part = key.and_then(|key| Part::parse(key, task));
        let (task, key, body) = (task.to_owned(), key.map(str::to_owned), ResultBody::parse(body));
        Self { task, part, key, body, is_line: false }
    }

    /// Reads a line of an upload for a task, with its number. The error says what is wrong with the line.
    pub(crate) fn line(task: &str, line: &[u8]) -> Result<(u64, Self), String> {
        let LineNumber { n } = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let encoded = percent_encode(task.as_bytes(), NON_ALPHANUMERIC);
        let (key, part) = (Some(format!("{encoded}/{n}")), Some(Part::Index(n)));
        let body = ResultBody::parse(line);
        Ok((n, Self { task: task.to_owned(), part, key, body, is_line: true }))
    }
}

/// Which part of a task's result an `Idempotency-Key` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The n-th part, from 0.
    Index(u64),
    /// The end that an agent posts for a task of its former life.
    Restart,
}

impl Part {
    /// Reads a key; `None` unless it belongs to this task.
    pub(crate) fn parse(key: &str, task: &str) -> Option<Self> {
        let (id, part) = key.rsplit_once('/')?;
        if !percent_decode_str(id).eq(task.bytes()) {
            return None;
        }
        if part == "restart" { Some(Self::Restart) } else { part.parse().ok().map(Self::Index) }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(n) => write!(formatter, "part {n}"),
            Self::Restart => formatter.write_str("the end after a restart"),
        }
    }
}

/// A result body, one of the contract's five.
#[derive(Debug)]
pub(crate) enum ResultBody {
    /// A piece of a stream, already framed for an SSE caller.
    Chunk(Bytes),
    /// `[DONE]`, and whether it says `"done": true`.
    Done { marked: bool },
    /// A whole reply with an HTTP meaning.
    Status { status: u16, retry_after: Option<String>, body: Bytes },
    /// A failure in words.
    Error(String),
}

impl ResultBody {
    /// Reads a body; unknown fields are ignored. The error says what is wrong with it.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let raw: RawResult<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if let Some(chunk) = raw.chunk {
            let done = chunk.done || chunk.data.0 == DONE_FRAME;
            return Ok(if done { Self::Done { marked: chunk.done } } else { Self::Chunk(chunk.data.0) });
        }
        if let Some(error) = raw.error {
            return Ok(Self::Error(error));
        }
        let status = raw.status.ok_or("none of status, chunk and error is there")?;
        if !(200..600).contains(&status) {
            return Err(format!("{status} is no HTTP status of a reply"));
        }
        let retry_after = raw.headers.and_then(|headers| headers.retry_after);
        let body = raw.body.map_or("null", RawValue::get);
        Ok(Self::Status { status, retry_after, body: Bytes::copy_from_slice(body.as_bytes()) })
    }

    /// Whether it is an explicit failure.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::Error(_) | Self::Status { status: 400.., .. })
    }

    /// Whether the task ends with it.
    pub(crate) fn is_end(&self) -> bool {
        !matches!(self, Self::Chunk(_))
    }
}

#[derive(Deserialize)]
struct RawResult<'a> {
    status: Option<u16>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    headers: Option<RawHeaders>,
    chunk: Option<RawChunk>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct RawHeaders {
    #[serde(default, rename = "retry-after", alias = "Retry-After")]
    retry_after: Option<String>,
}

#[derive(Deserialize)]
struct RawChunk {
    data: Framed,
    #[serde(default)]
    done: bool,
}

/// A JSON string read straight into the SSE frame its caller gets: one copy, on the path that every token takes.
struct Framed(Bytes);

impl<'de> Deserialize<'de> for Framed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Framed;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a chunk as JSON text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Framed, E> {
                Ok(Framed(data_frame(text.as_bytes())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
