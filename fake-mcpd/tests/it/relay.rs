//! The main job: an inference goes to the agent and its result comes back.

use fake_mcpd::{FakeMcpd, InferRequest, TaskEnd};
use serde_json::json;

use crate::agent::{Agent, prompt};

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
