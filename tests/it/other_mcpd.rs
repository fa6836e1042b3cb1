//! Credentials that lead to another mcpd: what belongs to the former mcpd stays with it.

use std::{fs, time::Duration};

use fake_mcpd::{Aim, Answer, CallKind, FakeMcpd, TaskEnd};
use mcprelay::pb::AgentState;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    faults::begun,
    support::{World, pass, provider, soon},
};

/// A certificate that signs nothing: its file can be read as one.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBcDCCARWgAwIBAgIURA/40J43M2WAvyxjDc0l053EEYgwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBdDAgFw0yNjExMjcyMTMyNTdaGA8yMTI2MTEwMzIxMzI1N1ow
DDEKMAgGA1UEAwwBdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABErusRf/knrW
5DbP+msx0MyKewn9PhSooAhtqCTu4Jr9HZ39ubqM6X9sC+A56bcInxDV8P4hzLlz
IspJJtxAfEijUzBRMB0GA1UdDgQWBBQ97z4xdLm5kGcRhgqYApcLrbs4MTAfBgNV
HSMEGDAWgBQ97z4xdLm5kGcRhgqYApcLrbs4MTAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0kAMEYCIQCBC6uUYISGJsANNJNgsb55xk2LeOD+QU8w1GrMwCIq
TQIhAKYAbB7HoEC7WqDMbh66dW2Mo+k65jhRo8AKEuZ9hSzt
-----END CERTIFICATE-----
";

/// Credentials for an mcpd that is not the world's.
fn lead_to(world: &World, other: &FakeMcpd) {
    world.write("credentials", &json!({"mcpdUrl": other.url(), "token": other.token()}).to_string());
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_agent_left_behind_of_one_mcpd_is_not_told_to_another_and_waits_for_its_return() {
    // The one that is left must not end the task by itself meanwhile.
    let patient = FakeMcpd::builder().session_ttl(Duration::from_secs(3600));
    let mut world = World::with(patient, |_| {}).await;
    let mut client = world.serving("llama").await;
    let (call, _offer) = begun(&world, &mut client).await;
    world.kill_agent().await;
    drop(client);
    let other = FakeMcpd::start().await.expect("a loopback port");
    lead_to(&world, &other);
    // The second one has a life before it of which the session file knows nothing but the other mcpd.
    for _ in 0..2 {
        world.start_agent();
        let client = world.client_with("mcplocal", &[provider("llama", true)]).await;
        let online = |s: &fake_mcpd::Snapshot| s.is_active("llama") && s.sessions.iter().any(|s| s.connected);
        soon("the other mcpd's row", other.wait_until(online)).await;
        world.kill_agent().await;
        drop(client);
    }
    world.write_credentials();
    world.start_agent();
    // The name is still the former session's.
    let _client = world.serving("qwen").await;
    let end = soon("the end", call.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if message.contains("was restarted")), "{end:?}");
    assert!(!other.journal().iter().any(|e| e.is_call(CallKind::Result)), "{:?}", other.journal());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_the_former_mcpd_gives_to_somebody_else_is_published_at_the_new_one_at_once() {
    let world = World::start().await;
    world.mcpd.answer(Aim::next(CallKind::Register), Answer::status(409).body(r#"{"conflicts":["llama"]}"#));
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    world.link(AgentState::Refused).await;
    let other = FakeMcpd::start().await.expect("a loopback port");
    let began = Instant::now();
    lead_to(&world, &other);
    soon("the new mcpd's row", other.wait_until(|s| s.is_active("llama"))).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    world.link(AgentState::Online).await;
}

#[tokio::test(start_paused = true)]
async fn the_former_mcpd_is_told_that_nothing_is_published_and_going_back_is_no_conflict_with_oneself() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    let session = world.row("llama").provider_session_id;
    let other = FakeMcpd::start().await.expect("a loopback port");
    let began = Instant::now();
    lead_to(&world, &other);
    soon("the new mcpd's row", other.wait_until(|s| s.is_active("llama"))).await;
    soon("the former one to hear of it", world.mcpd.wait_until(|s| !s.is_active("llama"))).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let goodbye = world.calls(CallKind::Register).last().expect("a call").json();
    assert_eq!(goodbye, json!({"providerSessionId": session, "providers": []}));
    pass(Duration::from_secs(5)).await;
    world.write_credentials();
    soon("the row again", world.mcpd.wait_until(|s| s.is_active("llama"))).await;
    assert_eq!(world.row("llama").provider_session_id, session);
    soon("the other one to hear of it", other.wait_until(|s| !s.is_active("llama"))).await;
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(world.path("provider-session")).expect("it is there"))
            .expect("JSON");
    assert_eq!((&file["providerSessionId"], &file["mcpdUrl"]), (&json!(session), &json!(world.mcpd.url())));
    assert_eq!(file["others"][0]["mcpdUrl"], json!(other.url()), "{file}");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn two_agents_with_one_copied_session_find_out_within_two_minutes() {
    let world = World::start().await;
    let mut one = world.serving("llama").await;
    let mut copy = World::offline(FakeMcpd::builder(), |_| {}).await;
    lead_to(&copy, &world.mcpd);
    fs::copy(world.path("provider-session"), copy.path("provider-session")).expect("the home is writable");
    copy.start_agent();
    let began = Instant::now();
    let mut other = copy.client_with("mcplocal", &[provider("llama", true)]).await;
    // Whoever says so rests for a minute, in which the other one has the session to itself.
    loop {
        let mut details = Vec::new();
        for client in [&mut one, &mut other] {
            details.push(client.status().await.agent.expect("a status").detail);
        }
        if details.iter().any(|detail| detail.contains("session used by another process")) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{details:?}");
        pass(Duration::from_millis(500)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_cannot_be_used_do_not_cost_the_link_that_works() {
    let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
    let authorities = world.path("authorities.pem");
    world.config.ca_file = Some(authorities.clone());
    world.write("authorities.pem", CERTIFICATE);
    world.write_credentials();
    world.start_agent();
    let _client = world.serving("llama").await;
    fs::remove_file(&authorities).expect("it is there");
    let other = FakeMcpd::start().await.expect("a loopback port");
    lead_to(&world, &other);
    pass(Duration::from_secs(5)).await;
    let heartbeats = world.calls(CallKind::Heartbeat).len();
    world.calls_of(CallKind::Heartbeat, heartbeats + 2).await;
    world.link(AgentState::Online).await;
    world.write("authorities.pem", CERTIFICATE);
    lead_to(&world, &other);
    soon("the other mcpd's row", other.wait_until(|s| s.is_active("llama"))).await;
    world.assert_clean();
}
