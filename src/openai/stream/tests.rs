//! The merging rule, case by case; `properties` compares it with a plain model.

use super::*;
use crate::openai::Malformed;

const LIMIT: usize = 1 << 20;

pub(super) fn stamp() -> ChunkEnvelope {
    ChunkEnvelope { id: "chatcmpl-1".to_owned(), model: "tiny".to_owned(), created: 7 }
}

pub(super) fn buffer() -> StreamBuffer {
    StreamBuffer::new(LIMIT, stamp())
}

/// A chunk of the first choice with this delta.
pub(super) fn chunk(delta: &str) -> String {
    framed(1, &format!(r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null}}"#))
}

pub(super) fn framed(created: u32, choice: &str) -> String {
    format!(
        r#"{{"id":"c1","object":"chat.completion.chunk","created":{created},"model":"m","choices":[{choice}]}}"#
    )
}

pub(super) fn text(content: &str) -> String {
    chunk(&format!(r#"{{"content":"{content}"}}"#))
}

/// Everything that goes out when all of `chunks` wait together.
fn sent<S: AsRef<str>>(chunks: &[S]) -> Vec<String> {
    let mut buffer = buffer();
    for chunk in chunks {
        buffer.push_raw(Bytes::copy_from_slice(chunk.as_ref().as_bytes())).expect("the chunk is taken");
    }
    drained(&mut buffer)
}

pub(super) fn drained(buffer: &mut StreamBuffer) -> Vec<String> {
    let sent =
        std::iter::from_fn(|| buffer.pop()).map(|b| String::from_utf8(b.to_vec()).expect("UTF-8")).collect();
    assert_eq!((buffer.pending_bytes(), buffer.pending_parts()), (0, 0));
    sent
}

#[track_caller]
fn assert_merge(one: &str, two: &str, both: &str) {
    assert_eq!(sent(&[chunk(one), chunk(two)]), [chunk(both)]);
}

#[track_caller]
fn assert_apart(chunks: &[String]) {
    assert_eq!(sent(chunks), chunks);
}

#[test]
fn neighbouring_texts_of_one_choice_become_one_chunk() {
    assert_eq!(sent(&[text("He"), text("llo"), text(" you")]), [text("Hello you")]);
}

#[test]
fn a_chunk_that_nothing_merged_with_goes_out_byte_for_byte() {
    let odd = r#" { "choices" : [ {"delta":{ "content" : "a" } , "index":0} ], "x" : 1.50 }  "#;
    assert_eq!(sent(&[odd]), [odd]);
}

#[test]
fn each_kind_of_text_merges_with_its_own_and_with_the_others() {
    for kind in ["content", "reasoning_content", "reasoning", "refusal"] {
        let of = |text: &str| format!(r#"{{"{kind}":"{text}"}}"#);
        assert_merge(&of("a"), &of("b"), &of("ab"));
    }
    assert_merge(
        r#"{"reasoning_content":"hm","content":null}"#,
        r#"{"content":"a","reasoning_content":null}"#,
        r#"{"content":"a","reasoning_content":"hm"}"#,
    );
}

#[test]
fn a_role_without_text_merges_forward_into_the_first_token() {
    for role in [
        r#"{"role":"assistant"}"#,
        r#"{"role":"assistant","content":""}"#,
        r#"{"content":null,"role":"assistant"}"#,
    ] {
        assert_merge(role, r#"{"content":"Hi"}"#, r#"{"role":"assistant","content":"Hi"}"#);
    }
    let chunks = [chunk(r#"{"role":"assistant","content":"","refusal":null}"#), text("a"), text("b")];
    assert_eq!(sent(&chunks), [chunk(r#"{"role":"assistant","content":"ab","refusal":null}"#)]);
}

#[test]
fn a_role_in_every_chunk_merges_as_ollama_sends_it() {
    let [a, b] = [r#"{"role":"assistant","content":"a"}"#, r#"{"role":"assistant","content":"b"}"#];
    assert_merge(a, b, r#"{"role":"assistant","content":"ab"}"#);
    let chunks = ["a", "b", "c"].map(|t| chunk(&format!(r#"{{"role":"assistant","content":"{t}"}}"#)));
    assert_eq!(sent(&chunks), [chunk(r#"{"role":"assistant","content":"abc"}"#)]);
    assert_apart(&[chunk(a), chunk(r#"{"role":"tool","content":"b"}"#)]);
}

#[test]
fn a_role_with_text_takes_no_text_without_and_a_role_never_merges_backwards() {
    assert_apart(&[chunk(r#"{"role":"assistant","content":"a"}"#), text("b")]);
    assert_apart(&[text("a"), chunk(r#"{"role":"assistant"}"#)]);
    assert_apart(&[
        text("a"),
        chunk(r#"{"role":"assistant","tool_calls":[{"index":0,"function":{"arguments":""}}]}"#),
    ]);
}

#[test]
fn a_role_that_waits_for_its_token_is_not_overtaken_by_it() {
    let chunks = [text("a"), chunk(r#"{"role":"assistant"}"#), text("b")];
    assert_eq!(sent(&chunks), [text("a"), chunk(r#"{"role":"assistant","content":"b"}"#)]);
}

#[test]
fn arguments_of_one_tool_call_merge_and_its_head_does_not() {
    let call = |index: u32, text: &str| {
        format!(r#"{{"tool_calls":[{{"index":{index},"function":{{"arguments":"{text}"}}}}]}}"#)
    };
    assert_merge(&call(1, r#"{\"a"#), &call(1, r#"\":1}"#), &call(1, r#"{\"a\":1}"#));
    assert_merge(
        r#"{"content":"x"}"#,
        &call(2, "1"),
        r#"{"content":"x","tool_calls":[{"index":2,"function":{"arguments":"1"}}]}"#,
    );
    assert_apart(&[chunk(&call(0, "1")), chunk(&call(1, "2"))]);
    for head in [
        r#"{"index":0,"id":"a","function":{"arguments":""}}"#,
        r#"{"index":0,"type":"function","function":{"arguments":""}}"#,
        r#"{"index":0,"function":{"name":"f","arguments":""}}"#,
        r#"{"index":0,"function":{}}"#,
        r#"{"index":0}"#,
        r#"{"function":{"arguments":"1"}}"#,
        r#"{"index":0,"function":{"arguments":"1"}},{"index":0,"function":{"arguments":"1"}}"#,
        "",
    ] {
        assert_apart(&[
            chunk(&call(0, "1")),
            chunk(&format!(r#"{{"tool_calls":[{head}]}}"#)),
            chunk(&call(0, "2")),
        ]);
    }
}

#[test]
fn the_arrays_of_logprobs_are_joined() {
    let with = |text: &str, log: &str| {
        framed(
            1,
            &format!(r#"{{"index":0,"delta":{{"content":"{text}"}},"logprobs":{log},"finish_reason":null}}"#),
        )
    };
    let chunks = [
        with("a", r#"{"content":[{"token":"a"}],"refusal":null}"#),
        with("b", "null"),
        with("c", r#"{"content":[ {"token":"b"},{"token":"c"} ]}"#),
        with("d", r#"{"refusal":[],"content":[]}"#),
    ];
    let log = r#"{"content":[{"token":"a"},{"token":"b"},{"token":"c"}],"refusal":[]}"#;
    assert_eq!(sent(&chunks), [with("abcd", log)]);
    for log in [r#"{"content":[],"extra":[]}"#, "{}", r#"{"content":1}"#, "7"] {
        assert_apart(&[with("a", log), with("b", log)]);
    }
}

#[test]
fn anything_not_understood_is_a_barrier() {
    for odd in [
        chunk(r#"{"content":"b","audio":{}}"#),
        chunk(r#"{"content":"b","new":""}"#),
        chunk(r#"{"content":["b"]}"#),
        chunk(r#"{"content":"b","content":"c"}"#),
        chunk(r#"{"\u0063ontent":"b"}"#),
        chunk(r#"{"con\u0074ent":null}"#),
        chunk(r#"{"a":null,"b":null,"c":null,"d":null,"e":null}"#),
        chunk("null"),
        framed(1, r#"{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}"#),
        framed(1, r#"{"index":0,"delta":{"content":"b"},"token_ids":[1],"finish_reason":null}"#),
        framed(1, r#"{"index":0,"index":1,"delta":{"content":"b"},"finish_reason":null}"#),
        framed(1, r#"{"delta":{"content":"b"},"finish_reason":null}"#),
        framed(1, r#"{"index":-1,"delta":{"content":"b"}}"#),
        framed(1, r#"{"index":0,"delta":{"content":"b"}},{"index":1,"delta":{}}"#),
        framed(1, ""),
        framed(1, "1"),
        text("b").replace(r#""id""#, r#""usage":{"prompt_tokens":1},"id""#),
        text("b").replace(r#""id""#, r#""created":1,"id""#),
        text("b").replace(r#""id""#, r#""choices":[],"id""#),
        text("b").replace(r#""id""#, r#""cre\u0061ted":5,"id""#),
        r#"{"choices":"none"}"#.to_owned(),
        "{}".to_owned(),
    ] {
        assert_eq!(sent(&[text("a"), odd.clone(), text("c"), text("d")]), [text("a"), odd, text("cd")]);
    }
}

#[test]
fn other_top_level_members_must_be_equal_but_for_created() {
    let other = |created: u32| {
        framed(created, r#"{"index":0,"delta":{"content":"x"},"logprobs":null,"finish_reason":null}"#)
    };
    assert_eq!(sent(&[other(1), other(2), other(2)]), [other(1).replace("\"x\"", "\"xxx\"")]);
    for changed in [r#""model":"n""#, r#""model":"m","z":1"#, r#""model":"m","usage":null"#] {
        assert_apart(&[text("a"), text("b").replace(r#""model":"m""#, changed)]);
    }
    let counted = |t: &str| text(t).replace(r#""model":"m""#, r#""model":"m","usage":{}"#);
    assert_apart(&[counted("a"), counted("b")]);
    let usage = |t: &str| text(t).replace(r#""model":"m""#, r#""model":"m","usage":null"#);
    assert_eq!(sent(&[usage("a"), usage("b")]), [usage("ab")]);
}

#[test]
fn members_that_are_null_in_both_do_not_keep_chunks_apart() {
    assert_merge(
        r#"{"role":null,"function_call":null,"content":"a"}"#,
        r#"{"role":null,"function_call":null,"content":"b"}"#,
        r#"{"role":null,"function_call":null,"content":"ab"}"#,
    );
    assert_apart(&[text("a"), chunk(r#"{"content":"b","function_call":null}"#)]);
    let matched =
        |t: &str| framed(1, &format!(r#"{{"index":0,"delta":{{"content":"{t}"}},"matched_stop":null}}"#));
    assert_eq!(sent(&[matched("a"), matched("b")]), [matched("ab")]);
}

#[test]
fn choices_merge_each_for_itself_between_barriers() {
    let of = |index: u32, t: &str| framed(1, &format!(r#"{{"index":{index},"delta":{{"content":"{t}"}}}}"#));
    let end = framed(1, r#"{"index":0,"delta":{},"finish_reason":"stop"}"#);
    let chunks = [of(0, "a"), of(1, "x"), of(0, "b"), of(1, "y"), end.clone(), of(1, "z"), of(1, "!")];
    assert_eq!(sent(&chunks), [of(0, "ab"), of(1, "xy"), end, of(1, "z!")]);
}

#[test]
fn a_surrogate_pair_split_over_two_chunks_survives() {
    assert_eq!(sent(&[text(r"\ud83d"), text(r"\ude00"), text(r"\n\\")]), [text(r"\ud83d\ude00\n\\")]);
}

#[test]
fn a_text_that_only_looks_like_the_last_one_is_not_taken_for_it() {
    let sneaky = text(r#"b","refusal":"no"#);
    assert_eq!(sent(&[text("a"), sneaky]), [chunk(r#"{"content":"ab","refusal":"no"}"#)]);
    for broken in ["\u{1}", r"\x", r"\u12", r"\", "\n"] {
        let mut buffer = buffer();
        buffer.push_raw(text("a").into()).expect("taken");
        assert_eq!(buffer.push_raw(text(broken).into()), Err(Malformed::NotJson.into()), "{broken:?}");
    }
    let mut buffer = buffer();
    buffer.push_raw(text("a").into()).expect("taken");
    let invalid = text("@").into_bytes().into_iter().map(|b| if b == b'@' { 0xff } else { b });
    assert_eq!(buffer.push_raw(invalid.collect()), Err(Malformed::NotUtf8.into()));
}

#[test]
fn the_last_chunk_is_recognised_after_it_has_left_and_after_a_barrier() {
    let mut buffer = buffer();
    let head = chunk(r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":""}}]}"#);
    buffer.push_raw(text("a").into()).expect("taken");
    assert_eq!(drained(&mut buffer), [text("a")]);
    for piece in [text("bcdef"), text(""), text("g"), head.clone(), text("h"), text("i")] {
        buffer.push_raw(piece.into()).expect("taken");
    }
    assert_eq!(drained(&mut buffer), [text("bcdefg"), head, text("hi")]);
    let later =
        framed(9, r#"{"index":0,"delta":{"content":"j"},"logprobs":{"content":[1]},"finish_reason":null}"#);
    buffer.push_raw(text("k").into()).expect("taken");
    buffer.push_raw(later.into()).expect("taken");
    let both = text("kj").replace("\"logprobs\":null", r#""logprobs":{"content":[1]}"#);
    assert_eq!(drained(&mut buffer), [both]);
}

#[test]
fn what_does_not_merge_although_it_might_keeps_its_order() {
    let other = |t: &str| text(t).replace("\"m\"", "\"n\"");
    let chunks = [text("a"), other("b"), text("c"), text("d"), other("e")];
    assert_eq!(sent(&chunks), [text("a"), other("b"), text("cd"), other("e")]);
}
