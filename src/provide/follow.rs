//! Following config.json: its folder is watched, because editors replace a file rather than write to it.
//!
//! Nothing polls: without a change nothing wakes up, and what the agent appends to its own files next to this one does not count as a
//! change. A folder that does not exist yet is waited for by watching its nearest existing ancestor; a link is followed to its target.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::{sync::watch, time::timeout};

use super::config_file::{self, Entry};
use crate::domain::counted;

/// How long a file must be left alone before it is read, so that the several steps of an editor are one change.
const QUIET: Duration = Duration::from_millis(200);
/// After how many such periods a file that is written without pause is read nevertheless.
const QUIET_AT_MOST: u32 = 5;

/// Room for the events of one read: some dozens with names of usual length, and at least one with the longest possible name.
const EVENT_BYTES: usize = 4096;

/// The entries of the file, in its order.
pub(super) type Entries = Arc<[Entry]>;

/// Reads `file` and follows it from then on; ends when nobody holds the receiver any more.
pub(super) async fn follow(file: PathBuf) -> watch::Receiver<Entries> {
    let file = std::path::absolute(&file).unwrap_or(file);
    let mut follower =
        Follower { file, watched: Watched::default(), last: None, entries: Entries::default() };
    follower.refresh(true).await;
    let (publish, entries) = watch::channel(follower.entries.clone());
    tokio::spawn(follower.run(publish));
    entries
}

struct Follower {
    file: PathBuf,
    watched: Watched,
    /// What was last read, so that touching the file does not count as a change.
    last: Option<Result<Vec<u8>, io::ErrorKind>>,
    entries: Entries,
}

/// What is watched now.
#[derive(Default)]
struct Watched {
    folders: Vec<PathBuf>,
    /// The path that is followed, and the file that it resolves to.
    files: Vec<PathBuf>,
    /// `None` if the system cannot watch the folders.
    events: Option<Events>,
}

/// What happens in some folders.
struct Events {
    stream: EventStream<[u8; EVENT_BYTES]>,
    /// Their paths, by the kernel's descriptors.
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// A watched folder is gone.
    stale: bool,
}

impl Follower {
    async fn run(mut self, publish: watch::Sender<Entries>) {
        loop {
            tokio::select! {
                () = self.watched.changed() => {}
                () = publish.closed() => return,
            }
            for _ in 0..QUIET_AT_MOST {
                if timeout(QUIET, self.watched.changed()).await.is_err() {
                    break;
                }
            }
            self.refresh(false).await;
            publish.send_if_modified(|current| {
                let modified = *current != self.entries;
                current.clone_from(&self.entries);
                modified
            });
        }
    }

    /// First watches, then reads, so that a change between the two is not missed.
    async fn refresh(&mut self, first: bool) {
        let files = names(&self.file);
        let folders = folders(&files);
        if first || folders != self.watched.folders || self.watched.is_stale() {
            self.watched = self.watch(folders);
        }
        self.watched.files = files;
        let read = tokio::fs::read(&self.file).await.map_err(|error| error.kind());
        if self.last.as_ref() != Some(&read) {
            self.take(&read);
            self.last = Some(read);
        }
    }

    fn take(&mut self, read: &Result<Vec<u8>, io::ErrorKind>) {
        let file = self.file.display();
        match read {
            Ok(text) => self.parse(text),
            Err(io::ErrorKind::NotFound) => {
                tracing::info!("{file} is not there; offering nothing until it is");
                self.entries = Entries::default();
            }
            Err(kind) => tracing::warn!("cannot read {file}: {kind}; {}", self.kept()),
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
            0 => "offering nothing until it is mended".to_owned(),
            kept => format!("keeping the {} of before", counted(kept, "provider")),
        }
    }

    fn watch(&self, folders: Vec<PathBuf>) -> Watched {
        match Events::of(&folders) {
            Ok(events) => Watched { folders, files: Vec::new(), events: Some(events) },
            Err(error) => {
                tracing::warn!(
                    "cannot follow {}: {error}; restart the provider host after a change",
                    self.file.display()
                );
                Watched::default()
            }
        }
    }
}

impl Watched {
    /// Waits until the file may have changed.
    async fn changed(&mut self) {
        match &mut self.events {
            Some(events) => {
                if let Err(error) = events.changed(&self.files).await {
                    tracing::warn!(
                        "config.json is not followed any more: {error}; restart the provider host after a change"
                    );
                    self.events = None;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// Whether a watched folder has been removed or moved: another folder may have its name now.
    fn is_stale(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.stale)
    }
}

impl Events {
    fn of(folders: &[PathBuf]) -> io::Result<Self> {
        let stream = Inotify::init()?.into_event_stream([0; EVENT_BYTES])?;
        let watch = |folder: &PathBuf| Ok((stream.watches().add(folder, changes())?, folder.clone()));
        let folders = folders.iter().map(watch).collect::<io::Result<_>>()?;
        Ok(Self { stream, folders, stale: false })
    }

    /// Waits until one of the files may have changed.
    async fn changed(&mut self, files: &[PathBuf]) -> io::Result<()> {
        while let Some(event) = self.stream.next().await {
            let event = event?;
            self.stale |= event.mask.intersects(EventMask::IGNORED | EventMask::MOVE_SELF);
            let overflowed = event.mask.contains(EventMask::Q_OVERFLOW);
            if overflowed || self.concerns(files, &event.wd, event.name.as_deref()) {
                return Ok(());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// Whether an event is about one of the files or a folder above it.
    fn concerns(&self, files: &[PathBuf], watch: &WatchDescriptor, name: Option<&OsStr>) -> bool {
        let Some(folder) = self.folders.get(watch) else { return false };
        let path = name.map_or_else(|| folder.clone(), |name| folder.join(name));
        files.iter().any(|file| file.starts_with(&path))
    }
}

/// Everything that can change a file's content or make it readable. Single writes are not included: the content is complete when the
/// writer closes the file, and the tasks file, which stays open and is written for every task, would wake the host every time.
fn changes() -> WatchMask {
    WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

/// A path, and the file that it resolves to.
fn names(file: &Path) -> Vec<PathBuf> {
    [file.to_owned()].into_iter().chain(file.canonicalize()).collect()
}

/// The folders to watch for these paths: where the file is or will be, and where a link leads.
fn folders(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = files.iter().filter_map(|file| nearest(file)).collect();
    folders.dedup();
    folders
}

/// The nearest folder above `file` that exists.
fn nearest(file: &Path) -> Option<PathBuf> {
    file.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned)
}

fn summary(entries: &[Entry]) -> String {
    let published = entries.iter().filter(|entry| entry.publish).count();
    format!("{}, {published} opted in", counted(entries.len(), "provider"))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_only_appended_to_wakes_nobody() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config.json");
        let mut tasks = fs::File::create(home.path().join("mcprelay.tasks")).unwrap();
        let mut events = Events::of(&[home.path().to_owned()]).unwrap();
        tasks.write_all(b"+1\n").unwrap();
        fs::write(&config, "{}").unwrap();
        let first = events.stream.next().await.unwrap().unwrap();
        assert_eq!(first.name.as_deref(), Some(OsStr::new("config.json")));
    }
}
