//! Arbitrary bytes against a plain reading of the standard, and the limits.

mod common;

use common::{Outcome, outcome_of, skipping};
use eventsource_stream::{
    DEFAULT_EVENT_LIMIT, ENDLESS_FACTOR, Event, EventStreamError, Eventsource, ID_LIMIT, TooLarge, too_large,
};
use futures_util::{FutureExt, StreamExt, stream};
use proptest::prelude::*;
use std::time::Duration;

/// Lines of a stream and bits of lines, so that random streams meet the parser's cases.
const FRAGMENTS: [&[u8]; 20] = [
    b"data",
    b"data:",
    b"data: ",
    b"event:",
    b"id:",
    b"retry:",
    b":",
    b" ",
    b"\n",
    b"\n\n",
    b"\r",
    b"\r\n",
    b"\r\r",
    b"x",
    b"12",
    b"\0",
    b"\xEF\xBB\xBF",
    b"\xE2\x82",
    b"\xAC",
    b"\xFF",
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let fragment = proptest::sample::select(&FRAGMENTS[..]).prop_map(<[u8]>::to_vec);
    let anything = proptest::collection::vec(any::<u8>(), 0..8);
    proptest::collection::vec(prop_oneof![9 => fragment, 1 => anything], 0..60)
        .prop_map(|parts| parts.concat())
}

/// `bytes` cut into pieces of the given sizes, repeated as often as needed.
fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
        if bytes.is_empty() {
            break;
        }
    }
    pieces
}

/// The standard's algorithm with everything in memory: decode, cut into lines, interpret one by one.
fn plain_reading(bytes: &[u8]) -> Vec<Event> {
    let text = String::from_utf8_lossy(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes));
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut event, mut data, mut id, mut retry) =
        (Vec::new(), String::new(), String::new(), String::new(), None);
    // The text after the last ending is no line.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => data += &format!("{value}\n"),
            "event" => event = value.to_owned(),
            "id" if !value.contains('\0') => id = value.to_owned(),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                retry = value.parse().ok().or(retry)
            }
            "" if line.is_empty() => {
                let name = std::mem::take(&mut event);
                if let Some(data) = std::mem::take(&mut data).strip_suffix('\n').map(str::to_owned) {
                    let event = if name.is_empty() { "message".to_owned() } else { name };
                    let retry = retry.take().map(Duration::from_millis);
                    events.push(Event { event, data, id: id.clone(), retry });
                }
            }
            _ => {}
        }
    }
    events
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_are_read_as_the_standard_says(
        bytes in bytes(),
        sizes in proptest::collection::vec(1..20_usize, 1..5),
    ) {
        let expected: Outcome = plain_reading(&bytes).into_iter().map(Ok).collect();
        prop_assert_eq!(outcome_of(cut(&bytes, &sizes), DEFAULT_EVENT_LIMIT), expected);
    }

    #[test]
    fn whether_and_where_the_limit_is_met_does_not_depend_on_the_pieces(
        bytes in bytes(),
        sizes in proptest::collection::vec(0..20_usize, 1..5).prop_filter("some size", |sizes| sizes.iter().any(|s| *s > 0)),
        limit in 0..40_usize,
    ) {
        prop_assert_eq!(outcome_of(cut(&bytes, &sizes), limit), outcome_of([&bytes[..]], limit));
    }

    #[test]
    fn what_is_skipped_does_not_depend_on_the_pieces(
        bytes in bytes(),
        sizes in proptest::collection::vec(0..20_usize, 1..5).prop_filter("some size", |sizes| sizes.iter().any(|s| *s > 0)),
        limit in 0..40_usize,
    ) {
        prop_assert_eq!(skipping(cut(&bytes, &sizes), limit), skipping([&bytes[..]], limit));
    }

    /// Whatever fits is read as if nothing around it had been skipped.
    #[test]
    fn a_skipped_event_costs_no_other(bytes in bytes(), limit in 8..40_usize) {
        let stream = [&bytes[..], b"\n\n", b"data:12345678901234567890123456789012345678901\n\nevent:a\ndata:b\n\n"].concat();
        let items = skipping([&stream[..]], limit);
        prop_assert!(matches!(items[items.len() - 2], Err((TooLarge::Event { .. }, ..))), "{:?}", items);
        let last = items.last().and_then(|item| item.as_ref().ok()).map(|e| (e.event.as_str(), e.data.as_str()));
        prop_assert_eq!(last, Some(("a", "b")));
    }

    #[test]
    fn no_event_is_larger_than_the_limit(bytes in bytes(), limit in 0..40_usize) {
        for event in outcome_of([&bytes[..]], limit).into_iter().flatten() {
            // The default type is not received.
            let named = if event.event == "message" { 0 } else { event.event.len() };
            prop_assert!(event.data.len() + named <= limit, "{:?}", event);
        }
    }
}

/// The sentence of a stream's last item, and how many events came before.
fn refusal(items: &Outcome) -> (usize, &str) {
    match items.split_last() {
        Some((Err(EventStreamError::Parser(error)), before)) => {
            (before.iter().flatten().count(), too_large(error).expect("nothing else is a parser's error"))
        }
        _ => panic!("no limit was met: {items:?}"),
    }
}

#[test]
fn an_event_of_the_limit_passes_and_one_byte_more_ends_the_stream() {
    let at_limit = outcome_of([&b"data:12345\n\n"[..], b"data:12345\r\n\r\n"], 10);
    assert!(at_limit.len() == 2 && at_limit.iter().all(Result::is_ok));
    let over = outcome_of([&b"data:1\n\ndata:123456\n\ndata:2\n\n"[..]], 10);
    assert_eq!(refusal(&over), (1, "an event of the stream is over the limit of 10 bytes"));
}

#[test]
fn the_limit_holds_for_whatever_makes_an_event_grow() {
    let refused: [&[u8]; 8] = [
        b"data:12345678901\n",
        b"data:123\ndata:456\n",
        b"event:1234\ndata:4567\n",
        b":2345678901",
        b"unknown line\n",
        b"\xEF\xBB\xBFdata:123\n",
        // Three bytes of text for each byte received.
        b"data:\xFF\xFF\xFF\xFF\n",
        b"event:\xFF\xFF\xFF\xFF\n",
    ];
    for bytes in refused {
        assert_eq!(refusal(&outcome_of([bytes], 10)).0, 0, "{:?}", bytes.escape_ascii().to_string());
    }
}

#[test]
fn the_type_and_the_data_share_the_limit_as_decoded() {
    let (ten, invalid) = (b"1234567890", [0xFF; 7]);
    for [first, second] in [["data:", "event:"], ["event:", "data:"]] {
        let bytes = [first.as_bytes(), ten, b"\n", second.as_bytes(), &invalid, b"\n\n"].concat();
        assert_eq!(outcome_of([&bytes[..]], 31).iter().flatten().count(), 1);
        assert_eq!(refusal(&outcome_of([&bytes[..]], 30)).0, 0);
    }
}

#[test]
fn comments_without_a_blank_line_between_them_never_add_up_to_the_limit() {
    let bytes = b":keep\n".repeat(1000);
    assert_eq!(outcome_of([&bytes[..]], 10), []);
}

#[test]
fn an_id_over_its_limit_ends_the_stream() {
    let with_id = |size| format!("id:{}\ndata:1\n\n", "i".repeat(size)).into_bytes();
    assert_eq!(outcome_of([&with_id(ID_LIMIT)[..]], DEFAULT_EVENT_LIMIT).iter().flatten().count(), 1);
    let over = outcome_of([&with_id(ID_LIMIT + 1)[..]], DEFAULT_EVENT_LIMIT);
    assert_eq!(refusal(&over), (0, "an event id of the stream is over the limit of 4096 bytes"));
}

#[test]
fn a_transport_error_is_passed_on_and_ends_the_stream() {
    let pieces = [Ok("data:1\n\ndata:2"), Err("reset"), Ok("\n\n")];
    let items: Vec<_> = stream::iter(pieces).eventsource().collect().now_or_never().expect("ready");
    assert_eq!(items.len(), 2);
    assert_eq!(items[1], Err(EventStreamError::Transport("reset")));
}

/// The data of each event read, and `!` for each one skipped.
fn read_skipping(bytes: &[u8], limit: usize) -> Vec<String> {
    let data = |item: Result<Event, _>| item.map_or_else(|_| "!".to_owned(), |event| event.data);
    skipping([bytes], limit).into_iter().map(data).collect()
}

#[test]
fn whatever_makes_an_event_too_large_is_skipped_with_it() {
    let long = "x".repeat(ID_LIMIT + 1);
    for (event, limit) in [
        ("data:12345678901\n".to_owned(), 10),
        ("data:123\ndata:4567\r\ndata:8\n:c\n".to_owned(), 10),
        ("event:12345678901\ndata:1\n".to_owned(), 10),
        (format!("id:{long}\ndata:1\n"), 2 * ID_LIMIT),
    ] {
        let stream = format!("data:a\n\n{event}\ndata:b\n\n");
        assert_eq!(read_skipping(stream.as_bytes(), limit), ["a", "!", "b"], "{event}");
    }
}

#[test]
fn a_comment_or_an_unknown_field_over_the_limit_costs_no_event() {
    for line in [":2345678901234", "unknown line 12", "retry:00000000000001"] {
        let stream = format!("data:a\n{line}\n\n{line}\n\ndata:b\n\n");
        assert_eq!(read_skipping(stream.as_bytes(), 10), ["a", "b"], "{line}");
    }
}

#[test]
fn the_id_of_a_skipped_event_does_not_count() {
    let items = skipping([&b"id:1\ndata:a\n\nid:2\ndata:12345678901\n\ndata:b\n\n"[..]], 10);
    let ids: Vec<_> = items.iter().flatten().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["1", "1"]);
}

#[test]
fn an_event_without_end_is_the_streams_end_at_a_multiple_of_the_limit() {
    let bound = 10 * ENDLESS_FACTOR;
    let one_line = [b"data:", &vec![b'x'; bound][..]].concat();
    let lines = b"data:x\n".repeat(bound);
    let comment = [b":", &vec![b'x'; bound][..]].concat();
    for endless in [one_line, lines, comment] {
        let items = skipping([&endless[..]], 10);
        assert!(matches!(items[..], [Err((TooLarge::Endless { limit: 10 }, ..))]), "{items:?}");
    }
    let within = format!("data:{}\n\ndata:b\n\n", "x".repeat(bound - "data:".len()));
    assert_eq!(read_skipping(within.as_bytes(), 10), ["!", "b"]);
}
