//! A chunk that the next one is expected to resemble: most chunks of a stream equal the one before except for their
//! text. They are recognised by comparing bytes, and then only their text is checked.

use super::{
    layout::{ChunkLayout, Field},
    part::MAX_SPARE,
};
use crate::json::text;

/// A chunk that says nothing besides one text.
#[derive(Debug)]
pub(super) struct Template {
    chunk: Vec<u8>,
    layout: ChunkLayout,
    /// Which text is expected to differ.
    field: usize,
}

impl Template {
    /// The template of the chunks that differ from `chunk` in their only text; `old` gives its memory.
    pub(super) fn learn(old: Option<Self>, chunk: &[u8], layout: &ChunkLayout) -> Option<Self> {
        let field = layout.only_text().filter(|_| chunk.len() <= MAX_SPARE)?;
        let mut copy = old.map(|old| old.chunk).unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(chunk);
        Some(Self { chunk: copy, layout: *layout, field })
    }

    /// The text by which `chunk` differs from this one, if it differs by nothing else.
    pub(super) fn text_of<'a>(&self, chunk: &'a [u8]) -> Option<&'a [u8]> {
        let Field::At(hole) = self.layout.fields[self.field] else { return None };
        let rest = chunk.strip_prefix(&self.chunk[..hole.start as usize])?;
        let text = rest.strip_suffix(&self.chunk[hole.end as usize..])?;
        text::is_body(text).then_some(text)
    }

    /// Which text differs.
    pub(super) fn field(&self) -> usize {
        self.field
    }

    /// The layout of the chunk that has `text` in its place.
    pub(super) fn layout_with(&self, text: &[u8]) -> ChunkLayout {
        self.layout.resized(self.field, text.len())
    }
}
