//! A plain task that is answered by chunks: they are gathered into one body.
//!
//! `delta` and `logprobs` grow as [`super::value`] says; of everything else the last value that is not null stays.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    ChunkError, Facts, Malformed, Pushed, Stamp, StreamBuffer, plain,
    scan::{self, Scanner},
    text::member,
    value::{MEMBER_COST, Value, index_of, replace},
};
use crate::domain::{Delta, Failure, FailureCode, Usage};

/// The chunks of one task, on their way to one body.
pub struct Gather {
    limit: usize,
    /// Joins what can be joined cheaply before it is taken apart.
    buffer: StreamBuffer,
    answer: Answer,
}

#[derive(Default)]
struct Answer {
    top: BTreeMap<Vec<u8>, Vec<u8>>,
    choices: BTreeMap<u32, Choice>,
    held: usize,
}

#[derive(Default)]
struct Choice {
    message: Value,
    logprobs: Value,
    rest: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Gather {
    /// Gathers at most `limit` bytes. `stamp` says what plain deltas do not.
    pub fn new(limit: usize, stamp: Stamp) -> Self {
        Self { limit, buffer: StreamBuffer::new(limit, stamp), answer: Answer::default() }
    }

    /// Takes one chunk, as [`StreamBuffer::push_raw`] does.
    pub fn push_raw(&mut self, chunk: Bytes) -> Result<Pushed, ChunkError> {
        let pushed = self.buffer.push_raw(chunk);
        self.settle(pushed)
    }

    /// Takes a plain piece of the first choice.
    pub fn push_delta(&mut self, delta: &Delta) -> Result<Pushed, ChunkError> {
        let pushed = self.buffer.push_delta(delta);
        self.settle(pushed)
    }

    /// What the output has said of itself so far.
    pub fn facts(&self) -> &Facts {
        self.buffer.facts()
    }

    /// How many bytes are held.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.pending_bytes() + self.answer.held
    }

    /// The whole answer as one `chat.completion` body, when the provider has sent its last piece. It must have ended as
    /// [`StreamBuffer::finish`] says. `usage` counts where the chunks have none.
    pub fn finish(mut self, usage: Option<Usage>) -> Result<Bytes, Failure> {
        self.buffer.finish(usage, false)?;
        self.fold()?;
        if self.answer.choices.is_empty() {
            return Err(Failure::new(
                FailureCode::BadOutput,
                "the provider's stream ended without an answer in it",
            ));
        }
        Ok(self.answer.write(self.buffer.facts().usage))
    }

    /// The buffer keeps one part, to which the next chunk may be joined; the others are taken apart.
    fn settle(&mut self, pushed: Result<Pushed, ChunkError>) -> Result<Pushed, ChunkError> {
        let too_large = ChunkError::TooLarge { limit: self.limit };
        let pushed =
            pushed.map_err(|e| if matches!(e, ChunkError::Full { .. }) { too_large.clone() } else { e })?;
        if self.buffer.pending_parts() > 1 {
            self.fold()?;
        }
        if self.pending_bytes() > self.limit { Err(too_large) } else { Ok(pushed) }
    }

    fn fold(&mut self) -> Result<(), ChunkError> {
        while let Some(chunk) = self.buffer.pop() {
            self.answer.take(&chunk)?;
        }
        Ok(())
    }
}

impl Answer {
    fn take(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        let Self { top, choices, held } = self;
        scan::object(chunk, |scan, key| match (scan.of(key), scan.peek()?) {
            (b"choices", b'[') => scan.array(|scan| take_choice(choices, held, scan)).map(drop),
            (name, _) => keep_last(top, held, name, scan),
        })
    }

    fn write(&self, usage: Option<Usage>) -> Bytes {
        let mut out = Vec::with_capacity(self.held + 256);
        out.push(b'{');
        for (name, value) in
            self.top.iter().filter(|(name, _)| !matches!(&name[..], b"object" | b"usage" | b"choices"))
        {
            member(&mut out, name);
            out.extend_from_slice(value);
        }
        member(&mut out, b"object");
        out.extend_from_slice(b"\"chat.completion\"");
        member(&mut out, b"choices");
        let mut separator = b'[';
        for (index, choice) in &self.choices {
            out.push(separator);
            separator = b',';
            choice.write(&mut out, *index);
        }
        out.push(b']');
        match (self.top.get(b"usage".as_slice()), usage) {
            (Some(counted), _) => {
                member(&mut out, b"usage");
                out.extend_from_slice(counted);
            }
            (None, Some(usage)) => {
                member(&mut out, b"usage");
                plain::write_usage(&mut out, usage);
            }
            (None, None) => {}
        }
        out.push(b'}');
        out.into()
    }
}

fn take_choice(
    choices: &mut BTreeMap<u32, Choice>,
    held: &mut usize,
    scan: &mut Scanner<'_>,
) -> Result<(), Malformed> {
    let span = scan.skip()?;
    let raw = scan.of(span);
    if !raw.starts_with(b"{") {
        return Ok(());
    }
    let choice = choices.entry(index_of(raw)?.unwrap_or(0)).or_insert_with(|| {
        *held += MEMBER_COST;
        Choice::default()
    });
    scan::object(raw, |scan, key| match scan.of(key) {
        b"index" => scan.skip().map(drop),
        b"delta" => choice.message.absorb(b"delta", scan, held),
        b"logprobs" => choice.logprobs.absorb(b"logprobs", scan, held),
        name => keep_last(&mut choice.rest, held, name, scan),
    })
}

/// The last value that is not null stays.
fn keep_last(
    map: &mut BTreeMap<Vec<u8>, Vec<u8>>,
    held: &mut usize,
    name: &[u8],
    scan: &mut Scanner<'_>,
) -> Result<(), Malformed> {
    let value = scan.skip()?;
    let value = scan.of(value);
    match map.get_mut(name) {
        Some(_) if value == b"null" => {}
        Some(old) => replace(old, value, held),
        None => {
            *held += MEMBER_COST + name.len() + value.len();
            map.insert(name.to_vec(), value.to_vec());
        }
    }
    Ok(())
}

impl Choice {
    fn write(&self, out: &mut Vec<u8>, index: u32) {
        out.push(b'{');
        member(out, b"index");
        out.extend_from_slice(index.to_string().as_bytes());
        member(out, b"message");
        let calls = self.write_message(out);
        if !matches!(self.logprobs, Value::Null) {
            member(out, b"logprobs");
            self.logprobs.write(out);
        }
        for (name, value) in self.rest.iter().filter(|(name, _)| name[..] != b"finish_reason"[..]) {
            member(out, name);
            out.extend_from_slice(value);
        }
        member(out, b"finish_reason");
        match self.rest.get(b"finish_reason".as_slice()).filter(|reason| reason[..] != b"null"[..]) {
            Some(reason) => out.extend_from_slice(reason),
            None => out.extend_from_slice(if calls { b"\"tool_calls\"" } else { b"\"stop\"" }),
        }
        out.push(b'}');
    }

    /// Returns whether it calls tools.
    fn write_message(&self, out: &mut Vec<u8>) -> bool {
        let none = BTreeMap::new();
        let members = if let Value::Members(members) = &self.message { members } else { &none };
        let role = Value::Text(b"assistant".to_vec());
        let mut calls = false;
        out.push(b'{');
        for (name, default) in [(b"role".as_slice(), &role), (b"content", &Value::Null)] {
            member(out, name);
            members.get(name).filter(|value| !matches!(value, Value::Null)).unwrap_or(default).write(out);
        }
        for (name, value) in members.iter().filter(|(name, _)| !matches!(&name[..], b"role" | b"content")) {
            calls |= matches!(value, Value::Calls(_));
            member(out, name);
            value.write(out);
        }
        out.push(b'}');
        calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::convert::chunks_from_completion;

    fn gather() -> Gather {
        Gather::new(1 << 20, Stamp { id: "chatcmpl-1".to_owned(), model: "tiny".to_owned(), created: 7 })
    }

    fn gathered<S: AsRef<str>>(chunks: &[S]) -> serde_json::Value {
        serde_json::from_str(&body(chunks)).expect("the body is JSON")
    }

    fn body<S: AsRef<str>>(chunks: &[S]) -> String {
        let mut gather = gather();
        for chunk in chunks {
            gather.push_raw(Bytes::copy_from_slice(chunk.as_ref().as_bytes())).expect("the chunk is taken");
        }
        String::from_utf8(gather.finish(None).expect("it ended").to_vec()).expect("UTF-8")
    }

    fn choice(choice: &str) -> String {
        format!(
            r#"{{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"f","choices":[{choice}]}}"#
        )
    }

    #[test]
    fn chunks_become_one_body() {
        let chunks = [
            choice(
                r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#,
            ),
            choice(
                r#"{"index":0,"delta":{"content":"a\ud83d"},"logprobs":{"content":[{"logprob":-0.10}]},"finish_reason":null}"#,
            ),
            choice(
                r#"{"index":0,"delta":{"content":"\ude00"},"logprobs":{"content":[{"logprob":1e-9}]},"finish_reason":null}"#,
            ),
            choice(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#),
            r#"{"id":"c","choices":[],"usage":{"prompt_tokens":3,"details":{"x":1}}}"#.to_owned(),
            "[DONE]".to_owned(),
        ];
        let expected = r#"{"created":1,"id":"c","model":"m","system_fingerprint":"f","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a\ud83d\ude00"},"logprobs":{"content":[{"logprob":-0.10},{"logprob":1e-9}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"details":{"x":1}}}"#;
        assert_eq!(body(&chunks), expected);
    }

    #[test]
    fn tool_calls_are_put_together_by_their_index() {
        let call = |call: &str| choice(&format!(r#"{{"index":0,"delta":{{"tool_calls":[{call}]}}}}"#));
        let chunks = [
            call(r#"{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}"#),
            call(r#"{"index":0,"function":{"arguments":"{\"x\""}}"#),
            call(
                r#"{"index":1,"id":"b","function":{"name":"g","arguments":"1"}},{"index":0,"function":{"name":"f","arguments":":"}}"#,
            ),
            call(r#"{"index":0,"id":"","function":{"name":"","arguments":"1}"}}"#),
            call(
                r#"{"id":"c","type":"function","extra":{"sig":"s"},"function":{"name":"h","arguments":"2"}},7"#,
            ),
            "[DONE]".to_owned(),
        ];
        let whole = gathered(&chunks);
        let expected = serde_json::json!([
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "1"}},
            {"id": "c", "type": "function", "extra": {"sig": "s"}, "function": {"name": "h", "arguments": "2"}},
        ]);
        assert_eq!(whole["choices"][0]["message"]["tool_calls"], expected);
        assert_eq!(whole["choices"][0]["message"]["content"], serde_json::Value::Null);
        assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    }

    #[test]
    fn members_that_are_not_known_are_kept() {
        let chunks = [
            choice(
                r#"{"index":0,"delta":{"audio":{"id":"a","transcript":"x"},"annotations":[1],"thinking":"p","flag":true}}"#,
            ),
            choice(
                r#"{"index":0,"delta":{"audio":{"transcript":"y","expires":2},"annotations":[{"u":"v"}],"thinking":"q","flag":null},"stop_reason":null}"#,
            ),
            choice(
                r#"{"index":0,"delta":{"annotations":[],"flag":false},"stop_reason":"eos","finish_reason":"stop"}"#,
            ),
        ];
        let whole = gathered(&chunks);
        let message = serde_json::json!({
            "role": "assistant", "content": null, "audio": {"id": "a", "transcript": "xy", "expires": 2},
            "annotations": [1, {"u": "v"}], "thinking": "pq", "flag": false,
        });
        assert_eq!(whole["choices"][0]["message"], message);
        assert_eq!(whole["choices"][0]["stop_reason"], "eos");
    }

    #[test]
    fn every_choice_is_gathered_for_itself() {
        let of = |index: u32, text: &str| format!(r#"{{"index":{index},"delta":{{"content":"{text}"}}}}"#);
        let end = |index: u32, reason: &str| {
            format!(r#"{{"index":{index},"delta":{{}},"finish_reason":"{reason}"}}"#)
        };
        let chunks = [
            choice(&of(1, "x")),
            choice(&of(0, "a")),
            choice(&format!("{},{}", of(0, "b"), of(1, "y"))),
            choice(&end(0, "length")),
            choice(&end(1, "stop")),
        ];
        let whole = gathered(&chunks);
        let said = |at: usize| {
            (
                whole["choices"][at]["message"]["content"].as_str(),
                whole["choices"][at]["finish_reason"].as_str(),
            )
        };
        assert_eq!([said(0), said(1)], [(Some("ab"), Some("length")), (Some("xy"), Some("stop"))]);
    }

    #[test]
    fn plain_deltas_are_gathered_too_and_the_usage_is_added() {
        let mut gather = gather();
        for content in ["He", "llo"] {
            gather.push_delta(&Delta { content: content.to_owned(), ..Delta::default() }).expect("taken");
        }
        assert_eq!(gather.facts().chunks, 2);
        let whole =
            gather.finish(Some(Usage { input_tokens: Some(1), output_tokens: Some(2) })).expect("it ended");
        let expected = r#"{"created":7,"id":"chatcmpl-1","model":"tiny","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
        assert_eq!(whole, expected);
    }

    #[test]
    fn a_body_that_became_chunks_becomes_the_same_body_again() {
        let body = serde_json::json!({
            "id": "c", "object": "chat.completion", "created": 1, "model": "m", "new": {"a": [1]},
            "choices": [{
                "index": 0, "logprobs": {"content": [{"token": "a"}], "refusal": null}, "finish_reason": "tool_calls",
                "message": {"role": "assistant", "content": "hé", "refusal": null, "annotations": [],
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            }],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        });
        let chunks = chunks_from_completion(&body.to_string().into(), true).expect("it is a body");
        let chunks: Vec<_> = chunks.iter().map(|chunk| String::from_utf8_lossy(chunk).into_owned()).collect();
        assert_eq!(gathered(&chunks), body);
    }

    #[test]
    fn an_answer_past_the_limit_is_too_large_and_not_a_slow_consumer() {
        for piece in
            [r#"{"index":0,"delta":{"content":"0123456789"}}"#, r#"{"index":0,"delta":{"n":[123456]}}"#]
        {
            let piece = choice(piece);
            let mut gather = Gather::new(4000, Stamp { id: String::new(), model: String::new(), created: 0 });
            let error = (0..10_000)
                .find_map(|_| gather.push_raw(piece.clone().into()).err())
                .expect("there is a limit");
            assert_eq!(error, ChunkError::TooLarge { limit: 4000 });
            assert_eq!(Failure::from(error).code, FailureCode::TooLarge);
        }
    }

    #[test]
    fn repeated_values_do_not_fill_it() {
        let mut gather = Gather::new(8000, Stamp { id: String::new(), model: String::new(), created: 0 });
        for i in 0..5000 {
            let chunk = format!(
                r#"{{"id":"c{i}","x":{i},"choices":[{{"index":0,"delta":{{"flag":{i},"type":"t{i}"}}}}]}}"#
            );
            gather.push_raw(chunk.into()).expect("it is taken");
        }
        assert!(gather.pending_bytes() < 2000, "{} bytes", gather.pending_bytes());
    }

    #[test]
    fn a_stream_that_broke_off_or_says_nothing_is_a_failure() {
        let mut cut = gather();
        cut.push_raw(choice(r#"{"index":0,"delta":{"content":"a"}}"#).into()).expect("taken");
        assert_eq!(cut.finish(None).expect_err("it was cut").code, FailureCode::BadOutput);
        let mut silent = gather();
        silent.push_raw("[DONE]".into()).expect("taken");
        assert_eq!(silent.finish(None).expect_err("it says nothing").code, FailureCode::BadOutput);
    }
}
