//! The SDK's spans as the bytes of an OTLP `ExportTraceServiceRequest` (opentelemetry-proto 1.x), without a message tree in between.
//!
//! Every span of the agent has the same resource and the same scope, so their bytes are made once, and a span's bytes do not depend on
//! the spans around it.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry::{
    Array, InstrumentationScope, KeyValue, Value,
    trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::{Resource, trace::SpanData};

/// Protobuf's wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// `SpanFlags`: that the next bit is known, and that the parent is another process's.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// What is around the spans of every request: the resource and the scope, encoded.
#[derive(Debug)]
pub(in crate::telemetry) struct Frame {
    /// Field 1 of `ResourceSpans`.
    resource: Vec<u8>,
    /// Field 3 of `ResourceSpans`.
    resource_schema: Vec<u8>,
    /// Field 1 of `ScopeSpans`.
    scope: Vec<u8>,
    /// Field 3 of `ScopeSpans`.
    scope_schema: Vec<u8>,
}

/// One request, ready to be sent.
#[derive(Clone)]
pub(super) struct Request {
    whole: Bytes,
    /// Where the `ResourceSpans` begins that is all there is in it.
    content: usize,
}

impl Request {
    /// The `ExportTraceServiceRequest`.
    pub(super) fn whole(&self) -> Bytes {
        self.whole.clone()
    }

    /// The same for an encoder of messages. The request has one field, number 1, and so has protobuf's own `BytesValue`: on the wire
    /// they are alike, and a `BytesValue` is what prost makes of [`Bytes`].
    pub(super) fn as_bytes_value(&self) -> Bytes {
        self.whole.slice(self.content..)
    }
}

impl Frame {
    pub(in crate::telemetry) fn new(resource: &Resource, scope: &InstrumentationScope) -> Self {
        let (mut fields, mut schema) = (Vec::new(), Vec::new());
        nested(&mut fields, 1, |out| {
            for (key, value) in resource.iter() {
                attribute(out, 1, key.as_str(), value);
            }
        });
        text(&mut schema, 3, resource.schema_url().unwrap_or_default());
        let (mut scope_fields, mut scope_schema) = (Vec::new(), Vec::new());
        nested(&mut scope_fields, 1, |out| {
            text(out, 1, scope.name());
            text(out, 2, scope.version().unwrap_or_default());
            attributes(out, 3, scope.attributes());
        });
        text(&mut scope_schema, 3, scope.schema_url().unwrap_or_default());
        Self { resource: fields, resource_schema: schema, scope: scope_fields, scope_schema }
    }

    /// The room that [`Frame::close`] needs in front of the spans, so that they never move.
    pub(super) fn room(&self) -> usize {
        // Two keys, and two lengths of ten bytes at most.
        self.resource.len() + self.scope.len() + 22
    }

    /// Makes a request of a buffer with that room and what [`span`] wrote behind it.
    pub(super) fn close(&self, mut buffer: Vec<u8>) -> Request {
        let (room, spans) = (self.room(), buffer.len() - self.room());
        let mut inner = Vec::with_capacity(room);
        inner.extend_from_slice(&self.resource);
        key(&mut inner, 2, LENGTH);
        varint(&mut inner, (self.scope.len() + spans + self.scope_schema.len()) as u64);
        inner.extend_from_slice(&self.scope);
        let behind = spans + self.scope_schema.len() + self.resource_schema.len();
        let mut outer = Vec::with_capacity(11);
        key(&mut outer, 1, LENGTH);
        varint(&mut outer, (inner.len() + behind) as u64);

        let content = room - inner.len();
        let start = content - outer.len();
        buffer[start..content].copy_from_slice(&outer);
        buffer[content..room].copy_from_slice(&inner);
        buffer.extend_from_slice(&self.scope_schema);
        buffer.extend_from_slice(&self.resource_schema);
        Request { whole: Bytes::from(buffer).slice(start..), content: outer.len() }
    }
}

/// Appends `span` as one of `ScopeSpans`' spans.
pub(super) fn span(out: &mut Vec<u8>, span: &SpanData) {
    nested(out, 2, |out| {
        ids(out, &span.span_context);
        if span.parent_span_id != SpanId::INVALID {
            bytes(out, 4, &span.parent_span_id.to_bytes());
        }
        text(out, 5, &span.name);
        number(out, 6, kind(&span.span_kind));
        time(out, 7, span.start_time);
        time(out, 8, span.end_time);
        attributes(out, 9, &span.attributes);
        number(out, 10, span.dropped_attributes_count.into());
        for event in &span.events.events {
            nested(out, 11, |out| self::event(out, event));
        }
        number(out, 12, span.events.dropped_count.into());
        for link in &span.links.links {
            nested(out, 13, |out| self::link(out, link));
        }
        number(out, 14, span.links.dropped_count.into());
        nested(out, 15, |out| status(out, &span.status));
        flags(out, 16, &span.span_context, span.parent_span_is_remote);
    });
}

fn event(out: &mut Vec<u8>, event: &Event) {
    time(out, 1, event.timestamp);
    text(out, 2, &event.name);
    attributes(out, 3, &event.attributes);
    number(out, 4, event.dropped_attributes_count.into());
}

fn link(out: &mut Vec<u8>, link: &Link) {
    ids(out, &link.span_context);
    attributes(out, 4, &link.attributes);
    number(out, 5, link.dropped_attributes_count.into());
    flags(out, 6, &link.span_context, link.span_context.is_remote());
}

/// A span and a link have these three fields alike.
fn ids(out: &mut Vec<u8>, context: &SpanContext) {
    bytes(out, 1, &context.trace_id().to_bytes());
    bytes(out, 2, &context.span_id().to_bytes());
    if *context.trace_state() != TraceState::NONE {
        text(out, 3, &context.trace_state().header());
    }
}

fn flags(out: &mut Vec<u8>, field: u64, context: &SpanContext, remote: bool) {
    let remote = if remote { IS_REMOTE } else { 0 };
    key(out, field, FIXED32);
    out.extend_from_slice(&(u32::from(context.trace_flags().to_u8()) | HAS_IS_REMOTE | remote).to_le_bytes());
}

fn kind(kind: &SpanKind) -> u64 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

fn status(out: &mut Vec<u8>, status: &Status) {
    match status {
        Status::Unset => {}
        Status::Ok => number(out, 3, 1),
        Status::Error { description } => {
            text(out, 2, description);
            number(out, 3, 2);
        }
    }
}

fn attributes<'a>(out: &mut Vec<u8>, field: u64, all: impl IntoIterator<Item = &'a KeyValue>) {
    for each in all {
        attribute(out, field, each.key.as_str(), &each.value);
    }
}

/// Attributes are most of a span, so their lengths are computed instead of made room for.
fn attribute(out: &mut Vec<u8>, field: u64, name: &str, value: &Value) {
    let value_length = any_value_length(value);
    key(out, field, LENGTH);
    varint(out, (prefixed(name.len()) + prefixed(value_length)) as u64);
    bytes(out, 1, name.as_bytes());
    key(out, 2, LENGTH);
    varint(out, value_length as u64);
    any_value(out, value);
}

/// The one field of an `AnyValue`. A value says its type even where it is empty or zero.
fn any_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::String(value) => bytes(out, 1, value.as_str().as_bytes()),
        Value::Bool(value) => {
            key(out, 2, VARINT);
            varint(out, (*value).into());
        }
        Value::I64(value) => {
            key(out, 3, VARINT);
            varint(out, value.cast_unsigned());
        }
        Value::F64(value) => {
            key(out, 4, FIXED64);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Array(array) => {
            key(out, 5, LENGTH);
            varint(out, array_length(array) as u64);
            for_each(array, |element| {
                key(out, 1, LENGTH);
                varint(out, any_value_length(element) as u64);
                any_value(out, element);
            });
        }
        // The API may get more types; a collector sees a value without one until they are written here.
        _ => {}
    }
}

/// What [`any_value`] writes, in bytes.
fn any_value_length(value: &Value) -> usize {
    match value {
        Value::String(value) => prefixed(value.as_str().len()),
        Value::Bool(_) => 2,
        Value::I64(value) => 1 + varint_length(value.cast_unsigned()),
        Value::F64(_) => 9,
        Value::Array(array) => prefixed(array_length(array)),
        _ => 0,
    }
}

fn array_length(array: &Array) -> usize {
    let mut length = 0;
    for_each(array, |element| length += prefixed(any_value_length(element)));
    length
}

fn for_each(array: &Array, mut each: impl FnMut(&Value)) {
    match array {
        Array::Bool(values) => values.iter().for_each(|v| each(&Value::Bool(*v))),
        Array::I64(values) => values.iter().for_each(|v| each(&Value::I64(*v))),
        Array::F64(values) => values.iter().for_each(|v| each(&Value::F64(*v))),
        Array::String(values) => values.iter().for_each(|v| each(&Value::String(v.clone()))),
        _ => {}
    }
}

/// A time before 1970 is 1970.
fn time(out: &mut Vec<u8>, field: u64, time: SystemTime) {
    let nanos = time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    key(out, field, FIXED64);
    out.extend_from_slice(&u64::try_from(nanos).unwrap_or(u64::MAX).to_le_bytes());
}

/// An unsigned number; 0 is the default and not written.
fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        key(out, field, VARINT);
        varint(out, value);
    }
}

/// A string; an empty one is the default and not written.
fn text(out: &mut Vec<u8>, field: u64, text: &str) {
    if !text.is_empty() {
        bytes(out, field, text.as_bytes());
    }
}

fn bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(out, field, LENGTH);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
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
fn prefixed(length: usize) -> usize {
    1 + varint_length(length as u64) + length
}

fn varint_length(value: u64) -> usize {
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
