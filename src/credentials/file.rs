//! Reading the files in the home, and noticing changes at the price of two `stat` calls.

use std::{
    fs::{self, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{CONFIG_FILE, CREDENTIALS_FILE, CredentialsProblem, McpdUrl, WideMode};

/// The most that is read of either file, in bytes: far more than any real file has, and little enough to be read at any time.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// The mode bits that let anybody but the owner use a file: one with a secret should have none of them.
pub const OTHERS: u32 = 0o077;
/// The mode bits that let anybody but the owner write.
pub const OTHERS_WRITE: u32 = 0o022;

/// A file of the mcpctl system, parsed.
pub(super) struct JsonFile {
    path: PathBuf,
    mode: u32,
    content: Value,
}

impl JsonFile {
    /// Reads the file; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CredentialsProblem> {
        let unreadable = |why: String| CredentialsProblem::Unreadable { path: path.to_owned(), why };
        let (metadata, bytes) = match read_small(path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        // The parser's own message may quote the file, so only the position is kept.
        let content = serde_json::from_slice(&bytes).map_err(|error| CredentialsProblem::NotJson {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
        })?;
        Ok(Some(Self { path: path.to_owned(), mode: metadata.mode() & 0o7777, content }))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.content.get(key)?.as_str().filter(|text| !text.trim().is_empty())
    }

    pub(super) fn url(&self) -> Result<Option<McpdUrl>, CredentialsProblem> {
        let bad = |why| CredentialsProblem::BadUrl { path: self.path.clone(), why };
        self.text("mcpdUrl").map(|text| McpdUrl::parse(text).map_err(bad)).transpose()
    }

    pub(super) fn wide_mode(&self) -> Option<WideMode> {
        let (path, mode) = (self.path.clone(), self.mode);
        (mode & OTHERS != 0).then_some(WideMode { path, mode })
    }
}

/// Reads a small regular file that people write, without the byte-order mark that editors on Windows begin a file with. Anything else is
/// refused before it is opened, because opening a pipe would wait for a writer.
///
/// # Errors
/// What the system says, or that the file is too large or is none.
pub fn read_small(path: &Path) -> io::Result<(Metadata, Vec<u8>)> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 4 MiB"));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok((metadata, bytes))
}

/// Tells, at the price of two `stat` calls, whether the files may have changed: any write, rename, change of mode or removal changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint([Option<FileIdentity>; 2]);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// The only time that a change of mode changes.
    changed: (i64, i64),
}

impl Fingerprint {
    /// The present fingerprint of the files that [`load`](super::load) reads in this home.
    pub fn of(home: &Path) -> Self {
        Self([CREDENTIALS_FILE, CONFIG_FILE].map(|name| FileIdentity::of(&home.join(name))))
    }
}

impl FileIdentity {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
