//! The status of the link to mcpd, and why a call to mcpd failed.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{ProviderName, Reason, counted};

/// The status of the link to mcpd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// What it is doing.
    pub state: LinkState,
    /// Why, for people; may be empty.
    pub detail: Reason,
    /// What is wrong with it, where that has a name.
    pub trouble: Option<Trouble>,
    /// How long until the next attempt, if it waits for one; until the end at the latest, if it stops.
    pub next_attempt: Option<Duration>,
}

/// What the link to mcpd is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There are no usable credentials.
    NoCredentials,
    /// Nothing is opted in, so nothing is called.
    Idle,
    /// Registering or opening the channel.
    Connecting,
    /// Registered, and the channel is open.
    Online,
    /// Waiting for the next attempt.
    Backoff,
    /// mcpd refuses the agent; somebody should look into it.
    Refused,
    /// Stopping.
    Draining,
}

impl LinkState {
    /// Its word in the status, in logs and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Online => "online",
            Self::Backoff => "backoff",
            Self::Refused => "refused",
            Self::Draining => "draining",
        }
    }
}

/// What can be wrong with a link that works in part, or on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Heartbeats have failed for a minute.
    Heartbeats,
    /// Results have failed for a minute.
    Results,
    /// Something on the way holds uploads back, or refuses them.
    Uploads,
    /// The channel is open, and nothing comes through.
    HeldBack,
    /// The channel is compressed on its way.
    Encoded,
    /// What answers in the channel's place is no event stream.
    NoEventStream,
    /// Something on the way ends a channel that is silent.
    ReadTimeout,
    /// Another process has the session.
    Contested,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Heartbeats,
        Self::Results,
        Self::Uploads,
        Self::HeldBack,
        Self::Encoded,
        Self::NoEventStream,
        Self::ReadTimeout,
        Self::Contested,
    ];

    /// Its word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Heartbeats => "heartbeats_fail",
            Self::Results => "results_fail",
            Self::Uploads => "uploads_held_back",
            Self::HeldBack => "channel_held_back",
            Self::Encoded => "channel_encoded",
            Self::NoEventStream => "channel_no_event_stream",
            Self::ReadTimeout => "channel_read_timeout",
            Self::Contested => "session_contested",
        }
    }
}

/// Why a call or the channel failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// 401 or 403; whether the credentials have changed since the call.
    Unauthorized {
        /// What mcpd said, for people.
        detail: Reason,
        /// Whether there are other credentials now.
        changed: bool,
    },
    /// 404 or 410: mcpd does not know the session, or on register has no provider API.
    Unknown(Reason),
    /// 409 with the names that mcpd gives to somebody else.
    Conflict(BTreeSet<ProviderName>),
    /// The open channel ended, not by the agent's doing.
    ChannelEnded {
        /// What happened, for people.
        detail: Reason,
        /// Whether whoever ended it did so in order, as mcpd does for another channel of the session.
        in_order: bool,
        /// How long nothing had come before that.
        silent: Duration,
    },
    /// The channel was answered with something that nobody can read as one.
    Unreadable(Trouble, Reason),
    /// A failure that may pass; with the wait that `Retry-After` asked for.
    Passing(Reason, Option<Duration>),
}

impl CallFailure {
    /// Its word in traces: one of a fixed set.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unauthorized { .. } => "unauthorized",
            Self::Unknown(_) => "unknown_session",
            Self::Conflict(_) => "conflict",
            Self::ChannelEnded { .. } | Self::Unreadable(..) | Self::Passing(..) => "unavailable",
        }
    }

    /// Why, and what helps.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unauthorized { detail, .. }
            | Self::ChannelEnded { detail, .. }
            | Self::Unknown(detail)
            | Self::Unreadable(_, detail)
            | Self::Passing(detail, _) => detail.clone(),
            Self::Conflict(names) => format!("{} taken in mcpd", counted(names.len(), "name")).into(),
        }
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason().fmt(f)
    }
}
