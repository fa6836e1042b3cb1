//! What an answer says about itself: for traces, the status, and the rules about how an answer may end.

use crate::domain::Usage;

use super::{
    Malformed,
    read::{MAX_CHOICES, Reading},
    scan::{self, Span, number},
    text,
};

/// Longest response id, model name or finish reason that is kept, in bytes: they become attributes of traces.
const MAX_WORD: usize = 256;

/// What an answer has said about itself so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Chunks taken, not counting `[DONE]`.
    pub chunks: u32,
    /// Whether there was a piece of the answer itself: text, reasoning, a refusal or a tool call.
    pub first_token: bool,
    /// Whether `[DONE]` was seen.
    pub done: bool,
    /// Each choice that has ended, and why; at most 128, each at most 256 bytes long.
    pub finish_reasons: Vec<(u32, String)>,
    /// What the provider counted.
    pub usage: Option<Usage>,
    /// The provider's id of the answer, at most 256 bytes of it.
    pub response_id: Option<String>,
    /// The model that answered, at most 256 bytes of it.
    pub model: Option<String>,
}

impl Facts {
    /// Reads a whole `chat.completion` body, which must be one JSON object and is otherwise accepted as it is. Also returns whether it has
    /// an `error` instead of an answer.
    pub(super) fn of_completion(body: &[u8]) -> Result<(Self, bool), Malformed> {
        let mut facts = Self::default();
        let (mut error, mut choices) = (false, false);
        scan::object(body, |scan, key| {
            error |= scan.of(key) == b"error" && scan.peek()? != b'n';
            choices |= scan.of(key) == b"choices";
            match scan.of(key) {
                b"id" => facts.response_id = word(scan)?,
                b"model" => facts.model = word(scan)?,
                b"usage" => facts.usage = read_usage(scan)?,
                b"choices" if scan.peek()? == b'[' => {
                    let mut next = 0;
                    scan.array(|scan| {
                        facts.ended(scan, next)?;
                        next += 1;
                        Ok(())
                    })?;
                }
                _ => drop(scan.skip()?),
            }
            Ok(())
        })?;
        facts.first_token = true;
        Ok((facts, error && !choices))
    }

    fn ended(&mut self, scan: &mut scan::Scanner<'_>, place: u32) -> Result<(), Malformed> {
        if scan.peek()? != b'{' {
            return scan.skip().map(drop);
        }
        let (mut index, mut reason) = (place, None);
        scan.object(|scan, key| {
            match scan.of(key) {
                b"index" => {
                    let value = scan.skip()?;
                    index = number(scan.of(value)).unwrap_or(place);
                }
                b"finish_reason" => reason = word(scan)?,
                _ => drop(scan.skip()?),
            }
            Ok(())
        })?;
        if let Some(reason) = reason {
            self.finished(index, reason);
        }
        Ok(())
    }

    /// Adds what a chunk says.
    pub(super) fn take(&mut self, chunk: &[u8], reading: &Reading) {
        let word = |span: Option<Span>| span.and_then(|span| text::unescape(span.of(chunk), MAX_WORD));
        self.first_token |= reading.token;
        if self.response_id.is_none() {
            self.response_id = word(reading.id);
        }
        if self.model.is_none() {
            self.model = word(reading.model);
        }
        if let Some(counted) = reading.usage.and_then(|span| usage(span.of(chunk))) {
            self.usage = Some(counted);
        }
        for (index, reason) in &reading.finishes {
            if let Some(reason) = word(Some(*reason)) {
                self.finished(*index, reason);
            }
        }
    }

    fn finished(&mut self, index: u32, reason: String) {
        let known = self.finish_reasons.iter().any(|(choice, _)| *choice == index);
        if !known && self.finish_reasons.len() < MAX_CHOICES {
            self.finish_reasons.push((index, reason));
        }
    }
}

/// Reads OpenAI's `usage`; counts that are missing or do not fit 32 bits are unknown.
fn usage(value: &[u8]) -> Option<Usage> {
    read_usage(&mut scan::Scanner::new(value).ok()?).ok()?
}

fn read_usage(scan: &mut scan::Scanner<'_>) -> Result<Option<Usage>, Malformed> {
    if scan.peek()? != b'{' {
        return scan.skip().map(|_| None);
    }
    let mut found = Usage::default();
    scan.object(|scan, key| {
        match scan.of(key) {
            b"prompt_tokens" => found.input_tokens = count(scan)?,
            b"completion_tokens" => found.output_tokens = count(scan)?,
            b"prompt_tokens_details" => found.cached_input_tokens = detail(scan, b"cached_tokens")?,
            b"completion_tokens_details" => {
                found.reasoning_output_tokens = detail(scan, b"reasoning_tokens")?;
            }
            _ => drop(scan.skip()?),
        }
        Ok(())
    })?;
    Ok((found != Usage::default()).then_some(found))
}

fn count(scan: &mut scan::Scanner<'_>) -> Result<Option<u32>, Malformed> {
    let value = scan.skip()?;
    Ok(number(scan.of(value)))
}

/// One count of an object of them.
fn detail(scan: &mut scan::Scanner<'_>, name: &[u8]) -> Result<Option<u32>, Malformed> {
    if scan.peek()? != b'{' {
        return scan.skip().map(|_| None);
    }
    let mut found = None;
    scan.object(|scan, key| {
        let is_it = scan.of(key) == name;
        let value = count(scan)?;
        found = if is_it { value } else { found };
        Ok(())
    })?;
    Ok(found)
}

fn word(scan: &mut scan::Scanner<'_>) -> Result<Option<String>, Malformed> {
    if scan.peek()? != b'"' {
        return scan.skip().map(|_| None);
    }
    let body = scan.string()?;
    Ok(text::unescape_text(scan.text_of(body), MAX_WORD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_body_tells_its_facts() {
        let body = br#"{"id":"c1","model":"m","choices":[{"finish_reason":"stop"},{"index":4,"finish_reason":"length"},{"finish_reason":null},7],
            "usage":{"prompt_tokens":3,"completion_tokens":4294967296,"total_tokens":9}}"#;
        let (facts, _) = Facts::of_completion(body).expect("an object");
        assert_eq!(facts.finish_reasons, [(0, "stop".to_owned()), (4, "length".to_owned())]);
        assert_eq!(facts.usage, Some(Usage { input_tokens: Some(3), ..Usage::default() }));
        assert_eq!((facts.response_id.as_deref(), facts.model.as_deref()), (Some("c1"), Some("m")));
    }

    #[test]
    fn a_flood_of_choices_is_not_kept() {
        let mut facts = Facts::default();
        (0..10_000).for_each(|choice| facts.finished(choice, "stop".to_owned()));
        assert_eq!(facts.finish_reasons.len(), MAX_CHOICES);
    }
}
