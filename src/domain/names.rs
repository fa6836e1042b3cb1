//! Names and keys: what mcpd, the owner and the agent call things, and how untrusted text is shown.

use std::{borrow::Borrow, fmt, sync::Arc};

/// Longest name of a provider, in bytes: it becomes a row, a path segment and a table cell.
pub const MAX_NAME_BYTES: usize = 253;
/// Longest task id the agent takes, in bytes: it becomes a path segment, a header and a line in a file.
pub const MAX_TASK_ID_BYTES: usize = 512;

/// From how similar two words are on one is taken for the other with a slip in it: "maxInFlite" for
/// "maxInFlight" (0.73), but not "apiKey" for "apiKeyEnv" (0.67).
const SIMILAR: f64 = 0.7;

/// The one of `known` that `word` is most similar to, whatever its case and separators, if it is
/// similar at all.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.replace(['_', '-', ' '], "").to_lowercase();
    let word = plain(word);
    let rated =
        known.into_iter().map(|known| (strsim::normalized_damerau_levenshtein(&word, &plain(known)), known));
    let best = rated.max_by(|one, other| one.0.total_cmp(&other.0));
    best.filter(|(similarity, _)| *similarity >= SIMILAR).map(|(_, known)| known)
}

/// mcpd's id of one task. Cheap to clone. It can be any text up to [`MAX_TASK_ID_BYTES`], so it must be encoded wherever it goes into a
/// path, a header, a file or a terminal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

/// The unique name of a provider, and so of the virtual LLM. Not empty, no control characters, at most
/// [`MAX_NAME_BYTES`] long.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProviderName(Arc<str>);

/// Why a text is not a [`TaskId`] or a [`ProviderName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// There is nothing in it.
    #[error("is empty")]
    Empty,
    /// It is longer than the limit in bytes.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// It could move a terminal's cursor or break a line.
    #[error("has control characters")]
    Control,
}

impl TaskId {
    /// Takes any non-empty text of at most [`MAX_TASK_ID_BYTES`].
    ///
    /// # Errors
    /// If the text is empty or too long.
    pub fn new(text: &str) -> Result<Self, BadName> {
        match text.len() {
            0 => Err(BadName::Empty),
            n if n > MAX_TASK_ID_BYTES => Err(BadName::TooLong(MAX_TASK_ID_BYTES)),
            _ => Ok(Self(text.into())),
        }
    }

    /// The id as mcpd wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// So that a table by id can be searched with what a peer wrote.
impl Borrow<str> for TaskId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl ProviderName {
    /// Takes any non-empty text of at most [`MAX_NAME_BYTES`] without control characters.
    ///
    /// # Errors
    /// If the text is empty, too long, or has control characters.
    pub fn new(text: &str) -> Result<Self, BadName> {
        match text.len() {
            0 => Err(BadName::Empty),
            n if n > MAX_NAME_BYTES => Err(BadName::TooLong(MAX_NAME_BYTES)),
            _ if text.chars().any(char::is_control) => Err(BadName::Control),
            _ => Ok(Self(text.into())),
        }
    }

    /// The name as it was pushed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            /// Control characters are escaped: the text may come from a hostile peer and go to a terminal.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_printable(f, &self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
shown_as_text!(TaskId, ProviderName);

/// Untrusted text, shown with its control characters escaped.
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_printable(f, self.0)
    }
}

fn write_printable(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let mut rest = text;
    while let Some((at, odd)) = rest.char_indices().find(|(_, c)| c.is_control() || turns_text_around(*c)) {
        write!(f, "{}{}", &rest[..at], odd.escape_unicode())?;
        rest = &rest[at + odd.len_utf8()..];
    }
    f.write_str(rest)
}

/// Whether a character changes the direction or the lines of the text around it, so that one name could look like another.
fn turns_text_around(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One connected local program, for as long as its stream lives. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// One task, for as long as it is under way. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey(pub u64);

/// How many there are of something, for people: "1 model", "2 models".
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
