//! What happened in one schedule, as everybody saw it: what the checker judges.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fake_mcpd::{TaskEnd, Violation};
use tokio::time::Instant;

/// Milliseconds since the beginning of the schedule.
pub type Ms = u64;

/// Everything worth knowing.
#[derive(Debug, Default)]
pub struct Story {
    pub calls: Vec<Call>,
    pub runs: Vec<Run>,
    /// When something was out of order that excuses a late or failed end, and what.
    pub troubles: Vec<(Ms, Ms, Trouble)>,
    /// The agent's lives, and the ids that each had taken in.
    pub lives: Vec<Life>,
    pub drain_at: Ms,
    /// When the agent was gone, and whether it says that every task had its end.
    pub stopped: Option<(Ms, bool)>,
    pub drain_timeout: Duration,
    pub idempotent: bool,
    pub violations: Vec<Violation>,
    pub slot_breaches: Vec<String>,
    pub log: Vec<String>,
}

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Bytes are lost, held back or refused.
    Network,
    /// From now on a connection is cut when it moves the right bytes. Whatever is posted is posted again.
    Armed,
    /// mcpd answers late, wrongly or not at all.
    Mcpd,
    /// mcpd forgot everything.
    Forgot,
    /// The agent was killed, or is not there.
    Agent,
    /// A local program is away, or the owner paused.
    Local,
}

/// One life of the agent.
#[derive(Debug, Default)]
pub struct Life {
    pub until: Option<Ms>,
    /// Ids in the order in which they were taken in.
    pub took: Vec<String>,
    /// Ids that had no end when the life ended.
    pub left: Vec<String>,
}

/// One call, from its caller's side.
#[derive(Debug, Default)]
pub struct Call {
    pub task: String,
    pub deadline: Option<Duration>,
    pub at: Ms,
    /// The status with which mcpd refused it at once.
    pub refused: Option<u16>,
    pub left_at: Option<Ms>,
    /// The text of all chunks, or of the whole answer.
    pub text: String,
    pub end: Option<(Ms, TaskEnd)>,
}

/// One inference, from its provider's side.
#[derive(Debug)]
pub struct Run {
    pub task: String,
    pub life: usize,
    pub at: Ms,
    /// Tokens that were handed to the connection.
    pub tokens: u32,
    /// The first thing that was said about its end, and when.
    pub finished: Option<(Ms, Finish)>,
    pub cancelled_at: Option<Ms>,
    /// When its connection was given up.
    pub lost_at: Option<Ms>,
    /// What its script makes it come to, if nothing goes wrong.
    pub meant: Finish,
}

/// How an inference ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With all its tokens.
    Ok,
    /// With an error, or something that is none of the protocol's ends.
    Bad,
    /// It was asked to stop.
    Cancelled,
    /// It never ends by itself.
    Never,
}

/// The story while it is written, and the clock it is written by.
#[derive(Clone, Debug)]
pub struct Scribe {
    story: Arc<Mutex<Story>>,
    began: Instant,
}

impl Scribe {
    pub fn new() -> Self {
        Self { story: Arc::default(), began: Instant::now() }
    }

    pub fn now(&self) -> Ms {
        u64::try_from(self.began.elapsed().as_millis()).expect("a schedule is short")
    }

    /// The moment of a time of the plan.
    pub fn moment(&self, at: Ms) -> Instant {
        self.began + Duration::from_millis(at)
    }

    pub fn story(&self) -> MutexGuard<'_, Story> {
        self.story.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line that has to be the same in every replay.
    pub fn log(&self, line: impl std::fmt::Display) {
        let line = format!("{:>7} {line}", self.now());
        self.story().log.push(line);
    }

    pub fn trouble(&self, from: Ms, until: Ms, what: Trouble) {
        self.story().troubles.push((from, until, what));
    }

    /// The story as it is, once everybody has stopped writing.
    pub fn take(&self) -> Story {
        std::mem::take(&mut *self.story())
    }
}
