//! What the owner's rules are about, as macOS's own programs print it.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use crate::platform::ask;

/// Whether the machine runs on battery.
///
/// # Errors
/// Why that cannot be told.
pub(crate) async fn on_battery() -> Result<bool, String> {
    battery_in(&ask("pmset", &["-g", "batt"]).await?)
}

fn battery_in(said: &str) -> Result<bool, String> {
    let source = said.split('\'').nth(1).ok_or("pmset does not say what the machine draws from")?;
    Ok(source != "AC Power")
}

/// For how long nobody has used keyboard or mouse.
///
/// # Errors
/// Why that cannot be told.
pub(crate) async fn idle_for() -> Result<Duration, String> {
    idle_in(&ask("ioreg", &["-r", "-d", "1", "-c", "IOHIDSystem"]).await?)
}

fn idle_in(said: &str) -> Result<Duration, String> {
    let line = said.lines().find(|line| line.contains("\"HIDIdleTime\""));
    let nanos = line.and_then(|line| line.rsplit('=').next()?.trim().parse().ok());
    nanos.map(Duration::from_nanos).ok_or_else(|| "ioreg says nothing of HIDIdleTime".to_owned())
}

/// What keeps the machine from sleeping of idleness for as long as it runs, never from a lid or an explicit sleep. It ends when it is
/// dropped, and also when this process is killed, which it watches.
pub(crate) fn inhibitor() -> Command {
    let mut command = Command::new("caffeinate");
    command.args(["-i", "-w", &std::process::id().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pmset_and_ioreg_are_understood() {
        let battery = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4653155)\t85%; discharging; 4:11 remaining present: true\n";
        assert_eq!(battery_in(battery), Ok(true));
        assert_eq!(battery_in("Now drawing from 'AC Power'\n"), Ok(false), "a desktop says no more");
        assert!(battery_in("").is_err());
        let ioreg = "+-o IOHIDSystem  <class IOHIDSystem>\n    {\n      \"HIDIdleTime\" = 61000000000\n      \"HIDParameters\" = {\"a\"=1}\n    }\n";
        assert_eq!(idle_in(ioreg), Ok(Duration::from_secs(61)));
        assert!(idle_in("").is_err());
    }
}
