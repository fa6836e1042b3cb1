//! How long the link waits after a failure, and what its status says meanwhile.

use std::time::{Duration, Instant};

use super::messages::Settings;
use crate::domain::{CallFailure, LinkState, Reason, Trouble};

/// How long after a wake from sleep the link is tried once a second: the network is back by then.
const WAKE_EAGER: Duration = Duration::from_secs(60);
/// Wait between attempts in that time.
const WAKE_RETRY: Duration = Duration::from_secs(1);
/// The longest `Retry-After` that is honoured: an mcpd with a wrong clock must not switch the agent off.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// A wait until the next attempt.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) until: Instant,
    pub(super) state: LinkState,
    pub(super) detail: Reason,
    pub(super) trouble: Option<Trouble>,
}

/// What has failed lately, and the wait that follows from it.
#[derive(Debug)]
pub(super) struct Retry {
    least: Duration,
    most: Duration,
    token_source: &'static str,
    rng: fastrand::Rng,
    wait: Option<Wait>,
    /// Waits since a channel last proved itself: the backoff doubles with each.
    failures: u32,
    /// Until when the link is tried once a second, after a wake.
    eager_until: Option<Instant>,
    /// Whether an unknown session has already caused an immediate registration, so that the next one waits.
    forgiven: bool,
    /// Whether changed credentials have already caused an immediate retry.
    reauthorized: bool,
}

impl Retry {
    /// `seed` fixes the jitter.
    pub(super) fn new(settings: &Settings, seed: u64) -> Self {
        Self {
            least: settings.reconnect_min,
            most: settings.reconnect_max,
            token_source: settings.token_source,
            rng: fastrand::Rng::with_seed(seed),
            wait: None,
            failures: 0,
            eager_until: None,
            forgiven: false,
            reauthorized: false,
        }
    }

    pub(super) fn wait(&self) -> Option<&Wait> {
        self.wait.as_ref()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Whether the machine woke a short while ago.
    pub(super) fn is_eager(&self, now: Instant) -> bool {
        self.eager_until.is_some_and(|until| now < until)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.wait.as_ref().map(|wait| wait.until)
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.wait.take_if(|wait| wait.until <= now);
    }

    /// A call or the channel failed: waits, unless other credentials have come meanwhile.
    pub(super) fn failed(&mut self, failure: CallFailure, now: Instant) {
        match failure {
            CallFailure::Unauthorized { changed, detail } => {
                if !(changed && self.may_try_new_credentials()) {
                    self.back_off(LinkState::Refused, self.check_token(detail), None, now);
                }
            }
            CallFailure::Unknown(detail) | CallFailure::ChannelEnded { detail, .. } => {
                self.back_off(LinkState::Backoff, detail, None, now);
            }
            CallFailure::Conflict(_) => {
                self.back_off(LinkState::Backoff, "mcpd answered 409".into(), None, now);
            }
            CallFailure::Unreadable(trouble, detail) => {
                self.back_off(LinkState::Backoff, detail, None, now);
                self.blame(trouble);
            }
            CallFailure::Passing(detail, retry_after) => {
                self.back_off(LinkState::Backoff, detail, retry_after, now);
            }
        }
    }

    /// Waits as the contract says: d + uniform(0, d/2), with d doubling from the least to the most, or one second right after a wake;
    /// `Retry-After` can only lengthen the wait.
    pub(super) fn back_off(
        &mut self,
        state: LinkState,
        detail: Reason,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        let wait = if self.is_eager(now) { WAKE_RETRY } else { self.next_wait() };
        self.wait_for(state, detail, wait.max(honoured(retry_after.unwrap_or_default())), now);
    }

    fn next_wait(&mut self) -> Duration {
        let doubled = self.least.saturating_mul(1 << self.failures.min(16));
        let base = doubled.min(self.most);
        self.failures += 1;
        base + base.mul_f64(self.rng.f64() / 2.0)
    }

    /// Waits for this long, whatever has failed before.
    pub(super) fn wait_for(&mut self, state: LinkState, detail: Reason, wait: Duration, now: Instant) {
        self.wait = Some(Wait { until: now + wait, state, detail, trouble: None });
    }

    /// Says what has made this wait necessary.
    pub(super) fn blame(&mut self, trouble: Trouble) {
        if let Some(wait) = &mut self.wait {
            wait.trouble = Some(trouble);
        }
    }

    /// A refusal, and what to do about it.
    pub(super) fn check_token(&self, detail: Reason) -> Reason {
        Reason::new(detail.what, format!("check the token in {}", self.token_source))
    }

    /// The next attempt need not wait.
    pub(super) fn end_wait(&mut self) {
        self.wait = None;
    }

    /// A refusal may be about credentials that have been replaced.
    pub(super) fn end_refusal(&mut self) {
        self.wait.take_if(|wait| wait.state == LinkState::Refused);
    }

    /// Whether a session that mcpd does not know is registered at once: the first time only.
    pub(super) fn forgive(&mut self) -> bool {
        !std::mem::replace(&mut self.forgiven, true)
    }

    /// Whether changed credentials are tried at once: the first time only.
    pub(super) fn may_try_new_credentials(&mut self) -> bool {
        !std::mem::replace(&mut self.reauthorized, true)
    }

    /// mcpd accepted the credentials.
    pub(super) fn authorized(&mut self) {
        self.reauthorized = false;
    }

    /// The channel has proved itself: the backoff starts over.
    pub(super) fn proved(&mut self) {
        self.failures = 0;
        self.forgiven = false;
        self.eager_until = None;
    }

    /// The credentials lead to another mcpd: nothing has failed there yet.
    pub(super) fn forget(&mut self) {
        self.wait = None;
        self.failures = 0;
        self.forgiven = false;
        self.reauthorized = false;
    }

    pub(super) fn woke(&mut self, now: Instant) {
        self.eager_until = Some(now + WAKE_EAGER);
        self.wait = None;
    }
}

/// The part of a `Retry-After` that is honoured.
pub(super) fn honoured(retry_after: Duration) -> Duration {
    retry_after.min(MAX_RETRY_AFTER)
}
