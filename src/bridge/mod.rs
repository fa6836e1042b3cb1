//! The bridge: gRPC on a unix socket for the local programs that own providers.
//!
//! [`listener`] owns the socket and the server, [`session`] one stream each, [`convert`] the words on the wire. What happens goes to
//! the agent as [`Event`]s; the agent answers through each session's [`SessionHandle`]. What keeps a client from costing memory is
//! in `connections`, `large`, [`codec`] and `outbound`, in the order in which its bytes meet them.

pub mod codec;
mod connections;
pub mod convert;
mod large;
pub mod listener;
mod outbound;
pub mod service;
pub mod session;

use tokio::sync::oneshot;

use crate::domain::{Failure, Outcome, ProviderName, Pushed, SessionHello, SessionKey, TaskKey, Usage};

pub use session::{CloseReason, Offer, SessionHandle};

/// What a local client id begins with if it is the agent's own provider host, which any other session outranks.
pub const BUILTIN_CLIENT: &str = "mcprelay/";

/// What everybody on the socket is told when the agent stops.
pub const STOPPING: &str = "the agent is stopping";

/// Something that a local program did.
#[derive(Debug)]
pub enum Event {
    /// It said Hello; the agent answers with [`SessionHandle::welcome`] before anything else.
    Opened(SessionKey, SessionHello, SessionHandle),
    /// It pushed its whole set of providers.
    Snapshot(SessionKey, u32, Vec<Pushed>),
    /// It ended a task.
    Finished(SessionKey, TaskKey, Outcome, Usage),
    /// A task's output cannot go on; the program has still to end the task.
    Broken(SessionKey, TaskKey, Failure),
    /// It said goodbye and finishes what runs.
    Draining(SessionKey),
    /// Its stream ended. Always the last event of a session.
    Closed(SessionKey),
    /// Somebody pauses or resumes; the answer is what changed, or `None` if nobody has pushed such a name.
    SetPaused(Option<ProviderName>, bool, oneshot::Sender<Option<Vec<String>>>),
    /// Somebody watches the status and wants it now.
    StatusWanted,
}
