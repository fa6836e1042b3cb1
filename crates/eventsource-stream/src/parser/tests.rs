use super::*;
use crate::lines::KEPT_CAPACITY;
use crate::skipped::ENDING;

/// What an HTTP/2 frame carries by default, bytes.
const PIECE: usize = 16 * 1024;

/// Feeds `size` bytes of one line that begins with `head`, then `tail`.
fn feed(parser: &mut Parser, head: &[u8], size: usize, tail: &[u8], mut seen: impl FnMut(&Parser)) -> usize {
    let body = vec![b'x'; PIECE];
    let pieces = std::iter::once(head).chain((0..size / PIECE).map(|_| &body[..])).chain([tail]);
    let mut events = 0;
    for piece in pieces {
        parser.push(piece);
        while parser.next_event().expect("within the limit").is_some() {
            events += 1;
        }
        seen(parser);
    }
    events
}

fn memory(parser: &Parser) -> usize {
    parser.lines.capacity() + parser.fields.data.as_ref().map_or(0, String::capacity)
}

#[test]
fn the_work_on_a_line_at_the_limit_is_linear_in_its_bytes() {
    let size = DEFAULT_EVENT_LIMIT - PIECE;
    let mut parser = Parser::new(DEFAULT_EVENT_LIMIT);
    // Each byte is copied in once and searched once. Checked on the way, or a quadratic parser would take
    // minutes to fail.
    let linear = |parser: &Parser| assert!(parser.lines.work <= 2 * DEFAULT_EVENT_LIMIT);
    assert_eq!(feed(&mut parser, b"data:", size, b"\n\n", linear), 1);
}

#[test]
fn the_work_on_many_short_lines_in_one_piece_is_linear_in_its_bytes() {
    let stream = b"data:1\r\n\r\n:c\r".repeat(20_000);
    let mut parser = Parser::new(DEFAULT_EVENT_LIMIT);
    for piece in stream.chunks(100_003) {
        parser.push(piece);
        while parser.next_event().expect("within the limit").is_some() {}
    }
    assert!(parser.lines.work <= 3 * stream.len(), "{} for {} bytes", parser.lines.work, stream.len());
}

#[test]
fn memory_stays_within_the_limit_and_its_growth_and_is_given_back_after_the_event() {
    let limit = 4 * 1024 * 1024;
    let mut parser = Parser::new(limit);
    let mut peak = 0;
    let events =
        feed(&mut parser, b"data:", limit - PIECE, b"\n\n", |parser| peak = memory(parser).max(peak));
    assert_eq!(events, 1);
    assert!((limit - PIECE..=2 * limit).contains(&peak), "{peak}");
    assert!(memory(&parser) <= KEPT_CAPACITY, "{} kept", memory(&parser));
}

#[test]
fn a_large_line_that_is_not_data_is_given_back_before_its_event_ends() {
    let mut parser = Parser::new(DEFAULT_EVENT_LIMIT);
    assert_eq!(feed(&mut parser, b":", 1024 * 1024, b"\ndata:1", |_| {}), 0);
    assert!(memory(&parser) <= KEPT_CAPACITY, "{} kept", memory(&parser));
}

#[test]
fn the_memory_of_a_line_without_end_stops_at_the_limit() {
    let limit = 256 * 1024;
    let mut parser = Parser::new(limit);
    let refused = (0..).find_map(|_| {
        parser.push(&[b'x'; PIECE]);
        assert!(memory(&parser) <= 2 * limit + PIECE);
        parser.next_event().err()
    });
    assert_eq!(refused, Some(TooLarge::Event { limit }));
    parser.discard();
    assert_eq!(memory(&parser), 0);
}

#[test]
fn an_event_being_skipped_takes_the_memory_of_its_limit_and_linear_time_and_is_given_back() {
    let limit = 256 * 1024;
    let mut parser = Parser::new(limit);
    parser.skip_oversized();
    parser.push(b"event:task\ndata:begin");
    let size = limit * (ENDLESS_FACTOR - 1);
    for _ in 0..size / PIECE {
        parser.push(&[b'x'; PIECE]);
        assert_eq!(parser.next_event(), Ok(None));
        assert!(memory(&parser) <= 2 * limit + PIECE, "{}", memory(&parser));
    }
    assert!(memory(&parser) <= KEPT_CAPACITY, "{} kept once it is skipped", memory(&parser));
    parser.push(b"end\r\n\r\ndata:next\n\n");
    assert_eq!(parser.next_event(), Err(TooLarge::Event { limit }));
    let refused = parser.take_refused().expect("what is kept of it");
    assert_eq!((refused.event.as_str(), refused.bytes), ("task", "data:beginend".len() + size));
    assert!(refused.beginning.starts_with("beginx") && refused.beginning.len() == BEGINNING);
    assert!(refused.ending.ends_with("xend") && refused.ending.len() == ENDING);
    assert_eq!(parser.next_event().map(|event| event.map(|e| e.data)), Ok(Some("next".to_owned())));
    assert!(parser.lines.work <= 3 * size, "{} for {size} bytes", parser.lines.work);
}

#[test]
fn many_short_lines_of_an_event_being_skipped_are_kept_as_one_text() {
    let mut parser = Parser::new(10);
    parser.skip_oversized();
    parser.push(&[b"data:1\n".repeat(60), b"event:late\ndata: 2\n\n".to_vec()].concat());
    assert_eq!(parser.next_event(), Err(TooLarge::Event { limit: 10 }));
    let refused = parser.take_refused().expect("what is kept of it");
    assert_eq!((refused.event.as_str(), &refused.beginning), ("late", &refused.ending));
    assert_eq!(refused.beginning, "1\n".repeat(60) + "2");
}

#[test]
fn an_event_that_the_stream_leaves_without_its_end_has_no_ending() {
    let mut parser = Parser::new(PIECE);
    parser.skip_oversized();
    parser.push(&[b"event:task\ndata:{", &[b'x'; 2 * PIECE][..]].concat());
    assert_eq!(parser.next_event(), Ok(None));
    let refused = parser.abandon().expect("what is kept of it");
    assert_eq!((refused.event.as_str(), refused.ending.as_str()), ("task", ""));
    assert!(refused.beginning.starts_with("{x"), "{}", refused.beginning);
}

#[test]
fn what_lacks_its_last_line_end_can_be_had_at_the_end_of_the_input() {
    for (stream, left) in [
        (
            "data: a\ndata: b",
            Some(Item::Event(Event { data: "a\nb".into(), event: "message".into(), ..Event::default() })),
        ),
        (
            "data: a\n",
            Some(Item::Event(Event { data: "a".into(), event: "message".into(), ..Event::default() })),
        ),
        ("error: x", Some(Item::Field { name: "error".into(), value: "x".into() })),
        ("data: a\n\n", None),
        ("event: a", None),
    ] {
        let mut parser = Parser::new(100);
        parser.push(stream.as_bytes());
        while parser.next_item().expect("within the limit").is_some() {}
        assert_eq!(parser.finish(), left, "{stream:?}");
    }
}

#[test]
fn comments_and_unknown_fields_are_items_of_their_own() {
    let mut parser = Parser::new(100);
    parser.push(b": ping\nerror: {}\nid: 1\nretry: x\ndata: a\n\n");
    let items: Vec<_> = std::iter::from_fn(|| parser.next_item().expect("within the limit")).collect();
    let event = Event { data: "a".into(), event: "message".into(), id: "1".into(), retry: None };
    let field = Item::Field { name: "error".into(), value: "{}".into() };
    assert_eq!(items, [Item::Comment, field, Item::Event(event)]);
}
