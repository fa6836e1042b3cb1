//! What changes a file, as inotify(7) tells it: its folder is watched, because editors replace a file rather than write to it.
//!
//! Nothing polls: without a change nothing wakes up, and what is appended to other files in the folder does not count as a change. A
//! folder that does not exist yet is waited for by watching its nearest existing ancestor. Every link on the way is followed and
//! watched.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};

/// Room for the events of one read: some dozens with names of usual length, and at least one with the longest possible name.
const EVENT_BYTES: usize = 4096;
/// How many links are followed: as many as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// One file, followed by its path.
pub(crate) struct FileWatch {
    file: PathBuf,
    folders: Vec<PathBuf>,
    /// The links on the way to the file, and the file that they lead to.
    files: Vec<PathBuf>,
    /// `None` before the first [`FileWatch::renew`].
    events: Option<Events>,
}

/// What happens in some folders.
struct Events {
    stream: EventStream<[u8; EVENT_BYTES]>,
    /// Their paths, by the kernel's descriptors.
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// A watched folder has been removed or moved: another folder may have its name now.
    stale: bool,
}

impl FileWatch {
    /// Of an absolute path, where there need not be anything.
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), folders: Vec::new(), files: Vec::new(), events: None }
    }

    /// To be called before the file is read: what changes it from then on is seen.
    ///
    /// # Errors
    /// If the system cannot watch the folders; nothing is seen then.
    pub(crate) async fn renew(&mut self) -> io::Result<()> {
        self.files = names(&self.file);
        let folders = folders(&self.files);
        let watched = self.events.as_ref().is_some_and(|events| !events.stale);
        if !watched || folders != self.folders {
            self.events = None;
            self.events = Some(Events::of(&folders)?);
            self.folders = folders;
        }
        Ok(())
    }

    /// Waits until the file may have changed.
    ///
    /// # Errors
    /// If the system tells nothing any more; waits for ever from then on.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        let Some(events) = &mut self.events else { return std::future::pending().await };
        let changed = events.changed(&self.files).await;
        if changed.is_err() {
            self.events = None;
        }
        changed
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

/// Every link on the way to a file, and the file that they lead to: any of them may be turned or
/// replaced.
fn names(file: &Path) -> Vec<PathBuf> {
    let (mut names, mut way) = (Vec::new(), file.to_owned());
    while names.len() < MAX_LINKS
        && let Some((link, beyond)) = first_link(&way)
    {
        names.push(link);
        way = beyond;
    }
    names.push(in_real_folder(&way));
    names
}

/// The first link in a path, and the path with the link's target in its place.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let parts: Vec<_> = path.ancestors().collect();
    let (link, target) = parts.iter().rev().find_map(|part| Some((*part, fs::read_link(part).ok()?)))?;
    let beyond = link.parent()?.join(target);
    let rest = path.strip_prefix(link).ok()?;
    Some((in_real_folder(link), beyond.components().chain(rest.components()).collect()))
}

/// A path below the nearest folder that exists. The folder is written without links and "..", so
/// that it is the same for every path that leads to it: the kernel tells of a folder once.
fn in_real_folder(path: &Path) -> PathBuf {
    let below = |folder: &Path| Some(folder.canonicalize().ok()?.join(path.strip_prefix(folder).ok()?));
    path.ancestors().skip(1).find_map(below).unwrap_or_else(|| path.to_owned())
}

/// The folders to watch for these paths: where the file is or will be, and where the links are.
fn folders(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = files.iter().filter_map(|file| nearest(file)).collect();
    folders.dedup();
    folders
}

/// The nearest folder above `file` that exists.
fn nearest(file: &Path) -> Option<PathBuf> {
    file.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

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
