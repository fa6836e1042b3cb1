//! The vocabulary that all modules share: names, providers, tasks, failures. Values only; no I/O, no clock.

mod failure;
mod link;
mod names;
mod numbers;
mod pause;
mod private;
mod provider;
mod reason;
mod sharing;
mod task;

pub use failure::{Failure, FailureCode};
pub use link::{CallFailure, LinkState, LinkStatus, Trouble};
pub use names::{
    BadName, MAX_NAME_BYTES, MAX_TASK_ID_BYTES, Printable, ProviderName, SessionKey, TaskId, TaskKey,
    counted, nearest,
};
pub use numbers::{NumberMap, NumberSet};
pub use pause::{Pause, Pauses, UnixTime};
pub use private::{hide_private, without_private};
pub use provider::{Provider, ProviderState, Pushed, ServerAddress, SessionHello, Verdict, Verdicts};
pub use reason::Reason;
pub use sharing::{Fact, Facts, Rule, Window, minute_of_day};
pub use task::{
    Activity, CancelReason, CompletionResult, Delta, End, EndKind, MAX_TRACESTATE_BYTES, Outcome, Output,
    RequestFacts, Taken, Task, TaskSink, ToolCallDelta, Usage,
};
