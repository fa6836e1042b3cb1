//! The files: who may touch them, and whether config.json can be read.

use std::{
    fs::{self, Metadata},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use nix::unistd::Uid;

use crate::{
    cli::report::Finding,
    credentials::{OTHERS, OTHERS_WRITE, read_small},
    domain::counted,
    provide::config_file::{self, Parsed},
};

/// The home folder.
pub(super) fn home(home: &Path) -> Vec<Finding> {
    let shown = home.display();
    let Ok(metadata) = fs::metadata(home) else {
        return vec![Finding::failure(
            "home",
            format!("{shown} does not exist, or you may not look into it"),
            format!("make it (mkdir -m 700 {shown}), log in with mcpctl, or pass another --home"),
        )];
    };
    if !metadata.is_dir() {
        return vec![Finding::failure("home", format!("{shown} is not a folder"), "pass another --home")];
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
    findings.extend(writable(home).err().map(|error| {
        Finding::warning(
            "home",
            format!("nothing can be written to {shown} ({error})"),
            "free some space or make it writable: until then an agent that crashes leaves its callers waiting, and one that \
             starts again gets new rows",
        )
    }));
    findings
}

/// Whether the home takes a small file, which is gone again at once: a disk may be full or read-only.
fn writable(home: &Path) -> std::io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".mcprelay-doctor-").tempfile_in(home)?;
    file.write_all(&[b'\n'; 4096])?;
    file.as_file().sync_all()
}

/// A file that holds a secret or an identity; no finding if there is none.
pub(super) fn secret(path: &Path, subject: &str) -> Option<Finding> {
    let metadata = fs::metadata(path).ok()?;
    let (shown, mode) = (path.display(), metadata.mode() & 0o7777);
    if !metadata.is_file() {
        return Some(Finding::warning(subject, format!("{shown} is not a file"), "move it away"));
    }
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

/// The provider host's file as the host reads it; without entries if it cannot be read.
pub(super) fn config(path: &Path) -> (Parsed, Vec<Finding>) {
    let nothing = |finding| (Parsed::default(), vec![finding]);
    let shown = path.display();
    let bytes = match read_small(path) {
        Ok((_, bytes)) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message =
                format!("there is no {shown}, which is fine where mcplocal brings its own providers");
            return nothing(Finding::ok("config.json", message));
        }
        Err(error) => {
            let message = format!("{shown} cannot be read ({error})");
            return nothing(Finding::failure("config.json", message, "make it a file that you may read"));
        }
    };
    match config_file::parse(&bytes) {
        Ok(parsed) => {
            let findings =
                std::iter::once(opted_in(path, &parsed)).chain(parsed.warnings.iter().map(skipped));
            let findings = findings.collect();
            (parsed, findings)
        }
        Err(broken) => {
            let message = format!("{shown} is not JSON at {broken}");
            nothing(Finding::failure("config.json", message, "correct it there"))
        }
    }
}

fn opted_in(path: &Path, config: &Parsed) -> Finding {
    let (all, published) =
        (config.entries.len(), config.entries.iter().filter(|entry| entry.publish).count());
    let message = format!("{}: {}, {published} opted in", path.display(), counted(all, "provider"));
    match (all, published) {
        (1.., 0) => Finding::warning("config.json", message, "set \"publish\": true on those to share"),
        _ => Finding::ok("config.json", message),
    }
}

/// Something in the file that the host skips or ignores.
fn skipped(warning: &config_file::Warning) -> Finding {
    Finding::warning("config.json", warning.to_string(), "correct it there")
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
        let found = |text: &str| {
            fs::write(&path, text).expect("writes");
            config(&path).1
        };
        assert_eq!(config(&path).1[0].result, Level::Ok);
        let broken = found("{\n]");
        assert!(
            broken[0].result == Level::Failure && broken[0].message.contains("at line 2, column 1"),
            "{broken:?}"
        );
        assert_eq!(found(r#"{"llm":{"providers":[{"name":"a","type":"echo"}]}}"#)[0].result, Level::Warning);
    }

    #[test]
    fn an_entry_that_the_host_skips_is_a_warning_with_its_place() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.json");
        let text =
            r#"{"llm":{"providers":[{"name":"a","type":"echo","publish":true},{"name":"b","type":"tea"}]}}"#;
        fs::write(&path, text).expect("writes");
        let (parsed, findings) = config(&path);
        assert_eq!(parsed.entries.len(), 1);
        let results: Vec<_> = findings.iter().map(|finding| finding.result).collect();
        assert_eq!(results, [Level::Ok, Level::Warning]);
        assert!(
            findings[1].message.starts_with("llm.providers[1]: (b) has the unknown type"),
            "{findings:?}"
        );
    }
}
