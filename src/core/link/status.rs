//! The link's status; nothing changes here.

use std::time::Instant;

use super::Link;
use crate::domain::{LinkState, LinkStatus};

/// What the status says of a channel without a byte.
const HELD_BACK: &str = "the control channel is open, but nothing comes through: something before mcpd holds it back; \
                         switch buffering off there (nginx: proxy_buffering off), and run `mcprelay doctor`";

impl Link {
    /// What is wrong although the channel is open; after the last semicolon, what to do.
    fn trouble(&self, now: Instant) -> Option<String> {
        let beats = self.heartbeat.trouble(now).map(|why| {
            format!(
                "heartbeats have failed for over a minute: {why}; mcpd drops the LLMs after 90 s without one"
            )
        });
        beats
            .or_else(|| self.results_trouble.clone())
            .or_else(|| self.channel.open_pattern(now).map(|pattern| pattern.to_string()))
    }

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
            None if self.channel.is_held_back() => plain(LinkState::Connecting, HELD_BACK),
            None if open => plain(LinkState::Online, &self.trouble(now).unwrap_or_default()),
            None if !self.publishes() => {
                plain(LinkState::Refused, "every name is taken in mcpd; choose other names")
            }
            None => plain(LinkState::Connecting, ""),
        }
    }
}
