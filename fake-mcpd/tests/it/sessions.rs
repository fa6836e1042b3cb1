//! Registering, the control channel, heartbeats and what happens when they stop.

use std::time::Duration;

use fake_mcpd::{CallKind, FakeMcpd, InferReply, Kind, PingStyle};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, prompt, soon};

/// Long enough between two register calls.
const GAP: Duration = Duration::from_millis(250);

fn statuses(mcpd: &FakeMcpd) -> Vec<(String, &'static str)> {
    mcpd.llms().into_iter().map(|llm| (llm.spec.name, llm.status)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_register_replaces_the_whole_set_and_rows_keep_their_ids() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    agent.register(&["a", "b"]).await;
    let before = mcpd.llms();
    tokio::time::sleep(GAP).await;
    agent.register(&["b", "c"]).await;
    let expected = [("a".into(), "inactive"), ("b".into(), "active"), ("c".into(), "active")];
    assert_eq!(statuses(&mcpd), expected);
    tokio::time::sleep(GAP).await;
    agent.register(&["a"]).await;
    assert_eq!(mcpd.llms()[0].id, before[0].id);
    assert_eq!(mcpd.llms()[1].id, before[1].id);
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_register_reply_has_the_session_its_rows_and_the_features() {
    let all = json!(["idempotent-results", "result-stream"]);
    for (offered, features) in [(true, all), (false, json!([]))] {
        let mcpd =
            FakeMcpd::builder().idempotent_results(offered).result_stream(offered).start().await.unwrap();
        let reply = Agent::new(&mcpd).register_call(&["a"]).send().await.unwrap();
        let reply: Value = reply.json().await.unwrap();
        assert!(reply["providerSessionId"].as_str().is_some_and(|id| !id.is_empty()));
        assert_eq!(reply["features"], features);
        let row = &reply["llms"][0];
        assert_eq!(
            (&row["kind"], &row["status"], &row["type"]),
            (&json!("virtual"), &json!("active"), &json!("openai"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_sticky_id_is_honoured_even_if_unknown() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    agent.session = "mine".to_owned();
    agent.register(&["a"]).await;
    assert_eq!(mcpd.state().sessions[0].id, "mine");
}

#[tokio::test(start_paused = true)]
async fn a_name_of_another_live_session_is_a_conflict_until_that_session_expires() {
    let mcpd = FakeMcpd::start().await.unwrap();
    Agent::new(&mcpd).register(&["a", "b"]).await;
    let mut second = Agent::new(&mcpd);
    let reply = second.register_call(&["b", "c"]).send().await.unwrap();
    assert_eq!(reply.status(), 409);
    assert_eq!(reply.json::<Value>().await.unwrap(), json!({"conflicts": ["b"]}));
    assert_eq!(statuses(&mcpd).len(), 2);
    tokio::time::sleep(Duration::from_secs(91)).await;
    assert_eq!(second.register(&["b", "c"]).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_set_with_an_empty_or_a_double_name_is_a_400() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    assert_eq!(agent.register(&[""]).await, 400);
    assert_eq!(agent.register(&["a", "a"]).await, 400);
    let reply = agent.call("POST", "/api/v1/llms/_provider-register").body("[]").send().await.unwrap();
    assert_eq!(reply.status(), 400);
    assert!(mcpd.llms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_or_missing_token_is_a_401_and_a_changed_one_counts_at_once() {
    let mcpd = FakeMcpd::builder().token("right").start().await.unwrap();
    assert_eq!(Agent::at(&mcpd.url(), "wrong").heartbeat().await, 401);
    assert_eq!(Agent::at(&mcpd.url(), "").heartbeat().await, 401);
    mcpd.set_token("wrong");
    assert_eq!(Agent::at(&mcpd.url(), "wrong").register(&["a"]).await, 200);
    assert_eq!(Agent::at(&mcpd.url(), "right").heartbeat().await, 401);
}

#[tokio::test(start_paused = true)]
async fn any_token_may_do_but_none_may_not() {
    let mcpd = FakeMcpd::builder().any_token().start().await.unwrap();
    assert_eq!(Agent::at(&mcpd.url(), "whatever").register(&["a"]).await, 200);
    assert_eq!(Agent::at(&mcpd.url(), "").heartbeat().await, 401);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_session_is_a_404_on_heartbeat_and_channel() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    agent.session = "unknown".to_owned();
    assert_eq!(agent.heartbeat().await, 404);
    assert_eq!(agent.channel_response().await.unwrap().status(), 404);
}

#[tokio::test(start_paused = true)]
async fn a_session_expires_90_s_after_its_last_heartbeat_and_its_tasks_end() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(agent.heartbeat().await, 200);
    let call = mcpd.infer_stream("llama", &prompt()).unwrap();
    channel.task().await;
    tokio::time::sleep(Duration::from_secs(89)).await;
    assert_eq!(mcpd.llms()[0].status, "active");
    let end = soon(call.collect()).await.end;
    assert_eq!(InferReply::from(end).status, 503);
    assert_eq!(mcpd.llms()[0].status, "inactive");
    let expired = mcpd.wait_for(|entry| entry.kind == Kind::SessionExpired).await;
    assert!((119_990..120_010).contains(&expired.at_ms), "{}", expired.at_ms);
    assert_eq!(mcpd.infer("llama", &prompt()).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_revives_the_last_registered_set_only() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let mut agent = Agent::new(&mcpd);
    agent.register(&["a", "b"]).await;
    tokio::time::sleep(GAP).await;
    agent.register(&["b"]).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(statuses(&mcpd), [("a".into(), "inactive"), ("b".into(), "inactive")]);
    assert_eq!(agent.heartbeat().await, 200);
    assert_eq!(statuses(&mcpd), [("a".into(), "inactive"), ("b".into(), "active")]);
}

#[tokio::test(start_paused = true)]
async fn a_second_channel_of_a_session_replaces_the_first() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (agent, mut first) = Agent::online(&mcpd, "llama").await;
    let mut second = agent.channel().await;
    assert!(first.event().await.is_none());
    let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
    second.task().await;
    drop(first);
    assert!(mcpd.state().sessions[0].connected);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_the_agent_closes_is_noticed() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (_agent, channel) = Agent::online(&mcpd, "llama").await;
    soon(mcpd.wait_until(|state| state.is_active("llama"))).await;
    drop(channel);
    soon(mcpd.wait_until(|state| !state.sessions[0].connected)).await;
    soon(mcpd.wait_for(|entry| entry.kind == Kind::ChannelClosed)).await;
}

#[tokio::test(start_paused = true)]
async fn keep_alives_come_at_their_interval_as_events_or_comments() {
    for (style, expected) in [(PingStyle::Event, "event: ping"), (PingStyle::Comment, ": ping")] {
        let builder = FakeMcpd::builder().ping_interval(Duration::from_secs(5)).ping_style(style);
        let mcpd = builder.start().await.unwrap();
        let (_agent, mut channel) = Agent::online(&mcpd, "llama").await;
        let start = tokio::time::Instant::now();
        for _ in 0..2 {
            assert!(channel.frame().await.unwrap().starts_with(expected));
        }
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_after_the_announced_keep_alive_and_channels_are_not() {
    let mcpd = FakeMcpd::builder().keep_alive(Duration::from_secs(5)).start().await.unwrap();
    let (_agent, _channel) = Agent::online(&mcpd, "llama").await;
    let mut idle = TcpStream::connect(mcpd.address()).await.unwrap();
    idle.write_all(b"GET /_fake/state HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let start = tokio::time::Instant::now();
    let mut reply = String::new();
    soon(idle.read_to_string(&mut reply)).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 5);
    assert!(reply.contains("keep-alive: timeout=5"), "{reply}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(mcpd.state().sessions[0].connected);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_run_to_the_millisecond() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mcpd = FakeMcpd::builder().seed(7).start().await.unwrap();
        let (agent, mut channel) = Agent::online(&mcpd, "llama").await;
        let _call = mcpd.infer_stream("llama", &prompt()).unwrap();
        let task = channel.task().await;
        seen.push((
            agent.session.clone(),
            mcpd.llms()[0].id.clone(),
            task.id,
            task.data["traceparent"].clone(),
        ));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_path_is_a_404_that_no_journal_counts_as_a_call() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let agent = Agent::new(&mcpd);
    assert_eq!(agent.call("GET", "/api/v2/llms").send().await.unwrap().status(), 404);
    assert_eq!(agent.call("GET", "/api/v1/llms").send().await.unwrap().status(), 200);
    assert!(mcpd.journal().iter().all(|entry| entry.is_call(CallKind::List)));
}

#[tokio::test(start_paused = true)]
async fn a_stopped_mcpd_leaves_its_port_to_the_next() {
    let mcpd = FakeMcpd::start().await.unwrap();
    let (mut agent, mut channel) = Agent::online(&mcpd, "llama").await;
    let address = mcpd.address();
    mcpd.stop().await;
    assert!(channel.event().await.is_none());
    let next = FakeMcpd::builder().listen(address).restarted(true).start().await.unwrap();
    assert_eq!(agent.heartbeat().await, 404);
    assert_eq!(agent.register(&["llama"]).await, 200);
    assert_eq!(next.state().sessions[0].id, agent.session);
    assert_eq!(next.violations(), []);
}
