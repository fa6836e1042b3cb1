//! A span's attributes.

use opentelemetry::{Array, KeyValue, Value};

use super::wire::{FIXED64, LENGTH, VARINT, bytes, header, key, prefixed, tag, varint, varint_length};

/// Attributes of the SDK.
pub(super) fn attributes<'a>(out: &mut Vec<u8>, field: u64, all: impl IntoIterator<Item = &'a KeyValue>) {
    for each in all {
        attribute(out, field, each.key.as_str(), Any::of(&each.value));
    }
}

/// The attributes of a span.
const ATTRIBUTES: u64 = 9;
/// A key and a text that are together no longer than this make an attribute whose lengths are all of one byte. Most are, and these go in
/// without a look at their lengths; what is longer goes the way of all values.
const SHORT: usize = 0x7f - 6;

#[inline(always)]
pub(in crate::telemetry) fn text(out: &mut Vec<u8>, key: &str, value: &str) {
    if key.len() + value.len() > SHORT {
        return attribute(out, ATTRIBUTES, key, Some(Any::Text(value)));
    }
    short_attribute(out, key, 2 + value.len());
    out.extend_from_slice(&[tag(1, LENGTH), value.len() as u8]);
    out.extend_from_slice(value.as_bytes());
}

#[inline(always)]
pub(in crate::telemetry) fn whole(out: &mut Vec<u8>, key: &str, value: i64) {
    let value = value.cast_unsigned();
    short_attribute(out, key, 1 + varint_length(value));
    out.push(tag(3, VARINT));
    varint(out, value);
}

#[inline(always)]
pub(in crate::telemetry) fn real(out: &mut Vec<u8>, key: &str, value: f64) {
    short_attribute(out, key, 9);
    out.push(tag(4, FIXED64));
    out.extend_from_slice(&value.to_le_bytes());
}

#[inline(always)]
pub(in crate::telemetry) fn flag(out: &mut Vec<u8>, key: &str, value: bool) {
    short_attribute(out, key, 2);
    out.extend_from_slice(&[tag(2, VARINT), value.into()]);
}

pub(in crate::telemetry) fn texts<'a>(
    out: &mut Vec<u8>,
    key: &str,
    values: impl Iterator<Item = &'a str> + Clone,
) {
    let length = values.clone().map(|value| prefixed(prefixed(value.len()))).sum();
    header(out, ATTRIBUTES, prefixed(key.len()) + prefixed(prefixed(length)));
    bytes(out, 1, key.as_bytes());
    header(out, 2, prefixed(length));
    header(out, 5, length);
    for value in values {
        header(out, 1, prefixed(value.len()));
        bytes(out, 1, value.as_bytes());
    }
}

/// An attribute up to its value. The key is one of the agent's own, and so short.
#[inline(always)]
fn short_attribute(out: &mut Vec<u8>, key: &str, value_length: usize) {
    let length = key.len() + value_length + 4;
    debug_assert!(length < 0x80, "{key} is too long for a short attribute");
    out.extend_from_slice(&[tag(ATTRIBUTES, LENGTH), length as u8, tag(1, LENGTH), key.len() as u8]);
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(&[tag(2, LENGTH), value_length as u8]);
}

/// Any attribute. A collector sees a value of a type that is not known here as one without a type.
pub(super) fn attribute(out: &mut Vec<u8>, field: u64, name: &str, value: Option<Any<'_>>) {
    let value_length = value.map_or(0, any_value_length);
    header(out, field, prefixed(name.len()) + prefixed(value_length));
    bytes(out, 1, name.as_bytes());
    header(out, 2, value_length);
    if let Some(value) = value {
        any_value(out, value);
    }
}

/// A value that is encoded as an `AnyValue`.
#[derive(Clone, Copy)]
pub(super) enum Any<'a> {
    Text(&'a str),
    Whole(i64),
    Real(f64),
    Flag(bool),
    Array(&'a Array),
}

impl<'a> Any<'a> {
    /// The API may get more types than are known here.
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        Some(match value {
            Value::String(text) => Self::Text(text.as_str()),
            Value::Bool(flag) => Self::Flag(*flag),
            Value::I64(number) => Self::Whole(*number),
            Value::F64(number) => Self::Real(*number),
            Value::Array(array) => Self::Array(array),
            _ => return None,
        })
    }
}

/// The one field of an `AnyValue`. A value says its type even where it is empty or zero.
fn any_value(out: &mut Vec<u8>, value: Any<'_>) {
    match value {
        Any::Text(value) => bytes(out, 1, value.as_bytes()),
        Any::Flag(value) => {
            key(out, 2, VARINT);
            varint(out, value.into());
        }
        Any::Whole(value) => {
            key(out, 3, VARINT);
            varint(out, value.cast_unsigned());
        }
        Any::Real(value) => {
            key(out, 4, FIXED64);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Any::Array(array) => {
            header(out, 5, elements_length(array));
            for_each(array, |element| {
                header(out, 1, any_value_length(element));
                any_value(out, element);
            });
        }
    }
}

/// What [`any_value`] writes, in bytes.
fn any_value_length(value: Any<'_>) -> usize {
    match value {
        Any::Text(value) => prefixed(value.len()),
        Any::Flag(_) => 2,
        Any::Whole(value) => 1 + varint_length(value.cast_unsigned()),
        Any::Real(_) => 9,
        Any::Array(array) => prefixed(elements_length(array)),
    }
}

fn elements_length(array: &Array) -> usize {
    let mut length = 0;
    for_each(array, |element| length += prefixed(any_value_length(element)));
    length
}

fn for_each(array: &Array, mut each: impl FnMut(Any<'_>)) {
    match array {
        Array::Bool(values) => values.iter().for_each(|v| each(Any::Flag(*v))),
        Array::I64(values) => values.iter().for_each(|v| each(Any::Whole(*v))),
        Array::F64(values) => values.iter().for_each(|v| each(Any::Real(*v))),
        Array::String(values) => values.iter().for_each(|v| each(Any::Text(v.as_str()))),
        _ => {}
    }
}
