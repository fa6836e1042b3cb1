//! Result parts: applied once, in any of the five bodies, up to their limits.

use fake_mcpd::{CallKind, FakeMcpd, InferRequest};
use serde_json::json;

use crate::agent::{Agent, chunk, done, prompt, soon};

#[tokio::test(start_paused = true)]
async fn a_repeated_part_is_dropped_and_answered_200() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    for _ in 0..3 {
        assert_eq!(agent.chunk(&task.id, 0, "once").await, 200);
    }
    for _ in 0..3 {
        assert_eq!(agent.done(&task.id, 1).await, 200);
    }
    assert_eq!(call.collect().await.text(), "once");
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn without_the_feature_a_repeated_part_counts_again_and_an_ended_task_is_gone() {
    let mcpd = FakeMcpd::builder().idempotent_results(false).start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    agent.chunk(&task.id, 0, "twice ").await;
    agent.chunk(&task.id, 0, "twice ").await;
    assert_eq!(agent.done(&task.id, 1).await, 200);
    assert_eq!(agent.done(&task.id, 1).await, 404);
    assert_eq!(call.collect().await.text(), "twice twice ");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_task_is_a_404() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let agent = Agent::new(&mcpd);
    assert_eq!(agent.done("stranger", 0).await, 404);
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_former_life_is_taken_under_its_own_key() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    agent.chunk(&task.id, 0, "Hi").await;
    let reply = agent.part_call(&task.id, "restart", &json!({"error": "the agent restarted"})).send().await;
    assert_eq!(reply.unwrap().status(), 200);
    assert!(!call.collect().await.is_done());
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn ids_that_need_escaping_come_back_whole() {
    let mcpd = FakeMcpd::builder().task_prefix("../a b/%2F\u{e9}\u{1}/").start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    assert!(task.id.starts_with("../a b/%2F\u{e9}\u{1}/t1-"), "{}", task.id);
    assert_eq!(agent.done(&task.id, 0).await, 200);
    assert!(call.collect().await.is_done());
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_body_over_its_limit_is_a_413_on_either_side() {
    let mcpd = FakeMcpd::builder().event_limit(400).result_limit(400).start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    let long = "x".repeat(500_000);
    assert_eq!(agent.chunk(&task.id, 0, &long).await, 413);
    let call = agent.call("POST", "/api/v1/llms/llama/infer").json(&json!({"prompt": long}));
    assert_eq!(call.send().await.unwrap().status(), 413);
    assert_eq!(agent.part(&task.id, 1, json!({"error": "too large"})).await, 200);
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_line_end_inside_a_chunk_does_not_break_its_event() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let mut call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    agent.part(&task.id, 0, json!({"chunk": {"data": "{\r\n\"a\": \"\\n\"\n}"}})).await;
    assert_eq!(call.chunk().await.unwrap(), "{  \"a\": \"\\n\" }");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_holds_its_own_results_back_and_nobody_elses() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let mut slow = mcpd.infer_stream("llama", &prompt()).unwrap();
    let slow_task = channel.task().await;
    let posting = async {
        for n in 0..300 {
            assert_eq!(agent.chunk(&slow_task.id, n, "x").await, 200);
        }
        agent.done(&slow_task.id, 300).await
    };
    tokio::pin!(posting);
    let quick = async {
        let call = mcpd.submit(InferRequest::new("llama", &prompt())).unwrap();
        let task = channel.task().await;
        agent.part(&task.id, 0, json!({"status": 200, "body": {}})).await;
        call.collect().await
    };
    tokio::select! {
        biased;
        _ = &mut posting => panic!("the slow caller's buffer has no end"),
        _ = quick => {}
    }
    let reading = async {
        let mut chunks = 0;
        while slow.chunk().await.is_some() {
            chunks += 1;
        }
        chunks
    };
    let (status, chunks) = soon(async { tokio::join!(posting, reading) }).await;
    assert_eq!((status, chunks), (200, 300));
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn the_journal_tells_each_part_with_key_status_and_body() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    agent.chunk(&task.id, 0, "Hi").await;
    agent.part(&task.id, 1, done()).await;
    let parts: Vec<_> = mcpd.journal().into_iter().filter(|entry| entry.is_call(CallKind::Result)).collect();
    assert_eq!(parts.len(), 2);
    assert_eq!((parts[0].json(), parts[0].status), (chunk("Hi"), Some(200)));
    assert_eq!(parts[1].session.as_deref(), Some(agent.session.as_str()));
    assert!(parts[1].key.as_deref().is_some_and(|key| key.ends_with("/1")));
    assert!(parts[0].seq < parts[1].seq);
}
