//! mcpd as it is reached in production: over TLS, with authorities that change.

use std::{fs, time::Duration};

use fake_mcpd::{Aim, CallKind, FakeMcpd, InferRequest, TaskEnd, Tls};
use mcprelay::pb::{self, AgentState};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Client, World, chat, gaps, pass, provider, soon};

/// Nobody's authority.
const STRANGER: &str = "-----BEGIN CERTIFICATE-----
MIIBWzCCAQ2gAwIBAgIUK5QZ5qBvYt1rZ3q0N0xXx6yG0mAwBQYDK2VwMBMxETAP
-----END CERTIFICATE-----
";

/// A world whose mcpd speaks TLS, and the file with its authority.
async fn over(tls: Tls) -> World {
    reached(FakeMcpd::builder().tls(tls)).await
}

async fn reached(mcpd: fake_mcpd::Builder) -> World {
    let mut world = World::offline(mcpd, |config| config.max_queued = 0).await;
    let authority = fs::read_to_string(world.mcpd.ca_file().expect("it serves TLS")).expect("it is there");
    world.write("authorities.pem", &authority);
    world.config.ca_file = Some(world.path("authorities.pem"));
    world.write_credentials();
    world
}

async fn answer_comes_whole(world: &World, client: &mut Client) {
    let call = world.mcpd.infer_stream("llama", &json!({})).expect("accepted");
    let offer = client.offer().await;
    client.finish_text(&offer, "done").await;
    assert!(matches!(soon("the end", call.collect()).await.end, TaskEnd::Done));
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_whole_over_both_protocols_of_tls() {
    for tls in [Tls::default().without_http1(), Tls::default().without_http2()] {
        let mut world = over(tls).await;
        world.start_agent();
        let mut client = world.serving("llama").await;
        answer_comes_whole(&world, &mut client).await;
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_replaced_in_its_file_is_trusted_within_seconds() {
    let mut world = over(Tls::default()).await;
    let (good, other) =
        (world.path("authorities.pem"), FakeMcpd::builder().tls(Tls::default()).start().await);
    let other = other.expect("a loopback port");
    let right = fs::read_to_string(&good).expect("it is there");
    fs::copy(other.ca_file().expect("it serves TLS"), &good).expect("the home is writable");
    world.start_agent();
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let why = world.link(AgentState::Backoff).await.detail;
    assert!(why.contains("nor the system knows the authority"), "{why}");
    let replaced = Instant::now();
    world.write("authorities.pem", &right);
    world.link(AgentState::Online).await;
    assert!(replaced.elapsed() <= Duration::from_secs(5), "{:?}", replaced.elapsed());
    answer_comes_whole(&world, &mut client).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_of_authorities_that_was_bad_at_the_start_is_used_once_it_is_mended() {
    let mut world = over(Tls::default()).await;
    let right = fs::read_to_string(world.path("authorities.pem")).expect("it is there");
    world.write("authorities.pem", STRANGER);
    world.start_agent();
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::NoCredentials).await;
    assert!(link.detail.contains("authorities.pem") && link.advice.contains("readable PEM file"), "{link:?}");
    let mended = Instant::now();
    world.write("authorities.pem", &right);
    world.link(AgentState::Online).await;
    assert!(mended.elapsed() <= Duration::from_secs(5), "{:?}", mended.elapsed());
    answer_comes_whole(&world, &mut client).await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_of_authorities_leaves_the_old_ones_in_force() {
    let mut world = over(Tls::default()).await;
    world.start_agent();
    let mut client = world.serving("llama").await;
    world.write("authorities.pem", STRANGER);
    pass(Duration::from_secs(5)).await;
    let heartbeats = world.calls(CallKind::Heartbeat).len();
    world.calls_of(CallKind::Heartbeat, heartbeats + 2).await;
    world.mcpd.drop_channels();
    world.link(AgentState::Backoff).await;
    world.link(AgentState::Online).await;
    answer_comes_whole(&world, &mut client).await;
}

#[tokio::test(start_paused = true)]
async fn callers_whose_answers_mcpd_is_slow_to_take_delay_no_heartbeat_and_no_register_call() {
    // As many as the agent posts at once find room on all connections for results together, and none is left.
    let mcpd = FakeMcpd::builder().tls(Tls::default().without_http1()).streams(4);
    let mut world = reached(mcpd).await;
    world.start_agent();
    let full = pb::Provider { max_in_flight: Some(0), ..provider("full", true) };
    let mut client = world.client_with("mcplocal", std::slice::from_ref(&full)).await;
    world.active("full").await;
    world.mcpd.delay(Aim::next(CallKind::Result).times(0), Duration::from_secs(600));
    let infer = |_| world.mcpd.submit(InferRequest::new("full", &chat("hi"))).expect("accepted");
    let callers: Vec<_> = (0..128).map(infer).collect();
    pass(Duration::from_secs(1)).await;
    let before = world.calls(CallKind::Heartbeat).len();
    let began = Instant::now();
    client.push(&[full, provider("another", true)]).await;
    world.active("another").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let heartbeats = world.calls_of(CallKind::Heartbeat, before + 3).await;
    let gaps = gaps(&heartbeats);
    assert!(gaps.iter().all(|gap| *gap <= 31_000), "{gaps:?}");
    drop(callers);
}
