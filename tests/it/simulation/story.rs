//! What happened in one schedule, as everybody saw it: what the checker judges.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fake_mcpd::{TaskEnd, Violation};
use tokio::time::Instant;

use crate::support::{
    Scheme,
    wire::{Seen, What},
};

/// Milliseconds since the beginning of the schedule.
pub type Ms = u64;

/// From one moment to another; [`Ms::MAX`] where it lasts to the end.
pub type Span = (Ms, Ms);

/// Everything worth knowing.
#[derive(Debug, Default)]
pub struct Story {
    pub calls: Vec<Call>,
    pub runs: Vec<Run>,
    /// What the network saw of the agent and did to it.
    pub wire: Vec<Passed>,
    /// What the local programs published, in the order of time.
    pub presence: Vec<Presence>,
    /// When a local program read nothing, and which.
    pub blocked: Vec<(Span, String)>,
    /// When the owner had paused everything.
    pub paused: Vec<Span>,
    /// When mcpd forgot everything.
    pub forgot: Vec<Ms>,
    /// When the machine woke.
    pub woke: Vec<Ms>,
    /// When the credentials file changed.
    pub credentials: Vec<Ms>,
    /// The agent's lives, and the ids that each had taken in.
    pub lives: Vec<Life>,
    pub drain_at: Ms,
    /// When the agent was gone, and whether it says that every task had its end.
    pub stopped: Option<(Ms, bool)>,
    pub drain_timeout: Duration,
    pub max_in_flight: u32,
    pub max_queued: u32,
    pub idempotent: bool,
    pub scheme: Scheme,
    /// Whether the link was encrypted and in trouble, or parts went in uploads: nobody can say what became of each.
    pub sealed: bool,
    pub result_stream: bool,
    /// Uploads that mcpd began to read.
    pub uploads: u64,
    pub violations: Vec<Violation>,
    pub slot_breaches: Vec<String>,
    pub log: Vec<String>,
}

/// One thing that the network saw or did.
#[derive(Debug)]
pub struct Passed {
    pub at: Ms,
    pub connection: u64,
    pub what: What,
}

/// What a local program publishes from now on.
#[derive(Debug)]
pub struct Presence {
    pub at: Ms,
    pub program: String,
    pub names: Vec<&'static str>,
    pub step: Step,
}

/// How it came to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It pushed its names, opted in.
    Pushed,
    /// It withdrew them.
    Withdrew,
    /// It said goodbye.
    Drained,
    /// Its connection ended without a word.
    Lost,
}

/// One life of the agent.
#[derive(Debug, Default)]
pub struct Life {
    pub since: Ms,
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
    pub llm: &'static str,
    pub streaming: bool,
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
    pub program: String,
    pub name: String,
    pub life: usize,
    pub at: Ms,
    /// When it gave its last piece of output, and its first token.
    pub last_sign: Option<Ms>,
    pub first_token: Option<Ms>,
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

    /// Enters what the network saw.
    pub fn wire(&self, seen: Vec<Seen>) {
        let ms = |at: Instant| u64::try_from(at.duration_since(self.began).as_millis()).expect("it is short");
        let passed =
            seen.into_iter().map(|s| Passed { at: ms(s.at), connection: s.connection, what: s.what });
        self.story().wire = passed.collect();
    }

    /// The story as it is, once everybody has stopped writing.
    pub fn take(&self) -> Story {
        std::mem::take(&mut *self.story())
    }
}
