//! What differs between operating systems, and nothing else: how long the machine has slept, a tick once a second, what changes a file,
//! whether SIGHUP is ignored, how long a socket's path may be, and who starts services.
//!
//! Linux has ways of its own for the middle three (`linux`); macOS takes those that POSIX has (`portable`). Where the variable
//! `MCPRELAY_PORTABLE` is 1 during the build, Linux takes them too, so that they are tested without a Mac. What then remains untested are
//! the few lines of `macos`.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(any(target_os = "macos", mcprelay_portable))]
mod portable;

#[cfg(target_os = "linux")]
pub(crate) use linux::{MAX_SOCKET_PATH_BYTES, SERVICE_MANAGER, restart_command, slept_for};
#[cfg(all(target_os = "linux", not(mcprelay_portable)))]
pub(crate) use linux::{hangup::is_ignored as ignores_hangup, ticks::Ticks, watch::FileWatch};
#[cfg(target_os = "macos")]
pub(crate) use macos::{MAX_SOCKET_PATH_BYTES, SERVICE_MANAGER, restart_command, slept_for};
#[cfg(any(target_os = "macos", mcprelay_portable))]
pub(crate) use portable::{hangup::is_ignored as ignores_hangup, ticks::Ticks, watch::FileWatch};

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("mcprelay runs on Linux and macOS; on Windows, build and run it in WSL 2");

/// Who starts a user's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceManager {
    Systemd,
    Launchd,
}

#[cfg(test)]
mod tests;
