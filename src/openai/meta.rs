//! What an answer says about itself: for traces, the status, and the rules about how an answer may end.

use super::{
    errors::ErrorSigns,
    read::{self, Choices, MAX_CHOICES, Reading},
    template::Template,
};
use crate::{
    domain::Usage,
    json::{
        Malformed,
        scan::{self, Span, number},
        text,
    },
};

/// Longest response id, model name or finish reason that is kept, in bytes: they become attributes of traces.
const MAX_WORD: usize = 256;

/// What an answer has said about itself so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseMeta {
    /// Chunks taken, not counting `[DONE]`.
    pub chunks: u32,
    /// Whether there was a piece of the answer itself: text, reasoning, a refusal or a tool call.
    pub first_token: bool,
    /// Whether `[DONE]` was seen.
    pub done: bool,
    /// The choices that have begun.
    pub begun: Choices,
    /// Each choice that has ended, and why; at most 128, each at most 256 bytes long.
    pub finish_reasons: Vec<(u32, String)>,
    /// What the provider counted.
    pub usage: Option<Usage>,
    /// The provider's id of the answer, at most 256 bytes of it.
    pub response_id: Option<String>,
    /// The model that answered, at most 256 bytes of it.
    pub model: Option<String>,
}

impl ResponseMeta {
    /// Whether the output is complete: the server said so, or each choice that began has ended.
    pub fn is_complete(&self) -> bool {
        let mut ended = Choices::default();
        self.finish_reasons.iter().for_each(|(index, _)| ended.insert(*index));
        self.done || (!self.finish_reasons.is_empty() && ended.contains(self.begun))
    }

    /// Reads a whole `chat.completion` body, which must be one JSON object and is otherwise accepted as it is. Also returns
    /// whether it is an error where an answer should be.
    pub(super) fn of_completion(body: &[u8]) -> Result<(Self, bool), Malformed> {
        let mut meta = Self::default();
        let (mut errors, mut choices, mut usage) = (ErrorSigns::default(), 0, false);
        scan::object(body, |scan, key| {
            match scan.of(key) {
                b"id" => meta.response_id = word(scan)?,
                b"model" => meta.model = word(scan)?,
                b"usage" => {
                    usage |= scan.peek()? != b'n';
                    meta.usage = read_usage(scan)?;
                }
                b"choices" if scan.peek()? == b'[' => {
                    scan.array(|scan| {
                        choices += 1;
                        meta.ended(scan, choices - 1)
                    })?;
                }
                _ => errors.member(scan, key)?,
            }
            Ok(())
        })?;
        meta.first_token = true;
        Ok((meta, errors.is_error(choices > 0, usage)))
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
                b"finish_reason" => {
                    reason = read::reason(scan)?
                        .and_then(|span| text::unescape_text(scan.text_of(span), MAX_WORD));
                }
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
        self.begun.add(reading.begun);
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

/// What one chunk says beside its text: what the provider host has to know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkMeta {
    /// It is an error, not a piece of an answer.
    pub is_error: bool,
    /// The choices of which it has a piece.
    pub begun: Choices,
    /// The choices that end here.
    pub ended: Choices,
    /// It has nothing but the usage, readable or not: no choice is in it.
    pub only_usage: bool,
    /// What the server counted.
    pub usage: Option<Usage>,
}

/// Reads the chunks of one stream, one after another.
#[derive(Debug, Default)]
pub struct ChunkReader {
    template: Option<Template>,
    /// What the template says.
    meta: ChunkMeta,
}

impl ChunkReader {
    /// Reads one chunk.
    ///
    /// # Errors
    /// If it is not one JSON object.
    pub fn read(&mut self, chunk: &[u8]) -> Result<ChunkMeta, Malformed> {
        if self.template.as_ref().is_some_and(|template| template.text_of(chunk).is_some()) {
            return Ok(self.meta);
        }
        let reading = read::read(chunk)?;
        let mut ended = Choices::default();
        reading.finishes.iter().for_each(|(index, _)| ended.insert(*index));
        self.meta = ChunkMeta {
            is_error: reading.is_error,
            begun: reading.begun,
            ended,
            only_usage: reading.usage.is_some() && !reading.any_choice,
            usage: reading.usage.and_then(|span| usage(span.of(chunk))),
        };
        let layout = reading.layout.as_ref();
        self.template = layout.and_then(|layout| Template::learn(self.template.take(), chunk, layout));
        Ok(self.meta)
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
        let (facts, _) = ResponseMeta::of_completion(body).expect("an object");
        assert_eq!(facts.finish_reasons, [(0, "stop".to_owned()), (4, "length".to_owned())]);
        assert_eq!(facts.usage, Some(Usage { input_tokens: Some(3), ..Usage::default() }));
        assert_eq!((facts.response_id.as_deref(), facts.model.as_deref()), (Some("c1"), Some("m")));
    }

    #[test]
    fn a_chunk_says_the_same_whatever_came_before_it() {
        let chunk = |index: u32, delta: &str, rest: &str| {
            format!(
                r#"{{"id":"c","choices":[{{"index":{index},"delta":{delta},"finish_reason":null}}]{rest}}}"#
            )
        };
        let text = r#"{"content":"a"}"#;
        let chunks = [
            chunk(0, r#"{"role":"assistant","content":""}"#, ""),
            chunk(0, text, ""),
            chunk(0, r#"{"content":"\"}],\"error\":1"}"#, ""),
            chunk(0, r#"{"content":""}"#, ""),
            chunk(0, r#"{"content":"a\"}"#, ""),
            chunk(1, text, ""),
            chunk(0, text, r#","error":{}"#),
            chunk(0, text, r#","error":{"message":"m"}"#),
            chunk(0, r#"{"content":"b"}"#, r#","error":{"message":"m"}"#),
            chunk(0, text, r#","usage":{"prompt_tokens":1}"#),
            chunk(0, r#"{"content":"b"}"#, r#","usage":{"prompt_tokens":1}"#),
            chunk(0, text, "").replace("null", "\"stop\""),
            r#"{"choices":[],"usage":{"prompt_tokens":3}}"#.to_owned(),
            chunk(0, text, ""),
        ];
        for before in &chunks {
            for chunk in &chunks {
                let mut reader = ChunkReader::default();
                let _ = reader.read(before.as_bytes());
                let alone = ChunkReader::default().read(chunk.as_bytes());
                assert_eq!(reader.read(chunk.as_bytes()), alone, "{chunk} after {before}");
            }
        }
        let mut reader = ChunkReader::default();
        let again = [1, 13].map(|one| reader.read(chunks[one].as_bytes()).expect("an object"));
        assert!(reader.template.is_some() && again[0] == again[1] && !again[0].begun.is_empty());
    }

    #[test]
    fn a_flood_of_choices_is_not_kept() {
        let mut facts = ResponseMeta::default();
        (0..10_000).for_each(|choice| facts.finished(choice, "stop".to_owned()));
        assert_eq!(facts.finish_reasons.len(), MAX_CHOICES);
    }
}
