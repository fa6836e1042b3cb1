use opentelemetry::trace::{Event, SpanContext, SpanKind, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

use super::*;

const ROOT: &str = names::span::PROCESS_TASK;

/// A span with a parent (0 is none), from and to in milliseconds.
fn span(id: u64, parent: u64, name: &str, kind: SpanKind, from: u64, to: u64) -> SpanData {
    let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(1),
            SpanId::from(id),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: false,
        span_kind: kind,
        name: name.to_owned().into(),
        start_time: at(from),
        end_time: at(to),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: opentelemetry::trace::Status::Unset,
        instrumentation_scope: opentelemetry::InstrumentationScope::default(),
    }
}

/// A stream of 200 ms with three POSTs, the first at 50 ms; `model` is in a span's name.
fn a_stream(model: &str) -> Vec<SpanData> {
    let mut chat = span(3, 1, &format!("chat {model}"), SpanKind::Client, 2, 200);
    chat.events.events.push(Event::new(names::span::FIRST_CHUNK, chat.start_time, Vec::new(), 0));
    vec![
        span(5, 4, names::span::POST, SpanKind::Client, 50, 52),
        span(6, 4, names::span::POST, SpanKind::Client, 100, 102),
        span(2, 1, names::span::QUEUE, SpanKind::Internal, 0, 1),
        chat,
        span(4, 1, names::span::DELIVER, SpanKind::Internal, 50, 200),
        span(7, 4, names::span::POST, SpanKind::Client, 198, 200),
        span(1, 9, ROOT, SpanKind::Consumer, 0, 200),
    ]
}

#[test]
fn a_stream_is_drawn_in_80_columns_with_its_first_token_marked() {
    let text = Waterfall::of(&a_stream("m"), ROOT).expect("a trace").text();
    let expected = "\
process task                       █████████◆████████████████████████  200.00 ms
  queue                            █        ┊                            1.00 ms
  chat m                           █████████◆████████████████████████  198.00 ms
  deliver                                   ◆████████████████████████  150.00 ms
    POST ×3                                 ◆       █               █    6.00 ms
                                            ◆ first token after 50.00 ms
";
    assert_eq!(text, expected);
}

#[test]
fn no_line_is_longer_than_80_columns() {
    let mut spans = a_stream(&"ü".repeat(200));
    // A long wait, and a first token at the very end of it.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(3600);
    spans.iter_mut().for_each(|span| span.end_time = last);
    let posts = spans.iter_mut().filter(|span| span.name == names::span::POST);
    posts.for_each(|span| span.start_time = last);
    let text = Waterfall::of(&spans, ROOT).expect("a trace").text();
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn an_answer_in_one_piece_has_no_first_token() {
    let mut spans = a_stream("m");
    spans.iter_mut().for_each(|span| span.events = SpanEvents::default());
    let picture = Waterfall::of(&spans, ROOT).expect("a trace");
    assert_eq!(picture.first_token, None);
    assert!(!picture.text().contains(TOKEN_ON_BAR));
}

#[test]
fn spans_of_other_traces_and_a_trace_without_its_root_are_not_drawn() {
    let mut spans = a_stream("m");
    let mut other = span(8, 1, "other", SpanKind::Client, 0, 900);
    other.span_context =
        SpanContext::new(TraceId::from(2), SpanId::from(8), TraceFlags::SAMPLED, false, TraceState::NONE);
    spans.push(other);
    assert!(!Waterfall::of(&spans, ROOT).expect("a trace").text().contains("other"));
    assert!(Waterfall::of(&spans, "something else").is_none());
}
