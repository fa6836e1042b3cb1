//! Turns a finished answer into chunks, for a caller who asked for a stream.

use bytes::Bytes;

use super::{ResponseMeta, failure::provider_failure, read::is_no_reason};
use crate::{
    domain::{Failure, FailureCode},
    json::{
        Malformed,
        scan::{self, Scanner},
        text::member,
    },
};

const CHUNK: &[u8] = b"\"chat.completion.chunk\"";

/// Reads a finished `chat.completion` body before it is passed on unchanged.
///
/// # Errors
/// If the body is not a JSON object, or has an `error` instead of an answer.
pub fn read_completion(body: &Bytes) -> Result<ResponseMeta, Failure> {
    match ResponseMeta::of_completion(body).map_err(bad_body)? {
        (_, true) => Err(provider_failure(None, body)),
        (facts, false) => Ok(facts),
    }
}

/// What a finished body says about itself, and the same answer as chunks: one with all choices complete and, if the caller wants to see
/// it, one with the usage. Unknown members are kept as they are.
///
/// # Errors
/// As [`read_completion`], and if the body has no choices.
pub fn chunks_from_completion(
    body: &Bytes,
    include_usage: bool,
) -> Result<(ResponseMeta, Vec<Bytes>), Failure> {
    let facts = read_completion(body)?;
    let Begun { mut whole, mut usage_only, usage } = Begun::read(body)?;
    put(&mut whole, b"object", CHUNK);
    let Some(usage) = usage.filter(|_| include_usage) else {
        whole.push(b'}');
        return Ok((facts, vec![whole.into()]));
    };
    put(&mut whole, b"usage", b"null");
    whole.push(b'}');
    put(&mut usage_only, b"object", CHUNK);
    put(&mut usage_only, b"choices", b"[]");
    put(&mut usage_only, b"usage", usage);
    usage_only.push(b'}');
    Ok((facts, vec![whole.into(), usage_only.into()]))
}

/// What a finished body says, as chunks that lack only their ends.
struct Begun<'a> {
    /// The chunk with the choices.
    whole: Vec<u8>,
    /// The same without them.
    usage_only: Vec<u8>,
    /// The value of `usage`, unless it is null.
    usage: Option<&'a [u8]>,
}

impl<'a> Begun<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Failure> {
        let mut whole = Vec::with_capacity(body.len() + 64);
        let mut usage_only = vec![b'{'];
        let (mut usage, mut any) = (None, false);
        whole.push(b'{');
        scan::object(body, |scan, key| {
            match (scan.of(key), scan.peek()?) {
                (b"object", _) => drop(scan.skip()?),
                (b"usage", _) => {
                    let value = scan.skip()?;
                    usage = Some(scan.of(value)).filter(|value| *value != b"null");
                }
                (b"choices", b'[') => {
                    any = true;
                    member(&mut whole, b"choices");
                    choices(scan, &mut whole)?;
                }
                (name, _) => {
                    let value = scan.skip()?;
                    put(&mut whole, name, scan.of(value));
                    put(&mut usage_only, name, scan.of(value));
                }
            }
            Ok(())
        })
        .map_err(bad_body)?;
        if !any {
            return Err(bad_output("the provider's answer has no choices"));
        }
        Ok(Self { whole, usage_only, usage })
    }
}

fn choices(scan: &mut Scanner<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.push(b'[');
    let mut place = 0;
    scan.array(|scan| {
        if place > 0 {
            out.push(b',');
        }
        place += 1;
        if scan.peek()? == b'{' {
            return choice(scan, out, place - 1);
        }
        let value = scan.skip()?;
        out.extend_from_slice(scan.of(value));
        Ok(())
    })?;
    out.push(b']');
    Ok(())
}

/// Copies a choice with its message as a delta; adds an index and a finish reason if they are missing.
fn choice(scan: &mut Scanner<'_>, out: &mut Vec<u8>, place: u32) -> Result<(), Malformed> {
    let (mut index, mut finish, mut calls) = (false, false, false);
    out.push(b'{');
    scan.object(|scan, key| {
        match (scan.of(key), scan.peek()?) {
            (b"message", b'{') => {
                member(out, b"delta");
                calls |= delta(scan, out)?;
            }
            (name, _) => {
                let value = scan.skip()?;
                if name == b"finish_reason" && is_no_reason(scan.of(value)) {
                    return Ok(());
                }
                index |= name == b"index";
                finish |= name == b"finish_reason";
                put(out, name, scan.of(value));
            }
        }
        Ok(())
    })?;
    if !index {
        put(out, b"index", place.to_string().as_bytes());
    }
    if !finish {
        put(out, b"finish_reason", if calls { b"\"tool_calls\"" } else { b"\"stop\"" });
    }
    out.push(b'}');
    Ok(())
}

/// Copies a message; its tool calls get their index. Returns whether there are any.
fn delta(scan: &mut Scanner<'_>, out: &mut Vec<u8>) -> Result<bool, Malformed> {
    let mut calls = 0;
    out.push(b'{');
    scan.object(|scan, key| {
        let name = scan.of(key);
        member(out, name);
        if name != b"tool_calls" || scan.peek()? != b'[' {
            let value = scan.skip()?;
            out.extend_from_slice(scan.of(value));
            return Ok(());
        }
        out.push(b'[');
        scan.array(|scan| {
            if calls > 0 {
                out.push(b',');
            }
            let value = scan.skip()?;
            indexed(scan.of(value), calls, out);
            calls += 1;
            Ok(())
        })?;
        out.push(b']');
        Ok(())
    })?;
    out.push(b'}');
    Ok(calls > 0)
}

/// Appends a tool call with its index, if it has none and is an object.
fn indexed(call: &[u8], index: u32, out: &mut Vec<u8>) {
    let (mut has_index, mut members) = (false, false);
    let read = scan::object(call, |scan, key| {
        has_index |= scan.of(key) == b"index";
        members = true;
        scan.skip().map(drop)
    });
    if read.is_err() || has_index {
        return out.extend_from_slice(call);
    }
    out.extend_from_slice(format!("{{\"index\":{index}{}", if members { "," } else { "" }).as_bytes());
    out.extend_from_slice(&call[1..]);
}

fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    member(out, name);
    out.extend_from_slice(value);
}

fn bad_body(why: Malformed) -> Failure {
    bad_output(&format!("the provider sent an answer that {why}"))
}

fn bad_output(message: &str) -> Failure {
    Failure::new(FailureCode::BadOutput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(body: &str, include_usage: bool) -> Vec<String> {
        let (_, chunks) =
            chunks_from_completion(&body.to_owned().into(), include_usage).expect("it is a body");
        chunks.iter().map(|chunk| String::from_utf8(chunk.to_vec()).expect("UTF-8")).collect()
    }

    #[test]
    fn a_body_becomes_one_chunk_with_everything_in_it() {
        let body = r#"{"id":"c","object":"chat.completion","created":1.0,"x":[1e2],"choices":[
            {"index":0,"message":{"role":"assistant","content":"a\ud83d","new":{"k":1.50},"tool_calls":[{"id":"t","function":{"name":"f","arguments":"{}"}},{},5]},"logprobs":{"content":[]},"finish_reason":"stop"},
            {"message":{"content":"b"},"finish_reason":null}],"usage":{"total_tokens":3}}"#;
        let delta = r#"{"index":0,"delta":{"role":"assistant","content":"a\ud83d","new":{"k":1.50},"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{}"}},{"index":1},5]},"logprobs":{"content":[]},"finish_reason":"stop"}"#;
        let other = r#"{"delta":{"content":"b"},"index":1,"finish_reason":"stop"}"#;
        let head = format!(
            r#"{{"id":"c","created":1.0,"x":[1e2],"choices":[{delta},{other}],"object":"chat.completion.chunk""#
        );
        assert_eq!(chunks(body, false), [format!("{head}}}")]);
        let usage = r#"{"id":"c","created":1.0,"x":[1e2],"object":"chat.completion.chunk","choices":[],"usage":{"total_tokens":3}}"#;
        assert_eq!(chunks(body, true), [format!("{head},\"usage\":null}}"), usage.to_owned()]);
    }

    #[test]
    fn tool_calls_without_a_finish_reason_end_with_tool_calls() {
        let body = r#"{"choices":[{"message":{"tool_calls":[{"index":3}]}}]}"#;
        assert_eq!(
            chunks(body, true),
            [
                r#"{"choices":[{"delta":{"tool_calls":[{"index":3}]},"index":0,"finish_reason":"tool_calls"}],"object":"chat.completion.chunk"}"#
            ]
        );
    }

    #[test]
    fn what_is_no_answer_is_a_failure_that_does_not_quote_it() {
        for body in ["secret", "[\"secret\"]", "{\"secret\":1}", "{\"choices\":\"secret\"}", ""] {
            let failure = chunks_from_completion(&body.into(), false).expect_err("it is no answer");
            assert_eq!(failure.code, FailureCode::BadOutput);
            assert!(!failure.message.contains("secret"));
        }
        let error = r#"{"error":{"message":"full","code":429}}"#;
        assert_eq!(read_completion(&error.into()).expect_err("an error").code, FailureCode::RateLimited);
        assert!(read_completion(&r#"{"error":null,"choices":[]}"#.into()).is_ok());
    }
}
