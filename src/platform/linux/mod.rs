//! Linux: clocks and limits, and the ways that only its kernel has.

#[cfg(not(mcprelay_portable))]
pub(super) mod hangup;
#[cfg(not(mcprelay_portable))]
pub(super) mod ticks;
#[cfg(not(mcprelay_portable))]
pub(super) mod watch;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The most bytes a socket's path may have: `sun_path` (108 bytes, unix(7)) without its terminating NUL.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// How long the machine has slept since it started: only the first clock goes on in sleep (clock_gettime(2)).
pub(crate) fn slept_for() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}
