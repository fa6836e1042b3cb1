//! Where in a chunk the parts are that merging joins with those of its neighbours.

use crate::json::scan::Span;

/// How many members merging joins, of a delta, its tool call and the logprobs. They are numbered in the order in which they are written.
pub(super) const FIELDS: usize = 7;
/// The texts of a delta, by their place among the fields.
pub(super) const TEXTS: [&[u8]; 4] = [b"content", b"reasoning_content", b"reasoning", b"refusal"];
/// The number of a tool call's arguments; the field is null if `tool_calls` is.
pub(super) const ARGUMENTS: usize = 4;
/// The arrays of the logprobs, by their place from [`LOGS`] on.
pub(super) const LOG_NAMES: [&[u8]; 2] = [b"content", b"refusal"];
pub(super) const LOGS: usize = 5;
/// How many unknown members of a delta may be null; servers that write out every field of their class have three.
pub(super) const MAX_NULLS: usize = 4;

/// One joinable member of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Field {
    /// It is not there.
    #[default]
    Absent,
    /// It is there and null.
    Null,
    /// Its text between the quotes, or the array's elements.
    At(Span),
}

/// Where in a chunk the parts are that merging joins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChunkLayout {
    /// The choice's index.
    pub(super) index: u32,
    /// The tool call's index, if there is a tool call.
    pub(super) call: Option<u32>,
    /// The values that need not be equal for two chunks to merge: `created`, `delta`, `logprobs`. Sorted; an absent one is
    /// empty.
    pub(super) variable: [Span; 3],
    /// The value of `delta`.
    pub(super) delta: Span,
    /// The value of `logprobs`; empty where there is none.
    pub(super) logprobs: Span,
    /// The delta's role, with its quotes; empty where there is none.
    pub(super) role: Span,
    /// Unknown keys of the delta whose value is null.
    pub(super) nulls: [Span; MAX_NULLS],
    pub(super) fields: [Field; FIELDS],
}

impl ChunkLayout {
    /// Whether everything that two chunks say besides their variable is the same.
    pub(super) fn same_frame(&self, chunk: &[u8], other: &Self, other_chunk: &[u8]) -> bool {
        let (mut at, mut other_at) = (0, 0);
        for (hole, other_hole) in self.variable.iter().zip(&other.variable) {
            if chunk[at..hole.start as usize] != other_chunk[other_at..other_hole.start as usize] {
                return false;
            }
            (at, other_at) = (hole.end as usize, other_hole.end as usize);
        }
        let nulls = self.nulls.iter().zip(&other.nulls);
        chunk[at..] == other_chunk[other_at..]
            && nulls.map(|(a, b)| (a.of(chunk), b.of(other_chunk))).all(|(a, b)| a == b)
    }

    /// Whether it contains nothing of the answer itself.
    pub(super) fn says_nothing(&self) -> bool {
        self.call.is_none() && !self.fields.iter().any(filled)
    }

    /// The text of the chunk, if exactly one is not empty.
    pub(super) fn only_text(&self) -> Option<usize> {
        let mut found = (0..FIELDS).filter(|&i| filled(&self.fields[i]));
        let only = found.next()?;
        (found.next().is_none() && only < LOGS).then_some(only)
    }

    /// The layout of the same chunk whose text `field` is `len` bytes long.
    pub(super) fn resized(mut self, field: usize, len: usize) -> Self {
        let Field::At(text) = self.fields[field] else { return self };
        let moved = |at: u32| if at >= text.end { at - text.end + text.start + len as u32 } else { at };
        let shift = |span: &mut Span| *span = Span { start: moved(span.start), end: moved(span.end) };
        [&mut self.delta, &mut self.logprobs, &mut self.role].into_iter().for_each(shift);
        self.variable.iter_mut().chain(&mut self.nulls).for_each(shift);
        for (i, value) in self.fields.iter_mut().enumerate() {
            match value {
                Field::At(span) if i == field => span.end = moved(span.end),
                Field::At(span) => shift(span),
                _ => {}
            }
        }
        self
    }
}

/// Whether there is any text in it.
pub(super) fn filled(field: &Field) -> bool {
    matches!(field, Field::At(span) if !span.is_empty())
}
