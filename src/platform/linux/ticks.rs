//! The tick of the kernel's timer (timerfd_create(2)).

use std::{io, os::fd::OwnedFd, time::Duration};

use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    unistd::read,
};
use tokio::io::{Interest, unix::AsyncFd};

/// One tick per period. A timer of the runtime wakes the process two or three times per tick, as it moves through the timer wheel; a
/// timer of the kernel wakes it once, and immediately if the machine has slept past the tick.
pub(crate) struct Ticks(AsyncFd<OwnedFd>);

impl Ticks {
    /// # Errors
    /// If the kernel has no timer for us.
    #[expect(deprecated, reason = "its successor is unsafe, and asks only for what an OwnedFd is")]
    pub(crate) fn every(period: Duration) -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::Interval(TimeSpec::from_duration(period)), TimerSetTimeFlags::empty())?;
        Ok(Self(AsyncFd::with_interest(timer.into(), Interest::READABLE)?))
    }

    /// Waits for the next tick; missed ticks count as one.
    pub(crate) async fn tick(&mut self) {
        // The eight bytes count the ticks. An error would mean that it is not a timer, and one tick too many does no harm.
        let _ = self.0.async_io(Interest::READABLE, |fd| read(fd, &mut [0; 8]).map_err(Into::into)).await;
    }
}
