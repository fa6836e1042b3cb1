//! The callers' side: an inference goes to the agent and its result comes back.

use std::time::Duration;

use fake_mcpd::{FakeMcpd, InferReply, InferRequest, Kind, TaskEnd};
use serde_json::{Value, json};

use crate::agent::{Agent, prompt, soon};

#[tokio::test(start_paused = true)]
async fn a_streamed_inference_arrives_chunk_by_chunk() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let mut call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    assert_eq!(task.id, call.task_id());
    assert_eq!((&task.data["kind"], &task.data["llmName"]), (&json!("infer"), &json!("llama")));
    assert_eq!(task.data["request"]["messages"][0]["content"], "hi");
    assert_eq!(agent.chunk(&task.id, 0, "Hel").await, 200);
    assert!(String::from_utf8_lossy(&call.chunk().await.unwrap()).contains("Hel"));
    assert_eq!(agent.chunk(&task.id, 1, "lo").await, 200);
    assert_eq!(agent.done(&task.id, 2).await, 200);
    let rest = call.collect().await;
    assert_eq!((rest.text().as_str(), rest.is_done()), ("lo", true));
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_plain_inference_gives_the_agents_status_body_and_retry_after() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.submit(InferRequest::new("llama", &prompt())).unwrap();
    let task = channel.task().await;
    let body =
        json!({"status": 429, "body": {"error": {"message": "busy"}}, "headers": {"retry-after": "7"}});
    assert_eq!(agent.part(&task.id, 0, body).await, 200);
    let end = call.collect().await.end;
    let TaskEnd::Reply { status, retry_after, body } = end else { panic!("{end:?}") };
    assert_eq!((status, retry_after.as_deref()), (429, Some("7")));
    assert_eq!(body, r#"{"error":{"message":"busy"}}"#);
}

#[tokio::test(start_paused = true)]
async fn over_http_a_stream_is_sse_that_ends_with_done() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    let mut body = prompt();
    body["stream"] = true.into();
    let answering = async {
        let task = channel.task().await;
        agent.chunk(&task.id, 0, "Hi").await;
        agent.done(&task.id, 1).await;
        task
    };
    let call = caller.call("POST", "/api/v1/llms/llama/infer").json(&body);
    let (reply, task) = tokio::join!(call.send(), answering);
    let reply = reply.unwrap();
    assert_eq!(reply.headers()["content-type"], "text/event-stream");
    assert_eq!(reply.headers()["x-request-id"], task.id.as_str());
    let text = reply.text().await.unwrap();
    assert!(text.starts_with("data: {\"choices\"") && text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_openai_paths_serve_models_and_chats_under_the_token() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    let models: Value = caller.call("GET", "/v1/models").send().await.unwrap().json().await.unwrap();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("llama")));
    let answering = async {
        let task = channel.task().await;
        agent.part(&task.id, 0, json!({"status": 200, "body": {"object": "chat.completion"}})).await;
    };
    let chat = caller.call("POST", "/v1/chat/completions").json(&json!({"model": "llama", "messages": []}));
    let (reply, ()) = tokio::join!(chat.send(), answering);
    let reply: Value = reply.unwrap().json().await.unwrap();
    assert_eq!(reply, json!({"object": "chat.completion"}));
    let unknown = caller.call("POST", "/v1/chat/completions").json(&json!({"model": "gpt", "messages": []}));
    let unknown = unknown.send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    let error: Value = unknown.json().await.unwrap();
    assert_eq!(error["error"]["code"], "model_not_found");
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_the_token_gets_an_openai_error() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let stranger = Agent::at(&mcpd.url(), "wrong");
    let reply = stranger.call("GET", "/v1/models").send().await.unwrap();
    assert_eq!(reply.status(), 401);
    let error: Value = reply.json().await.unwrap();
    assert_eq!(error["error"]["code"], "invalid_api_key");
}

#[tokio::test(start_paused = true)]
async fn an_llm_that_is_unknown_inactive_or_without_a_channel_is_refused_at_once() {
    let mcpd = FakeMcpd::start().await.unwrap();
    assert_eq!(mcpd.infer("llama", &prompt()).await.status, 404);
    let mut agent = Agent::new(&mcpd);
    agent.register(&["llama"]).await;
    assert_eq!(mcpd.infer("llama", &prompt()).await.status, 503);
    let _channel = agent.channel().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    agent.register(&[]).await;
    let refused = mcpd.infer("llama", &prompt()).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("llm_unavailable")));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_no_json_object_is_a_400() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let _online = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    for body in ["", "{", "[]", "\"text\""] {
        let reply = caller.call("POST", "/api/v1/llms/llama/infer").body(body).send().await.unwrap();
        assert_eq!(reply.status(), 400, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_in_mid_stream_is_an_error_event_without_done() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    let mut body = prompt();
    body["stream"] = true.into();
    let answering = async {
        let task = channel.task().await;
        agent.chunk(&task.id, 0, "Hi").await;
        agent.part(&task.id, 1, json!({"error": "the model fell over"})).await
    };
    let call = caller.call("POST", "/api/v1/llms/llama/infer").json(&body);
    let (reply, _) = tokio::join!(call.send(), answering);
    let text = reply.unwrap().text().await.unwrap();
    let last = text.trim_end().lines().last().unwrap().strip_prefix("data: ").unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["message"], "the model fell over");
    assert!(!text.contains("[DONE]"));
}

#[tokio::test(start_paused = true)]
async fn an_error_before_any_output_is_a_502() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    agent.part(&task.id, 0, json!({"error": "no"})).await;
    assert_eq!(InferReply::from(call.collect().await.end).status, 502);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_in_mid_stream_is_a_cancel_on_the_channel() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    let mut body = prompt();
    body["stream"] = true.into();
    let answering = async {
        let task = channel.task().await;
        agent.chunk(&task.id, 0, "Hi").await;
        task
    };
    let call = caller.call("POST", "/api/v1/llms/llama/infer").json(&body);
    let (reply, task) = tokio::join!(call.send(), answering);
    drop(reply);
    assert_eq!(channel.named("cancel").await["taskId"], task.id.as_str());
    assert_eq!(agent.chunk(&task.id, 1, "late").await, 404);
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_before_any_output_is_a_cancel_on_the_channel() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    let call = caller.call("POST", "/api/v1/llms/llama/infer").json(&prompt()).send();
    let task = tokio::select! {
        _ = call => panic!("nobody answered"),
        task = channel.task() => task,
    };
    assert_eq!(channel.named("cancel").await["taskId"], task.id.as_str());
}

#[tokio::test(start_paused = true)]
async fn headers_of_a_caller_reach_the_task_and_its_deadline_ends_it() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let call = caller
        .call("POST", "/api/v1/llms/llama/infer")
        .header("traceparent", trace)
        .header("tracestate", "vendor=1")
        .header("x-mcpctl-deadline-ms", "2500")
        .header("x-mcpctl-caller", "Ada")
        .json(&prompt());
    let start = tokio::time::Instant::now();
    let (reply, task) = tokio::join!(call.send(), channel.task());
    assert_eq!(reply.unwrap().status(), 504);
    assert_eq!(start.elapsed().as_millis() / 10, 250);
    let data = &task.data;
    let parent = data["traceparent"].as_str().unwrap();
    assert!(parent.starts_with(&trace[..36]) && !parent.contains("00f067aa0ba902b7"), "{parent}");
    assert_eq!((&data["tracestate"], &data["caller"]), (&json!("vendor=1"), &json!("Ada")));
    assert_eq!(data["deadlineMs"], 2500);
    let journaled = mcpd.wait_for(|entry| entry.kind == Kind::Task).await;
    assert_eq!(journaled.traceparent.as_deref(), Some(parent));
}

#[tokio::test(start_paused = true)]
async fn an_invalid_parent_begins_a_new_trace_without_the_callers_state() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let mut request = InferRequest::new("llama", &prompt());
    (request.traceparent, request.tracestate) = (Some("nonsense".to_owned()), Some("vendor=1".to_owned()));
    let _call = mcpd.submit(request).unwrap();
    let data = channel.task().await.data;
    assert_eq!(data["traceparent"].as_str().map(str::len), Some(55));
    assert_eq!(data.get("tracestate"), None);
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_channel_vanishes_as_it_is_sent_is_refused_and_its_deadline_with_it() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, channel) = Agent::online(&mcpd, "llama").await;
    // The reader stops reading; frames pile up until the channel takes no more.
    let mut request = InferRequest::streaming("llama", &prompt());
    request.deadline = Some(Duration::from_secs(1));
    let mut calls = Vec::new();
    let refused = loop {
        match mcpd.submit(request.clone()) {
            Ok(call) => calls.push(call),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.status, 503);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(agent.heartbeat().await, 200);
    drop(channel);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_mcpd_ends_its_callers_and_channels() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    channel.task().await;
    drop(mcpd);
    assert_eq!(InferReply::from(soon(call.collect()).await.end).status, 503);
    assert!(channel.event().await.is_none());
    assert!(agent.channel_response().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn numbers_past_the_end_of_the_clock_do_no_harm() {
    let builder = FakeMcpd::builder().session_ttl(Duration::MAX).heartbeat_interval(Duration::MAX);
    let mcpd = builder.ping_interval(Duration::MAX).start().await.unwrap();
    mcpd.order("refuse,for=100000000000years").unwrap();
    mcpd.clear_faults();
    mcpd.order("drop,after=100000000000years").unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let caller = Agent::new(&mcpd);
    let call = caller.call("POST", "/api/v1/llms/llama/infer").json(&prompt());
    let call = call.header("x-mcpctl-deadline-ms", u64::MAX.to_string());
    let answering = async {
        let task = channel.task().await;
        agent.part(&task.id, u64::MAX, json!({"status": 200, "body": {}})).await
    };
    let (reply, status) = tokio::join!(call.send(), answering);
    assert_eq!((reply.unwrap().status().as_u16(), status), (200, 200));
}
