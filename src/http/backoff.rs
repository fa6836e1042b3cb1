//! How long to wait before the next attempt.

use std::time::Duration;

/// Waits that double from the least to the most, each with up to half of itself added, so that many clients do not come back at once.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is about `min`, and none is longer than one and a half times `max`.
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    /// The wait after one more failure: d + uniform(0, d/2).
    pub(crate) fn next(&mut self, rng: &mut fastrand::Rng) -> Duration {
        let base = self.min.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        base + base.mul_f64(rng.f64() / 2.0)
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_with_half_as_much_jitter_and_start_over() {
        let (mut backoff, mut rng) =
            (Backoff::new(Duration::from_secs(5), Duration::from_secs(60)), fastrand::Rng::with_seed(7));
        for base in [5, 10, 20, 40, 60, 60] {
            let wait = backoff.next(&mut rng).as_secs_f64();
            assert!((f64::from(base)..=1.5 * f64::from(base)).contains(&wait), "{base}: {wait}");
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= Duration::from_millis(7500));
    }
}
