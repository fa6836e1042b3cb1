//! The bridge: gRPC on a unix socket for the local programs that own providers.
//!
//! [`listener`] owns the socket and the server, [`service`] has the rpcs, [`session`] handles one stream each, and [`convert`] converts to
//! and from the wire types. Sessions report to the agent with [`Event`]s; the agent answers through each session's [`SessionHandle`].
//! What keeps a client from using up memory is in `connections`, `large`, [`codec`] and `outbound`, in the order in which its bytes
//! pass through them.

pub mod codec;
mod connections;
pub mod convert;
mod large;
pub mod listener;
mod outbound;
pub mod service;
pub mod session;

use std::time::Duration;

use tokio::sync::oneshot;

use crate::domain::{
    Failure, Outcome, Pause, ProviderName, Pushed, SessionHello, SessionKey, TaskKey, Usage,
};
use crate::pb::{UsageBy, UsageRow};

pub use session::{CloseReason, Offer, SessionHandle};

/// The prefix of client ids of the agent's own provider host, which any other session outranks.
pub const BUILTIN_CLIENT: &str = "mcprelay/";

/// What everybody on the socket is told when the agent stops.
pub const STOPPING: &str = "the agent is stopping";

/// The usage; `None` where no ledger is kept.
pub type UsageReply = Option<Vec<UsageRow>>;

/// Something that a local program did.
#[derive(Debug)]
pub enum Event {
    /// It said Hello; the agent answers with [`SessionHandle::welcome`] before anything else.
    Opened(SessionKey, SessionHello, SessionHandle),
    /// It pushed its whole set of providers.
    Snapshot(SessionKey, u32, Vec<Pushed>),
    /// It ended a task.
    Finished(SessionKey, TaskKey, Outcome, Usage),
    /// It did not take a task that it was offered, for this reason; nothing of it was put out.
    Refused(SessionKey, TaskKey, Failure),
    /// A task's output cannot be continued; the program still has to end the task.
    Broken(SessionKey, TaskKey, Failure),
    /// It said goodbye and is finishing its running tasks, within this time if it says so.
    Draining(SessionKey, Option<Duration>),
    /// Its stream ended. Always the last event of a session.
    Closed(SessionKey),
    /// Somebody pauses or resumes; the answer is the names that changed, or `None` if nobody has pushed such a name.
    SetPaused(Option<ProviderName>, Option<Pause>, oneshot::Sender<Option<Vec<String>>>),
    /// Somebody wants the usage of so many days, today included, or of all.
    UsageWanted(UsageBy, u32, oneshot::Sender<UsageReply>),
    /// Somebody watches the status and wants it now.
    StatusWanted,
}
