use serde_json::json;

use super::*;

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
    assert_eq!(event.request.map(RawValue::get), Some(r#"{ "b" :1.0, "a":"é" }"#));
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
