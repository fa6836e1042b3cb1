//! OpenAI's chat format: what the agent reads of it, and what it builds. Bytes in, bytes out; no I/O and no clock.
//!
//! A provider's own bytes are authoritative: they pass through unchanged. Where something must change (chunks that merge, a stream that
//! becomes one body), strings are joined in their escaped form, and numbers are copied as they were written. Nothing here builds a tree
//! of JSON values, except for an answer that is gathered from chunks.
//!
//! ```text
//! request   what a task asks for, for traces and limits
//! stream    the pending output of a streaming task: neighbouring chunks merge, everything else passes unchanged
//!   read      one chunk: what it says, and whether it may merge
//!   shape     where in a chunk the parts are that merging joins
//!   part      a chunk that waits, with what was merged into it
//! gather    the output of a plain task that is answered by chunks, as one body
//!   value     a JSON value that grows from chunk to chunk
//! convert   a finished body as chunks
//! plain     chunks and bodies for answers that come in plain fields
//! facts     what an answer says about itself: usage, model, why it ended
//! failure   errors in OpenAI's shape, read and written
//! room      the memory that all tasks' waiting output together may take
//!
//! scan      a JSON reader that says where things are
//!   skip      where a value ends
//!   text      JSON strings, escaped and plain
//! usual     the fast path for objects that serde would otherwise read
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
    /// It is the provider's own error.
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
    /// It is not UTF-8.
    #[error("is not valid UTF-8")]
    NotUtf8,
    /// A JSON syntax error.
    #[error("is not valid JSON")]
    NotJson,
    /// Valid JSON, but of another type.
    #[error("is not a JSON object")]
    NotObject,
    /// Nested more deeply than 128 levels.
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
