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
//!   errors    how an error is told from an answer
//!   layout    where in a chunk the parts are that merging joins
//!   template  a chunk that the next one is expected to resemble
//!   part      a chunk that waits, with what was merged into it
//! gather    the output of a plain task that is answered by chunks, as one body
//!   value     a JSON value that grows from chunk to chunk
//! convert   a finished body as chunks
//! calls     the indexes of tool calls in plain pieces
//! plain     chunks and bodies for answers that come in plain fields
//! meta      what an answer says about itself: usage, model, why it ended
//! failure   errors in OpenAI's shape, read and written
//! budget    the memory that all tasks' waiting output together may take
//! ```

pub mod budget;
pub mod convert;
pub mod failure;
pub mod gather;
pub mod meta;
pub mod plain;
pub mod request;
pub mod stream;

mod calls;
mod errors;
mod layout;
mod part;
mod read;
mod template;
mod value;

pub use budget::{MemoryBudget, Reservation};
pub use gather::Gather;
pub use meta::{ChunkMeta, ChunkReader, ResponseMeta};
pub use plain::ChunkEnvelope;
pub use read::Choices;
pub use stream::{Pushed, StreamBuffer};

use crate::{
    domain::{Failure, FailureCode},
    json::Malformed,
};

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
