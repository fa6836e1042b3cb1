//! Hostile servers behind the provider host: what they send on and on ends at a limit or with the task's time.

use std::time::Duration;

use fake_mcpd::{FakeMcpd, InferRequest};
use serde_json::json;

use super::{MEMORY, home_with, write_private};
use crate::support::{
    chat,
    hostile::Hostile,
    process::{Process, mcprelay},
    soon,
};

/// One token as an OpenAI server streams it.
const TOKEN: &[u8] = b"data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":null}]}\n\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"x\":\"";
const HTML: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>";

const OUT_OF_TIME: &str = "did not end within its time";

/// What a hostile server sends on and on, whether its caller streams, and what ends it: a limit, or the task's time.
const PROVIDERS: [(&str, &[u8], bool, &str); 5] = [
    (EVENTS, &[b'a'; 65_536], true, "an event of more than 4194304 bytes"),
    (EVENTS, TOKEN, true, OUT_OF_TIME),
    // Comments are signs of life, but not for ever.
    (EVENTS, b": nothing to say\n", true, OUT_OF_TIME),
    (HTML, &[b'a'; 65_536], true, "an answer of more than"),
    (JSON, &[b'a'; 65_536], false, "an answer of more than"),
];

#[tokio::test]
async fn a_hostile_provider_costs_its_own_callers_only() {
    for (head, more, streaming, told) in PROVIDERS {
        let hostile = Hostile::start(head, more, Duration::ZERO).await;
        let mcpd = FakeMcpd::start().await.expect("a loopback port");
        let home = home_with(&mcpd.url(), &mcpd.token());
        let entries = json!({"llm": {"providers": [
            {"name": "hostile", "type": "openai", "model": "m", "url": hostile.url, "publish": true},
            {"name": "honest", "type": "echo", "model": "m", "publish": true},
        ]}});
        write_private(&home.path().join("config.json"), &entries.to_string());
        let limits = ["--provide", "--task-timeout", if told == OUT_OF_TIME { "3s" } else { "10m" }];
        let agent = Process::start(mcprelay(home.path(), &[&["run"], &limits[..]].concat()));
        let listed = |s: &fake_mcpd::Snapshot| s.is_active("hostile") && s.is_active("honest");
        soon("both rows", mcpd.wait_until(listed)).await;
        let mut question = chat("hi");
        question["stream"] = streaming.into();
        let call = match streaming {
            true => {
                soon("its end", mcpd.infer_stream("hostile", &question).expect("accepted").collect()).await
            }
            false => mcpd.submit(InferRequest::new("hostile", &question)).expect("accepted").collect().await,
        };
        let told_to_the_caller = format!("{call:?}");
        assert!(told_to_the_caller.contains(told), "{told}: {told_to_the_caller}");
        assert_eq!(mcpd.infer("honest", &chat("hi")).await.status, 200);
        println!("{told}: peak {} MiB", agent.peak() >> 20);
        assert!(agent.peak() < MEMORY, "{told}: {} MiB", agent.peak() >> 20);
    }
}
