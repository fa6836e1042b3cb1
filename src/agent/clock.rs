//! The machine's sleep, and the look at it once a second.

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
    /// Somebody says it, on the runtime's clock, so that tests can put an agent to sleep.
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

/// A tick a second. The runtime's own timers wake the process two or three times for one, on their way through its wheel; the
/// kernel's wakes it once, and at once when the machine has slept past it.
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

    /// Waits for the next one; those that were missed are one.
    pub(super) async fn tick(&mut self) {
        match self {
            Self::Runtime(ticks) => drop(ticks.tick().await),
            Self::Kernel(timer) => {
                // Eight bytes that count the ticks; an error would be a timer that is none, and the look that follows harms nobody.
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
