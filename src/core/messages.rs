//! What goes into the core and what comes out of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{LinkEffect, LinkInput, link};
use crate::domain::{
    Activity, CancelReason, End, Facts, Failure, FailureCode, Outcome, Pause, ProviderName, Pushed,
    SessionHello, SessionKey, Task, TaskId, TaskKey, Verdicts,
};

/// The owner's settings that the decisions depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A whole task.
    pub task_timeout: Duration,
    /// From the offer to the first token of a stream.
    pub first_token_timeout: Duration,
    /// Between two tokens of a stream.
    pub idle_token_timeout: Duration,
    /// In the queue.
    pub queue_timeout: Duration,
    /// Inferences at once, for a provider that states no number.
    pub max_in_flight: u32,
    /// Tasks waiting, per provider.
    pub max_queued: u32,
    /// Of them, tasks of one caller whom mcpd names.
    pub max_queued_per_caller: u32,
    /// For running tasks, from the beginning of the drain.
    pub drain_timeout: Duration,
    /// The link's.
    pub link: link::Settings,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// mcpd handed over a task.
    Task(Task),
    /// mcpd handed over a task that makes no sense: it is answered with the failure.
    BadTask(Task, Failure),
    /// mcpd says that a task's caller went away.
    CallerLeft(TaskId),
    /// A session said Hello.
    SessionOpened(SessionKey, SessionHello),
    /// A session pushed its whole set; entries that make no sense come with the failure that says so.
    Snapshot(SessionKey, u32, Vec<Pushed>),
    /// A session ended a task.
    Finished(SessionKey, TaskKey, Outcome),
    /// A session did not take a task that it was offered, for this reason; nothing of it was put out.
    Refused(SessionKey, TaskKey, Failure),
    /// A task's output cannot be continued; the local side still has to end it.
    Broken(SessionKey, TaskKey, Failure),
    /// A session says goodbye; it finishes what runs, within this time if it says so.
    SessionDraining(SessionKey, Option<Duration>),
    /// A session's stream ended.
    SessionClosed(SessionKey),
    /// mcpd accepted a task's end, or delivery was given up for good.
    Settled(TaskKey),
    /// mcpd says, in answer to a part, that nobody waits for the task.
    CallerGone(TaskKey),
    /// mcpd did not accept a part, so the task has to end with this failure.
    DeliveryFailed(TaskKey, Failure),
    /// The owner pauses one provider, or all, or resumes what was paused.
    SetPaused(Option<ProviderName>, Option<Pause>),
    /// What is so on the machine now, once a second: see [`Core::heeds_facts`](super::Core::heeds_facts).
    Facts(Facts),
    /// Tasks of a former life, which are never run.
    Restored(Vec<TaskId>),
    /// Stop intake, let running tasks finish.
    Drain,
    /// Stop at once: every task ends now.
    Abort,
    /// Something about the link to mcpd.
    Link(LinkInput),
}

/// Something to do.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// A task came under an id that is under way or ended a short time ago: it does not run, and nothing is posted for it.
    Repeated(TaskId),
    /// Set up a task: everything later about it refers to this key.
    Begin(TaskKey, Arc<Task>),
    /// Offer a task to a session, with the time it has left.
    Offer(TaskKey, SessionKey, Duration),
    /// Take back what a session knew of a task, because the session was lost or did not take it; it will be offered again.
    Requeued(TaskKey, FailureCode),
    /// Ask a session to stop a task.
    Cancel(TaskKey, SessionKey, CancelReason),
    /// The task's one end, to be delivered until the given moment.
    End(TaskKey, End, Instant),
    /// The task is over on both sides.
    Forget(TaskKey),
    /// Tell a session what became of its snapshot.
    Verdicts(SessionKey, u32, Verdicts),
    /// End a session's stream, because another with its client id came.
    Replaced(SessionKey),
    /// Something for the link to mcpd.
    Link(LinkEffect),
    /// The last task is over and the link is closed: nothing is left to do.
    Drained,
}

/// Reads a task's [`Activity`].
pub type ActivityOf<'a> = &'a dyn Fn(TaskKey) -> Activity;
