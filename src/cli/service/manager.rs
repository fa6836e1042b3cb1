//! The service managers: where their files are, and the commands that they understand.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nix::unistd::getuid;

use super::unit::{LABEL, log_file};
use crate::{cli::Stop, config::Lookup, platform::ServiceManager};

/// systemd's name for the service.
const UNIT: &str = "mcprelay.service";

/// The service manager of the user who runs the command.
pub(super) struct Manager {
    pub(super) kind: ServiceManager,
    file: PathBuf,
}

impl Manager {
    /// Calls nobody.
    pub(super) fn of(kind: ServiceManager, env: Lookup<'_>) -> Result<Self, Stop> {
        let folder = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let no_home =
            || Stop::Usage("HOME is not set, so there is no place for the service's files".to_owned());
        let home = folder("HOME").ok_or_else(no_home)?;
        let file = match kind {
            ServiceManager::Systemd => {
                let config = folder("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
                config.join("systemd/user").join(UNIT)
            }
            ServiceManager::Launchd => home.join(format!("Library/LaunchAgents/{LABEL}.plist")),
        };
        Ok(Self { kind, file })
    }

    /// The service's file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Fails where the user has no service manager that can be talked to, as in most containers.
    pub(super) fn is_there(&self) -> Result<(), Stop> {
        match self.kind {
            ServiceManager::Systemd => systemctl(&["show-environment"]),
            ServiceManager::Launchd => launchctl(&["print", &domain()]),
        }
        .map_err(|why| {
            Stop::Failed(format!(
                "there is no service manager for you here ({why}): let your own supervisor start `mcprelay run`, \
                 and see `mcprelay service print`"
            ))
        })
    }

    /// Starts the service from its file, now and at every login; one that runs is restarted, which waits for its drain.
    pub(super) fn start(&self) -> Result<(), Stop> {
        match self.kind {
            ServiceManager::Systemd => systemctl(&["daemon-reload"])
                .and_then(|()| systemctl(&["enable", UNIT]))
                .and_then(|()| systemctl(&["restart", UNIT])),
            ServiceManager::Launchd => {
                // It is not there the first time.
                let _ = launchctl(&["bootout", &service()]);
                launchctl(&["bootstrap", &domain(), &self.file.display().to_string()])
            }
        }
        .map_err(|why| Stop::Failed(format!("the service does not start ({why}): see its log")))
    }

    /// Stops the service for good, which waits for its drain.
    pub(super) fn stop(&self) -> Result<(), Stop> {
        match self.kind {
            ServiceManager::Systemd => systemctl(&["disable", "--now", UNIT]),
            ServiceManager::Launchd if self.state() == "inactive" => Ok(()),
            ServiceManager::Launchd => launchctl(&["bootout", &service()]),
        }
        .map_err(|why| Stop::Failed(format!("the service does not stop ({why}): nothing was removed")))
    }

    /// After its file is gone.
    pub(super) fn forget(&self) {
        if matches!(self.kind, ServiceManager::Systemd) {
            // It forgets the file at the next login, if not now.
            let _ = systemctl(&["daemon-reload"]);
        }
    }

    /// `active` if it runs; else the manager's own word.
    pub(super) fn state(&self) -> String {
        match self.kind {
            ServiceManager::Systemd => {
                let said = Command::new("systemctl").args(["--user", "is-active", UNIT]).output();
                let said = said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
                said.ok().filter(|word| !word.is_empty()).unwrap_or_else(|| "unknown".to_owned())
            }
            ServiceManager::Launchd => {
                let active = launchctl(&["print", &service()]).is_ok();
                if active { "active" } else { "inactive" }.to_owned()
            }
        }
    }

    /// The command that shows the log.
    pub(super) fn log(&self, home: &Path) -> String {
        match self.kind {
            ServiceManager::Systemd => "journalctl --user -u mcprelay".to_owned(),
            ServiceManager::Launchd => format!("tail -f {}", log_file(home).display()),
        }
    }

    /// What keeps the service running while its user is logged out.
    pub(super) fn without_login(&self) -> Option<&'static str> {
        matches!(self.kind, ServiceManager::Systemd).then_some("loginctl enable-linger")
    }
}

/// The user's part of launchd (launchctl(1)); services need somebody who is logged in at the screen.
fn domain() -> String {
    format!("gui/{}", getuid())
}

fn service() -> String {
    format!("{}/{LABEL}", domain())
}

fn systemctl(args: &[&str]) -> Result<(), String> {
    call(Command::new("systemctl").arg("--user").args(args))
}

fn launchctl(args: &[&str]) -> Result<(), String> {
    call(Command::new("launchctl").args(args))
}

/// The last line of what it complains about, if it fails.
fn call(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let Output { status, stderr, .. } = command.output().map_err(|error| format!("{name}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&stderr);
    let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Err(format!("{name}: {}", said.trim()))
}
