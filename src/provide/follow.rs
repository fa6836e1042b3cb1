//! Following config.json, whatever an editor does to it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use super::config_file::{self, Entry};
use crate::{credentials::read_small, domain::counted, platform::FileWatch};

/// How long a file must be left alone before it is read, so that the several steps of an editor are one change.
const QUIET: Duration = Duration::from_millis(200);
/// After how many such periods a file that is written without pause is read nevertheless.
const QUIET_AT_MOST: u32 = 5;

/// The entries of the file, in its order.
pub(super) type Entries = Arc<[Entry]>;

/// Reads `file` and follows it from then on; ends when nobody holds the receiver any more.
pub(super) async fn follow(file: PathBuf) -> watch::Receiver<Entries> {
    let file = std::path::absolute(&file).unwrap_or(file);
    let changes = FileWatch::new(&file);
    let mut follower = Follower { file, changes, last: None, entries: Entries::default() };
    follower.refresh().await;
    let (publish, entries) = watch::channel(follower.entries.clone());
    tokio::spawn(follower.run(publish));
    entries
}

/// What the file was when it was read.
#[derive(PartialEq, Eq)]
enum Read {
    Text(Vec<u8>),
    Missing,
    Unreadable(String),
}

struct Follower {
    file: PathBuf,
    changes: FileWatch,
    /// What was last read, so that touching the file does not count as a change.
    last: Option<Read>,
    entries: Entries,
}

impl Follower {
    async fn run(mut self, publish: watch::Sender<Entries>) {
        loop {
            tokio::select! {
                () = self.changed() => {}
                () = publish.closed() => return,
            }
            for _ in 0..QUIET_AT_MOST {
                if timeout(QUIET, self.changed()).await.is_err() {
                    break;
                }
            }
            self.refresh().await;
            publish.send_if_modified(|current| {
                let modified = *current != self.entries;
                current.clone_from(&self.entries);
                modified
            });
        }
    }

    /// Waits until the file may have changed.
    async fn changed(&mut self) {
        if let Err(error) = self.changes.changed().await {
            tracing::warn!(
                "config.json is not followed any more: {error}; restart the provider host after a change"
            );
        }
    }

    /// First watches, then reads, so that a change between the two is not missed.
    async fn refresh(&mut self) {
        if let Err(error) = self.changes.renew().await {
            let file = self.file.display();
            tracing::warn!("cannot follow {file}: {error}; restart the provider host after a change");
        }
        let file = self.file.clone();
        let read = match tokio::task::spawn_blocking(move || read_small(&file)).await {
            Ok(Ok((_, text))) => Read::Text(text),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Read::Missing,
            Ok(Err(error)) => Read::Unreadable(error.to_string()),
            Err(error) => Read::Unreadable(error.to_string()),
        };
        if self.last.as_ref() != Some(&read) {
            self.take(&read);
            self.last = Some(read);
        }
    }

    fn take(&mut self, read: &Read) {
        let file = self.file.display();
        match read {
            Read::Text(text) => self.parse(text),
            Read::Missing => {
                tracing::info!("{file} is not there; offering nothing until it is");
                self.entries = Entries::default();
            }
            Read::Unreadable(why) => tracing::warn!("cannot read {file}: {why}; {}", self.kept()),
        }
    }

    fn parse(&mut self, text: &[u8]) {
        let file = self.file.display();
        match config_file::parse(text) {
            Ok(parsed) => {
                for warning in &parsed.warnings {
                    tracing::warn!("{file}: {warning}");
                }
                tracing::info!("{file}: {}", summary(&parsed.entries));
                self.entries = parsed.entries.into();
            }
            Err(broken) => tracing::warn!("{file}, {broken}; {}", self.kept()),
        }
    }

    fn kept(&self) -> String {
        match self.entries.len() {
            0 => "offering nothing until it is corrected".to_owned(),
            kept => format!("keeping what was read before ({})", counted(kept, "provider")),
        }
    }
}

fn summary(entries: &[Entry]) -> String {
    let published = entries.iter().filter(|entry| entry.publish).count();
    format!("{}, {published} opted in", counted(entries.len(), "provider"))
}
