//! Finding the few things that matter in an answer without parsing what does not matter.

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::Usage;

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

/// Looks through chunks. One for a whole process: the search tables are built once.
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
            || has_value(&self.error, chunk, b"{\"[0123456789t");
        if hit { parse(chunk) } else { Peeked::default() }
    }
}

/// Whether `key` is somewhere in `text` with a value that begins with one of `first`.
fn has_value(key: &Finder<'_>, text: &[u8], first: &[u8]) -> bool {
    key.find_iter(text).any(|at| {
        let rest = text[at + key.needle().len()..].trim_ascii_start();
        rest.strip_prefix(b":")
            .and_then(|value| value.trim_ascii_start().first())
            .is_some_and(|byte| first.contains(byte))
    })
}

fn parse(chunk: &[u8]) -> Peeked {
    // What does not parse is forwarded as it is: the agent checks every chunk and names the fault.
    let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(chunk) else { return Peeked::default() };
    let choices: Option<Vec<Choice<'_>>> =
        chunk.choices.map(|raw| serde_json::from_str(raw.get()).unwrap_or_default());
    Peeked {
        finish: choices
            .iter()
            .flatten()
            .any(|c| c.finish_reason.is_some_and(|raw| raw.get().starts_with('"'))),
        usage: chunk.usage.and_then(numbers),
        error: choices.is_none() && chunk.error.is_some(),
        no_choices: choices.is_none_or(|choices| choices.is_empty()),
    }
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
    let body: Chunk<'_> = serde_json::from_slice(body).ok()?;
    Some(Answer {
        usage: body.usage.and_then(numbers),
        error: body.choices.is_none() && body.error.is_some(),
    })
}

fn numbers(raw: &RawValue) -> Option<Usage> {
    let usage: UsageNumbers = serde_json::from_str(raw.get()).ok()?;
    let usage = Usage { input_tokens: usage.prompt_tokens, output_tokens: usage.completion_tokens };
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
mod tests {
    use super::*;

    fn peek(chunk: &str) -> Peeked {
        Peeker::default().peek(chunk.as_bytes())
    }

    #[test]
    fn an_ordinary_chunk_says_nothing() {
        let chunk = r#"{"choices":[{"index":0,"delta":{"content":"a \"finish_reason\":\"stop\""},"finish_reason":null}],"usage":null}"#;
        assert_eq!(peek(chunk), Peeked::default());
    }

    #[test]
    fn a_finish_reason_is_found_with_and_without_spaces() {
        for chunk in [
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices": [{"delta": {}, "finish_reason" : "length"}]}"#,
            r#"{"choices":[{"finish_reason":null},{"finish_reason":"stop"}]}"#,
        ] {
            assert!(peek(chunk).finish, "{chunk}");
        }
    }

    #[test]
    fn a_finish_reason_elsewhere_is_not_the_answers() {
        assert!(!peek(r#"{"choices":[{"delta":{"x":{"finish_reason":"stop"}}}]}"#).finish);
        assert!(!peek(r#"{"choices":[{"delta":{"content":"finish_reason"},"x":"stop"}]}"#).finish);
    }

    #[test]
    fn usage_is_read_with_and_without_choices() {
        let usage = Some(Usage { input_tokens: Some(3), output_tokens: Some(5) });
        let alone =
            peek(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#);
        assert_eq!((alone.usage, alone.no_choices), (usage, true));
        let beside = peek(
            r#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#,
        );
        assert_eq!((beside.usage, beside.no_choices, beside.finish), (usage, false, true));
    }

    #[test]
    fn an_error_is_told_from_a_chunk() {
        assert!(peek(r#"{"error":{"message":"out of memory"}}"#).error);
        assert!(peek(r#"{"error":"out of memory"}"#).error);
        assert!(!peek(r#"{"choices":[{"delta":{"content":"x"}}],"error":{"message":"odd"}}"#).error);
        assert!(!peek(r#"{"choices":[],"error":null}"#).error);
    }

    #[test]
    fn an_answer_that_is_no_object_is_none() {
        assert_eq!(answer(&Bytes::from_static(b"<html>")), None);
        assert!(answer(&Bytes::from_static(br#"{"error":{"message":"x"}}"#)).unwrap().error);
    }
}
