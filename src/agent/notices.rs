//! Who is told what: the log, the metrics and the service manager about the link, watchers about the whole status.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::HealthSummary;
use crate::{
    core::Core,
    domain::{LinkState, LinkStatus, Verdict},
    pb, telemetry,
};

/// Least time between two publications of the status: a person cannot read faster.
const STATUS_SPACING: Duration = Duration::from_millis(250);

/// The whole status, as watchers get it.
pub(super) type StatusSender = watch::Sender<Option<Arc<pb::WatchStatusResponse>>>;

/// What others were told last.
pub(super) struct Notices {
    telemetry: telemetry::Handle,
    health: watch::Sender<HealthSummary>,
    watchers: StatusSender,
    /// When the status is published next, where somebody watches it.
    due: Option<Instant>,
    /// The link's status that was told last.
    link: Option<LinkStatus>,
}

impl Notices {
    pub(super) fn new(
        telemetry: telemetry::Handle,
        health: watch::Sender<HealthSummary>,
        watchers: StatusSender,
    ) -> Self {
        Self { telemetry, health, watchers, due: None, link: None }
    }

    /// Tells about the link if its state or reason is not what was told last; `true` if it was told.
    pub(super) fn link(&mut self, status: &LinkStatus) -> bool {
        let same = |told: &LinkStatus| told.state == status.state && told.detail == status.detail;
        if self.link.as_ref().is_some_and(same) {
            return false;
        }
        log_link(status);
        self.telemetry.metrics().link(status.state, status.trouble);
        self.health.send_modify(|health| {
            (health.link, health.detail) = (Some(status.state), status.detail.to_string());
        });
        self.link = Some(status.clone());
        true
    }

    /// Measures the state of every provider that is served.
    pub(super) fn providers(&self, core: &Core) {
        let metrics = self.telemetry.metrics();
        if metrics.enabled() {
            let served = core.providers().into_iter().filter(|p| p.verdict == Verdict::Published);
            metrics.providers(served.map(|p| (p.provider.name.clone(), p.state())).collect());
        }
    }

    /// Tells how many providers mcpd is asked to list.
    pub(super) fn listed(&self, providers: usize) {
        self.health
            .send_if_modified(|health| std::mem::replace(&mut health.providers, providers) != providers);
    }

    /// When the status is published next.
    pub(super) fn status_due(&self) -> Option<Instant> {
        self.due
    }

    /// The status has changed, or may have.
    pub(super) fn status_changed(&mut self) {
        if self.due.is_none() && self.is_watched() {
            self.due = Some(Instant::now() + STATUS_SPACING);
        }
    }

    /// Publishes the status. Tokens change nothing that the core sees, so while somebody watches a running task it is published
    /// periodically.
    pub(super) fn publish(&mut self, status: pb::WatchStatusResponse) {
        let running = !status.tasks.is_empty();
        self.watchers.send_replace(Some(Arc::new(status)));
        self.due = (running && self.is_watched()).then(|| Instant::now() + STATUS_SPACING);
    }

    /// Without a watcher no status is built. One receiver is the service's own.
    fn is_watched(&self) -> bool {
        self.watchers.receiver_count() > 1
    }
}

/// A link that waits, is refused or is in trouble needs somebody's eye; the rest is the course of things.
fn log_link(status: &LinkStatus) {
    let (state, detail) = (status.state.as_str(), &status.detail);
    let next = status.next_attempt.map(|d| format!("{:.1} s", d.as_secs_f64()));
    match status.state {
        _ if detail.is_empty() => info!(state, "link to mcpd"),
        LinkState::Backoff | LinkState::Refused | LinkState::Online | LinkState::Connecting => {
            warn!(state, next_attempt = next, "link to mcpd: {detail}");
        }
        LinkState::NoCredentials | LinkState::Idle | LinkState::Draining => {
            info!(state, next_attempt = next, "link to mcpd: {detail}");
        }
    }
}
