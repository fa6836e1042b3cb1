//! The cases of the web-platform-tests' `eventsource/format-*`, rebuilt as the raw bytes their server sends,
//! each in every way to cut it in two and in pieces of every size.
//!
//! Left out are the `format-mime-*` cases, on the response's header. Where a case looks at a reconnection, the
//! test looks at what decides it: the `retry` of an event and the last event id.

mod common;

use common::outcome_of;
use eventsource_stream::{DEFAULT_EVENT_LIMIT, Event, EventStream, Eventsource};
use futures_util::{FutureExt, StreamExt, stream};
use std::convert::Infallible;
use std::time::Duration;

fn message(data: &str) -> Event {
    Event { event: "message".into(), data: data.into(), ..Event::default() }
}

fn with_id(data: &str, id: &str) -> Event {
    Event { id: id.into(), ..message(data) }
}

fn with_retry(data: &str, milliseconds: u64) -> Event {
    Event { retry: Some(Duration::from_millis(milliseconds)), ..message(data) }
}

fn events_of(pieces: &[&[u8]]) -> Vec<Event> {
    let items = outcome_of(pieces.iter().copied(), DEFAULT_EVENT_LIMIT);
    items.into_iter().map(|item| item.expect("no bytes within the limit are an error")).collect()
}

/// Checks `bytes` whole, in two pieces at every place, and in pieces of every size, with empty ones between.
#[track_caller]
fn check(bytes: &[u8], expected: &[Event]) {
    for at in 0..=bytes.len() {
        assert_eq!(events_of(&[&bytes[..at], &bytes[at..]]), expected, "cut at byte {at}");
    }
    for size in 1..=bytes.len() {
        let pieces: Vec<&[u8]> = bytes.chunks(size).flat_map(|piece| [piece, b""]).collect();
        assert_eq!(events_of(&pieces), expected, "in pieces of {size} bytes");
    }
}

/// A stream that got `bytes` and now waits for more, and the events it gave.
fn open_stream(
    bytes: &[u8],
) -> (Vec<Event>, EventStream<impl stream::Stream<Item = Result<&[u8], Infallible>> + Unpin>) {
    let mut open = stream::iter([Ok(bytes)]).chain(stream::pending()).eventsource();
    let mut events = Vec::new();
    while let Some(item) = open.next().now_or_never() {
        events.push(item.expect("the source is open").expect("no bytes within the limit are an error"));
    }
    (events, open)
}

#[test]
fn bom_a_leading_one_is_skipped_and_a_later_one_is_part_of_a_field_name() {
    check(b"\xEF\xBB\xBFdata:1\n\n\xEF\xBB\xBFdata:2\n\ndata:3\n\n\n", &[message("1"), message("3")]);
}

#[test]
fn bom_2_only_one_is_skipped() {
    check(b"\xEF\xBB\xBF\xEF\xBB\xBFdata:1\n\ndata:2\n\ndata:3\n\n\n", &[message("2"), message("3")]);
}

#[test]
fn comments_are_skipped_whatever_their_length_and_ending() {
    let long = "x".repeat(300);
    let bytes = format!("data:1\r:\0\n:\r\ndata:2\n:{long}\rdata:3\n:data:fail\r:{long}\ndata:4\n\n");
    check(bytes.as_bytes(), &[message("1\n2\n3\n4")]);
}

#[test]
fn data_before_final_empty_line_an_event_without_its_blank_line_is_dropped_with_its_id() {
    let bytes = b"retry:1000\ndata:test1\n\nid:test\ndata:test2\n";
    check(bytes, &[with_retry("test1", 1000)]);
    assert_eq!(open_stream(bytes).1.last_event_id(), "");
}

#[test]
fn field_data_without_value_or_colon_counts() {
    check(b"data:\n\ndata\ndata\n\ndata:test\n\n\n", &[message(""), message("\n"), message("test")]);
}

#[test]
fn field_event_names_one_event_only() {
    let named = Event { event: "test".into(), ..message("x") };
    check(b"event:test\ndata:x\n\ndata:x\n\n\n", &[named, message("x")]);
}

#[test]
fn field_event_empty_means_message() {
    check(b"event: \ndata:data\n\n\n", &[message("data")]);
}

#[test]
fn field_id_is_the_last_event_id_of_its_event() {
    let bytes = "id: …\nretry: 200\ndata: hello\n\n".as_bytes();
    let expected = Event { id: "…".into(), ..with_retry("hello", 200) };
    check(bytes, &[expected]);
    assert_eq!(open_stream(bytes).1.last_event_id(), "…");
}

#[test]
fn field_id_2_stays_over_reconnections() {
    let (_, first) = open_stream("id: …\ndata: hello\n\n".as_bytes());
    let bytes = "data: …\n\ndata: …\n\n".as_bytes();
    let mut second = stream::iter([Ok::<_, Infallible>(bytes)]).eventsource();
    second.set_last_event_id(first.last_event_id());
    let events: Vec<_> = second.map(|item| item.expect("valid")).collect().now_or_never().expect("ready");
    assert_eq!(events, [with_id("…", "…"), with_id("…", "…")]);
}

#[test]
fn field_id_3_persists() {
    check(b"id: 1\ndata: 1\n\ndata: 2\n\n", &[with_id("1", "1"), with_id("2", "1")]);
}

#[test]
fn field_id_3_changes_and_persists() {
    let expected = [with_id("1", "1"), with_id("2", "2"), with_id("3", "2")];
    check(b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\ndata: 3\n\n", &expected);
}

#[test]
fn field_id_3_resets() {
    let expected = [with_id("1", "1"), message("2"), message("3")];
    check(b"id: 1\ndata: 1\n\nid\ndata: 2\n\ndata: 3\n\n", &expected);
}

#[test]
fn field_id_null_an_id_with_nul_is_ignored() {
    check(b"id: \0\0\nretry: 200\ndata: hello\n\n", &[with_retry("hello", 200)]);
    check(b"id: 1\nid: 2\0\ndata: hello\n\n", &[with_id("hello", "1")]);
}

#[test]
fn field_parsing_takes_exact_names_only() {
    let bytes = b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n";
    check(bytes, &[message("\0\n 2\n1\n3\n\n4")]);
}

#[test]
fn field_retry_is_decimal() {
    check(b"retry:02000\ndata:x\n\n\n", &[with_retry("x", 2000)]);
}

#[test]
fn field_retry_bogus_is_ignored() {
    check(b"retry:2000\nretry:1000x\ndata:x\n\n\n", &[with_retry("x", 2000)]);
    check(b"retry:+5\nretry:-1\nretry:1 \nretry:1e3\nretry:\xD9\xA1\ndata:x\n\n", &[message("x")]);
    check(b"retry:99999999999999999999\ndata:x\n\n", &[message("x")]);
}

#[test]
fn field_retry_empty_is_ignored() {
    check(b"retry\ndata:test\n\n\n", &[message("test")]);
}

#[test]
fn field_unknown_is_ignored() {
    let bytes = b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n\n";
    check(bytes, &[message("test\n\ntest")]);
}

#[test]
fn leading_space_exactly_one_is_skipped_and_no_tab() {
    check(b"data:\ttest\rdata: \ndata:test\n\n\n", &[message("\ttest\n\ntest")]);
}

#[test]
fn newlines_of_all_three_kinds_end_lines() {
    check(b"data:test\r\ndata\ndata:test\r\n\r", &[message("test\n\ntest")]);
}

#[test]
fn null_character_is_data() {
    check(b"data:\0\n\n\n\n", &[message("\0")]);
}

#[test]
fn utf_8_is_decoded_wherever_it_is_cut() {
    check("data:ok…\n\ndata:€👍\n\n".as_bytes(), &[message("ok…"), message("€👍")]);
}

#[test]
fn invalid_utf_8_becomes_replacement_characters_and_the_stream_goes_on() {
    let bytes = b"data:a\xFFb\n\ndata:\xE2\x82\n\ndata:\xF0\x9F\x91\xE2\x82\xAC\xC0\xAF\xED\xA0\x80\n\nid:\xFE\ndata:1\n\n";
    let third = "\u{FFFD}€\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}";
    check(bytes, &[message("a\u{FFFD}b"), message("\u{FFFD}"), message(third), with_id("1", "\u{FFFD}")]);
}

#[test]
fn endings_of_one_kind_each_make_blank_lines() {
    for ending in ["\n", "\r", "\r\n"] {
        let bytes = ["data:1", "", "data:2", "data:3", "", "", ""].join(ending);
        check(bytes.as_bytes(), &[message("1"), message("2\n3")]);
    }
}

#[test]
fn a_carriage_return_ends_an_event_without_waiting_for_the_next_byte() {
    assert_eq!(open_stream(b"data:1\r\r").0, [message("1")]);
    assert_eq!(open_stream(b"data:1\r\n\r").0, [message("1")]);
}

#[test]
fn an_event_without_data_is_not_dispatched_but_its_id_and_retry_count() {
    check(b"event:x\nid:7\n\ndata:1\n\n", &[with_id("1", "7")]);
    check(b"retry:5\n\ndata:1\n\ndata:2\n\n", &[with_retry("1", 5), message("2")]);
    assert_eq!(open_stream(b"id:7\n\n").1.last_event_id(), "7");
}

#[test]
fn nothing_comes_of_an_empty_stream_or_a_lone_bom() {
    check(b"", &[]);
    check(b"\xEF\xBB\xBF", &[]);
    check(b"\xEF\xBBdata:1\n\n", &[]);
}
