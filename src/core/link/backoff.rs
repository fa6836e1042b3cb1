//! How long the link waits after a failure, and what its status says meanwhile.

use std::time::{Duration, Instant};

use super::{Link, Wait};
use crate::domain::{CallFailure, LinkState};

/// How long after a wake from sleep the link is tried once a second: the network is back by then.
pub(super) const WAKE_EAGER: Duration = Duration::from_secs(60);

/// Wait between attempts in that time.
const WAKE_RETRY: Duration = Duration::from_secs(1);

/// The longest `Retry-After` that is honoured: an mcpd with a wrong clock must not switch the agent off.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

impl Link {
    pub(super) fn failed(&mut self, failure: CallFailure, now: Instant) {
        match failure {
            CallFailure::Unauthorized { changed: true, .. } if !self.reauthorized => self.reauthorized = true,
            CallFailure::Unauthorized { detail, .. } => {
                self.back_off(LinkState::Refused, check_token(&detail), None, now);
            }
            CallFailure::Unknown(detail) => self.back_off(LinkState::Backoff, detail, None, now),
            CallFailure::Conflict(_) => {
                self.back_off(LinkState::Backoff, "mcpd answered 409".to_owned(), None, now)
            }
            CallFailure::Passing(detail, retry_after) => {
                self.back_off(LinkState::Backoff, detail, retry_after, now)
            }
        }
    }

    /// Waits as the contract says: d + uniform(0, d/2), with d doubling from the least to the most, or one second right after a wake;
    /// `Retry-After` can only lengthen the wait.
    pub(super) fn back_off(
        &mut self,
        state: LinkState,
        detail: String,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        let wait = if self.is_eager(now) { WAKE_RETRY } else { self.next_wait() };
        self.wait_for(state, detail, wait.max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER)), now);
    }

    fn next_wait(&mut self) -> Duration {
        let doubled = self.settings.reconnect_min.saturating_mul(1 << self.failures.min(16));
        let base = doubled.min(self.settings.reconnect_max);
        self.failures += 1;
        base + base.mul_f64(self.rng.f64() / 2.0)
    }

    /// The next heartbeat comes no earlier than mcpd asked for.
    pub(super) fn heed_retry_after(&mut self, failure: &CallFailure, now: Instant) {
        if let CallFailure::Passing(_, Some(asked)) = failure {
            let earliest = now + (*asked).min(MAX_RETRY_AFTER);
            self.heartbeat_at = self.heartbeat_at.map(|at| at.max(earliest));
        }
    }

    pub(super) fn wait_for(&mut self, state: LinkState, detail: String, wait: Duration, now: Instant) {
        self.wait = Some(Wait { until: now + wait, state, detail });
    }

    pub(super) fn is_eager(&self, now: Instant) -> bool {
        self.eager_until.is_some_and(|until| now < until)
    }
}

/// What to do about a refusal.
pub(super) fn check_token(detail: &str) -> String {
    format!("{detail}; check the token in the credentials file")
}
