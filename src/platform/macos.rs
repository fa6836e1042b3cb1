//! macOS: clocks and limits.

pub(super) mod owner;

use std::time::Duration;

use nix::{
    libc,
    time::{ClockId, clock_gettime},
};

use super::ServiceManager;

/// Who starts a user's services.
pub(crate) const SERVICE_MANAGER: ServiceManager = ServiceManager::Launchd;

/// The most bytes a socket's path may have: `sun_path` (104 bytes, unix(4) and `<sys/un.h>`) without its terminating NUL.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 103;

/// How long the machine has slept since it started. clock_gettime(3): CLOCK_MONOTONIC_RAW "will continue to increment while the system is
/// asleep", and CLOCK_UPTIME_RAW "increments monotonically, in the same manner as CLOCK_MONOTONIC_RAW, but that does not increment while
/// the system is asleep".
pub(crate) fn slept_for() -> Duration {
    let read = |clock| clock_gettime(ClockId::from_raw(clock)).map_or(Duration::ZERO, Duration::from);
    read(libc::CLOCK_MONOTONIC_RAW).saturating_sub(read(libc::CLOCK_UPTIME_RAW))
}

/// launchd's agents come from `mcprelay service install`, which restarts what it replaces; another supervisor is not known here.
pub(crate) fn restart_command(_pid: u32) -> Option<String> {
    None
}
