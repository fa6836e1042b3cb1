//! What a task's output waits in, which is not made before there is output.

use std::{sync::Arc, time::SystemTime};

use super::{GATHER_LIMIT, OUTBOX_LIMIT};
use crate::{
    domain::Task,
    openai::{Facts, Gather, Room, Stamp, StreamBuffer},
};

/// Whose output it is.
pub(super) struct Origin {
    task: Arc<Task>,
    /// When the task came.
    since: SystemTime,
    room: Room,
}

impl Origin {
    /// A task that has just come, whose output takes of `room`.
    pub(super) fn new(task: Arc<Task>, room: Room) -> Self {
        Self { task, since: SystemTime::now(), room }
    }

    /// What the chunks and bodies that the agent builds itself are marked with.
    pub(super) fn stamp(&self) -> Stamp {
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (id, model) = (format!("chatcmpl-{}", self.task.id), self.task.llm.clone());
        Stamp { id, model, created: since.as_secs() }
    }
}

/// The output that waits.
pub(super) enum Pending {
    /// Nothing came yet, and where the answer comes whole nothing will.
    Nothing,
    Stream(Box<StreamBuffer>),
    Plain(Box<Gather>),
    /// The gathered answer is on its way; this is what it showed.
    Gathered(Facts),
}

impl Pending {
    /// The same, made for the first piece if there was none yet.
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

    /// What the output has said of itself.
    pub(super) fn facts(&self) -> Option<&Facts> {
        match self {
            Self::Nothing => None,
            Self::Stream(buffer) => Some(buffer.facts()),
            Self::Plain(gather) => Some(gather.facts()),
            Self::Gathered(facts) => Some(facts),
        }
    }

    /// Pieces so far.
    pub(super) fn chunks(&self) -> u32 {
        self.facts().map_or(0, |facts| facts.chunks)
    }
}
