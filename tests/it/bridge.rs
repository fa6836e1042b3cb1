//! Sessions of local programs with the agent: who serves, who stands by, what a loss, a goodbye and a withdrawal mean. The rules are in the
//! comments of `bridge.proto`.

mod loss;

use std::time::Duration;

use fake_mcpd::{Call, CallKind, FakeMcpd, InferReply, InferRequest, TaskEnd};
use mcprelay::pb::{self, AgentState, Verdict, session_request, session_response};
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{
    Client, Watch, World, channel, chat, chunk, completion, last_chunk, named, pass, provider, soon,
};

fn words(verdicts: &[pb::ProviderVerdict]) -> Vec<Verdict> {
    verdicts.iter().map(pb::ProviderVerdict::verdict).collect()
}

fn infer(world: &World) -> Call {
    world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted")
}

async fn reply(call: Call) -> InferReply {
    soon("the end", call.collect()).await.end.into()
}

/// The next inference is offered to this session.
async fn serves(world: &World, client: &mut Client) {
    let call = infer(world);
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("served")).await;
    assert_eq!(reply(call).await.status, 200);
}

async fn serving_one_at_a_time() -> (World, Client) {
    let world = World::with(FakeMcpd::builder(), |config| config.max_in_flight = 1).await;
    let client = world.serving("llama").await;
    (world, client)
}

/// Waits until so many tasks wait in the agent's queues.
async fn queued(world: &World, count: u32) {
    let enough = |s: &pb::WatchStatusResponse| s.providers.iter().map(|p| p.queued).sum::<u32>() == count;
    Watch::open(&world.config.socket).await.until(enough).await;
}

// ---- the first words -----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn welcome_comes_first_and_says_what_the_agent_takes_and_how_its_link_is() {
    let world = World::start().await;
    let mut client = Client::connect_limited(&world.config.socket, "mcplocal", 0).await;
    let first = client.message().await.expect("the stream goes on").expect("the stream goes on");
    let session_response::Payload::Welcome(welcome) = first else { panic!("{first:?}") };
    assert_eq!(welcome.max_message_bytes, 33 << 20);
    assert_eq!(welcome.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(!welcome.session_id.is_empty());
    assert_eq!(welcome.agent_status.expect("a status").state(), AgentState::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_the_whole_set_and_its_verdicts_come_in_its_order() {
    let world = World::start().await;
    let mut client = world.client("mcplocal").await;
    let verdicts = client.push(&[provider("z", true), provider("a", false), provider("m", true)]).await;
    let names: Vec<_> = verdicts.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["z", "a", "m"]);
    assert_eq!(words(&verdicts), [Verdict::Published, Verdict::NotOptedIn, Verdict::Published]);
    world.active("z").await;
    world.active("m").await;
    assert_eq!(client.push(&[provider("m", true)]).await.len(), 1);
    world.inactive("z").await;
    world.active("m").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn every_snapshot_is_answered_whatever_its_generation_and_also_if_it_says_nothing_new() {
    let world = World::start().await;
    let mut client = world.client("mcplocal").await;
    for generation in [0, 7, 7, 3] {
        let snapshot = pb::ProviderSnapshot { generation, providers: vec![provider("llama", true)] };
        client.send(session_request::Payload::ProviderSnapshot(snapshot)).await;
        let result = client
            .wait_for(|payload| match payload {
                session_response::Payload::ProviderSnapshotResult(result) => Some(result),
                _ => None,
            })
            .await;
        assert_eq!((result.generation, &*words(&result.verdicts)), (generation, &[Verdict::Published][..]));
    }
}

// ---- stand-by ------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_second_session_with_a_name_stands_by_and_takes_over_when_the_first_says_goodbye() {
    let world = World::start().await;
    let mut first = world.serving("llama").await;
    let mut second = world.client("second").await;
    assert_eq!(words(&second.push(&[provider("llama", true)]).await), [Verdict::StandingBy]);
    serves(&world, &mut first).await;
    first.drain().await;
    assert_eq!(words(&second.verdicts().await), [Verdict::Published]);
    serves(&world, &mut second).await;
    assert_eq!(world.calls(CallKind::Register).len(), 1, "mcpd noticed nothing");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_stand_by_takes_over_a_lost_sessions_unsent_task_at_once() {
    let world = World::start().await;
    let mut first = world.serving("llama").await;
    let mut second = world.client_with("second", &[provider("llama", true)]).await;
    let call = infer(&world);
    let offer = first.offer().await;
    let lost = Instant::now();
    first.half_close();
    let again = second.offer().await;
    assert_eq!((&again.task_id, &again.request_json), (&offer.task_id, &offer.request_json));
    assert!(lost.elapsed() < Duration::from_secs(1));
    second.finish_body(&again, &completion("saved")).await;
    assert_eq!(&reply(call).await.body[..], completion("saved").as_bytes());
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_is_refused_goes_to_the_stand_by_and_an_error_that_is_only_retryable_does_not() {
    let world = World::start().await;
    let mut first = world.serving("llama").await;
    let mut second = world.client_with("second", &[provider("llama", true)]).await;
    let busy = |refused| pb::Error {
        code: pb::ErrorCode::Overloaded.into(),
        message: "busy".to_owned(),
        retryable: true,
        refused,
        ..pb::Error::default()
    };
    let call = infer(&world);
    let offer = first.offer().await;
    first.finish_error(&offer, busy(true)).await;
    let again = second.offer().await;
    assert_eq!((&again.task_id, &again.request_json), (&offer.task_id, &offer.request_json));
    second.finish_body(&again, &completion("mine")).await;
    assert_eq!(&reply(call).await.body[..], completion("mine").as_bytes());
    let call = infer(&world);
    let offer = first.offer().await;
    first.finish_error(&offer, busy(false)).await;
    assert_eq!(reply(call).await.status, 429);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn another_type_or_model_under_a_taken_name_is_refused_with_a_reason() {
    let world = World::start().await;
    let mut first = world.serving("llama").await;
    let mut second = world.client("second").await;
    let other_type = pb::Provider { r#type: "vllm".into(), ..provider("llama", true) };
    for other in [named("llama", "another"), other_type] {
        let verdicts = second.push(&[other]).await;
        assert_eq!(words(&verdicts), [Verdict::Refused]);
        let error = verdicts[0].error.as_ref().expect("a refusal says why");
        assert_eq!(error.code(), pb::ErrorCode::Duplicate);
        assert!(error.message.contains("ollama with model 'm'"), "{}", error.message);
    }
    serves(&world, &mut first).await;
    first.drain().await;
    assert_eq!(words(&second.verdicts().await), [Verdict::Published], "the name is free now");
}

#[tokio::test(start_paused = true)]
async fn a_session_from_outside_outranks_the_built_in_provider_host() {
    let world = World::start().await;
    let mut built_in = world.client("mcprelay/provide").await;
    assert_eq!(words(&built_in.push(&[provider("llama", true)]).await), [Verdict::Published]);
    world.active("llama").await;
    let mut outside = world.client("mcplocal").await;
    assert_eq!(words(&outside.push(&[provider("llama", true)]).await), [Verdict::Published]);
    assert_eq!(words(&built_in.verdicts().await), [Verdict::StandingBy]);
    serves(&world, &mut outside).await;
    outside.drain().await;
    assert_eq!(words(&built_in.verdicts().await), [Verdict::Published]);
    serves(&world, &mut built_in).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_second_session_of_the_same_client_replaces_the_first_which_ends_aborted() {
    let world = World::start().await;
    let mut first = world.serving("llama").await;
    let call = infer(&world);
    let offer = first.offer().await;
    let mut second = world.client("mcplocal").await;
    let status = first.ended().await;
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("replaced"), "{}", status.message());
    assert_eq!(words(&second.push(&[provider("llama", true)]).await), [Verdict::Published]);
    let again = second.offer().await;
    assert_eq!(again.task_id, offer.task_id, "what the first had not answered is offered to its successor");
    second.finish_body(&again, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    assert_eq!(world.calls(CallKind::Register).len(), 1, "the list did not flap");
    world.assert_clean();
}

// ---- goodbye and withdrawal ----------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_goodbye_withdraws_at_once_ends_what_waits_and_lets_what_runs_finish() {
    let (world, mut client) = serving_one_at_a_time().await;
    let running = infer(&world);
    let offer = client.offer().await;
    let waiting = infer(&world);
    queued(&world, 1).await;
    client.drain().await;
    assert_eq!(reply(waiting).await.status, 503);
    world.inactive("llama").await;
    client.finish_body(&offer, &completion("done")).await;
    assert_eq!(reply(running).await.status, 200);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn after_a_goodbye_a_session_keeps_its_tasks_beside_its_successor() {
    let world = World::start().await;
    let mut first = world.serving("llama").await;
    let mut running = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = first.offer().await;
    first.chunk(&offer, &chunk("to")).await;
    soon("a token", running.chunk()).await.expect("it goes on");
    first.drain_within(Duration::from_secs(30)).await;
    let mut second = world.client_with("mcplocal", &[provider("llama", true)]).await;
    world.active("llama").await;
    let next = infer(&world);
    let taken = second.offer().await;
    second.finish_body(&taken, &completion("from the successor")).await;
    assert_eq!(reply(next).await.status, 200);
    first.chunk(&offer, &chunk("gether")).await;
    first.chunk(&offer, &last_chunk()).await;
    first.finish(&offer, None).await;
    assert_eq!(soon("the end", running.collect()).await.text(), "gether");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn after_a_goodbye_a_session_that_has_a_successor_is_replaced_when_its_grace_is_over() {
    let world = World::start().await;
    let mut first = world.serving("llama").await;
    let call = infer(&world);
    first.offer().await;
    let began = Instant::now();
    first.drain_within(Duration::from_secs(30)).await;
    let _second = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let status = first.ended().await;
    assert_eq!((status.code(), began.elapsed().as_secs()), (Code::Aborted, 30), "{status:?}");
    assert_eq!(reply(call).await.status, 502);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_withdrawal_never_cancels_running_work_but_answers_queued_tasks_with_503() {
    let (world, mut client) = serving_one_at_a_time().await;
    let mut running = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one")).await;
    soon("a chunk", running.chunk()).await.expect("a chunk");
    let waiting = infer(&world);
    queued(&world, 1).await;
    client.push(&[]).await;
    let refused = reply(waiting).await;
    assert_eq!((refused.status, refused.retry_after.is_some()), (503, true));
    world.inactive("llama").await;
    pass(Duration::from_secs(60)).await;
    client.chunk(&offer, &crate::support::last_chunk()).await;
    client.finish(&offer, None).await;
    assert!(soon("the end", running.collect()).await.is_done(), "it was never cancelled");
    world.assert_clean();
}

// ---- the agent's own end -------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_stopping_agent_says_drain_and_ends_streams_unavailable_and_health_not_serving() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let call = infer(&world);
    let offer = client.offer().await;
    let mut health = HealthClient::new(channel(&world.config.socket).await);
    let request = || HealthCheckRequest { service: "mcprelay.bridge.v1.BridgeService".into() };
    let before = health.check(request()).await.expect("health answers").into_inner();
    assert_eq!(before.status(), ServingStatus::Serving);
    world.drain();
    let goodbye = |payload| match payload {
        session_response::Payload::Drain(drain) => Some(drain),
        _ => None,
    };
    assert_eq!(client.wait_for(goodbye).await.grace_ms, 120_000);
    let after = health.check(request()).await.expect("health answers").into_inner();
    assert_eq!(after.status(), ServingStatus::NotServing);
    let mut late = world.client("late").await;
    assert!((1..=120_000).contains(&late.wait_for(goodbye).await.grace_ms), "whoever comes now is told, too");
    let mut watch = Watch::open(&world.config.socket).await;
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    for ended in [client.ended().await, late.ended().await, watch.ended().await] {
        assert_eq!(ended.code(), Code::Unavailable);
    }
    world.stopped().await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_stop_with_open_streams_and_a_deaf_client_ends_in_bounded_time() {
    let mut world =
        World::with(FakeMcpd::builder(), |config| config.drain_timeout = Duration::from_secs(2)).await;
    let mut client = world.serving("llama").await;
    let call = infer(&world);
    client.offer().await;
    let _watch = Watch::open(&world.config.socket).await;
    let _silent = Client::silent(&world.config.socket).await;
    let began = Instant::now();
    world.stop_agent().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(reply(call).await.status, 503);
}

// ---- limits and peers -----------------------------------------------------------------------------------------------

#[test]
fn a_peer_whose_uid_is_not_known_is_denied() {
    use tonic::service::Interceptor as _;
    let mut guard = mcprelay::bridge::service::UidGuard::new(&[]);
    let denied = guard.call(tonic::Request::new(())).expect_err("nobody is let in without a uid");
    assert_eq!(denied.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn a_task_too_large_for_the_clients_own_limit_ends_with_413_and_smaller_ones_go_on() {
    let world = World::start().await;
    let mut client = Client::connect_limited(&world.config.socket, "mcplocal", 64 << 10).await;
    client.push(&[provider("llama", true)]).await;
    world.active("llama").await;
    let large = InferRequest::new("llama", &chat(&"x".repeat(64 << 10)));
    let refused = reply(world.mcpd.submit(large).expect("accepted")).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (413, &json!("too_large")));
    serves(&world, &mut client).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_limit_of_its_own_has_grpcs_four_mebibytes() {
    let world = World::start().await;
    let mut client = Client::connect_limited(&world.config.socket, "mcplocal", 0).await;
    client.push(&[provider("llama", true)]).await;
    world.active("llama").await;
    for (size, status) in [((4 << 20) + 1, 413), (3 << 20, 200)] {
        let call = world.mcpd.submit(InferRequest::new("llama", &chat(&"x".repeat(size)))).expect("accepted");
        if status == 200 {
            let offer = client.offer().await;
            client.finish_body(&offer, &completion("hi")).await;
        }
        assert_eq!(reply(call).await.status, status);
    }
}

#[tokio::test(start_paused = true)]
async fn every_pushed_provider_is_published_with_its_words_and_nothing_else_of_it() {
    let world = World::start().await;
    let full = pb::Provider {
        description: "a model".into(),
        max_in_flight: Some(2),
        state_detail: "private".into(),
        features: vec!["tools".into()],
        context_tokens: Some(8_192),
        ..provider("llama", true)
    };
    let snapshot = pb::ProviderSnapshot { generation: 4_000_000_000, providers: vec![full] };
    let mut client = world.client("mcplocal").await;
    client.send(session_request::Payload::ProviderSnapshot(snapshot)).await;
    let of_generation = |payload| match payload {
        session_response::Payload::ProviderSnapshotResult(r) => Some(r.generation),
        _ => None,
    };
    assert_eq!(client.wait_for(of_generation).await, 4_000_000_000);
    world.active("llama").await;
    assert_eq!(
        world.calls(CallKind::Register)[0].json()["providers"],
        json!([{"name": "llama", "type": "ollama", "model": "m", "tier": "fast", "description": "a model"}])
    );
}
