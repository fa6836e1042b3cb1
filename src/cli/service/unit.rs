//! The service's file, for systemd (systemd.service(5)) and for launchd (launchd.plist(5)).

use std::path::Path;

use crate::{cli::Stop, platform::ServiceManager};

/// Our unit for a user; the Debian package has it as it is.
const SYSTEMD_UNIT: &str = include_str!("../../../packaging/systemd/user/mcprelay.service");
/// The line of it that names the program.
const EXEC_START: &str = "ExecStart=/usr/bin/mcprelay run";
/// Says that a file is ours to replace and to remove.
pub(super) const MARK: &str = "Written by `mcprelay service install`";
/// launchd's name for the service.
pub(super) const LABEL: &str = "com.mcpctl.mcprelay";

/// What the service runs.
pub(super) struct Unit<'a> {
    pub(super) program: &'a Path,
    pub(super) home: &'a Path,
    pub(super) provide: bool,
}

impl Unit<'_> {
    /// The file's text.
    pub(super) fn text(&self, manager: ServiceManager) -> Result<String, Stop> {
        let mut command = vec![utf8(self.program)?, "run", "--home", utf8(self.home)?];
        command.extend(self.provide.then_some("--provide"));
        Ok(match manager {
            ServiceManager::Systemd => systemd(&command)?,
            ServiceManager::Launchd => launchd(&command, self.home),
        })
    }
}

fn utf8(path: &Path) -> Result<&str, Stop> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.ok_or_else(|| cannot_name(&path.display().to_string()))
}

fn cannot_name(path: &str) -> Stop {
    Stop::Usage(format!("a service's file cannot name {path}: pass another --home (MCPRELAY_HOME)"))
}

fn systemd(command: &[&str]) -> Result<String, Stop> {
    let [program, arguments @ ..] = command else { unreachable!("a command has a program") };
    // "Executable name contains special characters", it would say, and not start.
    if program.contains(['"', '\'', '\\']) {
        return Err(cannot_name(program));
    }
    // Variables are put into arguments only.
    let arguments = arguments.iter().map(|word| word.replace('$', "$$"));
    let words: Vec<_> = [(*program).to_owned()].into_iter().chain(arguments).map(systemd_word).collect();
    let unit = SYSTEMD_UNIT.replace(EXEC_START, &format!("ExecStart={}", words.join(" ")));
    Ok(format!("# {MARK}; `mcprelay service uninstall` removes it.\n#\n{unit}"))
}

/// A word of a command line: specifiers (`%`) are doubled, and quotes go around anything unusual.
fn systemd_word(word: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,=".contains(c);
    if word.chars().all(plain) {
        return word;
    }
    let escaped = word.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%");
    format!("\"{escaped}\"")
}

/// `ExitTimeOut` is longer than the 120 s of `--drain-timeout`, as in the systemd unit; `Umask` is 077 as a decimal number.
fn launchd(command: &[&str], home: &Path) -> String {
    let words: String = command.iter().map(|word| format!("\n    <string>{}</string>", xml(word))).collect();
    let log = xml(&log_file(home).display().to_string());
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<!-- {MARK}; `mcprelay service uninstall` removes it. -->
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>{LABEL}</string>
  <key>ProgramArguments</key>
  <array>{words}
  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key>
    <false/>
  </dict>
  <key>ThrottleInterval</key>
  <integer>5</integer>
  <key>ExitTimeOut</key>
  <integer>150</integer>
  <key>Umask</key>
  <integer>63</integer>
  <key>StandardErrorPath</key>
  <string>{log}</string>
</dict>
</plist>
"#
    )
}

/// Where launchd puts what the agent logs.
pub(super) fn log_file(home: &Path) -> std::path::PathBuf {
    home.join("mcprelay.log")
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(home: &str, manager: ServiceManager) -> String {
        let program = Path::new(home).join("bin/mcprelay");
        Unit { program: &program, home: Path::new(home), provide: true }.text(manager).unwrap()
    }

    #[test]
    fn systemds_unit_starts_the_copy_in_the_home_whatever_its_path() {
        let plain = text("/home/u/.mcpctl", ServiceManager::Systemd);
        let start = "\nExecStart=/home/u/.mcpctl/bin/mcprelay run --home /home/u/.mcpctl --provide\n";
        assert!(plain.contains(start) && plain.contains(MARK), "{plain}");
        let odd = text("/home/my 100% $HOME", ServiceManager::Systemd);
        let start = r#"ExecStart="/home/my 100%% $HOME/bin/mcprelay" run --home "/home/my 100%% $$HOME""#;
        assert!(odd.contains(start), "{odd}");
    }

    #[test]
    fn launchds_agent_has_the_same_command_and_escapes_it() {
        let agent = text("/Users/a & b/<x>", ServiceManager::Launchd);
        let words = "<string>/Users/a &amp; b/&lt;x&gt;/bin/mcprelay</string>\n    <string>run</string>";
        assert!(agent.contains(words) && agent.contains("<string>--provide</string>"), "{agent}");
    }

    #[test]
    fn a_path_that_systemd_cannot_start_or_that_would_begin_another_line_is_refused() {
        for home in ["/h\nExecStartPre=/bin/evil", "/say \"x\"", r"/a\b"] {
            let program = Path::new(home).join("bin/mcprelay");
            let unit = Unit { program: &program, home: Path::new(home), provide: false };
            assert!(matches!(unit.text(ServiceManager::Systemd), Err(Stop::Usage(_))), "{home}");
        }
    }
}
