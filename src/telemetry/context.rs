//! W3C trace context in and out of a task.

use std::{collections::BTreeMap, str::FromStr as _};

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::domain::MAX_TRACESTATE_BYTES;

/// The key of the caller's span.
const TRACEPARENT: &str = "traceparent";
/// The key of the vendors' own data.
const TRACESTATE: &str = "tracestate";
/// The standard's limit of members; a longer list is to be dropped whole.
const MAX_TRACESTATE_MEMBERS: usize = 32;

/// The caller's span, if the task has a valid one. Stricter than the SDK's own parser, which takes a "+" or a missing
/// digit: a context that other parties would refuse must not become a parent here.
pub(super) fn extract(task: &BTreeMap<String, String>) -> Option<SpanContext> {
    let (trace_id, span_id, flags) = parse_traceparent(task.get(TRACEPARENT)?)?;
    let state = task.get(TRACESTATE).and_then(|s| parse_tracestate(s)).unwrap_or_default();
    let context = SpanContext::new(trace_id, span_id, flags, true, state);
    context.is_valid().then_some(context)
}

/// The map that hands `context` on; empty for an invalid one.
pub(super) fn inject(context: &SpanContext) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    if !context.is_valid() {
        return map;
    }
    let flags = if context.is_sampled() { "-01" } else { "-00" };
    let (trace, span) = (TraceWord::new(context.trace_id()), hex_of::<8, 16>(context.span_id().to_bytes()));
    map.insert(TRACEPARENT.into(), ["00-", trace.as_str(), "-", text(&span), flags].concat());
    let state = context.trace_state().header();
    if !state.is_empty() {
        map.insert(TRACESTATE.into(), state);
    }
    map
}

/// A trace's id in the form that people see: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceWord([u8; 32]);

impl TraceWord {
    pub(super) fn new(trace: TraceId) -> Self {
        Self(hex_of(trace.to_bytes()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        text(&self.0)
    }
}

/// The two digits of every byte.
const DIGITS: [[u8; 2]; 256] = {
    let (digits, mut all, mut byte) = (b"0123456789abcdef", [[0; 2]; 256], 0);
    while byte < 256 {
        all[byte] = [digits[byte >> 4], digits[byte & 0xf]];
        byte += 1;
    }
    all
};

/// Ids are written several times for every task, and formatting them as numbers costs ten times as much.
fn hex_of<const BYTES: usize, const LENGTH: usize>(id: [u8; BYTES]) -> [u8; LENGTH] {
    const { assert!(LENGTH == 2 * BYTES) };
    let mut digits = [0; LENGTH];
    for (pair, byte) in digits.as_chunks_mut().0.iter_mut().zip(id) {
        *pair = DIGITS[usize::from(byte)];
    }
    digits
}

fn text(digits: &[u8]) -> &str {
    std::str::from_utf8(digits).expect("digits are ASCII")
}

fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut parts = text.trim_matches([' ', '\t']).split('-');
    let version = hex(parts.next()?, 2)?;
    let trace_id = TraceId::from_hex(hex(parts.next()?, 32)?).ok()?;
    let span_id = SpanId::from_hex(hex(parts.next()?, 16)?).ok()?;
    let flags = u8::from_str_radix(hex(parts.next()?, 2)?, 16).ok()?;
    // Version 00 has these four parts and no more; later ones may add some; ff is forbidden.
    let valid_end = if version == "00" { parts.next().is_none() } else { version != "ff" };
    valid_end.then(|| (trace_id, span_id, TraceFlags::new(flags) & TraceFlags::SAMPLED))
}

fn hex(text: &str, digits: usize) -> Option<&str> {
    let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(lower_hex)).then_some(text)
}

fn parse_tracestate(text: &str) -> Option<TraceState> {
    let fits = text.len() <= MAX_TRACESTATE_BYTES && text.split(',').count() <= MAX_TRACESTATE_MEMBERS;
    if fits { TraceState::from_str(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn task(parent: &str, state: Option<&str>) -> BTreeMap<String, String> {
        let state = state.map(|s| (TRACESTATE.to_owned(), s.to_owned()));
        [(TRACEPARENT.to_owned(), parent.to_owned())].into_iter().chain(state).collect()
    }

    #[test]
    fn a_valid_context_goes_through_unchanged() {
        let map = task(VALID, Some("vendor=opaque,other=1"));
        assert_eq!(inject(&extract(&map).unwrap()), map);
    }

    #[test]
    fn a_later_version_with_more_parts_is_taken() {
        assert!(extract(&task(&VALID.replace("00-4", "cc-4"), None)).is_some());
        assert!(extract(&task(&format!("{}-what", VALID.replace("00-4", "cc-4")), None)).is_some());
    }

    #[test]
    fn an_invalid_traceparent_is_no_context() {
        for bad in [
            "",
            "garbage",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert!(extract(&task(bad, None)).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_or_oversized_tracestate_costs_only_itself() {
        for bad in ["no equals sign", &"a=b,".repeat(40), &format!("a={}", "x".repeat(5000))] {
            let context = extract(&task(VALID, Some(bad))).unwrap();
            assert!(context.trace_state().header().is_empty());
        }
    }
}
