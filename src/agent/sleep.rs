//! Noticing that the machine has slept.

use std::time::Duration;

use super::clock::{SleepClock, Ticks};

/// A jump of the sleep clock by more than this is a sleep; less can come from reading the two clocks one after the other.
const SLEEP_JUMP: Duration = Duration::from_secs(5);

/// The sleep clock, and what it showed last.
pub(super) struct SleepWatch {
    clock: SleepClock,
    slept: Duration,
}

impl SleepWatch {
    pub(super) fn new(clock: SleepClock) -> Self {
        Self { slept: clock.slept_for(), clock }
    }

    /// One tick per second.
    pub(super) fn ticks(&self) -> Ticks {
        self.clock.ticks()
    }

    /// How long the machine has slept since this was last asked, if it has.
    pub(super) fn slept(&mut self) -> Option<Duration> {
        let slept = self.clock.slept_for();
        let before = std::mem::replace(&mut self.slept, slept);
        (slept > before + SLEEP_JUMP).then(|| slept - before)
    }
}
