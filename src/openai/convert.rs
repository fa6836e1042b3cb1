//! A finished answer that was asked for as a stream.

use bytes::Bytes;

use super::{
    Facts, Malformed,
    failure::provider_failure,
    scan::{self, Scanner},
};
use crate::domain::{Failure, FailureCode};

/// Reads a finished `chat.completion` body before it is sent on unchanged. What is no JSON object is a failure, and so is an
/// `error` in the place of an answer.
pub fn read_completion(body: &Bytes) -> Result<Facts, Failure> {
    let (mut error, mut choices) = (false, false);
    scan::object(body, |scan, key| {
        error |= scan.of(key) == b"error" && scan.peek()? != b'n';
        choices |= scan.of(key) == b"choices";
        scan.skip().map(drop)
    })
    .map_err(bad_body)?;
    if error && !choices {
        return Err(provider_failure(None, body));
    }
    Facts::of_completion(body).map_err(bad_body)
}

/// The chunks that say the same as a finished body: one with every choice whole and, if the caller wants to see it, one with
/// the usage. Members that are not known are kept as they are.
pub fn chunks_from_completion(body: &Bytes, include_usage: bool) -> Result<Vec<Bytes>, Failure> {
    read_completion(body)?;
    let mut top = Object::new(body.len() + 64);
    let mut usage_top = Object::new(256);
    let (mut usage, mut any) = (None, false);
    scan::object(body, |scan, key| {
        match (scan.of(key), scan.peek()?) {
            (b"object", _) => drop(scan.skip()?),
            (b"usage", _) => {
                let value = scan.skip()?;
                usage = Some(scan.of(value)).filter(|value| *value != b"null");
            }
            (b"choices", b'[') => {
                any = true;
                top.key(b"choices").push(b'[');
                choices(scan, &mut top.out)?;
                top.out.push(b']');
            }
            (name, _) => {
                let value = scan.skip()?;
                top.key(name).extend_from_slice(scan.of(value));
                usage_top.key(name).extend_from_slice(scan.of(value));
            }
        }
        Ok(())
    })
    .map_err(bad_body)?;
    if !any {
        return Err(bad_output("the provider's answer has no choices"));
    }
    let object: &[u8] = b"\"chat.completion.chunk\"";
    top.key(b"object").extend_from_slice(object);
    let mut chunks = vec![];
    if let Some(usage) = usage.filter(|_| include_usage) {
        top.key(b"usage").extend_from_slice(b"null");
        usage_top.key(b"object").extend_from_slice(object);
        usage_top.key(b"choices").extend_from_slice(b"[]");
        usage_top.key(b"usage").extend_from_slice(usage);
        chunks.push(usage_top.close());
    }
    chunks.insert(0, top.close());
    Ok(chunks)
}

fn choices(scan: &mut Scanner<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut place = 0;
    scan.array(|scan| {
        if place > 0 {
            out.push(b',');
        }
        choice(scan, out, place)?;
        place += 1;
        Ok(())
    })?;
    Ok(())
}

/// Copies a choice with its message as a delta; an index and a finish reason are given to one that lacks them.
fn choice(scan: &mut Scanner<'_>, out: &mut Vec<u8>, place: u32) -> Result<(), Malformed> {
    if scan.peek()? != b'{' {
        let value = scan.skip()?;
        out.extend_from_slice(scan.of(value));
        return Ok(());
    }
    let mut to = Object { out: std::mem::take(out), begun: false };
    let (mut index, mut finish, mut calls) = (false, false, false);
    to.open();
    scan.object(|scan, key| {
        match (scan.of(key), scan.peek()?) {
            (b"message", b'{') => {
                to.key(b"delta");
                calls |= delta(scan, &mut to.out)?;
            }
            (b"finish_reason", b'n') => drop(scan.skip()?),
            (name, _) => {
                index |= name == b"index";
                finish |= name == b"finish_reason";
                let value = scan.skip()?;
                to.key(name).extend_from_slice(scan.of(value));
            }
        }
        Ok(())
    })?;
    if !index {
        to.key(b"index").extend_from_slice(place.to_string().as_bytes());
    }
    if !finish {
        to.key(b"finish_reason").extend_from_slice(if calls { b"\"tool_calls\"" } else { b"\"stop\"" });
    }
    to.out.push(b'}');
    *out = to.out;
    Ok(())
}

/// Copies a message; its tool calls get their index. Returns whether there are any.
fn delta(scan: &mut Scanner<'_>, out: &mut Vec<u8>) -> Result<bool, Malformed> {
    let mut to = Object { out: std::mem::take(out), begun: false };
    let mut calls = 0_u32;
    to.open();
    scan.object(|scan, key| {
        let name = scan.of(key);
        to.key(name);
        if name != b"tool_calls" || scan.peek()? != b'[' {
            let value = scan.skip()?;
            to.out.extend_from_slice(scan.of(value));
            return Ok(());
        }
        to.out.push(b'[');
        scan.array(|scan| {
            if calls > 0 {
                to.out.push(b',');
            }
            let value = scan.skip()?;
            indexed(scan.of(value), calls, &mut to.out);
            calls += 1;
            Ok(())
        })?;
        to.out.push(b']');
        Ok(())
    })?;
    to.out.push(b'}');
    *out = to.out;
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

/// An object being written, member by member.
struct Object {
    out: Vec<u8>,
    begun: bool,
}

impl Object {
    fn new(capacity: usize) -> Self {
        let mut object = Self { out: Vec::with_capacity(capacity), begun: false };
        object.open();
        object
    }

    fn open(&mut self) {
        self.out.push(b'{');
    }

    /// Begins a member; its value is for the caller to append.
    fn key(&mut self, name: &[u8]) -> &mut Vec<u8> {
        let before: &[u8] = if self.begun { b",\"" } else { b"\"" };
        self.begun = true;
        [before, name, b"\":"].into_iter().for_each(|piece| self.out.extend_from_slice(piece));
        &mut self.out
    }

    fn close(mut self) -> Bytes {
        self.out.push(b'}');
        self.out.into()
    }
}

fn bad_body(why: Malformed) -> Failure {
    bad_output(&format!("the provider sent an answer that {why}"))
}

fn bad_output(message: &str) -> Failure {
    Failure::new(FailureCode::BadOutput, message)
}
