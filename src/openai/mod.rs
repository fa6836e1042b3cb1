//! OpenAI's chat format: what the agent reads of it, and what it builds. Bytes in, bytes out; no I/O and no clock.
//!
//! A provider's own bytes are the authority: they pass through unchanged, and where something must be changed (chunks that
//! merge, a stream that becomes one body) strings are joined in their escaped form and numbers are copied as they were
//! written. Nothing here builds a tree of JSON values.
//!
//! ```text
//! request   what a task asks for, for traces and limits
//! stream    the pending output of a streaming task: adjacent chunks merge, everything else passes
//! gather    a plain task that is answered by chunks: one body
//! convert   one finished answer as a body or as chunks
//! room      the room that all tasks' output together may take
//! failure   errors in OpenAI's shape, both ways
//! text      JSON strings, escaped and plain
//! scan      where things are in a JSON text
//! usual     objects that are read as serde reads them, in less time
//! ```

pub mod convert;
pub mod facts;
pub mod failure;
pub mod gather;
pub mod plain;
pub mod request;
pub mod room;
pub mod stream;
pub mod text;

pub(crate) mod scan;
pub(crate) mod usual;

mod part;
mod read;
mod shape;
mod skip;
mod value;

pub use facts::Facts;
pub use gather::Gather;

pub use plain::Stamp;
pub use room::{Room, Share};
pub use stream::{Pushed, StreamBuffer};

use crate::domain::{Failure, FailureCode};

/// Why a piece of a provider's output was not taken. It ends the task; what it says never quotes the piece.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// It is not one JSON object.
    #[error("the provider sent a chunk that {0}")]
    Malformed(#[from] Malformed),
    /// It is the provider's word that it failed.
    #[error("{0}")]
    Provider(Box<Failure>),
    /// Too much waits to be sent.
    #[error("slow consumer: more than {limit} bytes of this task's output wait for mcpd")]
    Full {
        /// The most that may wait, in bytes.
        limit: usize,
    },
    /// Too much of all tasks together waits to be sent.
    #[error("slow consumer: more than {limit} bytes of the output of all tasks wait for mcpd")]
    NoRoom {
        /// The most that may wait, in bytes.
        limit: usize,
    },
    /// The gathered answer is larger than may be held.
    #[error("the answer is larger than {limit} bytes; ask for a stream instead")]
    TooLarge {
        /// The most that is gathered, in bytes.
        limit: usize,
    },
}

/// In what way a text is not one JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A byte that is no UTF-8.
    #[error("is not valid UTF-8")]
    NotUtf8,
    /// A JSON syntax error.
    #[error("is not valid JSON")]
    NotJson,
    /// Valid JSON, but of another type.
    #[error("is not a JSON object")]
    NotObject,
    /// Deeper than anybody means it.
    #[error("is nested too deep")]
    TooDeep,
    /// Longer than 4 GiB.
    #[error("is too long")]
    TooLong,
}

impl From<ChunkError> for Failure {
    fn from(error: ChunkError) -> Self {
        let code = match error {
            ChunkError::Provider(failure) => return *failure,
            ChunkError::Malformed(_) => FailureCode::BadOutput,
            ChunkError::Full { .. } | ChunkError::NoRoom { .. } => FailureCode::SlowConsumer,
            ChunkError::TooLarge { .. } => FailureCode::TooLarge,
        };
        Failure::new(code, error.to_string())
    }
}
