//! Finds the few things that matter in an answer without parsing the rest.

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    domain::Usage,
    openai::{
        Malformed,
        scan::{self, Scanner},
        usual::{self, Names},
    },
};

/// What one chunk of a stream says beside its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::provide) struct Peeked {
    /// A choice ends here.
    pub(in crate::provide) finish: bool,
    /// The numbers, where the chunk has them.
    pub(in crate::provide) usage: Option<Usage>,
    /// It is an error, not a chunk.
    pub(in crate::provide) error: bool,
    /// It has no choices: nothing of the answer is in it.
    pub(in crate::provide) no_choices: bool,
}

/// Searches chunks. One is enough for a provider's life: the search tables are built once.
#[derive(Debug)]
pub(in crate::provide) struct Peeker {
    finish: Finder<'static>,
    usage: Finder<'static>,
    error: Finder<'static>,
}

impl Default for Peeker {
    fn default() -> Self {
        Self {
            finish: Finder::new(br#""finish_reason""#),
            usage: Finder::new(br#""usage""#),
            error: Finder::new(br#""error""#),
        }
    }
}

impl Peeker {
    /// Tells what `chunk` says. Nearly every chunk is only searched: a quote inside a JSON string is escaped, so the quoted
    /// key is a key (or, harmlessly, a whole string); only where it has a value is the chunk parsed.
    pub(in crate::provide) fn peek(&self, chunk: &[u8]) -> Peeked {
        let hit = has_value(&self.finish, chunk, b"\"")
            || has_value(&self.usage, chunk, b"{")
            || has_value(&self.error, chunk, b"{\"[-0123456789tf");
        if hit { parse(chunk) } else { Peeked::default() }
    }
}

/// Whether `key` occurs in `text` with a value that begins with one of `first`.
fn has_value(key: &Finder<'_>, mut text: &[u8], first: &[u8]) -> bool {
    // Not the finder's own iterator, which begins with a copy of the finder.
    while let Some(at) = key.find(text) {
        text = &text[at + key.needle().len()..];
        let value = text.trim_ascii_start().strip_prefix(b":");
        if value.and_then(|value| value.trim_ascii_start().first()).is_some_and(|byte| first.contains(byte)) {
            return true;
        }
    }
    false
}

fn parse(chunk: &[u8]) -> Peeked {
    // What does not parse is forwarded as it is: the agent checks every chunk and names the fault.
    let Some(seen) = Seen::of(chunk, choices) else { return Peeked::default() };
    let choices = seen.choices.unwrap_or_default();
    Peeked { finish: choices.finish, usage: seen.usage, error: seen.is_error(), no_choices: !choices.any }
}

/// What a whole answer says beside its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::provide) struct Answer {
    /// The numbers, where it has them.
    pub(in crate::provide) usage: Option<Usage>,
    /// It is an error although the status was a good one.
    pub(in crate::provide) error: bool,
}

/// Looks at a whole answer; `None` if it is not a JSON object.
pub(in crate::provide) fn answer(body: &Bytes) -> Option<Answer> {
    let seen = Seen::of(body, unread)?;
    Some(Answer { usage: seen.usage, error: seen.is_error() })
}

/// What is looked for in a chunk and in a whole answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// What the choices say, where there are any.
    choices: Option<Choices>,
    usage: Option<Usage>,
    error: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Choices {
    /// There is one at least.
    any: bool,
    /// One ends here.
    finish: bool,
}

impl Seen {
    /// `None` if `text` is not JSON that serde takes for an answer.
    fn of(text: &[u8], choices: ReadChoices) -> Option<Self> {
        Self::of_usual(text, choices).or_else(|| Self::by_serde(text))
    }

    /// Reads an answer that is written in the usual way, with the same result as serde.
    fn of_usual(text: &[u8], choices: ReadChoices) -> Option<Self> {
        let (mut seen, mut names) = (Self::default(), Names::default());
        scan::object(text, |scan, key| match scan.of(key) {
            b"choices" => {
                names.first(1)?;
                seen.choices = choices(scan)?;
                Ok(())
            }
            b"usage" => {
                names.first(2)?;
                seen.usage = usage(scan)?;
                Ok(())
            }
            b"error" => {
                names.first(4)?;
                seen.error = !usual::null(scan)?;
                if seen.error { scan.skip().map(drop) } else { Ok(()) }
            }
            _ => usual::other(scan, key),
        })
        .ok()?;
        Some(seen)
    }

    fn by_serde(text: &[u8]) -> Option<Self> {
        let chunk: Chunk<'_> = serde_json::from_slice(text).ok()?;
        let choices: Option<Vec<Choice<'_>>> =
            chunk.choices.map(|raw| serde_json::from_str(raw.get()).unwrap_or_default());
        Some(Self {
            choices: choices.map(|choices| Choices {
                any: !choices.is_empty(),
                finish: choices.iter().any(|c| c.finish_reason.is_some_and(|raw| raw.get().starts_with('"'))),
            }),
            usage: chunk.usage.and_then(numbers),
            error: chunk.error.is_some(),
        })
    }

    /// An error where an answer should be.
    fn is_error(&self) -> bool {
        self.error && self.choices.is_none()
    }
}

type ReadChoices = fn(&mut Scanner<'_>) -> Result<Option<Choices>, Malformed>;

/// Only whether there are any.
fn unread(scan: &mut Scanner<'_>) -> Result<Option<Choices>, Malformed> {
    if usual::null(scan)? { Ok(None) } else { scan.skip().map(|_| Some(Choices::default())) }
}

fn choices(scan: &mut Scanner<'_>) -> Result<Option<Choices>, Malformed> {
    if usual::null(scan)? {
        return Ok(None);
    }
    let mut choices = Choices::default();
    scan.array(|scan| {
        let mut names = Names::default();
        choices.any = true;
        scan.object(|scan, key| {
            if scan.of(key) != b"finish_reason" {
                return usual::other(scan, key);
            }
            names.first(1)?;
            choices.finish |= scan.peek()? == b'"';
            scan.skip().map(drop)
        })
        .map(drop)
    })?;
    Ok(Some(choices))
}

fn usage(scan: &mut Scanner<'_>) -> Result<Option<Usage>, Malformed> {
    if usual::null(scan)? {
        return Ok(None);
    }
    let (mut usage, mut names) = (Usage::default(), Names::default());
    scan.object(|scan, key| match scan.of(key) {
        b"prompt_tokens" => {
            names.first(1)?;
            usage.input_tokens = count(scan)?;
            Ok(())
        }
        b"completion_tokens" => {
            names.first(2)?;
            usage.output_tokens = count(scan)?;
            Ok(())
        }
        _ => usual::other(scan, key),
    })?;
    Ok((usage != Usage::default()).then_some(usage))
}

fn count(scan: &mut Scanner<'_>) -> Result<Option<u32>, Malformed> {
    if usual::null(scan)? {
        return Ok(None);
    }
    let digits = scan.skip()?;
    scan::number(scan.of(digits)).map(Some).ok_or(usual::UNUSUAL)
}

fn numbers(raw: &RawValue) -> Option<Usage> {
    let usage: UsageNumbers = serde_json::from_str(raw.get()).ok()?;
    let usage = Usage::new(usage.prompt_tokens, usage.completion_tokens);
    (usage != Usage::default()).then_some(usage)
}

/// A chunk or a completion; everything else in it is skipped, not stored.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct UsageNumbers {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
}

#[cfg(test)]
#[path = "peek_tests.rs"]
mod tests;
