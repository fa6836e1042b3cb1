//! How long the machine has slept, and the tick with which the hub checks it once a second.

use std::{sync::Arc, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::platform;

/// How often the clocks and the credentials file are looked at: a wake from sleep has to be noticed within a second.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Says how long the machine has slept so far.
pub type SleptFor = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Where the agent learns how long the machine has slept.
#[derive(Clone, Default)]
pub enum SleepClock {
    /// The machine's clocks tell.
    #[default]
    Machine,
    /// A function tells, on the runtime's clock, so that tests can put an agent to sleep.
    Told(SleptFor),
}

impl SleepClock {
    /// How long the machine has slept so far.
    pub(super) fn slept_for(&self) -> Duration {
        match self {
            Self::Machine => platform::slept_for(),
            Self::Told(say) => say(),
        }
    }

    pub(super) fn ticks(&self) -> Ticks {
        match self {
            Self::Machine => {
                platform::Ticks::every(LOOK_AROUND).map_or_else(|_| Ticks::runtime(), Ticks::Machine)
            }
            Self::Told(_) => Ticks::runtime(),
        }
    }
}

/// One tick per second: the machine's, or the runtime's where a test holds its clock or the machine has none.
pub(super) enum Ticks {
    Machine(platform::Ticks),
    Runtime(Interval),
}

impl Ticks {
    fn runtime() -> Self {
        let mut ticks = interval(LOOK_AROUND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self::Runtime(ticks)
    }

    /// Waits for the next tick; missed ticks count as one.
    pub(super) async fn tick(&mut self) {
        match self {
            Self::Runtime(ticks) => drop(ticks.tick().await),
            Self::Machine(ticks) => ticks.tick().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn the_machine_ticks_once_a_second() {
        let began = Instant::now();
        let mut ticks = SleepClock::Machine.ticks();
        assert!(matches!(ticks, Ticks::Machine(_)));
        for _ in 0..3 {
            ticks.tick().await;
        }
        // A timer of the runtime ticks at once, and the second tick may have come late.
        assert!(began.elapsed() >= LOOK_AROUND, "{:?}", began.elapsed());
    }
}
