//! What goes into the link and what comes out of it.

use std::time::Duration;

use crate::domain::{CallFailure, Provider, Reason, Trouble};

/// The owner's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Between heartbeats.
    pub heartbeat_interval: Duration,
    /// First wait of the backoff.
    pub reconnect_min: Duration,
    /// Longest wait of the backoff, before jitter.
    pub reconnect_max: Duration,
    /// What the token is from, for who has to check it: "MCPRELAY_TOKEN".
    pub token_source: &'static str,
}

/// Something that happened to the link.
#[derive(Debug)]
pub enum LinkInput {
    /// There are usable credentials (`Ok`, with whether they lead to another mcpd than before), or the reason why not.
    Credentials(Result<McpdChange, Reason>),
    /// A register call ended, with the session's sticky id where mcpd took it.
    Registered(u64, Result<String, CallFailure>),
    /// The channel's response headers came: it is open.
    ChannelOpened(u64),
    /// The channel's first byte came.
    ChannelProved(u64),
    /// The channel could not be opened, or ended.
    ChannelClosed(u64, CallFailure),
    /// The heartbeat of this number ended.
    Heartbeat(u64, Result<(), CallFailure>),
    /// What is wrong with the way of results, or that nothing is any more.
    Results(Option<(Trouble, Reason)>),
    /// The machine slept and woke.
    Woke,
    /// Other certificate authorities are trusted now: what failed for them may work.
    AuthoritiesChanged,
}

/// Whether newly read credentials lead to another mcpd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum McpdChange {
    /// The same as before, or the first.
    Same,
    /// Another: nothing that was learnt of the former one holds there. With the agent's session of earlier times, if it had one.
    Other(Option<String>),
}

/// Something to do for the link.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEffect {
    /// Call register with this whole set; the reply names the attempt.
    Register {
        /// Identifies the reply.
        attempt: u64,
        /// The sticky id, where there is one.
        session: Option<String>,
        /// The whole set.
        providers: Vec<Provider>,
        /// Whether the machine has just woken, so that a slow answer counts as none.
        after_wake: bool,
    },
    /// Write the sticky id to its file.
    Persist(String),
    /// Open the control channel.
    OpenChannel {
        /// Identifies everything that comes from the channel.
        epoch: u64,
        /// Whether it takes the place of one that was lost.
        again: bool,
        /// The session's sticky id.
        session: String,
    },
    /// Close the control channel.
    CloseChannel,
    /// Call heartbeat; the reply names the number.
    Heartbeat {
        /// Identifies the reply.
        number: u64,
        /// The session's sticky id.
        session: String,
        /// Whether the machine has just woken, so that kept connections may be dead and a slow answer counts as none.
        after_wake: bool,
    },
    /// mcpd did not know the session, so the ids of its tasks mean nothing any more.
    SessionForgotten,
    /// The session belonged to another mcpd, and so did the ids of its tasks. With its sticky id if that mcpd may list something for it,
    /// which its owner no longer wants.
    SessionLeft(Option<String>),
}
