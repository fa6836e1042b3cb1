//! How much runs at once and what happens to the rest: slots, queues, pauses, a consumer that is too slow.

use std::time::Duration;

use fake_mcpd::{Aim, Call, CallKind, FakeMcpd, InferReply, InferRequest, TaskEnd};
use mcprelay::pb::{self, SetPausedRequest};
use serde_json::json;
use tokio::time::Instant;
use tonic::Code;

use crate::support::{Client, Watch, World, chat, chunk, completion, last_chunk, pass, provider, soon};

fn infer(world: &World, llm: &str) -> Call {
    world.mcpd.submit(InferRequest::new(llm, &chat("hi"))).expect("accepted")
}

async fn reply(call: Call) -> InferReply {
    soon("the end", call.collect()).await.end.into()
}

fn with_slots(name: &str, max_in_flight: u32) -> pb::Provider {
    pb::Provider { max_in_flight: Some(max_in_flight), ..provider(name, true) }
}

/// Waits until the agent has so many tasks running and waiting.
async fn load(world: &World, running: u32, queued: u32) {
    let load = |s: &pb::WatchStatusResponse| {
        let sum = |of: fn(&pb::ProviderStatus) -> u32| s.providers.iter().map(of).sum::<u32>();
        (sum(|p| p.running), sum(|p| p.queued)) == (running, queued)
    };
    Watch::open(&world.config.socket).await.until(load).await;
}

async fn serving(world: &World, providers: &[pb::Provider]) -> Client {
    let client = world.client_with("mcplocal", providers).await;
    for provider in providers {
        world.active(&provider.name).await;
    }
    client
}

async fn set_paused(client: &mut Client, name: &str, paused: bool) -> Result<Vec<String>, tonic::Status> {
    let request = SetPausedRequest { provider_name: name.to_owned(), paused, until: String::new() };
    Ok(client.rpc.set_paused(request).await?.into_inner().changed)
}

#[tokio::test(start_paused = true)]
async fn a_providers_own_number_of_slots_counts_and_the_next_task_gets_a_slot_when_one_ends() {
    let world = World::start().await;
    let mut client = serving(&world, &[with_slots("llama", 2)]).await;
    let calls = [infer(&world, "llama"), infer(&world, "llama"), infer(&world, "llama")];
    let offers = [client.offer().await, client.offer().await];
    load(&world, 2, 1).await;
    client.finish_body(&offers[1], &completion("second")).await;
    let third = client.offer().await;
    client.finish_body(&third, &completion("third")).await;
    client.finish_body(&offers[0], &completion("first")).await;
    let [first, second, third] = calls;
    for (call, text) in [(first, "first"), (second, "second"), (third, "third")] {
        assert_eq!(&reply(call).await.body[..], completion(text).as_bytes());
    }
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn without_a_number_of_its_own_a_provider_has_the_agents() {
    let world = World::with(FakeMcpd::builder(), |config| config.max_in_flight = 3).await;
    let _client = serving(&world, &[provider("llama", true)]).await;
    let _calls: Vec<_> = (0..5).map(|_| infer(&world, "llama")).collect();
    load(&world, 3, 2).await;
}

#[tokio::test(start_paused = true)]
async fn zero_slots_mean_none_now_the_provider_stays_listed_and_its_tasks_wait() {
    let world = World::start().await;
    let mut client = serving(&world, &[with_slots("llama", 0)]).await;
    let call = infer(&world, "llama");
    load(&world, 0, 1).await;
    assert!(world.mcpd.state().is_active("llama"));
    client.push(&[with_slots("llama", 1)]).await;
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_waits_for_a_slot_no_longer_than_the_queue_timeout() {
    let world = World::start().await;
    let _client = serving(&world, &[with_slots("llama", 0)]).await;
    let began = Instant::now();
    let got = reply(infer(&world, "llama")).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (504, &json!("queue_timeout")));
    let waited = began.elapsed().as_secs_f64();
    assert!((29.9..=30.2).contains(&waited), "{waited} s");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn beyond_slots_and_queue_a_task_is_answered_429_at_once_and_other_providers_are_not_touched() {
    let world = World::with(FakeMcpd::builder(), |config| config.max_queued = 1).await;
    let mut client = serving(&world, &[with_slots("full", 1), provider("free", true)]).await;
    let _running = infer(&world, "full");
    client.offer().await;
    let _waiting = infer(&world, "full");
    load(&world, 1, 1).await;
    let began = Instant::now();
    let got = reply(infer(&world, "full")).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (429, &json!("overloaded")));
    assert!(got.retry_after.is_some());
    assert!(began.elapsed() < Duration::from_secs(1));
    let call = infer(&world, "free");
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_holds_its_slot_until_the_provider_has_ended_it() {
    let world = World::start().await;
    let mut client = serving(&world, &[with_slots("llama", 1)]).await;
    let gone = world.mcpd.infer_stream("llama", &chat("1")).expect("accepted");
    let first = client.offer().await;
    let next = infer(&world, "llama");
    load(&world, 1, 1).await;
    drop(gone);
    assert_eq!(client.cancel().await.task_id, first.task_id);
    pass(Duration::from_secs(5)).await;
    load(&world, 1, 1).await;
    client.finish_cancelled(&first.task_id).await;
    let second = client.offer().await;
    client.finish_body(&second, &completion("hi")).await;
    assert_eq!(reply(next).await.status, 200);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_paused_provider_takes_no_new_work_until_resumed_and_what_runs_goes_on() {
    let world = World::start().await;
    let mut client = serving(&world, &[provider("a", true), provider("b", true)]).await;
    let running = infer(&world, "a");
    let offer = client.offer().await;
    assert_eq!(set_paused(&mut client, "a", true).await.expect("done"), ["a"]);
    assert!(set_paused(&mut client, "a", true).await.expect("done").is_empty(), "it is paused already");
    world.inactive("a").await;
    assert!(world.mcpd.state().is_active("b"), "the other one is not touched");
    world.mcpd.send_task(json!({"kind":"infer","taskId":"t-late","llmName":"a","request":{}}).to_string());
    let late = |e: &fake_mcpd::Entry| e.is_call(CallKind::Result) && e.task.as_deref() == Some("t-late");
    let refused = soon("an answer", world.mcpd.wait_for(late)).await.json();
    assert_eq!(refused["status"], 503);
    assert!(refused["body"]["error"]["message"].as_str().is_some_and(|m| m.contains("paused")), "{refused}");
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(running).await.status, 200);
    assert_eq!(set_paused(&mut client, "a", false).await.expect("done"), ["a"]);
    world.active("a").await;
    let again = infer(&world, "a");
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(again).await.status, 200);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn pausing_everything_reaches_providers_that_come_later_and_resuming_lets_all_work() {
    let world = World::start().await;
    let mut client = serving(&world, &[provider("a", true)]).await;
    assert_eq!(set_paused(&mut client, "", true).await.expect("done"), ["a"]);
    world.inactive("a").await;
    client.push(&[provider("a", true), provider("b", true)]).await;
    pass(Duration::from_secs(5)).await;
    assert!(!world.mcpd.state().is_active("b"));
    let changed = set_paused(&mut client, "", false).await.expect("done");
    assert_eq!(changed, ["a", "b"]);
    world.active("a").await;
    world.active("b").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn after_all_were_paused_one_can_be_resumed_and_the_others_stay_paused() {
    let world = World::start().await;
    let mut client = serving(&world, &[provider("a", true), provider("b", true)]).await;
    assert_eq!(set_paused(&mut client, "", true).await.expect("done"), ["a", "b"]);
    world.inactive("a").await;
    assert_eq!(set_paused(&mut client, "a", false).await.expect("done"), ["a"]);
    world.inactive("b").await;
    world.active("a").await;
    assert_eq!(set_paused(&mut client, "", true).await.expect("done"), ["a"], "all means all again");
    world.inactive("a").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn pausing_a_name_that_nobody_pushed_is_not_found() {
    let world = World::start().await;
    let mut client = serving(&world, &[provider("a", true)]).await;
    for paused in [true, false] {
        let refused = set_paused(&mut client, "typo", paused).await.expect_err("there is no such provider");
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("'typo'"), "{}", refused.message());
    }
    client.push(&[provider("typo", true)]).await;
    world.active("typo").await;
    assert_eq!(
        set_paused(&mut client, "a\n", true).await.expect_err("no name").code(),
        Code::InvalidArgument
    );
}

#[tokio::test(start_paused = true)]
async fn a_loading_provider_stays_listed_and_an_unavailable_one_is_withdrawn() {
    let world = World::start().await;
    let state = |state: pb::ProviderState| pb::Provider { state: state.into(), ..provider("llama", true) };
    let mut client = serving(&world, &[state(pb::ProviderState::Loading)]).await;
    let call = infer(&world, "llama");
    load(&world, 0, 1).await;
    client.push(&[state(pb::ProviderState::Ready)]).await;
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    client.push(&[state(pb::ProviderState::Unavailable)]).await;
    world.inactive("llama").await;
    client.push(&[state(pb::ProviderState::Ready)]).await;
    world.active("llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_output_piles_up_ends_as_a_slow_consumer_and_holds_up_no_other() {
    let world = World::start().await;
    let mut client = serving(&world, &[provider("llama", true)]).await;
    world.mcpd.delay(Aim::next(CallKind::Result), Duration::from_secs(25));
    let slow = world.mcpd.infer_stream("llama", &chat("1")).expect("accepted");
    let slow_offer = client.offer().await;
    client.chunk(&slow_offer, &chunk("held ")).await;
    pass(Duration::from_millis(10)).await;
    let mut fast = world.mcpd.infer_stream("llama", &chat("2")).expect("accepted");
    let fast_offer = client.offer().await;
    let megabyte = chunk(&"x".repeat(1 << 20));
    for _ in 0..5 {
        client.chunk(&slow_offer, &megabyte).await;
    }
    client.chunk(&fast_offer, &chunk("in time")).await;
    let began = Instant::now();
    assert_eq!(soon("a chunk", fast.chunk()).await.as_deref(), Some(chunk("in time").as_bytes()));
    assert!(began.elapsed() < Duration::from_secs(1), "reading a session never pauses for one task");
    assert_eq!(client.cancel().await.task_id, slow_offer.task_id);
    client.finish_cancelled(&slow_offer.task_id).await;
    let end = soon("the end", slow.collect()).await.end;
    let (TaskEnd::Failed { .. } | TaskEnd::Reply { status: 503, .. }) = end else { panic!("{end:?}") };
    client.chunk(&fast_offer, &last_chunk()).await;
    client.finish(&fast_offer, None).await;
    assert!(soon("the end", fast.collect()).await.is_done());
    let recent = client.status().await.recent;
    let outcome = recent.iter().find(|t| t.task_id == slow_offer.task_id).map(|t| t.outcome.as_str());
    assert_eq!(outcome, Some("slow_consumer"));
    world.assert_clean();
}
