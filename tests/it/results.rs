//! What a caller gets for what a provider gave: both ways to answer, both kinds of question, and every kind of failure. The bodies are in
//! `docs/reference/contract.md`, "Results"; the ways to answer in the comments of `bridge.proto`.

use fake_mcpd::{Call, Collected, InferReply, InferRequest, TaskEnd};
use mcprelay::pb::{self, piece, task_chunk, task_finished};
use serde_json::{Value, json};

use crate::support::{Client, World, chat, chunk, completion, last_chunk, soon};

fn plain(world: &World) -> Call {
    world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted")
}

fn streaming(world: &World) -> Call {
    world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted")
}

async fn reply(call: Call) -> InferReply {
    soon("the end", call.collect()).await.end.into()
}

async fn collected(call: Call) -> Collected {
    soon("the end", call.collect()).await
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// The error of a stream that broke off.
fn failure(end: &TaskEnd) -> &str {
    match end {
        TaskEnd::Failed { message, .. } => message,
        other => panic!("{other:?} is no error in a stream"),
    }
}

async fn world() -> (World, Client) {
    let world = World::start().await;
    let client = world.serving("llama").await;
    (world, client)
}

#[tokio::test(start_paused = true)]
async fn the_request_reaches_the_provider_byte_for_byte() {
    let (world, mut client) = world().await;
    let body = r#"{ "model":"x", "messages":[{"role":"user","content":"h\u00e9"}], "unknown": 1.0, "n":1 }"#;
    let request = InferRequest { body: body.to_owned().into(), ..InferRequest::new("llama", &Value::Null) };
    let _call = world.mcpd.submit(request).expect("accepted");
    let offer = client.offer().await;
    assert_eq!(offer.request_json, body.as_bytes());
    assert_eq!(offer.provider_name, "llama");
    assert!((1..=600_000).contains(&offer.timeout_ms), "{}", offer.timeout_ms);
}

// ---- four combinations, raw and plain ------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_plain_question_with_a_raw_body_gets_the_body_byte_for_byte() {
    let (world, mut client) = world().await;
    let call = plain(&world);
    let offer = client.offer().await;
    let body = r#"{ "id" : "x", "choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}], "future": [1.50] }"#;
    client.finish_body(&offer, body).await;
    let got = reply(call).await;
    assert_eq!((got.status, &got.body[..]), (200, body.as_bytes()));
    assert_eq!(world.results(&offer.task_id).len(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_plain_question_with_a_plain_result_gets_an_openai_body() {
    let (world, mut client) = world().await;
    let call = plain(&world);
    let offer = client.offer().await;
    let outcome = task_finished::Outcome::Result(pb::CompletionResult {
        content: "hello".into(),
        ..Default::default()
    });
    let usage = Some(pb::Usage { input_tokens: Some(3), output_tokens: Some(1) });
    let finished = pb::TaskFinished { task_id: offer.task_id.clone(), outcome: Some(outcome), usage };
    client.send(pb::session_request::Payload::TaskFinished(finished)).await;
    let got = reply(call).await.json();
    assert_eq!((&got["object"], &got["model"]), (&json!("chat.completion"), &json!("llama")));
    assert_eq!(
        got["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}])
    );
    assert_eq!(got["usage"], json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}));
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_plain_question_with_raw_chunks_gets_them_gathered_into_one_body() {
    let (world, mut client) = world().await;
    let call = plain(&world);
    let offer = client.offer().await;
    for text in ["one ", "two ", "three"] {
        client.chunk(&offer, &chunk(text)).await;
    }
    client.chunk(&offer, &last_chunk()).await;
    client.chunk(&offer, "[DONE]").await;
    client.finish(&offer, None).await;
    let got = reply(call).await;
    assert_eq!(got.status, 200);
    let choice = &got.json()["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("one two three"), &json!("stop"))
    );
    assert_eq!(world.results(&offer.task_id).len(), 1, "nothing is posted before the end");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_plain_question_with_plain_pieces_gets_them_gathered_into_one_body() {
    let (world, mut client) = world().await;
    let call = plain(&world);
    let offer = client.offer().await;
    client.delta(&offer, "one ").await;
    client.delta(&offer, "two").await;
    client.finish(&offer, None).await;
    let choice = reply(call).await.json()["choices"][0].clone();
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("one two"), &json!("stop"))
    );
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_streaming_question_with_raw_chunks_gets_each_byte_for_byte_and_done() {
    let (world, mut client) = world().await;
    let mut call = streaming(&world);
    let offer = client.offer().await;
    let odd = r#"{"choices":[{"index":0,"delta":{"content":"é","vendor":{"a":1.0}},"finish_reason":null}], "x":[ ]}"#;
    client.chunk(&offer, odd).await;
    assert_eq!(soon("a chunk", call.chunk()).await.as_deref(), Some(odd.as_bytes()));
    client.chunk(&offer, &last_chunk()).await;
    client.chunk(&offer, "[DONE]").await;
    client.finish(&offer, None).await;
    let rest = collected(call).await;
    assert_eq!((rest.chunks.len(), rest.is_done()), (1, true), "{rest:?}");
    let dones = world.results(&offer.task_id).into_iter().filter(|r| r["chunk"]["data"] == "[DONE]");
    assert_eq!(dones.collect::<Vec<_>>(), [json!({"chunk": {"data": "[DONE]", "done": true}})], "ours alone");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_streaming_question_with_plain_pieces_gets_openai_chunks_and_done() {
    let (world, mut client) = world().await;
    let mut call = streaming(&world);
    let offer = client.offer().await;
    client.delta(&offer, "one ").await;
    let first = json_of(&soon("a chunk", call.chunk()).await.expect("a chunk"));
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": "one "}));
    client.delta(&offer, "two").await;
    client.finish(&offer, None).await;
    let rest = collected(call).await;
    assert!(rest.is_done() && rest.text() == "two", "{rest:?}");
    let last = json_of(rest.chunks.last().expect("a last chunk"));
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn pieces_of_one_message_are_relayed_in_their_order_whatever_their_form() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    let plain = |text: &str| pb::Delta { content: text.to_owned(), ..pb::Delta::default() };
    let raw = |json: String| piece::Output::ChunkJson(json.into());
    let more = vec![
        raw(chunk("two ")),
        piece::Output::Delta(plain("three ")),
        raw(chunk("four")),
        raw(last_chunk()),
    ];
    client.together(&offer, task_chunk::Output::Delta(plain("one ")), more).await;
    client.finish(&offer, None).await;
    let answer = collected(call).await;
    assert!(answer.is_done() && answer.text() == "one two three four", "{answer:?}");
    let recent = client.status().await.recent;
    assert_eq!(recent[0].chunks, 5, "each counts as a piece");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_piece_that_breaks_the_output_drops_those_that_come_after_it_in_its_message() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    let raw = |json: &str| piece::Output::ChunkJson(json.to_owned().into());
    let first = task_chunk::Output::ChunkJson(chunk("one").into());
    client.together(&offer, first, vec![raw("no JSON"), raw(&chunk("two")), raw(&last_chunk())]).await;
    let answer = collected(call).await;
    assert_eq!(answer.text(), "one");
    assert!(failure(&answer.end).contains("JSON"), "{answer:?}");
    assert_eq!(client.cancel().await.task_id, offer.task_id, "the provider hears of it");
}

#[tokio::test(start_paused = true)]
async fn a_streaming_question_with_one_finished_result_gets_one_delta_and_done() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    client.finish_text(&offer, "all at once").await;
    let got = collected(call).await;
    assert!(got.is_done() && got.text() == "all at once", "{got:?}");
    let with_text = got.chunks.iter().filter(|c| json_of(c)["choices"][0]["delta"]["content"].is_string());
    assert_eq!(with_text.count(), 1, "one delta: {got:?}");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_streaming_question_with_one_raw_body_gets_one_delta_and_done() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("all at once")).await;
    let got = collected(call).await;
    assert!(got.is_done() && got.text() == "all at once", "{got:?}");
    let finish = got.chunks.iter().filter(|c| json_of(c)["choices"][0]["finish_reason"] == "stop");
    assert_eq!(finish.count(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn tool_calls_survive_both_ways_of_answering() {
    let (world, mut client) = world().await;
    let raw = r#"{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},"finish_reason":"tool_calls"}]}"#;
    let call = streaming(&world);
    let offer = client.offer().await;
    client.finish_body(&offer, raw).await;
    let tools = pb::ToolCall { id: "t1".into(), name: "f".into(), arguments: "{\"a\":1}".into() };
    let result = pb::CompletionResult { tool_calls: vec![tools], ..Default::default() };
    let second = plain(&world);
    let second_offer = client.offer().await;
    client.finish(&second_offer, Some(task_finished::Outcome::Result(result))).await;
    let chunks = collected(call).await.chunks;
    let streamed =
        chunks.iter().map(|c| json_of(c)).find(|c| c["choices"][0]["delta"]["tool_calls"].is_array());
    let function = &streamed.expect("a tool call")["choices"][0]["delta"]["tool_calls"][0]["function"];
    assert_eq!(*function, json!({"name": "f", "arguments": "{\"a\":1}"}));
    let choice = reply(second).await.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"],
        json!({"name": "f", "arguments": "{\"a\":1}"})
    );
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_usage_chunk_goes_on_as_it_came_and_is_counted() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    let usage = r#"{"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;
    for part in [&chunk("hi"), &last_chunk(), usage] {
        client.chunk(&offer, part).await;
    }
    client.finish(&offer, None).await;
    let got = collected(call).await;
    assert!(got.is_done());
    assert_eq!(got.chunks.last().map(|c| &c[..]), Some(usage.as_bytes()));
    let ended = client.status().await.recent.remove(0);
    assert_eq!(ended.usage, Some(pb::Usage { input_tokens: Some(7), output_tokens: Some(2) }));
    assert_eq!(ended.outcome, "ok");
}

// ---- failures ------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_providers_error_keeps_its_status_body_and_retry_after() {
    let (world, mut client) = world().await;
    let body =
        r#"{"error":{"message":"slow down","type":"tokens","code":"rate_limit_exceeded","vendor":1.0}}"#;
    for call in [plain(&world), streaming(&world)] {
        let offer = client.offer().await;
        let error = pb::Error {
            code: pb::ErrorCode::RateLimited.into(),
            message: "slow down".into(),
            retryable: true,
            retry_after_ms: Some(1_500),
            http_status: Some(429),
            body_json: body.into(),
            owner_detail: String::new(),
        };
        client.finish_error(&offer, error).await;
        let got = reply(call).await;
        assert_eq!((got.status, &got.body[..]), (429, body.as_bytes()));
        assert_eq!(got.retry_after.as_deref(), Some("2"), "whole seconds, rounded up");
    }
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn every_error_code_has_its_http_status_and_an_openai_body() {
    use pb::ErrorCode as E;
    let (world, mut client) = world().await;
    for (code, status) in [
        (E::InvalidRequest, 400),
        (E::ModelNotFound, 404),
        (E::ProviderAuth, 502),
        (E::RateLimited, 429),
        (E::Overloaded, 429),
        (E::ProviderUnavailable, 503),
        (E::Timeout, 504),
        (E::ContextLength, 400),
        (E::ContentFiltered, 400),
        (E::Duplicate, 409),
        (E::SlowConsumer, 503),
        (E::Internal, 502),
        (E::Unspecified, 502),
    ] {
        let call = plain(&world);
        let offer = client.offer().await;
        client
            .finish_error(
                &offer,
                pb::Error { code: code.into(), message: "because".into(), ..Default::default() },
            )
            .await;
        let got = reply(call).await;
        assert_eq!(got.status, status, "{code:?}");
        let error = got.json()["error"].clone();
        assert_eq!(error["message"], "because");
        assert!(error["type"].is_string() && error["code"].is_string(), "{error}");
    }
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_error_after_chunks_ends_the_stream_with_an_explicit_error() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("half an ")).await;
    client.finish_error(&offer, pb::Error { message: "the GPU fell off".into(), ..Default::default() }).await;
    let got = collected(call).await;
    assert_eq!(got.text(), "half an ");
    assert_eq!(failure(&got.end), "the GPU fell off");
    assert_eq!(world.results(&offer.task_id).last(), Some(&json!({"error": "the GPU fell off"})));
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_error_chunk_in_the_stream_is_its_end_and_stops_the_provider() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("half an ")).await;
    client.chunk(&offer, r#"{"error":{"message":"out of memory","type":"server_error"}}"#).await;
    assert_eq!(client.cancel().await.task_id, offer.task_id);
    let got = collected(call).await;
    assert_eq!((got.text().as_str(), failure(&got.end)), ("half an ", "out of memory"));
    client.finish_cancelled(&offer.task_id).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_error_chunk_before_any_output_keeps_its_status() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    client
        .chunk(&offer, r#"{"error":{"message":"too long","type":"x","code":"context_length_exceeded"}}"#)
        .await;
    assert_eq!(reply(call).await.status, 400);
    client.finish_cancelled(&offer.task_id).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_without_a_finish_reason_is_an_error() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("cut of")).await;
    client.finish(&offer, None).await;
    let got = collected(call).await;
    assert_eq!(got.text(), "cut of");
    assert!(failure(&got.end).contains("without a finish_reason"), "{:?}", got.end);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_answer_after_chunks_is_a_protocol_error_on_both_sides() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one")).await;
    client.finish_body(&offer, &completion("two")).await;
    let got = collected(call).await;
    assert!(failure(&got.end).contains("chunks and then a whole answer"), "{:?}", got.end);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_before_any_output_is_retryable_for_the_caller() {
    let (world, mut client) = world().await;
    for (ms, seconds) in [(4_000, 4), (3_001, 4), (0, 1)] {
        let call = streaming(&world);
        let offer = client.offer().await;
        let error = pb::Error {
            code: pb::ErrorCode::Overloaded.into(),
            message: "busy".into(),
            retryable: true,
            retry_after_ms: Some(ms),
            ..Default::default()
        };
        client.finish_error(&offer, error).await;
        let got = reply(call).await;
        assert_eq!((got.status, got.retry_after.clone()), (429, Some(seconds.to_string())), "{ms} ms");
        assert_eq!(got.json()["error"]["retry_after"], seconds, "the body says the same");
    }
    world.assert_clean();
}
