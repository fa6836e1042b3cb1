//! The faults that a test can inject.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration;
use crate::wire::CallKind;

/// A thing that goes wrong. In JSON: `{"kind":"answer","call":"register","status":503}`; see [`crate::GRAMMAR`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Fault {
    /// Close every open channel.
    Drop {
        /// Break the connection instead of ending the body.
        #[serde(default)]
        broken: bool,
    },
    /// Half-open: the open channels stay but deliver nothing.
    Silent,
    /// Close the next channels right after their hello.
    CloseChannels {
        /// How many; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Refuse whatever comes.
    Refuse {
        /// New connections, or calls.
        #[serde(default)]
        what: Refused,
        /// For how long; until cleared if absent.
        #[serde(default, rename = "for", with = "duration", skip_serializing_if = "Option::is_none")]
        lasting: Option<Duration>,
    },
    /// Hold calls back before they are looked at.
    Delay {
        /// Which calls.
        #[serde(flatten)]
        aim: Aim,
        /// How long.
        #[serde(deserialize_with = "duration::required", serialize_with = "duration::plain")]
        by: Duration,
    },
    /// Answer calls with a status, unapplied.
    Answer {
        /// Which calls.
        #[serde(flatten)]
        aim: Aim,
        /// The answer.
        #[serde(flatten)]
        answer: Answer,
    },
    /// Apply calls, then cut the connection before the reply: whether it was applied is not to be known.
    LoseReply {
        /// Which calls.
        #[serde(flatten)]
        aim: Aim,
    },
    /// Cut an upload's connection after so many bytes or lines; without a number with its first piece.
    BreakUpload {
        /// After so many bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// With this line, from 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<u64>,
        /// Apply first what has come until then; else the last line or piece is lost.
        #[serde(default)]
        applied: bool,
        /// How many uploads pass first.
        #[serde(default)]
        skip: u32,
        /// How many it hits; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Look at an upload only once it has come whole, as if a proxy collected it.
    HoldUpload {
        /// How many it hits; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Lose one line of an upload, so that the next one leaves a gap.
    LoseLine {
        /// Which line, from 1.
        line: u64,
        /// How many uploads it hits; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Do not send the next `received` events.
    LoseReceived {
        /// How many; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Leave the session id out of register replies.
    NoSessionId {
        /// How often; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Forget all sessions and tasks.
    Forget,
    /// Forget all sessions and tasks, and cut every connection.
    Restart,
    /// Deliver the next tasks twice.
    Twice {
        /// How many; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Send the next tasks only after the event that follows each, or a second later.
    Overtake {
        /// How many; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Send a task event of one's own.
    Task {
        /// Its data.
        json: String,
    },
    /// Send raw bytes.
    Garbage {
        /// The bytes; something unpleasant if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        frame: Option<String>,
    },
    /// Send cancel.
    Cancel {
        /// For this task; for all under way if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task: Option<String>,
    },
    /// End every fault that lasts.
    Clear,
}

impl Fault {
    /// Whether it acts at once, and not on what comes next.
    pub(crate) fn acts_at_once(&self) -> bool {
        matches!(
            self,
            Self::Drop { .. }
                | Self::Silent
                | Self::Forget
                | Self::Restart
                | Self::Task { .. }
                | Self::Garbage { .. }
                | Self::Cancel { .. }
                | Self::Clear
        )
    }
}

/// Which calls a fault hits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    /// Calls of this kind; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallKind>,
    /// How many pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many it hits; 0 means until cleared.
    #[serde(default = "once")]
    pub times: u32,
}

impl Aim {
    /// The next call of a kind.
    pub fn next(call: CallKind) -> Self {
        Self { call: Some(call), skip: 0, times: 1 }
    }

    /// The next `times` of them; 0 means until cleared.
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// After `skip` of them have passed.
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }
}

/// An answer on order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// A `Retry-After` header, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// Answer as `text/html`, like a proxy's page.
    #[serde(default)]
    pub html: bool,
    /// The body; a fitting one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl Answer {
    /// A bare status.
    pub fn status(status: u16) -> Self {
        Self { status, retry_after: None, html: false, body: None }
    }

    /// With `Retry-After`.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// With this body.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// As an HTML page.
    pub fn html(mut self) -> Self {
        self.html = true;
        self
    }
}

/// What [`Fault::Refuse`] refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// New connections are reset.
    #[default]
    Connections,
    /// Every call's connection is cut before it is looked at.
    Calls,
}

fn once() -> u32 {
    1
}
