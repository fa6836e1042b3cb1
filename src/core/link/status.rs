//! The link's status.

use std::time::Instant;

use super::{Channel, Link};
use crate::domain::{LinkState, LinkStatus};

impl Link {
    /// The link's status, for the sessions, the log and people.
    pub(in crate::core) fn status(&self, now: Instant) -> LinkStatus {
        let plain = |state, detail: &str| LinkStatus { state, detail: detail.to_owned(), next_attempt: None };
        if self.draining {
            return plain(LinkState::Draining, "stopping: no new tasks are taken");
        }
        if let Err(why) = &self.credentials {
            return plain(LinkState::NoCredentials, why);
        }
        if self.wanted.is_empty() {
            return plain(LinkState::Idle, "no provider is opted in and able to work");
        }
        let waiting = self.wait.as_ref().map(|w| LinkStatus {
            state: w.state,
            detail: w.detail.clone(),
            next_attempt: Some(w.until.saturating_duration_since(now)),
        });
        if let (Channel::Open { .. }, Some(detail)) = (&self.channel, &self.heartbeat_refused) {
            let next_attempt = self.heartbeat_at.map(|at| at.saturating_duration_since(now));
            return LinkStatus { next_attempt, ..plain(LinkState::Refused, detail) };
        }
        match (&self.channel, waiting) {
            (Channel::Open { .. }, Some(wait)) => LinkStatus { state: LinkState::Online, ..wait },
            (Channel::Open { .. }, None) => plain(LinkState::Online, ""),
            (_, Some(wait)) => wait,
            (_, None) if self.publishable().next().is_none() => {
                plain(LinkState::Refused, "mcpd gives every name to somebody else; choose other names")
            }
            (_, None) => plain(LinkState::Connecting, ""),
        }
    }
}
