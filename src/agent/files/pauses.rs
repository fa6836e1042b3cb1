//! The owner's pauses in the home: a restart does not forget them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::write_atomically;
use crate::domain::{Pause, Pauses, ProviderName, UnixTime};

/// One line of the file's list: what was said last of one provider, or of all.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Missing for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    paused: bool,
    /// RFC 3339; missing where the pause does not end by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

/// The pauses, and the file that has them.
pub(in crate::agent) struct PauseFile {
    path: PathBuf,
    saved: Pauses,
}

impl PauseFile {
    /// Reads the file. One that cannot be read pauses everything: the owner paused something, and only the owner knows what.
    pub(in crate::agent) fn open(path: PathBuf) -> (Self, Pauses) {
        let pauses = read(&path).unwrap_or_else(|why| {
            let file = path.display();
            warn!("cannot read the pauses in {file}: {why}; everything is paused until `mcprelay resume`");
            Pauses { all: Some(Pause::default()), ..Pauses::default() }
        });
        (Self { path, saved: pauses.clone() }, pauses)
    }

    /// Writes the pauses, if they are not what was written last.
    pub(in crate::agent) fn save(&mut self, pauses: &Pauses) {
        if self.saved == *pauses {
            return;
        }
        self.saved.clone_from(pauses);
        if let Err(error) = self.write() {
            let file = self.path.display();
            warn!("cannot write {file}: {error}; a restart would forget what was paused or resumed last");
        }
    }

    fn write(&self) -> io::Result<()> {
        if self.saved == Pauses::default() {
            return fs::remove_file(&self.path).or_else(|e| match e.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            });
        }
        let all = self.saved.all.map(|pause| (None, Some(pause)));
        let names = self.saved.names.iter().map(|(name, pause)| (Some(name), *pause));
        let records: Vec<_> = all.into_iter().chain(names).map(|(name, pause)| record(name, pause)).collect();
        write_atomically(&self.path, &serde_json::to_vec_pretty(&records)?)
    }
}

fn record(name: Option<&ProviderName>, pause: Option<Pause>) -> Record {
    let until = pause.and_then(|pause| pause.until);
    Record {
        provider: name.map(|name| name.as_str().to_owned()),
        paused: pause.is_some(),
        until: until.map(|until| humantime::format_rfc3339(until.into()).to_string()),
    }
}

fn read(path: &Path) -> Result<Pauses, String> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pauses::default()),
        read => read.map_err(|error| error.to_string())?,
    };
    let records: Vec<Record> = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let mut pauses = Pauses::default();
    for Record { provider, paused, until } in records {
        let name = provider.as_deref().map(ProviderName::new).transpose();
        let until = until.as_deref().map(humantime::parse_rfc3339).transpose().map_err(|e| e.to_string())?;
        let pause = Pause { until: until.map(UnixTime::from) };
        pauses.set(name.map_err(|bad| format!("a name {bad}"))?, paused.then_some(pause));
    }
    Ok(pauses)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_saved_is_read_again() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mcprelay.pauses");
        let name = |text: &str| Some(ProviderName::new(text).unwrap());
        let (mut file, mut pauses) = PauseFile::open(path.clone());
        assert_eq!(pauses, Pauses::default());
        pauses.set(None, Some(Pause::default()));
        pauses.set(name("a\"b"), None);
        pauses.set(name("c"), Some(Pause { until: Some(UnixTime(1_800_000_000)) }));
        file.save(&pauses);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(PauseFile::open(path.clone()).1, pauses);
        file.save(&Pauses::default());
        assert!(!path.exists(), "nothing is paused, so there is nothing to keep");
    }

    #[test]
    fn a_file_that_cannot_be_read_pauses_everything() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mcprelay.pauses");
        for text in ["", "{}", r#"[{"paused":true,"until":"tomorrow"}]"#] {
            fs::write(&path, text).unwrap();
            assert_eq!(PauseFile::open(path.clone()).1.all, Some(Pause::default()), "{text}");
        }
    }
}
