//! What changes a file, found by looking at it once a second.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

/// How often the file is looked at: as often as the agent looks at its credentials.
const LOOK: Duration = Duration::from_secs(1);

/// One file, followed by its path.
pub(crate) struct FileWatch {
    file: PathBuf,
    /// As the file was last seen; `None` before the first [`FileWatch::renew`].
    seen: Option<Fingerprint>,
}

/// What tells one content of a path from another without reading it; why it cannot be told, else.
#[derive(PartialEq, Eq)]
struct Fingerprint(Result<Facts, io::ErrorKind>);

/// Device, inode, size, mode, and when content and inode were last changed, in seconds and nanoseconds.
type Facts = (u64, u64, u64, u32, [i64; 4]);

impl FileWatch {
    /// Of an absolute path, where there need not be anything.
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), seen: None }
    }

    /// To be called before the file is read: what changes it from then on is seen.
    ///
    /// # Errors
    /// None; inotify has some.
    pub(crate) async fn renew(&mut self) -> io::Result<()> {
        self.seen = Some(Fingerprint::of(&self.file).await);
        Ok(())
    }

    /// Waits until the file may have changed.
    ///
    /// # Errors
    /// None; inotify has some.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        loop {
            sleep(LOOK).await;
            let now = Fingerprint::of(&self.file).await;
            if self.seen.as_ref() != Some(&now) {
                self.seen = Some(now);
                return Ok(());
            }
        }
    }
}

impl Fingerprint {
    async fn of(file: &Path) -> Self {
        let facts = |m: std::fs::Metadata| {
            let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
            (m.dev(), m.ino(), m.size(), m.mode(), times)
        };
        Self(tokio::fs::metadata(file).await.map(facts).map_err(|error| error.kind()))
    }
}
