//! The journal: in order, bounded, typed here and JSON under `/_fake/`.

use fake_mcpd::FakeMcpd;
use serde_json::Value;

use crate::agent::{Agent, prompt};

async fn fetch(agent: &Agent, path: &str) -> Value {
    agent.call("GET", path).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn over_http_it_lists_the_entries_since_a_number() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
    channel.task().await;
    let all = fetch(&agent, "/_fake/journal").await;
    let kinds: Vec<_> =
        all["entries"].as_array().unwrap().iter().map(|entry| entry["kind"].as_str()).collect();
    assert_eq!(kinds, [Some("register"), Some("stream"), Some("hello"), Some("task")]);
    assert_eq!(all["entries"][3]["body"]["llmName"], "llama");
    let last = fetch(&agent, "/_fake/journal?since=3").await;
    assert_eq!(last["entries"].as_array().unwrap().len(), 1);
    assert_eq!(last["entries"][0]["seq"], 3);
    let state = fetch(&agent, "/_fake/state").await;
    assert_eq!(state["tasks"][0]["llm"], "llama");
}

#[tokio::test(start_paused = true)]
async fn the_oldest_entries_make_room_and_are_counted() {
    let mcpd = FakeMcpd::builder().journal(3).start().await.unwrap();
    let agent = Agent::new(&mcpd);
    for _ in 0..10 {
        agent.heartbeat().await;
    }
    let journal = fetch(&agent, "/_fake/journal").await;
    assert_eq!((&journal["dropped"], &journal["entries"][0]["seq"]), (&7.into(), &7.into()));
    assert_eq!(mcpd.journal_since(9).len(), 1);
    assert_eq!(mcpd.journal_since(99).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_body_is_cut_and_a_journal_that_is_off_stays_empty() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let long = "x".repeat(100_000);
    Agent::new(&mcpd).register(&[&long]).await;
    assert_eq!(mcpd.journal()[0].body.len(), 16 * 1024);
    let off = FakeMcpd::builder().journal(0).start().await.unwrap();
    Agent::new(&off).register(&["a"]).await;
    assert!(off.journal().is_empty());
}
