//! The pieces that protobuf's messages are made of.
//!
//! They are inlined: most come with a field and a length that are known, of which little is left then.

/// Protobuf's wire types.
pub(super) const VARINT: u64 = 0;
pub(super) const FIXED64: u64 = 1;
pub(super) const LENGTH: u64 = 2;
pub(super) const FIXED32: u64 = 5;

#[inline]
pub(super) fn fixed(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// An unsigned number; 0 is the default and not written.
#[inline]
pub(super) fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        key(out, field, VARINT);
        varint(out, value);
    }
}

/// A string; an empty one is the default and not written.
#[inline]
pub(super) fn text(out: &mut Vec<u8>, field: u64, text: &str) {
    if !text.is_empty() {
        bytes(out, field, text.as_bytes());
    }
}

#[inline]
pub(super) fn bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    header(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// What is in front of `length` bytes of a field whose number is below 16. Nearly every length fits into one byte, and both go in at once.
#[inline]
pub(super) fn header(out: &mut Vec<u8>, field: u64, length: usize) {
    if length < 0x80 {
        out.extend_from_slice(&[tag(field, LENGTH), length as u8]);
    } else {
        key(out, field, LENGTH);
        varint(out, length as u64);
    }
}

/// A message: one byte is kept for its length, which most need, and a longer one moves up.
pub(super) fn nested(out: &mut Vec<u8>, field: u64, write: impl FnOnce(&mut Vec<u8>)) {
    key(out, field, LENGTH);
    let at = out.len();
    out.push(0);
    write(out);
    let end = out.len();
    let mut length = end - at - 1;
    let more = varint_length(length as u64) - 1;
    if more > 0 {
        out.resize(end + more, 0);
        out.copy_within(at + 1..end, at + 1 + more);
    }
    for byte in &mut out[at..at + more] {
        *byte = (length & 0x7f) as u8 | 0x80;
        length >>= 7;
    }
    out[at + more] = length as u8;
}

/// The length of a field with `length` bytes, whose number is below 16.
#[inline]
pub(super) fn prefixed(length: usize) -> usize {
    1 + varint_length(length as u64) + length
}

pub(super) fn varint_length(value: u64) -> usize {
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// A key in one byte, for a field whose number is below 16.
#[inline]
pub(super) fn tag(field: u64, wire_type: u64) -> u8 {
    (field << 3 | wire_type) as u8
}

#[inline]
pub(super) fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

#[inline]
pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
