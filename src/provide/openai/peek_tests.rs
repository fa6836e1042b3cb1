use proptest::prelude::*;

use super::*;

fn peek(chunk: &str) -> Peeked {
    Peeker::default().peek(chunk.as_bytes())
}

#[test]
fn an_ordinary_chunk_says_nothing() {
    let chunk = r#"{"choices":[{"index":0,"delta":{"content":"a \"finish_reason\":\"stop\""},"finish_reason":null}],"usage":null}"#;
    assert_eq!(peek(chunk), Peeked::default());
}

#[test]
fn a_finish_reason_is_found_with_and_without_spaces() {
    for chunk in [
        r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"choices": [{"delta": {}, "finish_reason" : "length"}]}"#,
        r#"{"choices":[{"finish_reason":null},{"finish_reason":"stop"}]}"#,
    ] {
        assert!(peek(chunk).finish, "{chunk}");
    }
}

#[test]
fn a_finish_reason_elsewhere_is_not_the_answers() {
    assert!(!peek(r#"{"choices":[{"delta":{"x":{"finish_reason":"stop"}}}]}"#).finish);
    assert!(!peek(r#"{"choices":[{"delta":{"content":"finish_reason"},"x":"stop"}]}"#).finish);
}

#[test]
fn usage_is_read_with_and_without_choices() {
    let usage = Some(Usage::new(Some(3), Some(5)));
    let alone = peek(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#);
    assert_eq!((alone.usage, alone.no_choices), (usage, true));
    let beside =
        peek(r#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#);
    assert_eq!((beside.usage, beside.no_choices, beside.finish), (usage, false, true));
}

#[test]
fn an_error_is_told_from_a_chunk() {
    assert!(peek(r#"{"error":{"message":"out of memory"}}"#).error);
    assert!(peek(r#"{"error":"out of memory"}"#).error);
    assert!(!peek(r#"{"choices":[{"delta":{"content":"x"}}],"error":{"message":"odd"}}"#).error);
    assert!(!peek(r#"{"choices":[],"error":null}"#).error);
}

#[test]
fn an_answer_that_is_no_object_is_none() {
    assert_eq!(answer(&Bytes::from_static(b"<html>")), None);
    assert!(answer(&Bytes::from_static(br#"{"error":{"message":"x"}}"#)).unwrap().error);
}

/// An answer, more or less.
fn an_answer() -> impl Strategy<Value = Vec<u8>> {
    let names = vec!["choices", "usage", "error", "id", r"ch\u006fices", r"\ud83d"];
    let values: Vec<&[u8]> = vec![
        b"null",
        b"{}",
        b"[]",
        b" [ ] ",
        b"\"x\"",
        b"7",
        b"true",
        b"\"\xff\"",
        b"\"\\ud83d\"",
        b"\"\x01\"",
        b"[1,]",
        b"{",
        b"1e999",
        br#"{"message":"m"}"#,
        br#"{"prompt_tokens":3,"completion_tokens":5,"x":[1]}"#,
        br#"{"prompt_tokens":null}"#,
        br#"{"prompt_tokens":-0}"#,
        br#"{"prompt_tokens":1.0}"#,
        br#"{"completion_tokens":4294967296}"#,
        br#"{"completion_tokens":4294967295}"#,
        br#"{"prompt_tokens":1,"prompt_tokens":1}"#,
        br#"[3,5]"#,
        br#"{"prompt\u005ftokens":1}"#,
        br#"[{"finish_reason":"stop"}]"#,
        br#"[{"index":0,"finish_reason":null},{"finish_reason" : "x"}]"#,
        br#"[{"finish_reason":1}]"#,
        br#"[7]"#,
        br#"[["stop"]]"#,
        br#"[{"finish_reason":"a","finish_reason":"b"}]"#,
        br#"[{"finish\u005freason":"a"}]"#,
        br#"[{"delta":{"content":"\xc3\xa9"}}]"#,
    ];
    let deep = [vec![b'['; 200], vec![b']'; 200]].concat();
    let value = prop_oneof![20 => prop::sample::select(values).prop_map(<[u8]>::to_vec), 1 => Just(deep)];
    let member = (prop::sample::select(names), value)
        .prop_map(|(name, value)| [format!("\"{name}\" :").as_bytes(), &value].concat());
    let ends =
        prop::sample::select(vec![["{", "}"], ["{", "} "], [" {", "}"], ["{", ""], ["{", "}x"], ["[", "]"]]);
    (prop::collection::vec(member, 0..4), ends).prop_map(|(members, ends)| {
        [ends[0].as_bytes(), &members.join(&b","[..]), ends[1].as_bytes()].concat()
    })
}

#[test]
fn every_error_but_null_is_found_by_searching() {
    for error in ["{}", "[]", "\"\"", "-1", "0", "7.5", "true", "false", "null"] {
        let chunk = format!(r#"{{"error":{error}}}"#);
        assert_eq!(peek(&chunk).error, error != "null", "{chunk}");
        assert_eq!(parse(chunk.as_bytes()).error, error != "null", "{chunk}");
    }
}

proptest! {
    #[test]
    fn an_answer_is_read_as_serde_reads_it(text in an_answer()) {
        let by_serde = Seen::by_serde(&text);
        if let Some(usual) = Seen::of_usual(&text, choices) {
            prop_assert_eq!(Some(usual), by_serde);
        }
        prop_assert_eq!(Seen::of(&text, choices), by_serde);
        let unread = Seen::of(&text, unread);
        prop_assert_eq!(unread.map(|seen| (seen.usage, seen.is_error())), by_serde.map(|seen| (seen.usage, seen.is_error())));
    }
}
