//! The buffer in which a task's output waits; it is made only once there is output.

use std::{sync::Arc, time::SystemTime};

use super::{GATHER_LIMIT, OUTBOX_LIMIT};
use crate::{
    domain::Task,
    openai::{ChunkEnvelope, Gather, MemoryBudget, ResponseMeta, StreamBuffer},
};

/// The task whose output it is.
pub(super) struct Origin {
    task: Arc<Task>,
    /// When the task came.
    since: SystemTime,
    room: MemoryBudget,
}

impl Origin {
    /// A task that has just come. Its output takes its memory from `room`.
    pub(super) fn new(task: Arc<Task>, room: MemoryBudget) -> Self {
        Self { task, since: SystemTime::now(), room }
    }

    /// What the chunks and bodies that the agent builds itself are marked with.
    pub(super) fn stamp(&self) -> ChunkEnvelope {
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (id, model) = (format!("chatcmpl-{}", self.task.id), self.task.llm.clone());
        ChunkEnvelope { id, model, created: since.as_secs() }
    }
}

/// The output that waits.
pub(super) enum Pending {
    /// No output has come yet; if the answer comes whole, none will.
    Nothing,
    Stream(Box<StreamBuffer>),
    Plain(Box<Gather>),
    /// The gathered answer is being sent; this is what it said about itself.
    Gathered(ResponseMeta),
}

impl Pending {
    /// The buffer, made for the first piece if there is none yet.
    pub(super) fn begun(&mut self, of: &Origin) -> &mut Self {
        if let Self::Nothing = self {
            *self = if of.task.streaming {
                Self::Stream(Box::new(StreamBuffer::within(&of.room, OUTBOX_LIMIT, of.stamp())))
            } else {
                Self::Plain(Box::new(Gather::within(&of.room, GATHER_LIMIT, of.stamp())))
            };
        }
        self
    }

    /// What the output has said about itself.
    pub(super) fn meta(&self) -> Option<&ResponseMeta> {
        match self {
            Self::Nothing => None,
            Self::Stream(buffer) => Some(buffer.meta()),
            Self::Plain(gather) => Some(gather.meta()),
            Self::Gathered(facts) => Some(facts),
        }
    }

    /// Pieces so far.
    pub(super) fn chunks(&self) -> u32 {
        self.meta().map_or(0, |facts| facts.chunks)
    }
}
