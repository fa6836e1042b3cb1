//! Spans as the bytes of an OTLP `ExportTraceServiceRequest` (opentelemetry-proto 1.x), without a message tree in between.
//!
//! Every span of the agent has the same resource and the same scope, so their bytes are made once, and a span's bytes do not depend on
//! the spans around it.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry::{
    InstrumentationScope,
    trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::{Resource, trace::SpanData};

use super::{
    attributes::{Any, attribute, attributes},
    wire::{FIXED32, LENGTH, bytes, fixed, header, key, nested, number, text, varint},
};
use crate::telemetry::spans::{Attributes, Ended, Trace};

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
                attribute(out, 1, key.as_str(), Any::of(value));
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

/// Appends a span of the SDK as one of `ScopeSpans`' spans.
pub(super) fn span(out: &mut Vec<u8>, span: &SpanData) {
    nested(out, 2, |out| {
        let context = &span.span_context;
        ids(out, context.trace_id(), context.span_id(), context.trace_state());
        parent(out, span.parent_span_id);
        what(out, [&*span.name, ""], &span.span_kind);
        fixed(out, 7, nanos(span.start_time));
        fixed(out, 8, nanos(span.end_time));
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
        flags(out, 16, context.trace_flags(), span.parent_span_is_remote);
    });
}

/// Appends a span of a task likewise.
#[inline]
pub(super) fn ended(
    out: &mut Vec<u8>,
    trace: &Trace,
    span: &Ended<'_>,
    attributes: impl FnOnce(&mut Attributes<'_>),
) {
    nested(out, 2, |out| {
        before_attributes(out, trace, span);
        attributes(&mut Attributes::Wire(out));
        behind_attributes(out, trace, span);
    });
}

fn before_attributes(out: &mut Vec<u8>, trace: &Trace, span: &Ended<'_>) {
    ids(out, trace.id, span.open.id, &trace.state);
    parent(out, span.parent.unwrap_or(SpanId::INVALID));
    what(out, span.name, &span.kind);
    fixed(out, 7, span.open.began);
    fixed(out, 8, span.at);
}

fn behind_attributes(out: &mut Vec<u8>, trace: &Trace, span: &Ended<'_>) {
    if let Some((name, at)) = span.event {
        nested(out, 11, |out| {
            fixed(out, 1, at);
            text(out, 2, name);
        });
    }
    if let Some(context) = span.link {
        nested(out, 13, |out| linked(out, context));
    }
    nested(out, 15, |out| span.error.map_or((), |error| failed(out, error)));
    flags(out, 16, trace.flags(), span.parent_is_remote);
}

fn event(out: &mut Vec<u8>, event: &Event) {
    fixed(out, 1, nanos(event.timestamp));
    text(out, 2, &event.name);
    attributes(out, 3, &event.attributes);
    number(out, 4, event.dropped_attributes_count.into());
}

fn link(out: &mut Vec<u8>, link: &Link) {
    linked(out, &link.span_context);
    attributes(out, 4, &link.attributes);
    number(out, 5, link.dropped_attributes_count.into());
}

fn linked(out: &mut Vec<u8>, context: &SpanContext) {
    ids(out, context.trace_id(), context.span_id(), context.trace_state());
    flags(out, 6, context.trace_flags(), context.is_remote());
}

/// A span and a link have these three fields alike.
#[inline]
fn ids(out: &mut Vec<u8>, trace: TraceId, span: SpanId, state: &TraceState) {
    bytes(out, 1, &trace.to_bytes());
    bytes(out, 2, &span.to_bytes());
    if *state != TraceState::NONE {
        text(out, 3, &state.header());
    }
}

#[inline]
fn parent(out: &mut Vec<u8>, parent: SpanId) {
    if parent != SpanId::INVALID {
        bytes(out, 4, &parent.to_bytes());
    }
}

#[inline]
fn what(out: &mut Vec<u8>, name: [&str; 2], kind: &SpanKind) {
    let length = name[0].len() + name[1].len();
    if length > 0 {
        header(out, 5, length);
        name.iter().for_each(|piece| out.extend_from_slice(piece.as_bytes()));
    }
    number(out, 6, self::kind(kind));
}

#[inline]
fn flags(out: &mut Vec<u8>, field: u64, flags: TraceFlags, remote: bool) {
    let remote = if remote { IS_REMOTE } else { 0 };
    key(out, field, FIXED32);
    out.extend_from_slice(&(u32::from(flags.to_u8()) | HAS_IS_REMOTE | remote).to_le_bytes());
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
        Status::Error { description } => failed(out, description),
    }
}

fn failed(out: &mut Vec<u8>, description: &str) {
    text(out, 2, description);
    number(out, 3, 2);
}

/// Nanoseconds since 1970; what is before is 1970.
fn nanos(time: SystemTime) -> u64 {
    let nanos = time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
