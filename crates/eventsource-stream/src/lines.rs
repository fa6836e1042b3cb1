//! Cuts pieces of bytes into lines, looking at each byte once.

use crate::skipped::{BEGINNING, ENDING};
use memchr::memchr2;

/// What an idle buffer may keep, bytes: a few of the pieces a connection delivers, so that ordinary traffic
/// never allocates, and small enough to hold for ever.
pub(crate) const KEPT_CAPACITY: usize = 64 * 1024;

/// An idle buffer this many times larger than its content gives memory back. Above 2, the factor by which
/// a `Vec` grows, so that a growing line never shrinks its own buffer.
const SPARE_FACTOR: usize = 4;

/// What a line that is cut keeps of its beginning, bytes: a field's name, a byte order mark before it, and as much of the
/// value as an event over its limit keeps.
const HEAD: usize = BEGINNING + 16;

/// What an unfinished line takes at least before it is cut, bytes. A multiple of what a cut moves, so that the time for all
/// cuts stays linear.
const CUT_ABOVE: usize = 4 * (HEAD + ENDING);

/// One line without its ending, perhaps without its middle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    /// The whole line, or [`HEAD`] bytes of it and then what it ends with, at least [`ENDING`] bytes.
    kept: &'a [u8],
    /// Bytes dropped between the two.
    dropped: usize,
}

impl<'a> Line<'a> {
    pub(crate) fn len(&self) -> usize {
        self.kept.len() + self.dropped
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The line, or what is kept of its beginning.
    pub(crate) fn head(&self) -> &'a [u8] {
        if self.dropped == 0 { self.kept } else { &self.kept[..HEAD] }
    }

    /// What the line, of which `value` is in the head, ends with: `value` itself unless the line was cut.
    pub(crate) fn tail<'b>(&self, value: &'b [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        if self.dropped == 0 { value } else { &self.kept[HEAD..] }
    }
}

/// Bytes in, lines out. Lines end with LF, CR or CRLF, and are found in the raw bytes: in UTF-8, valid or
/// not, those two bytes are never part of another character.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
    /// Where the first line not yet taken begins.
    start: usize,
    /// Up to where the buffer was searched for a line's end.
    scanned: usize,
    /// The last line ended with CR: an LF that follows belongs to it. So a CR need not wait for its LF.
    after_cr: bool,
    /// Bytes dropped from the line that has not ended.
    dropped: usize,
    /// Bytes searched, copied or moved: the measure of the linearity tests.
    #[cfg(test)]
    pub(crate) work: usize,
}

impl Lines {
    /// Adds a piece. Cheap only after [`Lines::settle`].
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
        #[cfg(test)]
        {
            self.work += piece.len();
        }
    }

    /// The next whole line, without its ending.
    pub(crate) fn next(&mut self) -> Option<Line<'_>> {
        self.skip_lf_of_crlf();
        let unseen = &self.buffer[self.scanned..];
        let found = memchr2(b'\r', b'\n', unseen);
        let searched = found.map_or(unseen.len(), |at| at + 1);
        #[cfg(test)]
        {
            self.work += searched;
        }
        self.scanned += searched;
        found?;
        let end = self.scanned - 1;
        self.after_cr = self.buffer[end] == b'\r';
        let kept = &self.buffer[self.start..end];
        self.start = self.scanned;
        Some(Line { kept, dropped: std::mem::take(&mut self.dropped) })
    }

    /// Drops the LF of a CRLF whose CR has ended the line before.
    fn skip_lf_of_crlf(&mut self) {
        if self.after_cr && self.start < self.buffer.len() {
            self.after_cr = false;
            if self.buffer[self.start] == b'\n' {
                self.start += 1;
                self.scanned = self.start;
            }
        }
    }

    /// The line that has not ended yet.
    pub(crate) fn unfinished(&self) -> Line<'_> {
        Line { kept: &self.buffer[self.start..], dropped: self.dropped }
    }

    /// Forgets the lines taken and gives spare memory back. To be called when [`Lines::next`] has no more:
    /// then what moves is less than the last piece, so all moves together are less than all pieces.
    pub(crate) fn settle(&mut self) {
        #[cfg(test)]
        if self.start > 0 {
            self.work += self.buffer.len() - self.start;
        }
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.give_back();
    }

    /// Drops the middle of the line that has not ended, so that it takes no more memory however long it becomes. To be called
    /// after [`Lines::settle`].
    pub(crate) fn cut(&mut self) {
        if self.buffer.len() <= CUT_ABOVE {
            return;
        }
        let middle = HEAD..self.buffer.len() - ENDING;
        #[cfg(test)]
        {
            self.work += ENDING;
        }
        self.dropped += middle.len();
        self.buffer.drain(middle);
        self.scanned = self.buffer.len();
        self.give_back();
    }

    fn give_back(&mut self) {
        let spare = self.buffer.capacity() > self.buffer.len().saturating_mul(SPARE_FACTOR);
        if spare && self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer.shrink_to(KEPT_CAPACITY);
        }
    }

    /// Bytes of memory the buffer takes.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }
}
