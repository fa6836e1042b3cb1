//! The conversation with mcpd: what is said, and how.
//!
//! [`contract`] has every name, [`client`] the calls, [`events`] the control channel, [`task_event`] the reading of a task. [`outbox`]
//! holds one task's output until it is sent, [`results`] delivers it, [`post`] makes the POSTs, and [`upload`] the one upload that
//! takes their place where mcpd offers it. [`connect`] builds the HTTP clients,
//! `pool` decides which one a call takes, `reply` reads what comes back, and `explain` says what it means that nothing does.

pub mod client;
pub mod connect;
pub mod contract;
pub mod events;
pub(crate) mod explain;
mod health;
pub mod outbox;
mod pool;
pub mod post;
mod reply;
pub mod results;
pub mod task_event;
pub mod upload;

use crate::domain::{CallFailure, Failure, Task, TaskId};

/// Something that came from mcpd.
#[derive(Debug)]
pub enum Event {
    /// A register call ended, with the session's sticky id where mcpd took it.
    Registered(u64, Result<String, CallFailure>),
    /// The heartbeat of this number ended.
    Heartbeat(u64, Result<(), CallFailure>),
    /// The channel is open.
    ChannelOpened(u64),
    /// The channel's first byte came.
    ChannelProved(u64),
    /// The channel could not be opened, or ended.
    ChannelClosed(u64, CallFailure),
    /// A task.
    Task(Task),
    /// A task event that makes no sense, with the error that its caller gets.
    BadTask(Task, Failure),
    /// A task event that makes no sense and cannot be answered.
    LostTask,
    /// A caller went away.
    CallerLeft(TaskId),
}
