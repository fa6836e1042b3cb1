use super::*;
use crate::openai::convert::chunks_from_completion;

fn gather() -> Gather {
    Gather::new(1 << 20, ChunkEnvelope { id: "chatcmpl-1".to_owned(), model: "tiny".to_owned(), created: 7 })
}

fn gathered<S: AsRef<str>>(chunks: &[S]) -> serde_json::Value {
    serde_json::from_str(&body(chunks)).expect("the body is JSON")
}

fn body<S: AsRef<str>>(chunks: &[S]) -> String {
    let mut gather = gather();
    for chunk in chunks {
        gather.push_raw(Bytes::copy_from_slice(chunk.as_ref().as_bytes())).expect("the chunk is taken");
    }
    String::from_utf8(gather.finish(None).expect("it ended").to_vec()).expect("UTF-8")
}

fn choice(choice: &str) -> String {
    format!(
        r#"{{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":"f","choices":[{choice}]}}"#
    )
}

#[test]
fn chunks_become_one_body() {
    let chunks = [
        choice(
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#,
        ),
        choice(
            r#"{"index":0,"delta":{"content":"a\ud83d"},"logprobs":{"content":[{"logprob":-0.10}]},"finish_reason":null}"#,
        ),
        choice(
            r#"{"index":0,"delta":{"content":"\ude00"},"logprobs":{"content":[{"logprob":1e-9}]},"finish_reason":null}"#,
        ),
        choice(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#),
        r#"{"id":"c","choices":[],"usage":{"prompt_tokens":3,"details":{"x":1}}}"#.to_owned(),
        "[DONE]".to_owned(),
    ];
    let expected = r#"{"created":1,"id":"c","model":"m","system_fingerprint":"f","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a\ud83d\ude00"},"logprobs":{"content":[{"logprob":-0.10},{"logprob":1e-9}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"details":{"x":1}}}"#;
    assert_eq!(body(&chunks), expected);
}

#[test]
fn tool_calls_are_put_together_by_their_index() {
    let call = |call: &str| choice(&format!(r#"{{"index":0,"delta":{{"tool_calls":[{call}]}}}}"#));
    let chunks = [
        call(r#"{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}"#),
        call(r#"{"index":0,"function":{"arguments":"{\"x\""}}"#),
        call(
            r#"{"index":1,"id":"b","function":{"name":"g","arguments":"1"}},{"index":0,"function":{"name":"f","arguments":":"}}"#,
        ),
        call(r#"{"index":0,"id":"","function":{"name":"","arguments":"1}"}}"#),
        call(r#"{"id":"c","type":"function","extra":{"sig":"s"},"function":{"name":"h","arguments":"2"}},7"#),
        "[DONE]".to_owned(),
    ];
    let whole = gathered(&chunks);
    let expected = serde_json::json!([
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "1"}},
        {"id": "c", "type": "function", "extra": {"sig": "s"}, "function": {"name": "h", "arguments": "2"}},
    ]);
    assert_eq!(whole["choices"][0]["message"]["tool_calls"], expected);
    assert_eq!(whole["choices"][0]["message"]["content"], serde_json::Value::Null);
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn members_that_are_not_known_are_kept() {
    let chunks = [
        choice(
            r#"{"index":0,"delta":{"audio":{"id":"a","transcript":"x"},"annotations":[1],"thinking":"p","flag":true}}"#,
        ),
        choice(
            r#"{"index":0,"delta":{"audio":{"transcript":"y","expires":2},"annotations":[{"u":"v"}],"thinking":"q","flag":null},"stop_reason":null}"#,
        ),
        choice(
            r#"{"index":0,"delta":{"annotations":[],"flag":false},"stop_reason":"eos","finish_reason":"stop"}"#,
        ),
    ];
    let whole = gathered(&chunks);
    let message = serde_json::json!({
        "role": "assistant", "content": null, "audio": {"id": "a", "transcript": "xy", "expires": 2},
        "annotations": [1, {"u": "v"}], "thinking": "pq", "flag": false,
    });
    assert_eq!(whole["choices"][0]["message"], message);
    assert_eq!(whole["choices"][0]["stop_reason"], "eos");
}

#[test]
fn every_choice_is_gathered_for_itself() {
    let of = |index: u32, text: &str| format!(r#"{{"index":{index},"delta":{{"content":"{text}"}}}}"#);
    let end =
        |index: u32, reason: &str| format!(r#"{{"index":{index},"delta":{{}},"finish_reason":"{reason}"}}"#);
    let chunks = [
        choice(&of(1, "x")),
        choice(&of(0, "a")),
        choice(&format!("{},{}", of(0, "b"), of(1, "y"))),
        choice(&end(0, "length")),
        choice(&end(1, "stop")),
    ];
    let whole = gathered(&chunks);
    let said = |at: usize| {
        (whole["choices"][at]["message"]["content"].as_str(), whole["choices"][at]["finish_reason"].as_str())
    };
    assert_eq!([said(0), said(1)], [(Some("ab"), Some("length")), (Some("xy"), Some("stop"))]);
}

#[test]
fn plain_deltas_are_gathered_too_and_the_usage_is_added() {
    let mut gather = gather();
    for content in ["He", "llo"] {
        gather.push_delta(&Delta { content: content.to_owned(), ..Delta::default() }).expect("taken");
    }
    assert_eq!(gather.meta().chunks, 2);
    let whole = gather.finish(Some(Usage::new(Some(1), Some(2)))).expect("it ended");
    let expected = r#"{"created":7,"id":"chatcmpl-1","model":"tiny","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
    assert_eq!(whole, expected);
}

#[test]
fn a_body_that_became_chunks_becomes_the_same_body_again() {
    let body = serde_json::json!({
        "id": "c", "object": "chat.completion", "created": 1, "model": "m", "new": {"a": [1]},
        "choices": [{
            "index": 0, "logprobs": {"content": [{"token": "a"}], "refusal": null}, "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": "hé", "refusal": null, "annotations": [],
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        }],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    });
    let (_, chunks) = chunks_from_completion(&body.to_string().into(), true).expect("it is a body");
    let chunks: Vec<_> = chunks.iter().map(|chunk| String::from_utf8_lossy(chunk).into_owned()).collect();
    assert_eq!(gathered(&chunks), body);
}

#[test]
fn usage_that_is_only_null_in_the_chunks_is_what_the_program_counted() {
    let mut gather = gather();
    let chunk =
        r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}],"usage":null}"#;
    gather.push_raw(chunk.into()).expect("the chunk is taken");
    let usage = Usage::new(Some(1), Some(2));
    let body = gather.finish(Some(usage)).expect("it ended");
    let body: serde_json::Value = serde_json::from_slice(&body).expect("the body is JSON");
    assert_eq!(body["usage"]["total_tokens"], 3, "{body}");
}

#[test]
fn an_answer_past_the_limit_is_too_large_and_not_a_slow_consumer() {
    for piece in [r#"{"index":0,"delta":{"content":"0123456789"}}"#, r#"{"index":0,"delta":{"n":[123456]}}"#]
    {
        let piece = choice(piece);
        let mut gather =
            Gather::new(4000, ChunkEnvelope { id: String::new(), model: String::new(), created: 0 });
        let error =
            (0..10_000).find_map(|_| gather.push_raw(piece.clone().into()).err()).expect("there is a limit");
        assert_eq!(error, ChunkError::TooLarge { limit: 4000 });
        assert_eq!(Failure::from(error).code, FailureCode::TooLarge);
    }
}

#[test]
fn repeated_values_do_not_fill_it() {
    let mut gather = Gather::new(8000, ChunkEnvelope { id: String::new(), model: String::new(), created: 0 });
    for i in 0..5000 {
        let chunk = format!(
            r#"{{"id":"c{i}","x":{i},"choices":[{{"index":0,"delta":{{"flag":{i},"type":"t{i}"}}}}]}}"#
        );
        gather.push_raw(chunk.into()).expect("it is taken");
    }
    assert!(gather.pending_bytes() < 2000, "{} bytes", gather.pending_bytes());
}

#[test]
fn a_stream_that_broke_off_or_says_nothing_is_a_failure() {
    let mut cut = gather();
    cut.push_raw(choice(r#"{"index":0,"delta":{"content":"a"}}"#).into()).expect("taken");
    assert_eq!(cut.finish(None).expect_err("it was cut").code, FailureCode::BadOutput);
    let mut silent = gather();
    silent.push_raw("[DONE]".into()).expect("taken");
    assert_eq!(silent.finish(None).expect_err("it says nothing").code, FailureCode::BadOutput);
}

#[test]
fn two_tool_calls_with_one_index_and_different_ids_stay_two() {
    let mut gather = Gather::new(1 << 20, ChunkEnvelope { id: "c".into(), model: "m".into(), created: 1 });
    let piece = |call: &str| {
        format!(r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{call}]}},"finish_reason":null}}]}}"#)
    };
    for chunk in [
        piece(r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"p\""}}"#),
        piece(r#"{"index":0,"function":{"arguments":": 1}"}}"#),
        piece(r#"{"index":0,"id":"b","function":{"name":"f","arguments":"{\"p\": 2}"}}"#),
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#.to_owned(),
    ] {
        gather.push_raw(chunk.into()).expect("taken");
    }
    let body: serde_json::Value = serde_json::from_slice(&gather.finish(None).expect("whole")).expect("JSON");
    let calls = body["choices"][0]["message"]["tool_calls"].as_array().expect("calls");
    let arguments: Vec<_> = calls.iter().map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, [Some(r#"{"p": 1}"#), Some(r#"{"p": 2}"#)]);
}
