//! Whether the results get through to mcpd.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Results that have failed for this long are no passing trouble.
const TROUBLE_AFTER: Duration = Duration::from_secs(60);

/// A run of failures without a success among them.
#[derive(Debug)]
struct Failing {
    first: Instant,
    last: Instant,
    why: String,
}

/// Whether the results get through, whichever task they belong to.
#[derive(Debug, Default)]
pub(super) struct ResultsHealth {
    failing: Mutex<Option<Failing>>,
}

impl ResultsHealth {
    /// A POST was answered, or failed for this reason.
    pub(super) fn note(&self, failure: Option<&str>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = failure else { return *failing = None };
        let last = Instant::now();
        failing.get_or_insert_with(|| Failing { first: last, last, why: why.to_owned() }).last = last;
    }

    /// Why the results do not get through, if they have failed for a minute.
    pub(super) fn trouble(&self) -> Option<String> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting = failing.as_ref().filter(|f| f.last.duration_since(f.first) >= TROUBLE_AFTER);
        lasting.map(|failing| failing.why.clone())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_failures_over_a_minute_without_a_success_between_them_are_trouble() {
        let health = ResultsHealth::default();
        health.note(Some("first"));
        advance(TROUBLE_AFTER).await;
        assert_eq!(health.trouble(), None, "nothing has been tried since");
        health.note(Some("second"));
        assert_eq!(health.trouble().as_deref(), Some("first"), "the reason does not flicker");
        health.note(None);
        assert_eq!(health.trouble(), None);
    }
}
