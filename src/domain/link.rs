//! The status of the link to mcpd, and why a call to mcpd failed.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{ProviderName, counted};

/// The status of the link to mcpd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// What it is doing.
    pub state: LinkState,
    /// Why, for people; may be empty. Never a secret.
    pub detail: String,
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

/// Why a call or the channel failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// 401 or 403; whether the credentials have changed since the call.
    Unauthorized {
        /// What mcpd said, for people; never a secret.
        detail: String,
        /// Whether there are other credentials now.
        changed: bool,
    },
    /// 404 or 410: mcpd does not know the session, or on register has no provider API.
    Unknown(String),
    /// 409 with the names that mcpd gives to somebody else.
    Conflict(BTreeSet<ProviderName>),
    /// The open channel ended, not by the agent's doing.
    ChannelEnded {
        /// What happened, for people.
        detail: String,
        /// Whether whoever ended it did so in order, as mcpd does for another channel of the session.
        in_order: bool,
        /// How long nothing had come before that.
        silent: Duration,
    },
    /// A failure that may pass; with the wait that `Retry-After` asked for.
    Passing(String, Option<Duration>),
}

impl CallFailure {
    /// Its word in traces: one of a fixed set.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unauthorized { .. } => "unauthorized",
            Self::Unknown(_) => "unknown_session",
            Self::Conflict(_) => "conflict",
            Self::ChannelEnded { .. } | Self::Passing(..) => "unavailable",
        }
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthorized { detail, .. }
            | Self::ChannelEnded { detail, .. }
            | Self::Unknown(detail)
            | Self::Passing(detail, _) => f.write_str(detail),
            Self::Conflict(names) => write!(f, "{} taken in mcpd", counted(names.len(), "name")),
        }
    }
}
