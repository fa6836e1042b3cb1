//! Gathers the chunks with which a plain task is answered into one body.
//!
//! A `delta` and `logprobs` grow: strings, arrays and objects are joined; of everything else the last value that is not null remains.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    ChunkEnvelope, ChunkError, MemoryBudget, Pushed, Reservation, ResponseMeta, StreamBuffer, plain,
    read::is_no_reason,
    value::{MEMBER_COST, Value, index_of, replace},
};
use crate::{
    domain::{Delta, Failure, FailureCode, Usage},
    json::{
        Malformed,
        scan::{self, Scanner},
        text::member,
    },
};

/// The chunks of one task, on their way to one body.
pub struct Gather {
    limit: usize,
    /// Merges what can be merged cheaply before chunks are taken apart.
    buffer: StreamBuffer,
    answer: Answer,
    /// What the answer takes; the buffer has its own.
    share: Reservation,
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
    /// Gathers at most `limit` bytes, in a room of its own. `stamp` supplies what plain deltas lack.
    pub fn new(limit: usize, stamp: ChunkEnvelope) -> Self {
        Self::within(&MemoryBudget::new(usize::MAX), limit, stamp)
    }

    /// The same in a room that it shares with others.
    pub fn within(room: &MemoryBudget, limit: usize, stamp: ChunkEnvelope) -> Self {
        let buffer = StreamBuffer::within(room, limit, stamp);
        Self { limit, buffer, answer: Answer::default(), share: room.reservation() }
    }

    /// Takes one chunk, as [`StreamBuffer::push_raw`] does.
    ///
    /// # Errors
    /// If the chunk is not a JSON object or is an error of the provider, or the answer becomes too large.
    pub fn push_raw(&mut self, chunk: Bytes) -> Result<Pushed, ChunkError> {
        let pushed = self.buffer.push_raw(chunk);
        self.settle(pushed)
    }

    /// Takes a plain piece of the first choice.
    ///
    /// # Errors
    /// If the answer becomes too large.
    pub fn push_delta(&mut self, delta: &Delta) -> Result<Pushed, ChunkError> {
        let pushed = self.buffer.push_delta(delta);
        self.settle(pushed)
    }

    /// What the output has said about itself so far.
    pub fn meta(&self) -> &ResponseMeta {
        self.buffer.meta()
    }

    /// How many bytes are held.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.pending_bytes() + self.answer.held
    }

    /// The whole answer as one `chat.completion` body, once the provider has sent its last piece. It must have ended as
    /// [`StreamBuffer::finish`] requires. `usage` is used if the chunks have none.
    ///
    /// # Errors
    /// If the answer has not ended properly.
    pub fn finish(mut self, usage: Option<Usage>) -> Result<Bytes, Failure> {
        self.buffer.finish(usage, false)?;
        self.fold()?;
        if self.answer.choices.is_empty() {
            return Err(Failure::new(
                FailureCode::BadOutput,
                "the provider's stream ended without an answer in it",
            ));
        }
        Ok(self.answer.write(self.buffer.meta().usage))
    }

    /// The buffer keeps one part, into which the next chunk may merge; the others are taken apart.
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
        let held = self.answer.held;
        self.share.reserve(held).inspect_err(|_| self.share.hold(held))
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
        match (self.top.get(b"usage".as_slice()).map(Vec::as_slice), usage) {
            // Many servers write null into every chunk but the last.
            (None | Some(b"null"), Some(usage)) => {
                member(&mut out, b"usage");
                plain::write_usage(&mut out, usage);
            }
            (Some(counted), _) => {
                member(&mut out, b"usage");
                out.extend_from_slice(counted);
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

/// The last value that is not null remains.
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
        // An empty reason is none, so it does not replace the one that was given.
        Some(_) if name == b"finish_reason" && is_no_reason(value) => {}
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
        match self.rest.get(b"finish_reason".as_slice()).filter(|reason| !is_no_reason(reason)) {
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
mod tests;
