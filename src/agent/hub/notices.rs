//! Who is told what: the sessions and the log about the link, watchers about the whole status.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::info;

use super::{Hub, STATUS_SPACING};
use crate::domain::LinkStatus;

impl Hub {
    /// Tells the sessions and the log about the link, if its state or reason is not what they were told last.
    pub(super) fn link_may_have_changed(&mut self) {
        let status = self.core.link_status(Instant::now().into_std());
        let same = |told: &LinkStatus| told.state == status.state && told.detail == status.detail;
        if self.told.as_ref().is_some_and(same) {
            return;
        }
        let (state, next) =
            (status.state.as_str(), status.next_attempt.map(|d| format!("{:.1} s", d.as_secs_f64())));
        if status.detail.is_empty() {
            info!(state, "link to mcpd");
        } else {
            info!(state, next_attempt = next, "link to mcpd: {}", status.detail);
        }
        self.surroundings.telemetry.metrics().link_state(status.state);
        self.sessions.values().for_each(|session| session.handle.status(&status));
        self.surroundings.standing.send_modify(|standing| {
            (standing.link, standing.detail) = (Some(status.state), status.detail.clone());
        });
        self.told = Some(status);
    }

    /// Says how many providers mcpd is asked to list.
    pub(super) fn set_is_asked_for(&self, providers: usize) {
        self.surroundings
            .standing
            .send_if_modified(|standing| std::mem::replace(&mut standing.providers, providers) != providers);
    }

    pub(super) fn status_may_have_changed(&mut self) {
        // One receiver is the service's own; without a watcher no status is built.
        if self.status_due.is_none() && self.channels.status.receiver_count() > 1 {
            self.status_due = Some(Instant::now() + STATUS_SPACING);
        }
    }

    pub(super) fn publish_status(&mut self) {
        self.channels.status.send_replace(Some(Arc::new(self.status())));
        // Tokens change nothing that the core sees, so while somebody watches a running task the status is published periodically.
        let watched = self.channels.status.receiver_count() > 1 && !self.relays.is_empty();
        self.status_due = watched.then(|| Instant::now() + STATUS_SPACING);
    }
}
