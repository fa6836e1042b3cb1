//! Versions: an agent that is older than the program that talks to it has not been restarted after an upgrade.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{domain::Printable, pb::WatchStatusResponse, platform};

/// This program's.
const OWN: &str = env!("CARGO_PKG_VERSION");

/// Why and how the agent should be restarted, if it is older than this program: a half sentence each.
pub(super) fn outdated(status: &WatchStatusResponse, home: &Path) -> Option<(String, String)> {
    let theirs = &status.agent_version;
    let older = number(theirs)? < number(OWN)?;
    let why = format!("the agent is {}, older than this program, {OWN}", Printable(theirs));
    older.then(|| (why, restart(status.pid, home)))
}

/// What restarts the agent with its program's newest version.
fn restart(pid: u32, home: &Path) -> String {
    if installed_program(home).exists() {
        return "run `mcprelay service install` again, which replaces and restarts it".to_owned();
    }
    match platform::restart_command(pid) {
        Some(command) => format!("run `{command}`"),
        None => format!("stop it with `kill {pid}`, and start `mcprelay run` again"),
    }
}

/// What a program on this machine says about itself: `0.1.0`.
pub(super) fn of_program(program: &Path) -> Option<String> {
    let said = Command::new(program).arg("--version").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    Some(said.trim().rsplit(' ').next()?.to_owned())
}

/// Major, minor and patch; what follows a `-` or `+` is not compared.
fn number(version: &str) -> Option<[u64; 3]> {
    let plain = version.split(['-', '+']).next()?;
    let parts: Vec<_> = plain.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    parts.try_into().ok()
}

/// The copy of the program that `service install` puts into a home.
pub(super) fn installed_program(home: &Path) -> PathBuf {
    home.join("bin/mcprelay")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outdated_at(version: &str) -> Option<(String, String)> {
        let status = WatchStatusResponse { agent_version: version.into(), pid: 7, ..Default::default() };
        outdated(&status, Path::new("/nonexistent"))
    }

    #[test]
    fn only_an_agent_older_than_this_program_is_outdated_and_is_told_how_to_restart() {
        let (why, what) = outdated_at("0.0.9").expect("older");
        assert_eq!(why, format!("the agent is 0.0.9, older than this program, {OWN}"));
        assert_eq!(what, "stop it with `kill 7`, and start `mcprelay run` again");
        for other in [OWN, "10.0.0", "99.1.2-rc1", "", "nonsense"] {
            assert_eq!(outdated_at(other), None, "{other}");
        }
    }

    #[test]
    fn an_installed_service_is_replaced_rather_than_only_restarted() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("bin")).unwrap();
        std::fs::write(installed_program(home.path()), "").unwrap();
        assert!(restart(7, home.path()).contains("mcprelay service install"));
    }
}
