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
    let flags = u8::from(context.is_sampled());
    let parent = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
    map.insert(TRACEPARENT.into(), parent);
    let state = context.trace_state().header();
    if !state.is_empty() {
        map.insert(TRACESTATE.into(), state);
    }
    map
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
