//! The files: who may touch them, and whether config.json can be read.

use std::{
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use nix::unistd::Uid;
use serde_json::Value;

use crate::{cli::report::Finding, domain::counted};

/// Others than the owner.
const OTHERS: u32 = 0o077;
/// Others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;

/// The folder of everything.
pub(super) fn home(home: &Path) -> Vec<Finding> {
    let shown = home.display();
    let Ok(metadata) = fs::metadata(home) else {
        return vec![Finding::failure(
            "home",
            format!("{shown} is not there or not yours to see"),
            "log in with mcpctl, or pass --home",
        )];
    };
    if !metadata.is_dir() {
        return vec![Finding::failure("home", format!("{shown} is no folder"), "pass another --home")];
    }
    let mode = metadata.mode() & 0o7777;
    let mut findings: Vec<_> = foreign("home", home, &metadata).into_iter().collect();
    findings.push(match mode & OTHERS_WRITE {
        0 => Finding::ok("home", format!("{shown}, mode {mode:04o}")),
        _ => Finding::warning(
            "home",
            format!("{shown} has mode {mode:04o}, so others may replace the files in it"),
            format!("chmod 700 {shown}"),
        ),
    });
    findings
}

/// A file that holds a secret or an identity; nothing where there is none.
pub(super) fn secret(path: &Path, subject: &str) -> Option<Finding> {
    let metadata = fs::metadata(path).ok()?;
    let (shown, mode) = (path.display(), metadata.mode() & 0o7777);
    Some(foreign(subject, path, &metadata).unwrap_or_else(|| match mode & OTHERS {
        0 => Finding::ok(subject, format!("{shown}, mode {mode:04o}")),
        _ => Finding::warning(subject, format!("{shown} has mode {mode:04o}"), format!("chmod 600 {shown}")),
    }))
}

fn foreign(subject: &str, path: &Path, metadata: &Metadata) -> Option<Finding> {
    let (owner, me) = (metadata.uid(), Uid::effective().as_raw());
    let message = format!("{} belongs to user {owner}, and you are user {me}", path.display());
    (owner != me).then(|| Finding::warning(subject, message, "run as the owner, or pass your own --home"))
}

/// Whether a socket lies there.
pub(super) fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// A socket that is served.
pub(super) fn socket(path: &Path) -> Finding {
    let mode = fs::metadata(path).map(|metadata| metadata.mode() & 0o777).unwrap_or_default();
    let message = format!("an agent serves {}, mode {mode:04o}", path.display());
    match mode & OTHERS {
        0 => Finding::ok("socket", message),
        _ => Finding::warning(
            "socket",
            message,
            "start the agent without --socket-mode, unless containers need it",
        ),
    }
}

/// The provider host's file, parsed; null where it cannot be.
pub(super) fn config(path: &Path) -> (Value, Finding) {
    let shown = path.display();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!("there is no {shown}; fine where mcplocal brings its own providers");
            return (Value::Null, Finding::ok("config.json", message));
        }
        Err(error) => {
            let message = format!("{shown} cannot be read ({error})");
            return (
                Value::Null,
                Finding::failure("config.json", message, "make it a file that you may read"),
            );
        }
    };
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(config) => {
            let finding = opted_in(path, &config);
            (config, finding)
        }
        Err(error) => {
            let message = format!("{shown} is not JSON at line {}, column {}", error.line(), error.column());
            (Value::Null, Finding::failure("config.json", message, "mend it there"))
        }
    }
}

fn opted_in(path: &Path, config: &Value) -> Finding {
    let all = config.pointer("/llm/providers").and_then(Value::as_array).map_or(0, Vec::len);
    let published = super::providers::published(config).len();
    let message = format!("{}: {}, {published} opted in", path.display(), counted(all, "provider"));
    match (all, published) {
        (1.., 0) => Finding::warning("config.json", message, "set \"publish\": true on those to share"),
        _ => Finding::ok("config.json", message),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cli::report::Level;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    }

    #[test]
    fn a_home_that_others_may_write_is_a_warning_and_a_missing_one_a_failure() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        chmod(folder.path(), 0o755);
        assert_eq!(home(folder.path())[0].result, Level::Ok);
        chmod(folder.path(), 0o775);
        assert_eq!(home(folder.path())[0].result, Level::Warning);
        assert_eq!(home(&folder.path().join("none"))[0].result, Level::Failure);
    }

    #[test]
    fn a_session_file_that_others_may_read_is_a_warning() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("provider-session");
        assert_eq!(secret(&path, "provider-session"), None);
        fs::write(&path, "id").expect("writes");
        chmod(&path, 0o644);
        assert_eq!(secret(&path, "provider-session").expect("there").result, Level::Warning);
        chmod(&path, 0o600);
        assert_eq!(secret(&path, "provider-session").expect("there").result, Level::Ok);
    }

    #[test]
    fn a_broken_config_is_a_failure_with_its_place_and_one_that_opts_nothing_in_a_warning() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.json");
        assert_eq!(config(&path).1.result, Level::Ok);
        fs::write(&path, "{\n]").expect("writes");
        let finding = config(&path).1;
        assert!(
            finding.result == Level::Failure && finding.message.ends_with("at line 2, column 1"),
            "{finding:?}"
        );
        fs::write(&path, r#"{"llm":{"providers":[{"name":"a"}]}}"#).expect("writes");
        assert_eq!(config(&path).1.result, Level::Warning);
    }
}
