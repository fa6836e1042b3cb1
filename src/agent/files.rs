//! The agent's own files in its home: the sticky session id, and the ids of the tasks under way.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::domain::TaskId;

/// Mode of everything the agent writes: its owner's business.
const MODE: u32 = 0o600;
/// Everybody but the owner.
const OTHERS: u32 = 0o077;
/// Everybody but the owner may write.
const OTHERS_WRITE: u32 = 0o022;
/// Most bytes read of the session file; an id has a few dozen.
const SESSION_LIMIT: u64 = 64 << 10;
/// Least size at which the tasks file is written anew with what is still under way, in bytes; where that is more than half of it, the
/// file may grow to twice that.
const COMPACT_AT: u64 = 1 << 20;
/// How long a tasks file that could not be written is left alone: somebody has to make room first.
const WRITE_RETRY: Duration = Duration::from_secs(60);

/// Writes `content` so that a reader, a crash or a full disk never leaves half of it: beside the file, then in its place.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".mcprelay-")
        .permissions(fs::Permissions::from_mode(MODE))
        .tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Says what others could do to the home's files. Nobody's mode is changed: that is for the owner to do.
pub fn warn_of_wide_modes(home: &Path, session_file: &Path) {
    let wide = |path: &Path, others: u32| {
        let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
        (mode & others != 0).then_some(mode)
    };
    if let Some(mode) = wide(home, OTHERS_WRITE) {
        let home = home.display();
        warn!("{home} has mode {mode:04o}, so others may replace the files in it: run chmod 700 on it");
    }
    if let Some(mode) = wide(session_file, OTHERS) {
        let file = session_file.display();
        warn!("{file} has mode {mode:04o}, so others may take this agent's session: run chmod 600 on it");
    }
}

/// The sticky id, and the mcpd that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StickySession {
    /// mcpd's id of our session.
    pub provider_session_id: String,
    /// Which mcpd's; absent in a file that another program wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcpd_url: Option<String>,
}

impl StickySession {
    /// Reads the file; nothing usable in it is the same as no file, with a warning.
    pub fn read(path: &Path) -> Option<Self> {
        let text = match fs::metadata(path)
            .and_then(|m| if m.len() > SESSION_LIMIT { Ok(String::new()) } else { fs::read_to_string(path) })
        {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!("cannot read {}: {error}; a new session is registered", path.display());
                return None;
            }
        };
        let session = Self::parse(&text);
        if session.is_none() {
            warn!("{} holds no session id; a new session is registered", path.display());
        }
        session
    }

    /// A file that holds just an id is accepted.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let session = if text.starts_with('{') {
            serde_json::from_str(text).ok()?
        } else {
            Self { provider_session_id: text.trim_matches('"').to_owned(), mcpd_url: None }
        };
        let id = &session.provider_session_id;
        (!id.is_empty() && id.len() <= 1024 && id.bytes().all(|b| b.is_ascii_graphic())).then_some(session)
    }

    /// Writes the file; a failure is a warning, because the session works without it until the next restart.
    pub fn write(&self, path: &Path) {
        let text = serde_json::to_string(self).expect("two texts always serialise") + "\n";
        if let Err(error) = write_atomically(path, text.as_bytes()) {
            warn!("cannot write {}: {error}; after a restart the LLMs get new rows", path.display());
        }
    }
}

/// The ids of the tasks under way, so that a successor of a killed agent can end them.
///
/// One line a change: `+id` when a task comes in, `-id` when it is over, ids percent-encoded. Begun tasks are written before anything
/// is done about them; ends may lag, which costs nothing but one needless answer.
#[derive(Debug)]
pub struct TaskFile {
    path: PathBuf,
    file: Option<File>,
    buffer: String,
    written: u64,
    compact_at: u64,
    /// Since when the file could not be written, or when that was last tried.
    given_up: Option<Instant>,
    under_way: BTreeSet<TaskId>,
    /// Those of them that a former life left behind.
    left_behind: BTreeSet<TaskId>,
}

impl TaskFile {
    /// Opens the file, and gives the ids that a former life left behind. They stay in it until [`TaskFile::over`].
    pub fn open(path: PathBuf) -> (Self, Vec<TaskId>) {
        let left = read_left(&path);
        let mut tasks = Self {
            path,
            file: None,
            buffer: String::new(),
            written: 0,
            compact_at: COMPACT_AT,
            given_up: None,
            under_way: left.iter().cloned().collect(),
            left_behind: left.iter().cloned().collect(),
        };
        tasks.compact();
        (tasks, left)
    }

    /// A task came in. Not on disk before [`TaskFile::flush`].
    pub fn begun(&mut self, id: &TaskId) {
        if self.under_way.insert(id.clone()) {
            self.line('+', id);
        }
    }

    /// Whether a former life left this task behind and it has had no end yet. Such a task is never run, however late mcpd hands it
    /// over again.
    pub fn is_left_behind(&self, id: &TaskId) -> bool {
        self.left_behind.contains(id)
    }

    /// A task is over.
    pub fn over(&mut self, id: &TaskId) {
        self.left_behind.remove(id);
        if self.under_way.remove(id) {
            self.line('-', id);
        }
    }

    /// Writes what has changed. A failure is told once, and the agent works without the file until it can be written again.
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

    fn line(&mut self, sign: char, id: &TaskId) {
        self.buffer.push(sign);
        self.buffer.push_str(&encode(id.as_str()));
        self.buffer.push('\n');
    }

    fn compact(&mut self) {
        let lines: String = self.under_way.iter().map(|id| format!("+{}\n", encode(id.as_str()))).collect();
        let append = || OpenOptions::new().append(true).custom_flags(nix::libc::O_NOFOLLOW).open(&self.path);
        match write_atomically(&self.path, lines.as_bytes()).and_then(|()| append()) {
            Ok(file) => {
                (self.file, self.written) = (Some(file), lines.len() as u64);
                self.compact_at = COMPACT_AT.max(2 * self.written);
                if self.given_up.take().is_some() {
                    info!("{} can be written again", self.path.display());
                }
            }
            Err(error) => self.give_up(&error),
        }
    }
}

impl Drop for TaskFile {
    fn drop(&mut self) {
        self.flush();
    }
}

fn read_left(path: &Path) -> Vec<TaskId> {
    let Ok(text) = fs::read(path) else { return Vec::new() };
    let mut left = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let Some(id) = line.get(1..).and_then(decode).and_then(|id| TaskId::new(&id).ok()) else { continue };
        match line.as_bytes()[0] {
            b'+' => left.push(id),
            b'-' => left.retain(|other| *other != id),
            _ => {}
        }
    }
    left
}

fn encode(id: &str) -> String {
    crate::upstream::contract::percent_encoded(id)
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
mod tests {
    use super::*;

    fn id(text: &str) -> TaskId {
        TaskId::new(text).unwrap()
    }

    #[test]
    fn tasks_that_were_under_way_are_found_again_and_the_others_are_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mcprelay.tasks");
        let (mut file, left) = TaskFile::open(path.clone());
        assert!(left.is_empty());
        for name in ["a", "b/../\n%", "c"] {
            file.begun(&id(name));
        }
        file.over(&id("a"));
        file.flush();
        // A killed agent runs no destructors.
        std::mem::forget(file);
        let (mut file, left) = TaskFile::open(path.clone());
        assert_eq!(left, [id("b/../\n%"), id("c")]);
        file.begun(&id("d"));
        file.over(&id("c"));
        let left = ["a", "b/../\n%", "c", "d"].map(|name| file.is_left_behind(&id(name)));
        assert_eq!(left, [false, true, false, false], "until it has its end");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_that_a_crash_cut_off_costs_only_itself() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mcprelay.tasks");
        fs::write(&path, "+a\n+b%2\n\n*c\n+d").unwrap();
        assert_eq!(TaskFile::open(path).1, [id("a"), id("d")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_that_has_room_again_gets_the_tasks_that_are_under_way_then() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mcprelay.tasks");
        let (mut file, _) = TaskFile::open(path.clone());
        file.begun(&id("over"));
        file.flush();
        file.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        file.begun(&id("unwritten"));
        file.flush();
        file.over(&id("over"));
        file.flush();
        assert_eq!(read_left(&path), [id("over")], "a full disk is left alone for a while");
        tokio::time::advance(WRITE_RETRY).await;
        file.begun(&id("new"));
        file.flush();
        assert_eq!(read_left(&path), [id("new"), id("unwritten")]);
        file.over(&id("new"));
        file.flush();
        assert_eq!(read_left(&path), [id("unwritten")]);
    }

    #[test]
    fn the_tasks_file_does_not_grow_without_bound() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mcprelay.tasks");
        let (mut file, _) = TaskFile::open(path.clone());
        for n in 0..100_000 {
            let task = id(&format!("task-{n}"));
            file.begun(&task);
            file.over(&task);
            file.flush();
        }
        assert!(fs::metadata(&path).unwrap().len() <= COMPACT_AT + 100);
    }

    #[test]
    fn many_tasks_under_way_do_not_have_the_file_written_anew_each_time() {
        use std::os::unix::fs::MetadataExt as _;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mcprelay.tasks");
        let (mut file, _) = TaskFile::open(path.clone());
        let task = |n: usize| id(&format!("{n}-{}", "x".repeat(500)));
        (0..4_000).for_each(|n| file.begun(&task(n)));
        file.flush();
        let written = || fs::metadata(&path).unwrap().ino();
        let before = written();
        for n in 4_000..4_100 {
            file.begun(&task(n));
            file.flush();
        }
        assert_eq!(written(), before, "2 MiB are under way");
        (0..4_100).for_each(|n| file.over(&task(n)));
        file.flush();
        file.begun(&task(0));
        file.flush();
        assert!(fs::metadata(&path).unwrap().len() <= COMPACT_AT, "what is over goes");
    }

    #[test]
    fn a_session_file_is_read_in_both_forms_and_nonsense_is_none() {
        let with_url = StickySession { provider_session_id: "s1".into(), mcpd_url: Some("http://x".into()) };
        assert_eq!(
            StickySession::parse(r#"{"providerSessionId":"s1","mcpdUrl":"http://x"}"#),
            Some(with_url)
        );
        let bare = StickySession { provider_session_id: "s2".into(), mcpd_url: None };
        assert_eq!(StickySession::parse(" s2\n"), Some(bare));
        for nonsense in ["", "{", "{}", "a b", "s\u{1b}[31m", r#"{"providerSessionId":""}"#] {
            assert_eq!(StickySession::parse(nonsense), None, "{nonsense}");
        }
    }
}
