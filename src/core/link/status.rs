//! The link's status; nothing changes here.

use std::time::Instant;

use super::Link;
use crate::domain::{LinkState, LinkStatus};

impl Link {
    /// The link's status, for the sessions, the log and people.
    pub(in crate::core) fn status(&self, now: Instant) -> LinkStatus {
        let plain = |state, detail: &str| LinkStatus { state, detail: detail.to_owned(), next_attempt: None };
        let until = |at: Instant| at.saturating_duration_since(now);
        if self.draining {
            return plain(LinkState::Draining, "stopping: no new tasks are taken");
        }
        if let Err(why) = &self.credentials {
            return plain(LinkState::NoCredentials, why);
        }
        if self.wanted.is_empty() {
            return plain(LinkState::Idle, "no provider is opted in and able to work");
        }
        let open = self.channel.is_open();
        if let Some(refusal) = self.heartbeat.refusal().filter(|_| open) {
            let next_attempt = self.heartbeat.next_at().map(until);
            return LinkStatus { next_attempt, ..plain(LinkState::Refused, refusal) };
        }
        match self.retry.wait() {
            Some(wait) => LinkStatus {
                state: if open { LinkState::Online } else { wait.state },
                detail: wait.detail.clone(),
                next_attempt: Some(until(wait.until)),
            },
            None if open => plain(LinkState::Online, ""),
            None if !self.publishes() => {
                plain(LinkState::Refused, "mcpd gives every name to somebody else; choose other names")
            }
            None => plain(LinkState::Connecting, ""),
        }
    }
}
