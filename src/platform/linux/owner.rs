//! What the owner's rules are about: power supplies in sysfs, and the sessions of logind.

use std::{
    fs, io,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use tokio::process::Command;

use crate::platform::ask;

/// Where the kernel shows batteries and mains (sysfs-class-power).
const SUPPLIES: &str = "/sys/class/power_supply";
/// Longer than any rule asks for: nobody is logged in.
const NOBODY: Duration = Duration::MAX;

/// Whether the machine runs on battery.
///
/// # Errors
/// Why that cannot be told.
pub(crate) async fn on_battery() -> Result<bool, String> {
    supplies_discharge(Path::new(SUPPLIES)).map_err(|error| format!("{SUPPLIES}: {error}"))
}

/// As systemd's ConditionACPower= has it: a battery of the machine discharges, and no mains is on. Without a battery it never does.
fn supplies_discharge(folder: &Path) -> io::Result<bool> {
    let supplies = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        supplies => supplies?,
    };
    let mut discharges = false;
    for supply in supplies {
        let supply = supply?.path();
        // A supply has only the files that it can fill; those of a mouse's battery say that it is a device's.
        let says = |file: &str| match fs::read_to_string(supply.join(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            text => text.map(|text| text.trim().to_owned()),
        };
        match &*says("type")? {
            "Mains" | "USB" if says("online")? == "1" => return Ok(false),
            "Battery" | "UPS" if says("scope")? != "Device" => discharges |= says("status")? == "Discharging",
            _ => {}
        }
    }
    Ok(discharges)
}

/// For how long nobody has used the machine, by the hints that the users' sessions give logind.
///
/// The sessions are asked one by one, because logind's own hint says "in use" while anybody, and so also this agent, keeps the
/// machine awake.
///
/// # Errors
/// Why that cannot be told.
pub(crate) async fn idle_for() -> Result<Duration, String> {
    let list = ask("loginctl", &["list-sessions", "--no-legend"]).await?;
    let ids: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if ids.is_empty() {
        return Ok(NOBODY);
    }
    let properties = ["show-session", "-p", "Class", "-p", "State", "-p", "IdleHint", "-p", "IdleSinceHint"];
    let shown = ask("loginctl", &[&properties[..], &ids].concat()).await?;
    idle_of_sessions(&shown, SystemTime::now())
}

/// Of sessions as `loginctl show-session` prints them, with an empty line between two.
fn idle_of_sessions(shown: &str, now: SystemTime) -> Result<Duration, String> {
    let mut idle = NOBODY;
    for session in shown.split("\n\n") {
        let says = |key: &str| session.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        // Neither a login screen nor a service manager is a user, and what is closing has no user any more.
        if says("Class").is_none_or(|class| !class.starts_with("user")) || says("State") == Some("closing") {
            continue;
        }
        idle = idle.min(match (says("IdleHint"), says("IdleSinceHint").map(str::parse)) {
            (Some("no"), _) => Duration::ZERO,
            (Some("yes"), Some(Ok(since))) => {
                let since = SystemTime::UNIX_EPOCH + Duration::from_micros(since);
                now.duration_since(since).unwrap_or_default()
            }
            _ => return Err("loginctl says nothing of idleness".to_owned()),
        });
    }
    Ok(idle)
}

/// What keeps the machine from sleeping of idleness for as long as it runs, never from a lid or an explicit suspend. It ends when it is
/// dropped, and also when this process is killed: `cat` reads a pipe that only this process holds open.
pub(crate) fn inhibitor() -> Command {
    let mut command = Command::new("systemd-inhibit");
    command.args(["--what=idle", "--mode=block", "--who=mcprelay", "--why=an inference is running", "cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as sysfs lays it out.
    fn on_battery(supplies: &[(&str, &[(&str, &str)])]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        for (name, files) in supplies {
            let supply = folder.path().join(name);
            fs::create_dir(&supply).unwrap();
            for (file, text) in *files {
                fs::write(supply.join(file), format!("{text}\n")).unwrap();
            }
        }
        supplies_discharge(folder.path()).unwrap()
    }

    #[test]
    fn a_laptop_is_on_battery_when_it_is_unplugged() {
        let battery = |status| ("BAT0", [("type", "Battery"), ("status", status)]);
        let mains = |online| ("AC", [("type", "Mains"), ("online", online)]);
        for (status, online, expected) in [
            ("Discharging", "0", true),
            ("Charging", "1", false),
            ("Discharging", "1", false),
            ("Not charging", "0", false),
        ] {
            let (battery, mains) = (battery(status), mains(online));
            assert_eq!(
                on_battery(&[(battery.0, &battery.1), (mains.0, &mains.1)]),
                expected,
                "{status} {online}"
            );
        }
    }

    #[test]
    fn a_machine_without_a_battery_of_its_own_is_never_on_battery() {
        assert!(!on_battery(&[]));
        let mouse = [("type", "Battery"), ("scope", "Device"), ("status", "Discharging")];
        assert!(!on_battery(&[("hidpp_battery_0", &mouse)]));
        assert!(!supplies_discharge(Path::new("/nonexistent/power_supply")).unwrap());
    }

    #[test]
    fn the_user_who_is_least_idle_counts() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let session = |class: &str, state: &str, idle: &str, since: u64| {
            format!("Class={class}\nState={state}\nIdleHint={idle}\nIdleSinceHint={since}\n")
        };
        let idle = |sessions: &[String]| idle_of_sessions(&sessions.join("\n"), now);
        let away = session("user", "active", "yes", 400_000_000);
        let greeter = session("greeter", "active", "no", 0);
        let closing = session("user", "closing", "no", 0);
        assert_eq!(idle(&[away.clone(), greeter, closing]), Ok(Duration::from_secs(600)));
        assert_eq!(idle(&[away, session("user", "online", "no", 0)]), Ok(Duration::ZERO));
        assert_eq!(idle(&[]), Ok(NOBODY));
        assert!(idle(&["Class=user\nState=active\n".to_owned()]).is_err());
    }
}
