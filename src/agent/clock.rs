//! How long the machine has slept, and the tick with which the hub checks it once a second.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{ClockId, clock_gettime},
    unistd::read,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Interval, MissedTickBehavior, interval},
};

/// How often the clocks and the credentials file are looked at: a wake from sleep has to be noticed within a second.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Says how long the machine has slept so far.
pub type SleptFor = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Where the agent learns how long the machine has slept.
#[derive(Clone, Default)]
pub enum SleepClock {
    /// CLOCK_BOOTTIME less CLOCK_MONOTONIC.
    #[default]
    Machine,
    /// A function tells, on the runtime's clock, so that tests can put an agent to sleep.
    Told(SleptFor),
}

impl SleepClock {
    /// How long the machine has slept so far.
    pub(super) fn slept_for(&self) -> Duration {
        match self {
            Self::Machine => {
                let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
                read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
            }
            Self::Told(say) => say(),
        }
    }

    pub(super) fn ticks(&self) -> Ticks {
        match self {
            Self::Machine => kernel_timer().map_or_else(|_| Ticks::runtime(), Ticks::Kernel),
            Self::Told(_) => Ticks::runtime(),
        }
    }
}

/// One tick per second. A timer of the runtime wakes the process two or three times per tick, as it moves through the timer wheel; a
/// timer of the kernel wakes it once, and immediately if the machine has slept past the tick.
pub(super) enum Ticks {
    Kernel(AsyncFd<OwnedFd>),
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
            Self::Kernel(timer) => {
                // The eight bytes count the ticks. An error would mean that it is not a timer, and one check too many does no harm.
                let _ =
                    timer.async_io(Interest::READABLE, |fd| read(fd, &mut [0; 8]).map_err(Into::into)).await;
            }
        }
    }
}

#[expect(deprecated, reason = "its successor is unsafe, and asks only for what an OwnedFd is")]
fn kernel_timer() -> std::io::Result<AsyncFd<OwnedFd>> {
    let timer = TimerFd::new(TimerClock::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    timer.set(Expiration::Interval(TimeSpec::from_duration(LOOK_AROUND)), TimerSetTimeFlags::empty())?;
    AsyncFd::with_interest(timer.into(), Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn the_kernels_timer_ticks_once_a_second() {
        let began = Instant::now();
        let mut ticks = SleepClock::Machine.ticks();
        assert!(matches!(ticks, Ticks::Kernel(_)));
        for _ in 0..2 {
            ticks.tick().await;
        }
        assert!(began.elapsed() >= 2 * LOOK_AROUND, "{:?}", began.elapsed());
    }
}
