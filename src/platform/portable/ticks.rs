//! The tick of the runtime's timer.

use std::{io, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};

/// One tick per period.
pub(crate) struct Ticks(Interval);

impl Ticks {
    /// # Errors
    /// None; the kernel's timer of Linux has some.
    #[expect(clippy::unnecessary_wraps, reason = "the other way can fail")]
    pub(crate) fn every(period: Duration) -> io::Result<Self> {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self(ticks))
    }

    /// Waits for the next tick; missed ticks count as one.
    pub(crate) async fn tick(&mut self) {
        self.0.tick().await;
    }
}
