//! A client that is wrong on purpose in one way at a time, and an honest one with bad luck.

use std::time::Duration;

use fake_mcpd::{Aim, Answer, CallKind, Counts, FakeMcpd, Fault, Profile, Refused, Rule};
use serde_json::{Value, json};

use crate::agent::{Agent, Task, chunk, done, prompt, soon};

/// The rules broken so far.
fn broken(mcpd: &FakeMcpd) -> Vec<Rule> {
    mcpd.violations().into_iter().map(|violation| violation.rule).collect()
}

/// An agent with a streaming task that nobody reads or cancels.
async fn streaming(mcpd: &FakeMcpd) -> (Agent, Task) {
    let (agent, mut channel) = Agent::online(mcpd, "llama").await;
    let json =
        json!({"kind": "infer", "taskId": "task", "llmName": "llama", "streaming": true, "request": {}});
    mcpd.fault(Fault::Task { json: json.to_string() });
    let task = channel.task().await;
    (agent, task)
}

#[tokio::test(start_paused = true)]
async fn a_part_left_out_or_out_of_order_is_found() {
    for numbers in [[0, 2], [1, 0]] {
        let mcpd = FakeMcpd::start().await.unwrap();
        let (agent, task) = streaming(&mcpd).await;
        for n in numbers {
            agent.chunk(&task.id, n, "x").await;
        }
        assert_eq!(broken(&mcpd)[0], Rule::PartOutOfOrder, "{numbers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_done_after_a_gap_is_found_too() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    agent.chunk(&task.id, 0, "x").await;
    agent.done(&task.id, 2).await;
    assert_eq!(broken(&mcpd), [Rule::PartOutOfOrder]);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_after_the_end_is_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    agent.done(&task.id, 0).await;
    assert_eq!(agent.chunk(&task.id, 1, "x").await, 404);
    assert_eq!(broken(&mcpd), [Rule::ResultAfterEnd]);
}

#[tokio::test(start_paused = true)]
async fn two_ends_are_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    agent.done(&task.id, 0).await;
    agent.part(&task.id, 1, json!({"error": "and another one"})).await;
    assert_eq!(broken(&mcpd), [Rule::TwoEnds]);
}

#[tokio::test(start_paused = true)]
async fn a_part_after_being_told_that_nobody_waits_is_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let agent = Agent::new(&mcpd);
    assert_eq!(agent.chunk("stranger", 0, "x").await, 404);
    assert_eq!(agent.chunk("stranger", 0, "x").await, 404);
    assert_eq!(broken(&mcpd), [], "the first 404 may have been lost");
    agent.chunk("stranger", 1, "x").await;
    assert_eq!(broken(&mcpd), [Rule::ResultAfterEnd]);
}

#[tokio::test(start_paused = true)]
async fn a_repeated_key_with_other_bytes_is_found_even_if_the_first_was_refused() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    mcpd.fault(Fault::Answer { aim: Aim::next(CallKind::Result), answer: Answer::status(503) });
    assert_eq!(agent.chunk(&task.id, 0, "one").await, 503);
    assert_eq!(agent.chunk(&task.id, 0, "other").await, 200);
    assert_eq!(broken(&mcpd), [Rule::RepeatedKeyOtherBytes]);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_sent_again_to_an_mcpd_that_does_not_drop_it_is_found() {
    let mcpd = FakeMcpd::builder().idempotent_results(false).start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    agent.chunk(&task.id, 0, "x").await;
    agent.chunk(&task.id, 0, "x").await;
    assert_eq!(broken(&mcpd), [Rule::ChunkSentTwice]);
}

#[tokio::test(start_paused = true)]
async fn two_parts_of_a_task_at_once_are_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    mcpd.fault(Fault::Delay { aim: Aim::next(CallKind::Result), by: Duration::from_secs(1) });
    let first = agent.chunk(&task.id, 0, "x");
    let second = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        agent.chunk(&task.id, 1, "y").await
    };
    tokio::join!(first, second);
    assert_eq!(broken(&mcpd), [Rule::ConcurrentParts]);
}

#[tokio::test(start_paused = true)]
async fn a_result_without_a_key_of_its_task_is_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    let path = format!("/api/v1/llms/_provider-task/{}/result", task.id);
    agent.call("POST", &path).json(&chunk("x")).send().await.unwrap();
    for key in ["other/0", "task/first", "task"] {
        let call = agent.call("POST", &path).header("Idempotency-Key", key).json(&chunk("x"));
        assert_eq!(call.send().await.unwrap().status(), 200);
    }
    assert_eq!(broken(&mcpd), [Rule::MissingKey; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_for_a_plain_task_is_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let json =
        json!({"kind": "infer", "taskId": "task", "llmName": "llama", "streaming": false, "request": {}});
    mcpd.fault(Fault::Task { json: json.to_string() });
    channel.task().await;
    assert_eq!(agent.chunk("task", 0, "x").await, 400);
    assert_eq!(broken(&mcpd), [Rule::ChunkOnPlainTask]);
}

#[tokio::test(start_paused = true)]
async fn a_whole_reply_to_a_stream_and_a_status_inside_one_are_found() {
    for (begun, status) in [(false, 200), (true, 502)] {
        let mcpd = FakeMcpd::start().await.unwrap();
        let (agent, task) = streaming(&mcpd).await;
        if begun {
            agent.chunk(&task.id, 0, "x").await;
        }
        agent.part(&task.id, begun.into(), json!({"status": status, "body": {}})).await;
        assert_eq!(broken(&mcpd), [Rule::StatusInStream]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_no_result_is_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    for (n, body) in
        [json!({}), json!({"status": 99}), json!({"chunk": {}}), json!([])].into_iter().enumerate()
    {
        assert_eq!(agent.part(&task.id, n as u64, body).await, 400);
    }
    assert_eq!(broken(&mcpd), [Rule::MalformedResult; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_over_two_heartbeats_is_found_once_per_pause() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, _channel) = Agent::online(&mcpd, "llama").await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    agent.heartbeat().await;
    assert_eq!(broken(&mcpd), []);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(broken(&mcpd), [Rule::MissingHeartbeat]);
    agent.heartbeat().await;
    assert_eq!(broken(&mcpd).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_without_a_channel_or_while_refused_is_forgiven() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut offline = Agent::new(&mcpd);
    offline.register(&["other"]).await;
    let (agent, _channel) = Agent::online(&mcpd, "llama").await;
    mcpd.fault(Fault::Refuse { what: Refused::Calls, lasting: Some(Duration::from_secs(70)) });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        let call = agent.call("POST", "/api/v1/llms/_provider-heartbeat");
        let _ = call.json(&json!({"providerSessionId": agent.session})).send().await;
    }
    assert_eq!(broken(&mcpd), []);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_before_any_register_is_found_unless_mcpd_restarted() {
    for (restarted, expected) in [(false, vec![Rule::HeartbeatBeforeRegister]), (true, vec![])] {
        let mcpd = FakeMcpd::builder().restarted(restarted).start().await.unwrap();
        let mut agent = Agent::new(&mcpd);
        agent.session = "from-before".to_owned();
        assert_eq!(agent.heartbeat().await, 404);
        assert_eq!(broken(&mcpd), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_register_during_another_is_found() {
    let mcpd = FakeMcpd::start().await.unwrap();
    mcpd.fault(Fault::Delay { aim: Aim::next(CallKind::Register), by: Duration::from_secs(1) });
    let agent = Agent::new(&mcpd);
    let second = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        agent.register_call(&["llama"]).send().await
    };
    let _ = tokio::join!(agent.register_call(&["llama"]).send(), second);
    assert_eq!(broken(&mcpd)[0], Rule::RegisterUnderWay);
}

#[tokio::test(start_paused = true)]
async fn a_register_right_after_another_is_found_and_one_250_ms_later_is_not() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    agent.register(&["llama"]).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    agent.register(&["llama", "other"]).await;
    assert_eq!(broken(&mcpd), []);
    tokio::time::sleep(Duration::from_millis(100)).await;
    agent.register(&["llama"]).await;
    assert_eq!(broken(&mcpd), [Rule::RegisterTooOften]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_killed_and_registers_at_its_return_is_not_blamed() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (killed, channel) = Agent::online(&mcpd, "llama").await;
    drop(channel);
    let mut successor = Agent::new(&mcpd);
    successor.session = killed.session.clone();
    drop(killed);
    soon(mcpd.wait_until(|state| state.sessions.iter().all(|session| !session.connected))).await;
    assert_eq!(successor.register(&["llama"]).await, 200);
    assert_eq!(broken(&mcpd), []);
    assert_eq!(successor.register(&["llama", "other"]).await, 200);
    assert_eq!(broken(&mcpd), [Rule::RegisterTooOften], "the successor is held to the rule again");
}

#[tokio::test(start_paused = true)]
async fn an_honest_agent_with_bad_luck_is_not_blamed() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    let results = || Aim::next(CallKind::Result);
    mcpd.fault(Fault::Answer { aim: results(), answer: Answer::status(503) });
    mcpd.fault(Fault::LoseReply { aim: results() });
    assert_eq!(agent.chunk(&task.id, 0, "x").await, 503);
    assert!(agent.part_call(&task.id, 0, &chunk("x")).send().await.is_err());
    assert_eq!(agent.chunk(&task.id, 0, "x").await, 200);
    // Part 1 never gets through, so the agent gives up with an explicit error.
    assert_eq!(agent.part(&task.id, 2, json!({"error": "part 1 was lost"})).await, 200);
    assert_eq!(agent.part(&task.id, 2, json!({"error": "part 1 was lost"})).await, 200);
    let after_crash = agent.part_call(&task.id, "restart", &json!({"error": "the agent restarted"}));
    assert_eq!(after_crash.send().await.unwrap().status(), 404);
    assert_eq!(broken(&mcpd), []);
}

#[tokio::test(start_paused = true)]
async fn the_verdict_is_json_over_http() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let agent = Agent::new(&mcpd);
    let fetch =
        || async { agent.call("GET", "/_fake/verdict").send().await.unwrap().json::<Value>().await.unwrap() };
    let counts =
        json!({"registers": 0, "heartbeats": 0, "channels": 0, "tasks": 0, "parts": 0, "uploads": 0});
    assert_eq!(fetch().await, json!({"ok": true, "count": 0, "counts": counts, "violations": []}));
    agent.heartbeat().await;
    let verdict = fetch().await;
    assert_eq!((&verdict["ok"], &verdict["count"]), (&json!(false), &json!(1)));
    assert_eq!(verdict["violations"][0]["rule"], "heartbeat-before-register");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_left_is_no_fault_of_the_agents() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    let task = channel.task().await;
    drop(call);
    assert_eq!(agent.part(&task.id, 0, done()).await, 404);
    assert_eq!(broken(&mcpd), []);
}

#[test]
fn the_readme_explains_every_rule() {
    let readme = include_str!("../../README.md");
    let rules = [
        Rule::PartOutOfOrder,
        Rule::ResultAfterEnd,
        Rule::TwoEnds,
        Rule::RepeatedKeyOtherBytes,
        Rule::ChunkSentTwice,
        Rule::ConcurrentParts,
        Rule::MissingKey,
        Rule::ChunkOnPlainTask,
        Rule::StatusInStream,
        Rule::MalformedResult,
        Rule::MissingHeartbeat,
        Rule::HeartbeatBeforeRegister,
        Rule::RegisterUnderWay,
        Rule::RegisterTooOften,
    ];
    for rule in rules {
        let name = serde_json::to_value(rule).unwrap();
        assert!(readme.contains(&format!("| `{}` |", name.as_str().unwrap())), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_path_a_wrong_body_and_a_missing_header_are_found_and_said() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, _channel) = Agent::online(&mcpd, "llama").await;
    let post = |path: &'static str| agent.call("POST", path).json(&json!({"session": "s"}));
    let call = async |call: reqwest::RequestBuilder| {
        let reply = soon(call.send()).await.expect("a reply");
        (reply.status().as_u16(), reply.text().await.expect("a text"))
    };
    assert_eq!(call(post("/api/v1/llms/_provider-beat")).await.0, 404);
    assert_eq!(call(post("/api/v1/llms/_provider-register")).await.0, 400);
    assert_eq!(call(post("/api/v1/llms/_provider-heartbeat")).await.0, 400);
    let (status, said) = call(agent.call("GET", "/api/v1/llms/_provider-stream")).await;
    assert_eq!(status, 400);
    assert!(said.contains("the header x-mcpctl-provider-session is missing"), "{said}");
    let found = broken(&mcpd);
    for rule in [Rule::UnknownPath, Rule::MalformedBody, Rule::MissingSessionHeader] {
        assert!(found.contains(&rule), "{rule:?} in {found:?}");
    }
    let journal = mcpd.journal();
    let header = mcpd.violations().into_iter().find(|v| v.rule == Rule::MissingSessionHeader).unwrap();
    let entry = journal.iter().find(|entry| entry.seq == header.seq).expect("the journal has it");
    assert!(entry.is_call(CallKind::Stream) && entry.status == Some(400), "{entry:?}");
}

#[tokio::test(start_paused = true)]
async fn the_given_profile_asks_for_no_keys_and_still_for_one_end() {
    let mcpd = FakeMcpd::builder().profile(Profile::Given).start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    let path = format!("/api/v1/llms/_provider-task/{}/result", task.id);
    for (body, status) in [(chunk("x"), 200), (json!({"chunk": {"data": "[DONE]"}}), 200), (chunk("y"), 404)]
    {
        let reply = soon(agent.call("POST", &path).json(&body).send()).await.expect("a reply");
        assert_eq!(reply.status(), status, "{body}");
    }
    assert_eq!(broken(&mcpd), [Rule::ResultAfterEnd]);
}

#[tokio::test(start_paused = true)]
async fn the_whole_contract_asks_for_the_mark_of_the_end() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    agent.part(&task.id, 0, json!({"chunk": {"data": "[DONE]"}})).await;
    assert_eq!(broken(&mcpd), [Rule::DoneWithoutMark]);
}

#[tokio::test(start_paused = true)]
async fn a_run_with_fewer_tasks_than_expected_is_no_success() {
    let mcpd = FakeMcpd::builder().expect_tasks(2).start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    agent.chunk(&task.id, 0, "x").await;
    agent.done(&task.id, 1).await;
    let verdict = mcpd.verdict();
    assert!(!verdict.ok);
    assert_eq!(verdict.violations[0].detail, "1 tasks ended where at least 2 were expected");
    let counts = Counts { registers: 1, heartbeats: 0, channels: 1, tasks: 1, parts: 2, uploads: 0 };
    assert_eq!(verdict.counts, counts);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_task_is_told_from_none() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, task) = streaming(&mcpd).await;
    let path = format!("/api/v1/llms/_provider-task/{}/result", task.id);
    let call = agent.call("POST", &path).header("Idempotency-Key", "other/0").json(&chunk("x"));
    soon(call.send()).await.expect("a reply");
    let detail = &mcpd.violations()[0].detail;
    assert!(detail.contains("\"other/0\" is of another task"), "{detail}");
}
