//! The things that happen. Small numbers stand for names and keys, so that steps meet each other.

use arbitrary::Arbitrary;

/// One thing that happens.
#[derive(Arbitrary, Debug)]
pub enum Step {
    Task {
        id: u8,
        llm: u8,
        streaming: bool,
        size: u8,
        deadline_ms: Option<u16>,
    },
    BadTask {
        id: u8,
    },
    CallerLeft {
        id: u8,
    },
    Open {
        client: u8,
        builtin: bool,
        small: bool,
    },
    Snapshot {
        session: u8,
        providers: Vec<Entry>,
    },
    Finished {
        session: u8,
        task: u8,
        how: How,
    },
    Broken {
        session: u8,
        task: u8,
    },
    Refused {
        session: u8,
        task: u8,
    },
    SessionDraining(u8),
    SessionClosed(u8),
    /// The task has shown output.
    Output {
        task: u8,
        token: bool,
    },
    Settled(u8),
    NobodyWaits(u8),
    DeliveryFailed(u8),
    Pause {
        name: Option<u8>,
        paused: bool,
    },
    Restored(u8),
    Drain,
    Credentials(Option<bool>),
    Registered(Reply),
    ChannelOpened,
    ChannelProved,
    ChannelClosed(Reply),
    Heartbeat(Reply),
    Woke,
    /// Time passes, in milliseconds.
    Pass(u16),
    /// Time passes up to the next deadline.
    PassToDeadline,
}

/// An entry of a snapshot.
#[derive(Arbitrary, Clone, Debug)]
pub struct Entry {
    pub name: u8,
    pub model: bool,
    pub publish: bool,
    pub state: u8,
    pub max_in_flight: Option<u8>,
}

/// How a session ends a task.
#[derive(Arbitrary, Debug)]
pub enum How {
    Complete,
    Body,
    Failed,
    Cancelled,
}

/// What a call to mcpd comes back with.
#[derive(Arbitrary, Clone, Debug)]
pub enum Reply {
    Good { session: u8 },
    Unauthorized { changed: bool },
    Unknown,
    Conflict { name: u8 },
    Passing { retry_after_s: Option<u8> },
}
