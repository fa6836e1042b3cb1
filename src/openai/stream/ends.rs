//! What a stream says of itself, how it ends, plain pieces, limits.

use super::{
    tests::{buffer, chunk, drained, framed, stamp, text},
    *,
};
use crate::{domain::ToolCallDelta, openai::Malformed};

#[test]
fn done_is_swallowed_and_what_follows_is_ignored() {
    let mut buffer = buffer();
    assert_eq!(buffer.push_raw(text("a").into()), Ok(Pushed::Queued));
    assert_eq!(buffer.push_raw(text("b").into()), Ok(Pushed::Merged));
    assert_eq!(buffer.push_raw(" [DONE]\r\n".into()), Ok(Pushed::Done));
    assert_eq!(buffer.push_raw(text("c").into()), Ok(Pushed::Ignored));
    assert_eq!(drained(&mut buffer), [text("ab")]);
    assert!(buffer.meta().done);
    assert_eq!(buffer.meta().chunks, 2);
}

#[test]
fn what_is_no_json_object_is_refused_without_quoting_it() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    for (secret, why) in [
        ("", Malformed::NotJson),
        ("secret", Malformed::NotJson),
        ("{\"secret\":}", Malformed::NotJson),
        ("{} {}", Malformed::NotJson),
        ("{\"a\":01}", Malformed::NotJson),
        ("[\"secret\"]", Malformed::NotObject),
        ("null", Malformed::NotObject),
        (&deep, Malformed::TooDeep),
    ] {
        let error = buffer().push_raw(secret.to_owned().into()).expect_err("it is refused");
        assert_eq!(error, ChunkError::Malformed(why));
        let failure = Failure::from(error);
        assert_eq!(failure.code, FailureCode::BadOutput);
        assert!(!failure.message.contains("secret"));
    }
}

#[test]
fn an_error_of_the_provider_keeps_its_status_code_and_body() {
    let body = r#"{"error":{"message":"no room","type":"exceed_context_size_error","code":400}}"#;
    let error = buffer().push_raw(body.into()).expect_err("it is an error");
    let failure = Failure::from(error);
    assert_eq!((failure.code, failure.status()), (FailureCode::ContextLength, 400));
    assert_eq!(failure.message, "no room");
    assert_eq!(failure.body, body);
}

#[test]
fn a_buffer_past_its_limit_says_slow_consumer() {
    let mut buffer = StreamBuffer::new(1000, stamp());
    let mut pushed = 0;
    let error = loop {
        match buffer.push_raw(text("0123456789").into()) {
            Ok(_) => pushed += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, ChunkError::Full { limit: 1000 });
    assert_eq!(Failure::from(error).code, FailureCode::SlowConsumer);
    assert!(buffer.pending_bytes() <= 1000 && pushed > 20, "{pushed} chunks");
}

#[test]
fn small_chunks_that_do_not_merge_are_counted_with_what_they_cost() {
    let mut buffer = StreamBuffer::new(1 << 20, stamp());
    let taken = (0..).take_while(|_| buffer.push_raw("{}".into()).is_ok()).count();
    assert!(taken * PART_COST <= 1 << 20);
}

#[test]
fn one_large_chunk_is_taken_when_nothing_else_waits() {
    let mut buffer = StreamBuffer::new(1000, stamp());
    let large = text(&"x".repeat(5000));
    buffer.push_raw(large.clone().into()).expect("taken");
    assert_eq!(buffer.push_raw(text("y").into()), Err(ChunkError::Full { limit: 1000 }));
    assert_eq!(drained(&mut buffer), [large]);
}

#[test]
fn the_facts_are_read_from_the_chunks() {
    let mut buffer = buffer();
    for (piece, token) in [
        (chunk(r#"{"role":"assistant","content":""}"#), false),
        (text(""), false),
        (text("a"), true),
        (framed(1, r#"{"index":0,"delta":{},"finish_reason":"length"}"#), true),
        (
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#.to_owned(),
            true,
        ),
    ] {
        buffer.push_raw(piece.into()).expect("taken");
        assert_eq!(buffer.meta().first_token, token);
    }
    let expected = ResponseMeta {
        chunks: 5,
        first_token: true,
        done: false,
        begun: buffer.meta().begun,
        finish_reasons: vec![(0, "length".to_owned())],
        usage: Some(Usage::new(Some(3), Some(4))),
        response_id: Some("c1".to_owned()),
        model: Some("m".to_owned()),
    };
    assert_eq!(buffer.meta(), &expected);
}

#[test]
fn every_kind_of_piece_is_a_first_token() {
    for delta in [
        r#"{"reasoning_content":"h"}"#,
        r#"{"refusal":"no"}"#,
        r#"{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]}"#,
        r#"{"audio":{"id":"a"}}"#,
    ] {
        let mut buffer = buffer();
        buffer.push_raw(chunk(delta).into()).expect("taken");
        assert!(buffer.meta().first_token, "{delta}");
    }
}

#[test]
fn raw_output_must_end_by_itself() {
    let mut cut = buffer();
    cut.push_raw(text("a").into()).expect("taken");
    let failure = cut.finish(None, true).expect_err("it was cut");
    assert_eq!(failure.code, FailureCode::BadOutput);
    assert_eq!(failure.message, "the provider's stream ended without a finish_reason");
    assert!(buffer().finish(None, false).is_err());
    for end in [r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#, "[DONE]"] {
        let mut whole = buffer();
        whole.push_raw(text("a").into()).expect("taken");
        whole.push_raw(end.into()).expect("taken");
        let sent = whole.pending_parts();
        let usage = Usage::new(Some(1), None);
        assert_eq!(whole.finish(Some(usage), true), Ok(()));
        assert_eq!(whole.pending_parts(), sent, "nothing is added to raw output");
        assert_eq!(whole.meta().usage, Some(usage));
        assert_eq!(whole.push_raw(text("b").into()), Ok(Pushed::Ignored));
    }
}

fn delta(content: &str) -> Delta {
    Delta { content: content.to_owned(), ..Delta::default() }
}

#[test]
fn plain_deltas_become_chunks_with_one_id_and_the_role_first() {
    let head =
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":["#;
    let of = |choice: &str| format!("{head}{choice}]}}");
    let mut buffer = buffer();
    assert_eq!(buffer.push_delta(&Delta::default()), Ok(Pushed::Ignored));
    for piece in ["a \"b\"", "\n", "é"] {
        buffer.push_delta(&delta(piece)).expect("taken");
    }
    buffer.finish(Some(Usage::new(Some(2), Some(3))), true).expect("it ends");
    let expected = [
        of(r#"{"index":0,"delta":{"role":"assistant","content":"a \"b\""},"finish_reason":null}"#),
        of(r#"{"index":0,"delta":{"content":"\né"},"finish_reason":null}"#),
        of(r#"{"index":0,"delta":{},"finish_reason":"stop"}"#),
        format!(r#"{head}],"usage":{{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}}}"#),
    ];
    assert_eq!(drained(&mut buffer), expected);
}

#[test]
fn plain_tool_calls_end_with_tool_calls_unless_the_provider_says_otherwise() {
    let call = |id: &str, name: &str, arguments: &str| Delta {
        tool_calls: vec![ToolCallDelta {
            index: 0,
            id: id.into(),
            name: name.into(),
            arguments: arguments.into(),
        }],
        ..Delta::default()
    };
    let mut buffer = buffer();
    for piece in [call("c", "f", ""), call("", "", "{"), call("", "", "}")] {
        buffer.push_delta(&piece).expect("taken");
    }
    buffer.finish(None, true).expect("it ends");
    let deltas = [
        r#""delta":{"role":"assistant","tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":""}}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}"#,
        r#""delta":{},"finish_reason":"tool_calls""#,
    ];
    let sent = drained(&mut buffer);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().zip(deltas).all(|(sent, delta)| sent.contains(delta)), "{sent:#?}");

    let mut given = tests::buffer();
    given.push_delta(&Delta { finish_reason: "length".to_owned(), ..delta("x") }).expect("taken");
    given.finish(None, false).expect("it ends");
    assert_eq!(given.meta().finish_reasons, [(0, "length".to_owned())]);
    assert_eq!(drained(&mut given).len(), 1);
}

#[test]
fn the_escaped_form_is_the_chunk_between_head_and_tail() {
    let fill = |buffer: &mut StreamBuffer| {
        buffer.push_raw(text(r"a\n").into()).expect("taken");
        buffer.push_raw(text("\u{e9}b").into()).expect("taken");
    };
    let (mut plain, mut escaped) = (buffer(), buffer());
    fill(&mut plain);
    fill(&mut escaped);
    let body = escaped.pop_escaped(b"{\"chunk\":{\"data\":\"", b"\"}}").expect("a part waits");
    let parsed: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
    assert_eq!(parsed["chunk"]["data"].as_str().map(str::as_bytes), plain.pop().as_deref());
    assert_eq!(escaped.pop_escaped(b"", b""), None);
    assert!(escaped.is_empty());
}

#[test]
fn buffers_are_used_again_but_large_ones_are_not_kept() {
    let mut buffer = buffer();
    for size in [10, 100_000] {
        for _ in 0..3 {
            buffer.push_raw(text(&"x".repeat(size)).into()).expect("taken");
        }
        drained(&mut buffer);
        let kept = buffer.spare.as_ref().expect("it is kept").capacity();
        assert!(kept <= 4096 && (size > 4096 || kept >= 20), "{kept} bytes kept");
    }
}
