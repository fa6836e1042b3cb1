//! One part that waits to be sent: a chunk, and what has been merged into it.

use std::io::Write as _;

use bytes::Bytes;

use super::layout::{ARGUMENTS, ChunkLayout, FIELDS, Field, LOG_NAMES, LOGS, TEXTS};
use crate::json::scan::Span;

/// Largest buffer that is kept for the next chunk of the same task, in bytes: room for the tokens that come during a slow POST, and small
/// compared with the 16 KiB that a task may cost.
pub(super) const MAX_SPARE: usize = 4096;

/// A chunk that waits, as it came or extended by merging.
pub(super) struct Part {
    first: Bytes,
    /// `None` if the chunk must be sent as it is.
    layout: Option<ChunkLayout>,
    more: Option<Box<MergeTail>>,
}

/// What was merged after the first chunk. It is reused, so that a stream in full flow allocates only what it sends.
#[derive(Default)]
pub(super) struct MergeTail {
    tails: [Vec<u8>; FIELDS],
    /// Each field of the merged chunk; its range is the one in the first chunk.
    fields: [Field; FIELDS],
    /// The tool call's index.
    call: Option<u32>,
}

impl Part {
    pub(super) fn new(first: Bytes, layout: Option<ChunkLayout>) -> Self {
        Self { first, layout, more: None }
    }

    /// Whether it must be sent as it is, with nothing moved past it.
    pub(super) fn is_barrier(&self) -> bool {
        self.layout.is_none()
    }

    /// Whether it contains only a role: then it waits, to be sent together with the first token.
    pub(super) fn is_role_only(&self) -> bool {
        self.more.is_none()
            && self.layout.as_ref().is_some_and(|layout| !layout.role.is_empty() && layout.says_nothing())
    }

    /// Whether it may still grow, and for which choice.
    pub(super) fn index(&self) -> Option<u32> {
        self.layout.as_ref().map(|layout| layout.index)
    }

    /// How many bytes it holds.
    pub(super) fn held(&self) -> usize {
        let tails = self.more.iter().flat_map(|more| &more.tails);
        self.first.len() + tails.map(Vec::len).sum::<usize>()
    }

    /// Whether a chunk of this layout, later and of the same choice, may merge into it.
    pub(super) fn takes(&self, chunk: &[u8], layout: &ChunkLayout) -> bool {
        let Some(own) = &self.layout else { return false };
        let call = self.more.as_ref().map_or(own.call, |more| more.call);
        let same_call = call.is_none() || layout.call.is_none() || call == layout.call;
        same_call && self.takes_role(chunk, layout) && own.same_frame(&self.first, layout, chunk)
    }

    /// A chunk with only a role merges with the text after it. A role that comes with text must be in both chunks, as with Ollama, which
    /// repeats it in every chunk.
    fn takes_role(&self, chunk: &[u8], layout: &ChunkLayout) -> bool {
        let Some(own) = &self.layout else { return false };
        if layout.role.is_empty() {
            return own.role.is_empty() || own.says_nothing();
        }
        own.role.of(&self.first) == layout.role.of(chunk)
    }

    /// Merges a chunk that it takes. Returns by how many bytes it grew.
    pub(super) fn join(
        &mut self,
        chunk: &[u8],
        layout: &ChunkLayout,
        spare: &mut Option<Box<MergeTail>>,
    ) -> usize {
        let Some(own) = &self.layout else { return 0 };
        let more = self.more.get_or_insert_with(|| MergeTail::behind(own, spare));
        more.call = more.call.or(layout.call);
        (0..FIELDS).map(|i| more.join(i, layout.fields[i], chunk)).sum()
    }

    /// Appends to a text that an earlier chunk of this part has too. Returns by how many bytes the part grew.
    pub(super) fn extend(&mut self, field: usize, text: &[u8], spare: &mut Option<Box<MergeTail>>) -> usize {
        let Some(own) = &self.layout else { return 0 };
        let more = self.more.get_or_insert_with(|| MergeTail::behind(own, spare));
        more.tails[field].extend_from_slice(text);
        text.len()
    }

    /// Returns what can be reused.
    pub(super) fn recycle(self) -> Option<Box<MergeTail>> {
        let mut more = self.more?;
        for tail in &mut more.tails {
            if tail.capacity() > MAX_SPARE {
                *tail = Vec::new();
            }
            tail.clear();
        }
        Some(more)
    }

    /// The chunk as it came, if nothing was merged into it.
    pub(super) fn alone(&self) -> Option<&Bytes> {
        self.more.is_none().then_some(&self.first)
    }

    /// The bytes of the chunk to send, piece by piece.
    pub(super) fn pieces(&self, put: &mut dyn FnMut(&[u8])) {
        let (Some(own), Some(more)) = (&self.layout, &self.more) else { return put(&self.first) };
        let merged = Merged { first: &self.first, own, more };
        let mut at = 0;
        for hole in own.variable {
            put(&self.first[at..hole.start as usize]);
            match hole {
                _ if hole.is_empty() => {}
                _ if hole == own.delta => merged.delta(put),
                _ if hole == own.logprobs => merged.logprobs(put),
                _ => put(hole.of(&self.first)),
            }
            at = hole.end as usize;
        }
        put(&self.first[at..]);
    }
}

impl MergeTail {
    fn behind(own: &ChunkLayout, spare: &mut Option<Box<Self>>) -> Box<Self> {
        let mut more = spare.take().unwrap_or_default();
        more.fields = own.fields;
        more.call = own.call;
        more
    }

    /// How many bytes it keeps ready.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.tails.iter().map(Vec::capacity).sum()
    }

    fn join(&mut self, i: usize, field: Field, chunk: &[u8]) -> usize {
        let (tail, own) = (&mut self.tails[i], &mut self.fields[i]);
        let before = tail.len();
        match (field, *own) {
            (Field::Absent, _) | (Field::Null, Field::Null | Field::At(_)) => return 0,
            (Field::Null, Field::Absent) => *own = Field::Null,
            (Field::At(_), Field::Absent | Field::Null) => *own = Field::At(Span::default()),
            (Field::At(_), Field::At(_)) => {}
        }
        if let (Field::At(text), Field::At(base)) = (field, *own) {
            let first = base.is_empty() && tail.is_empty();
            if i >= LOGS && !first && !text.is_empty() {
                tail.push(b',');
            }
            tail.extend_from_slice(text.of(chunk));
        }
        tail.len() - before
    }
}

struct Merged<'a> {
    first: &'a [u8],
    own: &'a ChunkLayout,
    more: &'a MergeTail,
}

impl Merged<'_> {
    fn delta(&self, put: &mut dyn FnMut(&[u8])) {
        let mut open = Opening::default();
        if !self.own.role.is_empty() {
            open.member(b"role", put);
            put(self.own.role.of(self.first));
        }
        for idle in self.own.nulls.iter().filter(|idle| !idle.is_empty()) {
            open.member(idle.of(self.first), put);
            put(b"null");
        }
        for (i, name) in TEXTS.iter().enumerate() {
            self.member(&mut open, i, name, [b"\"", b"\""], put);
        }
        self.tool_calls(&mut open, put);
        open.close(put);
    }

    fn tool_calls(&self, open: &mut Opening, put: &mut dyn FnMut(&[u8])) {
        let mut digits = Vec::new();
        let head = match self.more.call {
            Some(call) => {
                // Writing to a vector cannot fail.
                let _ = write!(digits, "[{{\"index\":{call},\"function\":{{\"arguments\":\"");
                digits.as_slice()
            }
            None => &[],
        };
        self.member(open, ARGUMENTS, b"tool_calls", [head, b"\"}}]"], put);
    }

    fn logprobs(&self, put: &mut dyn FnMut(&[u8])) {
        if self.more.fields[LOGS..].iter().all(|log| *log == Field::Absent) {
            return put(b"null");
        }
        let mut open = Opening::default();
        for (i, name) in LOG_NAMES.iter().enumerate() {
            self.member(&mut open, LOGS + i, name, [b"[", b"]"], put);
        }
        open.close(put);
    }

    fn member(
        &self,
        open: &mut Opening,
        i: usize,
        name: &[u8],
        around: [&[u8]; 2],
        put: &mut dyn FnMut(&[u8]),
    ) {
        match self.more.fields[i] {
            Field::Absent => {}
            Field::Null => {
                open.member(name, put);
                put(b"null");
            }
            Field::At(base) => {
                open.member(name, put);
                [around[0], base.of(self.first), &self.more.tails[i], around[1]].into_iter().for_each(put);
            }
        }
    }
}

/// An object being written: its brace before the first member, a comma before the others.
#[derive(Default)]
struct Opening {
    begun: bool,
}

impl Opening {
    fn member(&mut self, name: &[u8], put: &mut dyn FnMut(&[u8])) {
        let before: &[u8] = if self.begun { b",\"" } else { b"{\"" };
        self.begun = true;
        [before, name, b"\":"].into_iter().for_each(put);
    }

    fn close(self, put: &mut dyn FnMut(&[u8])) {
        put(if self.begun { b"}" } else { b"{}" });
    }
}
