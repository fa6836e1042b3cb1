//! How long idle connections of HTTP/1.1 are kept.

use std::time::Duration;

use tokio::time::Instant;

/// What remains of the limit after a request was lost on a connection that the server may just have closed. No server closes sooner on
/// purpose, unless it closes after every answer.
const AFTER_A_LOSS: Duration = Duration::from_millis(250);
/// How long a shortened limit stays before it doubles: a lost request can be a stream that ends with an error.
const RECOVERY: Duration = Duration::from_secs(60);
/// Least time before a hint raises the limit again: a server whose hints alternate must not cost new connections each time.
const HINT_CHANGE: Duration = Duration::from_secs(60);

/// How long an idle connection is believed to be open. Too long loses requests, too short only costs connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleLimit {
    /// Half of what the server says, or the default.
    hinted: Duration,
    /// When the server said so.
    hinted_at: Option<Instant>,
    /// What a loss has left of it, and when that is raised.
    shortened: Option<(Duration, Instant)>,
}

impl IdleLimit {
    pub(crate) fn new(default: Duration) -> Self {
        Self { hinted: default, hinted_at: None, shortened: None }
    }

    /// The limit now; at zero no connection is to be used twice.
    pub(crate) fn get(&self) -> Duration {
        self.shortened.map_or(self.hinted, |(limit, _)| limit.min(self.hinted))
    }

    /// The server says that it closes connections after `timeout`: half of that is safe. A shorter one counts at once, a longer one after
    /// a minute.
    pub(crate) fn hint(&mut self, timeout: Duration, now: Instant) {
        let hinted = timeout / 2;
        let may_rise = self.hinted_at.is_none_or(|at| now - at >= HINT_CHANGE);
        if hinted < self.hinted || (may_rise && hinted != self.hinted) {
            (self.hinted, self.hinted_at) = (hinted, Some(now));
        }
    }

    /// A request was lost soon after it went out. A second loss means that the server closes behind each answer, and says nothing of it.
    pub(crate) fn lost(&mut self, now: Instant) {
        let limit = if self.get() > AFTER_A_LOSS { AFTER_A_LOSS } else { Duration::ZERO };
        self.shortened = Some((limit, now + RECOVERY));
    }

    /// Raises a shortened limit again with time.
    pub(crate) fn recover(&mut self, now: Instant) {
        if let Some((limit, raise_at)) = self.shortened
            && raise_at <= now
        {
            let raised = (limit * 2).max(AFTER_A_LOSS);
            self.shortened = (raised < self.hinted).then_some((raised, now + RECOVERY));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_keep_alive_counts_at_once_and_a_longer_one_after_a_minute() {
        let (mut limit, start) = (IdleLimit::new(Duration::from_secs(4)), Instant::now());
        let mut hear = |seconds, after| {
            limit.hint(Duration::from_secs(seconds), start + after);
            limit.get().as_millis()
        };
        assert_eq!(hear(72, Duration::ZERO), 36_000);
        assert_eq!(hear(5, Duration::ZERO), 2_500, "another server behind the same name");
        assert_eq!(hear(72, Duration::ZERO), 2_500);
        assert_eq!(hear(72, HINT_CHANGE), 36_000);
    }

    #[test]
    fn after_a_loss_connections_are_kept_shortly_and_longer_again_with_each_minute() {
        let (mut limit, mut now) = (IdleLimit::new(Duration::from_secs(4)), Instant::now());
        limit.lost(now);
        assert_eq!(limit.get(), AFTER_A_LOSS);
        limit.recover(now);
        assert_eq!(limit.get(), AFTER_A_LOSS, "not yet");
        for millis in [500, 1000, 2000, 4000, 4000] {
            now += RECOVERY;
            limit.recover(now);
            assert_eq!(limit.get().as_millis(), millis);
        }
    }

    #[test]
    fn a_server_that_closes_after_every_answer_gets_a_connection_for_each_request_until_it_is_tried_again() {
        let (mut limit, now) = (IdleLimit::new(Duration::from_secs(4)), Instant::now());
        limit.lost(now);
        limit.lost(now);
        assert_eq!(limit.get(), Duration::ZERO);
        limit.recover(now + RECOVERY);
        assert_eq!(limit.get(), AFTER_A_LOSS);
    }
}
