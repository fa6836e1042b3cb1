//! What differs between operating systems, and nothing else: how long the machine has slept, a tick once a second, what changes a file,
//! whether SIGHUP is ignored, how long a socket's path may be, and who starts services.
//!
//! Linux has ways of its own for the middle three (`linux`); macOS takes those that POSIX has (`portable`). Where the variable
//! `MCPRELAY_PORTABLE` is 1 during the build, Linux takes them too, so that they are tested without a Mac. What then remains untested are
//! the few lines of `macos`.

use std::{process::Stdio, time::Duration};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(all(test, not(target_os = "macos")))]
#[path = "macos/owner.rs"]
#[expect(dead_code, reason = "only its parsers are tested here")]
mod macos_owner;
#[cfg(any(target_os = "macos", mcprelay_portable))]
mod portable;

#[cfg(target_os = "linux")]
pub(crate) use linux::{
    MAX_SOCKET_PATH_BYTES, SERVICE_MANAGER,
    owner::{idle_for, inhibitor, on_battery},
    restart_command, slept_for,
};
#[cfg(all(target_os = "linux", not(mcprelay_portable)))]
pub(crate) use linux::{hangup::is_ignored as ignores_hangup, ticks::Ticks, watch::FileWatch};
#[cfg(target_os = "macos")]
pub(crate) use macos::{
    MAX_SOCKET_PATH_BYTES, SERVICE_MANAGER,
    owner::{idle_for, inhibitor, on_battery},
    restart_command, slept_for,
};
#[cfg(any(target_os = "macos", mcprelay_portable))]
pub(crate) use portable::{hangup::is_ignored as ignores_hangup, ticks::Ticks, watch::FileWatch};

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("mcprelay runs on Linux and macOS; on Windows, build and run it in WSL 2");

/// How long a program of the system may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Who starts a user's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceManager {
    Systemd,
    Launchd,
}

/// What a program of the system prints.
///
/// # Errors
/// If it cannot be started, takes too long or fails: which program, and why.
async fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let said = tokio::time::timeout(ANSWER, command.output()).await;
    let said = said.map_err(|_| format!("{program} does not answer"))?;
    let said = said.map_err(|error| format!("cannot run {program}: {error}"))?;
    if !said.status.success() {
        let why = String::from_utf8_lossy(&said.stderr);
        return Err(format!("{program} fails: {}", why.lines().next().unwrap_or_default()));
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

#[cfg(test)]
mod tests;
