//! The pending output of one streaming task.
//!
//! The first chunk can be sent at once. What comes while it is being sent waits here, and neighbours that only add to the same text become
//! one chunk. Chunks merge by the contract's rule, with one addition (docs/decisions/0008-a-role-in-every-chunk-merges.md):
//!
//! - one choice each, of the same index, `finish_reason` null in both or in neither, no `usage`;
//! - everything but the values of `created`, `delta` and `logprobs` is equal byte for byte, including the order of members;
//! - the delta has nothing but `content`, `reasoning_content`, `reasoning`, `refusal` and the arguments of one tool call without id, name
//!   or type. Other members are allowed only if they are null in both;
//! - `logprobs` is null, or has only `content` and `refusal`, whose arrays are joined;
//! - a chunk with a role and no text merges with the chunk after it; one with a role and text merges with others of the same role (this is
//!   the addition: Ollama repeats the role in every chunk, and its streams would never merge).
//!
//! Anything else (another member, a repeated member, a key with escapes) makes a chunk a barrier: it is sent byte for byte, and nothing is
//! moved past it. Between barriers, the chunks of one choice keep their order; those of different choices need not. A chunk with which
//! nothing merged is sent byte for byte too.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    ChunkEnvelope, ChunkError, MemoryBudget, Reservation, ResponseMeta,
    calls::CallIndexes,
    failure::provider_failure,
    layout::ChunkLayout,
    part::{MAX_SPARE, MergeTail, Part},
    plain, read,
    template::Template,
};
use crate::{
    domain::{Delta, Failure, FailureCode, Usage},
    json::text,
};

/// How many waiting parts are searched for one of the same choice: OpenAI's own limit for `n`.
const MAX_OPEN: usize = 128;
/// What a waiting part costs besides its bytes.
const PART_COST: usize = size_of::<Part>();
const DONE: &[u8] = b"[DONE]";

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is a part of its own, for now.
    Queued,
    /// It was merged into one that waits.
    Merged,
    /// It was `[DONE]`; nothing is sent for it.
    Done,
    /// Nothing is sent for it: it is empty, or it came after the end.
    Ignored,
}

/// The chunks of one task that wait to be sent.
pub struct StreamBuffer {
    limit: usize,
    stamp: ChunkEnvelope,
    queue: VecDeque<Part>,
    /// How many parts have left the queue, which is the number of the queue's first.
    popped: u64,
    /// Nothing more is merged into parts below this number: a barrier came after them.
    closed: u64,
    held: usize,
    /// Bytes of the task that are held elsewhere, and count against the limit.
    elsewhere: usize,
    share: Reservation,
    template: Option<Template>,
    /// The number of the part that a chunk like the template merges into, if it is still there.
    last: u64,
    spare: Option<Box<MergeTail>>,
    meta: ResponseMeta,
    plain: Plain,
    finished: bool,
}

/// What is needed to build chunks from plain deltas.
#[derive(Default)]
struct Plain {
    head: Vec<u8>,
    chunk: Vec<u8>,
    any: bool,
    calls: CallIndexes,
}

impl StreamBuffer {
    /// A buffer that holds at most `limit` bytes, in a room of its own. `stamp` goes into the chunks that are built from plain deltas.
    pub fn new(limit: usize, stamp: ChunkEnvelope) -> Self {
        Self::within(&MemoryBudget::new(usize::MAX), limit, stamp)
    }

    /// The same in a room that it shares with others.
    pub fn within(room: &MemoryBudget, limit: usize, stamp: ChunkEnvelope) -> Self {
        Self {
            limit,
            stamp,
            queue: VecDeque::new(),
            popped: 0,
            closed: 0,
            held: 0,
            elsewhere: 0,
            share: room.reservation(),
            template: None,
            last: 0,
            spare: None,
            meta: ResponseMeta::default(),
            plain: Plain::default(),
            finished: false,
        }
    }

    /// Takes one chunk, byte for byte as the provider gave it. `[DONE]` ends the stream; whatever comes after it is ignored, as OpenAI's
    /// own clients do. A chunk larger than the limit is accepted if nothing else waits.
    ///
    /// # Errors
    /// If the chunk is not a JSON object or is an error of the provider, or too much waits.
    pub fn push_raw(&mut self, chunk: Bytes) -> Result<Pushed, ChunkError> {
        self.push(&chunk, || chunk.clone())
    }

    /// Takes a plain piece of the first choice. An empty one is ignored.
    ///
    /// # Errors
    /// If too much waits.
    pub fn push_delta(&mut self, delta: &Delta) -> Result<Pushed, ChunkError> {
        if *delta == Delta::default() {
            return Ok(Pushed::Ignored);
        }
        let mut chunk = std::mem::take(&mut self.plain.chunk);
        chunk.clear();
        if self.plain.head.is_empty() {
            self.plain.head = self.stamp.chunk_head();
        }
        let delta = self.plain.calls.renumber(delta);
        plain::write_chunk(&mut chunk, &self.plain.head, &delta, !self.plain.any);
        let pushed = self.push(&chunk, || Bytes::copy_from_slice(&chunk));
        self.plain.any = true;
        if chunk.capacity() <= MAX_SPARE {
            self.plain.chunk = chunk;
        }
        pushed
    }

    /// Ends the stream when the provider has sent its last piece. Raw output must have ended by itself, with a `finish_reason`
    /// or `[DONE]`; plain output gets the `finish_reason` that it lacks and, if the caller wants to see it, the usage.
    ///
    /// # Errors
    /// If the provider has not ended its output properly, or too much waits.
    pub fn finish(&mut self, usage: Option<Usage>, include_usage: bool) -> Result<(), Failure> {
        let ended = self.meta.is_complete();
        if !ended && !self.plain.any {
            return Err(Failure::new(
                FailureCode::BadOutput,
                "the provider's stream ended without a finish_reason",
            ));
        }
        if !ended {
            let reason = if self.plain.calls.any() { "tool_calls" } else { "stop" };
            self.push_delta(&Delta { finish_reason: reason.to_owned(), ..Delta::default() })?;
        }
        if let Some(usage) = usage.filter(|_| self.plain.any && include_usage && self.meta.usage.is_none()) {
            self.push_raw(plain::usage_chunk(&self.plain.head, usage))?;
        }
        self.meta.usage = self.meta.usage.or(usage);
        self.finished = true;
        Ok(())
    }

    /// Whether something is worth sending now. A chunk with a role and no text is not: if it were sent alone, the first token, which
    /// follows it, would have to wait for a POST.
    pub fn is_ready(&self) -> bool {
        self.queue.front().is_some_and(|part| self.queue.len() > 1 || self.finished || !part.is_role_only())
    }

    /// The next chunk to send.
    pub fn pop(&mut self) -> Option<Bytes> {
        let part = self.take()?;
        let chunk = part.alone().cloned().unwrap_or_else(|| {
            let mut len = 0;
            part.pieces(&mut |piece| len += piece.len());
            let mut out = Vec::with_capacity(len);
            part.pieces(&mut |piece| out.extend_from_slice(piece));
            out.into()
        });
        self.recycle(part);
        Some(chunk)
    }

    /// The next chunk to send, escaped as the text of a JSON string, between `head` and `tail`: written once, in one allocation.
    pub fn pop_escaped(&mut self, head: &[u8], tail: &[u8]) -> Option<Bytes> {
        let part = self.take()?;
        let mut len = head.len() + tail.len();
        part.pieces(&mut |piece| len += text::escaped_len(piece));
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(head);
        part.pieces(&mut |piece| text::escape_into(&mut out, piece));
        out.extend_from_slice(tail);
        self.recycle(part);
        Some(out.into())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many bytes wait, including what it costs to hold them.
    pub fn pending_bytes(&self) -> usize {
        self.held
    }

    /// Counts so many bytes that the task holds elsewhere against the limit.
    pub fn count_elsewhere(&mut self, bytes: usize) {
        self.elsewhere = bytes;
    }

    /// How many parts wait.
    pub fn pending_parts(&self) -> usize {
        self.queue.len()
    }

    /// What the output has said about itself so far.
    pub fn meta(&self) -> &ResponseMeta {
        &self.meta
    }

    fn push(&mut self, chunk: &[u8], own: impl FnOnce() -> Bytes) -> Result<Pushed, ChunkError> {
        if self.meta.done || self.finished {
            return Ok(Pushed::Ignored);
        }
        if let Some(text) = self.template.as_ref().and_then(|template| template.text_of(chunk)) {
            return self.push_like_last(text, own);
        }
        if chunk.trim_ascii() == DONE {
            self.meta.done = true;
            return Ok(Pushed::Done);
        }
        self.push_read(chunk, own)
    }

    /// Takes a chunk that differs from the template in its text only.
    fn push_like_last(&mut self, text: &[u8], own: impl FnOnce() -> Bytes) -> Result<Pushed, ChunkError> {
        let Some(template) = &self.template else { return Ok(Pushed::Ignored) };
        let field = template.field();
        let pushed = if self.last >= self.popped.max(self.closed) {
            self.room_for(text.len())?;
            let part = &mut self.queue[(self.last - self.popped) as usize];
            self.held += part.extend(field, text, &mut self.spare);
            Pushed::Merged
        } else {
            let layout = template.layout_with(text);
            self.last = self.enqueue(own(), Some(layout))?;
            Pushed::Queued
        };
        self.meta.chunks = self.meta.chunks.saturating_add(1);
        self.meta.first_token |= !text.is_empty();
        Ok(pushed)
    }

    /// Takes a chunk that must be read.
    fn push_read(&mut self, chunk: &[u8], own: impl FnOnce() -> Bytes) -> Result<Pushed, ChunkError> {
        let reading = read::read(chunk)?;
        if reading.is_error {
            return Err(ChunkError::Provider(Box::new(provider_failure(None, &own()))));
        }
        let place = reading.layout.as_ref().and_then(|layout| self.place_for(chunk, layout));
        let (number, pushed) = match (place, &reading.layout) {
            (Some(place), Some(layout)) => {
                self.room_for(chunk.len())?;
                self.held += self.queue[place].join(chunk, layout, &mut self.spare);
                (self.popped + place as u64, Pushed::Merged)
            }
            _ => (self.enqueue(own(), reading.layout)?, Pushed::Queued),
        };
        match &reading.layout {
            Some(layout) => {
                self.template = Template::learn(self.template.take(), chunk, layout);
                self.last = number;
            }
            None => self.closed = number + 1,
        }
        self.meta.chunks = self.meta.chunks.saturating_add(1);
        self.meta.take(chunk, &reading);
        Ok(pushed)
    }

    /// The waiting part that a chunk may merge into: the last one of its choice, if it fits and there is no barrier in between.
    fn place_for(&self, chunk: &[u8], layout: &ChunkLayout) -> Option<usize> {
        let open =
            self.queue.iter().enumerate().rev().take(MAX_OPEN).take_while(|(_, part)| !part.is_barrier());
        let (place, part) = open.into_iter().find(|(_, part)| part.index() == Some(layout.index))?;
        part.takes(chunk, layout).then_some(place)
    }

    fn enqueue(&mut self, chunk: Bytes, layout: Option<ChunkLayout>) -> Result<u64, ChunkError> {
        let cost = chunk.len() + PART_COST;
        match self.queue.is_empty() {
            true => self.share.reserve(cost)?,
            false => self.room_for(cost)?,
        }
        self.held += cost;
        self.queue.push_back(Part::new(chunk, layout));
        Ok(self.popped + self.queue.len() as u64 - 1)
    }

    fn room_for(&mut self, bytes: usize) -> Result<(), ChunkError> {
        let held = self.held.saturating_add(bytes);
        if held.saturating_add(self.elsewhere) > self.limit {
            return Err(ChunkError::Full { limit: self.limit });
        }
        self.share.reserve(held)
    }

    fn take(&mut self) -> Option<Part> {
        let part = self.queue.pop_front()?;
        self.popped += 1;
        self.held -= part.held() + PART_COST;
        self.share.hold(self.held);
        Some(part)
    }

    fn recycle(&mut self, part: Part) {
        self.spare = part.recycle().or(self.spare.take());
    }
}

#[cfg(test)]
mod ends;
#[cfg(test)]
mod model;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod said;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
