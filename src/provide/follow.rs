//! Following config.json: its folder is watched, because editors replace a file rather than write it.
//!
//! Nothing polls: without a change nothing wakes up. A folder that does not exist yet is waited for by watching the nearest
//! one above it that does; a link is followed to the file it leads to.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::config_file::{self, Entry};

/// How long a file must be left alone before it is read: an editor's several steps are then one change.
const QUIET: Duration = Duration::from_millis(200);
/// The longest that a file which is written without pause is left unread.
const QUIET_AT_MOST: u32 = 5;

/// The entries of a file, newest first to come.
pub(super) type Entries = Arc<[Entry]>;

/// Reads `file` and follows it from then on; ends when nobody holds the receiver any more.
pub(super) async fn follow(file: PathBuf) -> watch::Receiver<Entries> {
    let file = std::path::absolute(&file).unwrap_or(file);
    let (changes, changed) = mpsc::channel(1);
    let mut follower =
        Follower { file, changes, watched: Watched::default(), last: None, entries: Entries::default() };
    follower.refresh(true).await;
    let (publish, entries) = watch::channel(follower.entries.clone());
    tokio::spawn(follower.run(changed, publish));
    entries
}

struct Follower {
    file: PathBuf,
    changes: mpsc::Sender<()>,
    watched: Watched,
    /// What was last read, so that a touch is not a change.
    last: Option<Result<Vec<u8>, io::ErrorKind>>,
    entries: Entries,
}

/// What is watched now.
#[derive(Default)]
struct Watched {
    folders: Vec<PathBuf>,
    /// Watches as long as it is here.
    _watcher: Option<RecommendedWatcher>,
}

impl Follower {
    async fn run(mut self, mut changed: mpsc::Receiver<()>, publish: watch::Sender<Entries>) {
        loop {
            tokio::select! {
                Some(()) = changed.recv() => {}
                () = publish.closed() => return,
            }
            for _ in 0..QUIET_AT_MOST {
                if timeout(QUIET, changed.recv()).await.is_err() {
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

    /// Watches what is to be watched now, then reads: a change between the two is seen by one of them.
    async fn refresh(&mut self, first: bool) {
        let folders = folders(&self.file);
        if first || folders != self.watched.folders {
            self.watched = self.watch(folders);
        }
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
                tracing::info!("{file}: {}", counted(&parsed.entries));
                self.entries = parsed.entries.into();
            }
            Err(broken) => tracing::warn!("{file}, {broken}; {}", self.kept()),
        }
    }

    fn kept(&self) -> String {
        match self.entries.len() {
            0 => "offering nothing until it is mended".to_owned(),
            kept => format!("keeping the {kept} providers of before"),
        }
    }

    fn watch(&self, folders: Vec<PathBuf>) -> Watched {
        match self.try_watch(&folders) {
            Ok(watcher) => Watched { folders, _watcher: Some(watcher) },
            Err(error) => {
                tracing::warn!(
                    "cannot follow {}: {error}; restart the provider host after a change",
                    self.file.display()
                );
                Watched::default()
            }
        }
    }

    fn try_watch(&self, folders: &[PathBuf]) -> notify::Result<RecommendedWatcher> {
        let changes = self.changes.clone();
        let files: Vec<PathBuf> = [self.file.clone()].into_iter().chain(self.file.canonicalize()).collect();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| concerns(&event, &files)) {
                // A full channel already says that there is something to read.
                let _ = changes.try_send(());
            }
        })?;
        for folder in folders {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }
}

/// Whether an event may have changed one of `files`: it is about the file or a folder above it, and more than a look at it.
fn concerns(event: &notify::Event, files: &[PathBuf]) -> bool {
    !event.kind.is_access() && event.paths.iter().any(|path| files.iter().any(|file| file.starts_with(path)))
}

/// The folders to watch for a file: where it is or will be, and where a link leads.
fn folders(file: &Path) -> Vec<PathBuf> {
    let real = file.canonicalize().ok();
    let mut folders: Vec<PathBuf> =
        [Some(file), real.as_deref()].into_iter().flatten().filter_map(nearest).collect();
    folders.dedup();
    folders
}

/// The nearest folder above `file` that exists.
fn nearest(file: &Path) -> Option<PathBuf> {
    file.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned)
}

fn counted(entries: &[Entry]) -> String {
    let published = entries.iter().filter(|entry| entry.publish).count();
    format!("{} providers, {published} of them opted in", entries.len())
}
