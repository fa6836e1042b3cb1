//! The agent's own files in its home: the sticky session id, and the ids of the tasks under way.

mod pauses;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    credentials::{OTHERS, OTHERS_WRITE},
    domain::TaskId,
};

pub(super) use pauses::PauseFile;
pub use session::{FormerSession, StickySession};

/// Mode of everything the agent writes: for its owner only.
const MODE: u32 = 0o600;
/// Least size, in bytes, at which the tasks file is rewritten with only what is still under way. If that is more than half of this size,
/// the file may grow to twice what is under way.
const COMPACT_AT: u64 = 1 << 20;
/// How long the agent waits before it tries again to write the tasks file: somebody has to make room first.
const WRITE_RETRY: Duration = Duration::from_secs(60);

/// Writes `content` to a temporary file and renames it, so that no reader, crash or full disk ever sees or leaves half of it.
///
/// # Errors
/// If the file cannot be written beside `path` or renamed.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".mcprelay-")
        .permissions(fs::Permissions::from_mode(MODE))
        .tempfile_in(folder)
        .map_err(without_path)?;
    file.as_file_mut().write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Removes the temporary file's path from the error's text: it means nothing to anybody, and the error has no field for it.
fn without_path(error: io::Error) -> io::Error {
    let text = error.to_string();
    io::Error::new(error.kind(), text.split(" at path ").next().unwrap_or(&text))
}

/// Warns of modes that let others change the home's files. No mode is changed: that is up to the owner.
pub fn warn_of_wide_modes(home: &Path, session_file: &Path) {
    let wide = |found: io::Result<fs::Metadata>, others: u32| {
        let mode = found.ok()?.permissions().mode() & 0o7777;
        (mode & others != 0).then_some(mode)
    };
    if let Some(mode) = wide(fs::metadata(home), OTHERS_WRITE) {
        let home = home.display();
        warn!("{home} has mode {mode:04o}, so others may replace the files in it: run chmod 700 on it");
    }
    // Anything but a file is not a session, which is reported when it is read.
    let session = fs::metadata(session_file);
    if session.as_ref().is_ok_and(fs::Metadata::is_file)
        && let Some(mode) = wide(session, OTHERS)
    {
        let file = session_file.display();
        warn!("{file} has mode {mode:04o}, so others may take this agent's session: run chmod 600 on it");
    }
}

/// Which mcpd handed a task over, as its URL; `None` in a file of an older agent, which did not say.
type Owner = Option<Arc<str>>;

/// The ids of the tasks under way, so that a successor of a killed agent can end them.
///
/// One line per change: `+id` when a task comes in, `-id` when it is over, and `@url` for the mcpd that hands over the tasks in the lines
/// that follow; all percent-encoded. A task is written down before it is offered to anybody. Its end may be written late, which at worst
/// costs one needless answer.
#[derive(Debug)]
pub struct TaskFile {
    path: PathBuf,
    file: Option<File>,
    buffer: String,
    written: u64,
    compact_at: u64,
    /// When writing last failed; `None` while the file can be written.
    given_up: Option<Instant>,
    under_way: BTreeMap<TaskId, Owner>,
    /// Those of them that a previous run left.
    orphans: BTreeSet<TaskId>,
    /// The mcpd that the file names last.
    named: Owner,
}

impl TaskFile {
    /// Opens the file, and returns the ids that a previous run left. They stay in it until [`TaskFile::over`].
    pub fn open(path: PathBuf) -> (Self, Vec<(TaskId, Owner)>) {
        let left = read_left(&path);
        let mut tasks = Self {
            path,
            file: None,
            buffer: String::new(),
            written: 0,
            compact_at: COMPACT_AT,
            given_up: None,
            under_way: left.iter().cloned().collect(),
            orphans: left.iter().map(|(id, _)| id.clone()).collect(),
            named: None,
        };
        tasks.compact();
        (tasks, left)
    }

    /// A task came in from the mcpd at `url`. It is on disk only after [`TaskFile::flush`].
    pub fn begun(&mut self, id: &TaskId, url: Option<&str>) {
        match self.under_way.get(id) {
            Some(owner) if owner.as_deref() == url => return,
            // The table has one entry per id, so another mcpd's task with this id gives way.
            Some(_) => self.over(id),
            None => {}
        }
        if self.named.as_deref() != url {
            self.named = url.map(Arc::from);
            self.line('@', url.unwrap_or_default());
        }
        self.under_way.insert(id.clone(), self.named.clone());
        self.line('+', id.as_str());
    }

    /// Whether a previous run had this task of the mcpd at `url`, and it has had no end yet. Such a task is never run, however
    /// late mcpd hands it over again.
    pub fn is_orphan(&self, id: &TaskId, url: Option<&str>) -> bool {
        let may_be_of = |owner: &Owner| owner.is_none() || owner.as_deref() == url;
        self.orphans.contains(id) && self.under_way.get(id).is_some_and(may_be_of)
    }

    /// A task is over.
    pub fn over(&mut self, id: &TaskId) {
        self.orphans.remove(id);
        if self.under_way.remove(id).is_some() {
            self.line('-', id.as_str());
        }
    }

    /// Writes what has changed. A failure is reported once, and the agent works without the file until it can be written again.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        match &mut self.file {
            Some(file) => match file.write_all(self.buffer.as_bytes()) {
                Ok(()) => self.written += self.buffer.len() as u64,
                Err(error) => self.give_up(&error),
            },
            None if self.given_up.is_some_and(|at| at.elapsed() >= WRITE_RETRY) => self.compact(),
            None => {}
        }
        self.buffer.clear();
        if self.written > self.compact_at && self.file.is_some() {
            self.compact();
        }
    }

    fn give_up(&mut self, error: &io::Error) {
        self.file = None;
        if self.given_up.replace(Instant::now()).is_none() {
            let path = self.path.display();
            warn!("cannot write {path}: {error}; tasks under way would not be ended after a crash");
        }
    }

    fn line(&mut self, sign: char, text: &str) {
        push_line(&mut self.buffer, sign, text);
    }

    fn compact(&mut self) {
        let (lines, named) = self.lines();
        let append = || OpenOptions::new().append(true).custom_flags(nix::libc::O_NOFOLLOW).open(&self.path);
        match write_atomically(&self.path, lines.as_bytes()).and_then(|()| append()) {
            Ok(file) => {
                (self.file, self.written, self.named) = (Some(file), lines.len() as u64, named);
                self.compact_at = COMPACT_AT.max(2 * self.written);
                if self.given_up.take().is_some() {
                    info!("{} can be written again", self.path.display());
                }
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// What is under way, as the lines of a new file, and the mcpd that they name last.
    fn lines(&self) -> (String, Owner) {
        let mut by_owner = BTreeMap::<&Owner, Vec<&TaskId>>::new();
        self.under_way.iter().for_each(|(id, owner)| by_owner.entry(owner).or_default().push(id));
        let (mut lines, mut named) = (String::new(), None);
        for (owner, ids) in by_owner {
            if let Some(url) = owner {
                push_line(&mut lines, '@', url);
            }
            ids.iter().for_each(|id| push_line(&mut lines, '+', id.as_str()));
            named.clone_from(owner);
        }
        (lines, named)
    }
}

impl Drop for TaskFile {
    fn drop(&mut self) {
        self.flush();
    }
}

fn read_left(path: &Path) -> Vec<(TaskId, Owner)> {
    let Ok(text) = fs::read(path) else { return Vec::new() };
    let (mut left, mut owner) = (Vec::new(), None);
    // A line without its end was cut off by a crash, and the part that is left could be another task's id.
    for line in String::from_utf8_lossy(&text).split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')) {
        let Some((sign, text)) = line.split_at_checked(1) else { continue };
        let Some(text) = decode(text) else { continue };
        match (sign, TaskId::new(&text)) {
            ("@", _) => owner = Some(text).filter(|url| !url.is_empty()).map(Arc::from),
            ("+", Ok(id)) => left.push((id, owner.clone())),
            ("-", Ok(id)) => left.retain(|(other, _)| *other != id),
            _ => {}
        }
    }
    left
}

fn push_line(lines: &mut String, sign: char, text: &str) {
    lines.push(sign);
    lines.push_str(&crate::upstream::contract::percent_encoded(text));
    lines.push('\n');
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
