//! Linux: clocks and limits, and the ways that only its kernel has.

#[cfg(not(mcprelay_portable))]
pub(super) mod hangup;
pub(super) mod owner;
#[cfg(not(mcprelay_portable))]
pub(super) mod ticks;
#[cfg(not(mcprelay_portable))]
pub(super) mod watch;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::ServiceManager;

/// Who starts a user's services.
pub(crate) const SERVICE_MANAGER: ServiceManager = ServiceManager::Systemd;

/// The most bytes a socket's path may have: `sun_path` (108 bytes, unix(7)) without its terminating NUL.
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// How long the machine has slept since it started: only the first clock goes on in sleep (clock_gettime(2)).
pub(crate) fn slept_for() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

/// The command that restarts process `pid`, if systemd runs it: its control group names the unit (proc(5), cgroups(7)).
pub(crate) fn restart_command(pid: u32) -> Option<String> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(restart_of_group)
}

fn restart_of_group(line: &str) -> Option<String> {
    let (above, unit) = line.rsplit_once('/')?;
    let name = unit.strip_suffix(".service").filter(|name| name.starts_with("mcprelay"))?;
    let user = if above.contains("/user@") { "--user " } else { "" };
    Some(format!("systemctl {user}restart {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_process_is_restarted_by_the_systemd_that_runs_it() {
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/mcprelay.service";
        assert_eq!(restart_of_group(user).as_deref(), Some("systemctl --user restart mcprelay"));
        let system = "0::/system.slice/mcprelay.service";
        assert_eq!(restart_of_group(system).as_deref(), Some("systemctl restart mcprelay"));
        for other in ["0::/user.slice/user-1000.slice/session-2.scope", "0::/", ""] {
            assert_eq!(restart_of_group(other), None, "{other}");
        }
    }
}
