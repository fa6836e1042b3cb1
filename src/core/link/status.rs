//! The link's status; nothing changes here.

use std::time::Instant;

use super::Link;
use crate::domain::{LinkState, LinkStatus, Reason, Trouble};

impl Link {
    /// What is wrong although the channel is open.
    fn trouble(&self, now: Instant) -> Option<(Trouble, Reason)> {
        let beats = self.heartbeat.trouble(now).map(|why| {
            let why = why.clone().within(|why| {
                format!(
                    "heartbeats have failed for over a minute, and mcpd drops the LLMs after 90 s without one: {why}"
                )
            });
            (Trouble::Heartbeats, why.or_advice("run `mcprelay doctor`"))
        });
        let pattern = || self.channel.open_pattern(now).map(|pattern| (pattern.trouble(), pattern.reason()));
        beats.or_else(|| self.results_trouble.clone()).or_else(pattern)
    }

    /// The link's status, for the sessions, the log and people.
    pub(in crate::core) fn status(&self, now: Instant) -> LinkStatus {
        let plain = |state, detail| LinkStatus { state, detail, trouble: None, next_attempt: None };
        let until = |at: Instant| at.saturating_duration_since(now);
        if self.draining {
            return plain(LinkState::Draining, "stopping: no new tasks are taken".into());
        }
        if let Err(why) = &self.credentials {
            return plain(LinkState::NoCredentials, why.clone());
        }
        if self.wanted.is_empty() {
            return plain(LinkState::Idle, "no provider is opted in and able to work".into());
        }
        let open = self.channel.is_open();
        if let Some(refusal) = self.heartbeat.refusal().filter(|_| open) {
            let next_attempt = self.heartbeat.next_at().map(until);
            return LinkStatus { next_attempt, ..plain(LinkState::Refused, refusal.clone()) };
        }
        match self.retry.wait() {
            Some(wait) => LinkStatus {
                state: if open { LinkState::Online } else { wait.state },
                detail: wait.detail.clone(),
                trouble: wait.trouble,
                next_attempt: Some(until(wait.until)),
            },
            None if self.channel.is_held_back() => {
                LinkStatus { trouble: Some(Trouble::HeldBack), ..plain(LinkState::Connecting, held_back()) }
            }
            None if self.channel.is_through() => {
                let (trouble, detail) = self.trouble(now).unzip();
                LinkStatus { trouble, ..plain(LinkState::Online, detail.unwrap_or_default()) }
            }
            None if !open && !self.publishes() => {
                let what = "every name is taken in mcpd";
                plain(LinkState::Refused, Reason::new(what, "choose other names"))
            }
            None => plain(LinkState::Connecting, Reason::default()),
        }
    }
}

/// What the status says of a channel without a byte.
fn held_back() -> Reason {
    Reason::new(
        "the control channel is open, but nothing comes through: something before mcpd holds it back",
        "switch buffering off there (nginx: proxy_buffering off), and run `mcprelay doctor`",
    )
}
