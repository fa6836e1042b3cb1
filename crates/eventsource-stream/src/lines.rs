//! Cuts pieces of bytes into lines, looking at each byte once.

use memchr::memchr2;

/// What an idle buffer may keep, bytes: a few of the pieces a connection delivers, so that ordinary traffic
/// never allocates, and small enough to hold for ever.
pub(crate) const KEPT_CAPACITY: usize = 64 * 1024;

/// An idle buffer this many times larger than its content gives memory back. Above 2, the factor by which
/// a `Vec` grows, so that a growing line never shrinks its own buffer.
const SPARE_FACTOR: usize = 4;

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
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
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
        let line = &self.buffer[self.start..end];
        self.start = self.scanned;
        Some(line)
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
    pub(crate) fn unfinished_line(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Bytes of the line that has not ended yet.
    pub(crate) fn unfinished(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Forgets the lines taken and gives spare memory back. To be called when [`Lines::next`] has no more:
    /// then what moves is less than the last piece, so all moves together are less than all pieces.
    pub(crate) fn settle(&mut self) {
        #[cfg(test)]
        if self.start > 0 {
            self.work += self.unfinished();
        }
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
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
