use std::{borrow::Cow, time::Duration};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{domain::RequestFacts, json::text::wrap_escaped};

fn id(text: &str) -> TaskId {
    TaskId::new(text).expect("a valid id")
}

#[test]
fn a_task_id_stays_one_path_segment() {
    assert_eq!(
        result_path(&id("../a b/é\n")).as_deref(),
        Some("/api/v1/llms/_provider-task/..%2Fa%20b%2F%C3%A9%0A/result")
    );
    assert_eq!(result_path(&id("..")), None, "URL parsers resolve it away");
    assert_eq!(infer_path("qwen3:8b").as_deref(), Some("/api/v1/llms/qwen3%3A8b/infer"));
    assert_eq!(idempotency_key(&id("t/1"), 3), "t%2F1/3");
    assert_eq!(restart_key(&id("t/1")), "t%2F1/restart");
}

#[test]
fn an_mcpd_below_a_path_keeps_it() {
    assert_eq!(endpoint("https://h/mcpd/", LLMS_PATH), "https://h/mcpd/api/v1/llms");
    assert_eq!(endpoint("https://h", LLMS_PATH), "https://h/api/v1/llms");
}

#[test]
fn a_register_request_leaves_out_what_is_empty() {
    let provider = PublishedProvider { name: "a", kind: "ollama", model: "m", tier: "", description: "" };
    let request = RegisterRequest { provider_session_id: None, providers: vec![provider] };
    assert_eq!(
        serde_json::to_value(request).expect("serialises"),
        json!({"providerSessionId": null, "providers": [{"name": "a", "type": "ollama", "model": "m"}]})
    );
}

#[test]
fn fields_of_a_wrong_type_are_absent_and_do_not_cost_the_rest() {
    let text = r#"{"providerSessionId":"s","llms":[{"name":"a","id":7,"new":1},5],"features":[1,"idempotent-results"]}"#;
    let reply: RegisterReply = serde_json::from_str(text).expect("parses");
    assert_eq!(reply.provider_session_id.as_deref(), Some("s"));
    assert_eq!(reply.llms, [LlmRow { name: Some("a".into()), ..LlmRow::default() }]);
    assert_eq!(reply.features, [IDEMPOTENT_RESULTS]);
    let none: Conflicts = serde_json::from_str(r#"{"conflicts":null}"#).expect("parses");
    assert!(none.conflicts.is_empty());
}

#[test]
fn a_task_event_keeps_the_request_byte_for_byte() {
    let text = r#"{"kind":"infer","taskId":"a\/b","llmName":"x","request":{ "b" :1.0, "a":"é" },"deadlineMs":-1,"caller":5}"#;
    let event: TaskEvent<'_> = serde_json::from_str(text).expect("parses");
    assert_eq!(event.request, Some(r#"{ "b" :1.0, "a":"é" }"#));
    assert_eq!((&*event.task_id, event.streaming), ("a/b", false));
    assert_eq!((event.deadline(), event.caller), (Some(Duration::ZERO), None));
}

#[test]
fn a_broken_task_event_still_tells_its_id() {
    for (text, id) in [
        (r#"{"kind":5,"taskId":"t1"}"#, Some("t1")),
        (r#"{"kind":"infer","taskId":"t1","request":{"messages":[{"ro"#, Some("t1")),
        (r#"{"kind":"infer","taskId":17,"llmName":"a"}"#, Some("17")),
        (r#"{"taskId":"t1","kind":"infer","taskId":"t2"}"#, Some("t2")),
        (r#"{"kind":"infer","taskId":"t"#, None),
        (r#"{"request":{"taskId":"inner"}}"#, None),
        ("[]", None),
    ] {
        assert!(serde_json::from_str::<TaskEvent<'_>>(text).is_err(), "{text}");
        assert_eq!(readable_task_id(text).as_deref(), id, "{text}");
    }
}

#[test]
fn result_parts_look_as_the_contract_says() {
    let text = |part: &ResultPart<'_>| serde_json::to_string(part).expect("serialises");
    assert_eq!(text(&ResultPart::DONE), r#"{"chunk":{"data":"[DONE]","done":true}}"#);
    let chunk = ResultPart::Chunk { chunk: ChunkPart { data: "{}", done: false } };
    assert_eq!(text(&chunk), r#"{"chunk":{"data":"{}"}}"#);
    assert_eq!(text(&ResultPart::Error { error: "gone" }), r#"{"error":"gone"}"#);
    let body = serde_json::from_str::<&RawValue>(r#"{"a": 1}"#).expect("JSON");
    let whole = ResultPart::Status { status: 200, body, headers: BTreeMap::new() };
    assert_eq!(text(&whole), r#"{"status":200,"body":{"a": 1}}"#);
}

#[test]
fn the_bodies_that_are_written_as_bytes_are_the_result_parts_of_the_contract() {
    let written = |part: &ResultPart<'_>| serde_json::to_string(part).expect("serialises");
    let text = "{\"a\":\"\\n\"}";
    let chunk = ResultPart::Chunk { chunk: ChunkPart { data: text, done: false } };
    assert_eq!(wrap_escaped(CHUNK_HEAD, text.as_bytes(), CHUNK_TAIL), written(&chunk));
    let error = "the agent was restarted while it ran this task; try again";
    assert_eq!(std::str::from_utf8(RESTARTED), Ok(written(&ResultPart::Error { error }).as_str()));
    let body = serde_json::from_str::<&RawValue>(r#"{"a": 1}"#).expect("JSON");
    for (seconds, headers) in
        [(None, BTreeMap::new()), (Some(3), BTreeMap::from([("retry-after", "3".to_owned())]))]
    {
        let part = ResultPart::Status { status: 503, body, headers };
        assert_eq!(status_body(503, br#"{"a": 1}"#, seconds), written(&part));
    }
}

proptest! {
    #[test]
    fn what_is_encoded_can_be_read_back_and_has_no_byte_but_unreserved_ones(text in ".{0,12}|[a-z~._ -]{0,12}") {
        let encoded = percent_encoded(&text);
        prop_assert!(encoded.bytes().all(|byte| is_unreserved(byte) || byte == b'%'));
        prop_assert_eq!(percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap(), text);
    }
}

#[test]
fn a_task_event_is_read_whole() {
    let text = r#"{"kind":"infer","taskId":"t","llmName":"a","streaming":true,"request":{"n":2},"traceparent":null,"deadlineMs":1500,"caller":"bob","new":[1]}"#;
    let event = TaskEvent::read(text, ReadFacts::OfStreams).expect("it is an event");
    let expected = TaskEvent {
        kind: Cow::Borrowed("infer"),
        task_id: Cow::Borrowed("t"),
        llm_name: Cow::Borrowed("a"),
        streaming: true,
        request: Some(r#"{"n":2}"#),
        asked: RequestFacts { n: Some(2), ..RequestFacts::default() },
        deadline_ms: Some(1500.0),
        caller: Some("bob".to_owned()),
        ..TaskEvent::default()
    };
    assert_eq!(event, expected);
}

#[test]
fn what_a_stream_asks_for_is_read_wherever_it_says_that_it_is_one() {
    for (streaming, facts, read) in [
        (true, ReadFacts::OfStreams, true),
        (false, ReadFacts::OfStreams, false),
        (false, ReadFacts::OfAll, true),
    ] {
        let flag = format!(r#""streaming":{streaming}"#);
        let body = r#""request":{"stream_options":{"include_usage":true}}"#;
        for (first, then) in [(&*flag, body), (body, &flag)] {
            let text = format!(r#"{{"kind":"infer","taskId":"t",{first},{then}}}"#);
            let event = TaskEvent::read(&text, facts).expect("it is an event");
            assert_eq!(event.asked.include_usage, read, "{text} {facts:?}");
        }
    }
}
