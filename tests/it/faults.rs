//! The behaviours under faults, one by one. The simulation mixes them.

use std::{sync::atomic::Ordering, time::Duration};

use fake_mcpd::{Aim, Answer, Call, CallKind, FakeMcpd, InferRequest, Kind, TaskEnd};
use mcprelay::{agent::Stopped, core::CANCEL_BOUND, pb};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    Client, Watch, World, chat, chunk, completion, last_chunk, provider,
    proxy::{Order, Proxy},
    soon,
};

const SECOND: Duration = Duration::from_secs(1);

/// The next task of a stream, under way: its caller has the first token.
pub async fn begun(world: &World, client: &mut Client) -> (Call, pb::TaskOffer) {
    let mut call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one ")).await;
    assert_eq!(soon("a token", call.chunk()).await.expect("a token"), chunk("one "));
    (call, offer)
}

async fn finish_well(client: &Client, call: Call, offer: &pb::TaskOffer, rest: &str) {
    client.chunk(offer, &chunk(rest)).await;
    client.chunk(offer, &last_chunk()).await;
    client.finish(offer, None).await;
    let got = soon("the end", call.collect()).await;
    assert!(got.is_done() && got.text() == rest, "{got:?}");
}

fn error(end: &TaskEnd) -> (u16, Value) {
    match end {
        TaskEnd::Reply { status, body, .. } => {
            (*status, serde_json::from_slice::<Value>(body).expect("JSON")["error"].clone())
        }
        other => panic!("no status but {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_inference_goes_on_although_the_control_channel_broke() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    world.mcpd.break_channels();
    sleep(SECOND).await;
    finish_well(&client, call, &offer, "two").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_half_open_channel_is_given_up_after_its_idle_timeout() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    soon("a keep-alive", world.mcpd.wait_for(|e| e.kind == Kind::Ping)).await;
    let began = Instant::now();
    world.mcpd.go_silent();
    let opened = world.mcpd.journal().len() as u64;
    soon("another channel", world.mcpd.wait_for_since(opened, |e| e.is_call(CallKind::Stream))).await;
    let most = world.config.channel_idle_timeout + world.config.reconnect_min * 3 / 2;
    assert!(began.elapsed() <= most, "{:?} are more than {most:?}", began.elapsed());
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_part_whose_reply_was_lost_arrives_once() {
    let world = World::with(FakeMcpd::builder().result_stream(false), |_| {}).await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    world.mcpd.lose_reply(Aim::next(CallKind::Result).times(3));
    finish_well(&client, call, &offer, "two").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_part_was_lost_is_no_success_although_its_provider_had_ended() {
    let world = World::with(FakeMcpd::builder().idempotent_results(false).result_stream(false), |_| {}).await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    world.mcpd.delay(Aim::next(CallKind::Result), SECOND);
    world.mcpd.lose_reply(Aim::next(CallKind::Result));
    client.chunk(&offer, &chunk("two ")).await;
    sleep(SECOND / 10).await;
    client.chunk(&offer, &chunk("three ")).await;
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let got = soon("the end", call.collect()).await;
    let TaskEnd::Failed { message, .. } = &got.end else { panic!("{got:?}") };
    assert!(message.contains("could repeat tokens"), "{message}");
    assert_eq!(got.text(), "two ", "nothing that comes after the doubtful part is sent");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn after_a_sleep_the_agent_is_online_within_two_seconds_of_the_network_answering() {
    for network_is_back in [0, 400, 3_700, 12_300, 40_000] {
        let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
        let proxy = Proxy::start(world.mcpd.address()).await.expect("a loopback port");
        let credentials = json!({"mcpdUrl": world.url_through(&proxy), "token": world.mcpd.token()});
        world.write("credentials", &credentials.to_string());
        world.start_agent();
        let _client = world.serving("llama").await;
        // What was open before the sleep is dead, and so is what is tried before the network is back; nobody says so.
        proxy.order(Order::Deafen);
        sleep(SECOND).await;
        world.slept.fetch_add(3_600_000, Ordering::Relaxed);
        sleep(Duration::from_millis(network_is_back)).await;
        proxy.order(Order::Clear);
        let (seen, answers) = (world.mcpd.journal().len() as u64, Instant::now());
        soon("the channel", world.mcpd.wait_for_since(seen, |e| e.kind == Kind::Hello)).await;
        // The jump is looked for once a second.
        let within = answers.elapsed();
        assert!(
            within <= 2 * SECOND + SECOND / 5,
            "back after {network_is_back} ms: online {within:?} later"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_nobody_knows_registers_the_same_session_again() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    let id = world.mcpd.state().sessions[0].id.clone();
    world.mcpd.answer(Aim::next(CallKind::Heartbeat), Answer::status(404));
    let beat = soon("a heartbeat", world.mcpd.wait_for(|e| e.is_call(CallKind::Heartbeat))).await;
    let again = world.mcpd.wait_for_since(beat.seq, |e| e.is_call(CallKind::Register));
    let again = soon("a registration", again).await;
    assert_eq!(
        (again.session.as_deref(), again.at_ms),
        (Some(&id[..]), beat.at_ms),
        "at once, the same session"
    );
    world.active("llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn overload_is_refused_at_once_in_openais_shape_with_when_to_come_back() {
    let world =
        World::with(FakeMcpd::builder(), |config| (config.max_in_flight, config.max_queued) = (1, 1)).await;
    let mut client = world.serving("llama").await;
    let (_runs, _offer) = begun(&world, &mut client).await;
    let _waits = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    for streaming in [false, true] {
        let request = if streaming { InferRequest::streaming } else { InferRequest::new };
        let began = Instant::now();
        let call = world.mcpd.submit(request("llama", &chat("hi"))).expect("accepted");
        let end = soon("the refusal", call.collect()).await.end;
        assert!(began.elapsed() <= Duration::from_millis(50), "{:?}", began.elapsed());
        let TaskEnd::Reply { retry_after, .. } = &end else { panic!("{end:?}") };
        assert_eq!(retry_after.as_deref(), Some("1"));
        let (status, error) = error(&end);
        assert_eq!(
            (status, &error["type"], &error["code"]),
            (429, &json!("rate_limit_error"), &json!("overloaded"))
        );
        assert!(error["message"].as_str().is_some_and(|m| m.contains("1 running, 1 waiting")), "{error}");
    }
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_that_buffers_four_mib_ends_and_no_other_task_waits() {
    let world = World::with(FakeMcpd::builder(), |config| config.max_in_flight = 2).await;
    let mut client = world.serving("llama").await;
    let (slow, of_slow) = begun(&world, &mut client).await;
    let (other, of_other) = begun(&world, &mut client).await;
    world.mcpd.delay(Aim::next(CallKind::Result), 20 * SECOND);
    let large = chunk(&"x".repeat(64 << 10));
    for _ in 0..70 {
        client.chunk(&of_slow, &large).await;
    }
    let began = Instant::now();
    finish_well(&client, other, &of_other, "in time").await;
    assert!(began.elapsed() <= Duration::from_millis(50), "the other one waited {:?}", began.elapsed());
    let end = soon("the end", slow.collect()).await.end;
    assert!(
        matches!(&end, TaskEnd::Failed { message, .. } if message.contains("4 MiB") || message.contains("fast enough") || message.contains("slow")),
        "{end:?}"
    );
    assert_eq!(client.cancel().await.task_id, of_slow.task_id);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_provider_hears_within_100_ms_that_the_caller_left_and_its_late_chunks_go_nowhere() {
    let world = World::with(FakeMcpd::builder(), |config| config.max_in_flight = 1).await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    let left = Instant::now();
    drop(call);
    let cancel = client.cancel().await;
    assert_eq!(
        (cancel.task_id.clone(), cancel.reason()),
        (offer.task_id.clone(), pb::CancelReason::CallerGone)
    );
    assert!(left.elapsed() <= Duration::from_millis(100), "{:?}", left.elapsed());
    let mut watch = Watch::open(&world.config.socket).await;
    let ended = watch.until(|s| s.totals.is_some_and(|t| t.tasks_cancelled > 0.0)).await;
    assert_eq!(
        ended.totals.expect("totals").chunks,
        1.0,
        "a task whose slot is still held is not counted twice"
    );
    for _ in 0..3 {
        client.chunk(&offer, &chunk("late")).await;
    }
    client.finish_cancelled(&offer.task_id).await;
    let (call, offer) = begun(&world, &mut client).await;
    finish_well(&client, call, &offer, "two").await;
    let totals = client.status().await.totals.expect("totals");
    assert_eq!((totals.tasks_cancelled, totals.late_chunks), (1.0, 3.0), "{totals:?}");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn late_chunks_are_counted_after_the_providers_own_end_and_after_its_session() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    finish_well(&client, call, &offer, "one").await;
    let late = || pb::piece::Output::ChunkJson(chunk("late").into());
    client.chunk(&offer, &chunk("late")).await;
    let first = pb::task_chunk::Output::ChunkJson(chunk("late").into());
    client.together(&offer, first, vec![late()]).await;
    client.output(&offer, None::<pb::task_chunk::Output>).await;
    let mut watch = Watch::open(&world.config.socket).await;
    watch.until(|s| s.totals.is_some_and(|t| t.late_chunks == 3.0)).await;
    drop(client);
    let ended = watch.until(|s| s.sessions.is_empty()).await;
    assert_eq!(ended.totals.expect("totals").late_chunks, 3.0);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_held_until_the_cancel_is_confirmed_or_its_bound_has_passed() {
    for confirms in [true, false] {
        let world = World::with(FakeMcpd::builder(), |config| {
            (config.max_in_flight, config.queue_timeout) = (1, 3 * CANCEL_BOUND)
        })
        .await;
        let mut client = world.serving("llama").await;
        let (call, offer) = begun(&world, &mut client).await;
        let _next = world.mcpd.infer_stream("llama", &chat("next")).expect("accepted");
        drop(call);
        client.cancel().await;
        let told = Instant::now();
        if confirms {
            sleep(3 * SECOND).await;
            client.finish_cancelled(&offer.task_id).await;
        }
        client.offer().await;
        let expected = if confirms { 3 * SECOND } else { CANCEL_BOUND };
        let held = told.elapsed();
        assert!(held >= expected && held <= expected + Duration::from_millis(50), "held for {held:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_the_four_deadlines_has_an_error_of_its_own() {
    let world = World::with(FakeMcpd::builder(), |config| {
        (config.max_in_flight, config.max_queued) = (1, 2);
        (config.queue_timeout, config.first_token_timeout) = (5 * SECOND, 20 * SECOND);
        (config.idle_token_timeout, config.task_timeout) = (10 * SECOND, 100 * SECOND);
    })
    .await;
    let mut client = world.serving("llama").await;
    let silent = world.mcpd.infer_stream("llama", &chat("1")).expect("accepted");
    let offer = client.offer().await;
    let queued = world.mcpd.infer_stream("llama", &chat("2")).expect("accepted");
    let took = |began: Instant| began.elapsed().as_secs();

    let began = Instant::now();
    let (status, why) = error(&soon("the end", queued.collect()).await.end);
    assert_eq!((status, &why["code"], took(began)), (504, &json!("queue_timeout"), 5));
    let (status, why) = error(&soon("the end", silent.collect()).await.end);
    assert_eq!((status, &why["code"], took(began)), (504, &json!("first_token_timeout"), 20));
    client.cancel().await;
    client.finish_cancelled(&offer.task_id).await;

    let (stalls, offer) = begun(&world, &mut client).await;
    let began = Instant::now();
    let end = soon("the end", stalls.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if message.contains("next token")), "{end:?}");
    assert_eq!(took(began), 10);
    client.cancel().await;
    client.finish_cancelled(&offer.task_id).await;

    let plain = InferRequest { deadline: Some(30 * SECOND), ..InferRequest::new("llama", &chat("3")) };
    let (began, plain) = (Instant::now(), world.mcpd.submit(plain).expect("accepted"));
    let (status, why) = error(&soon("the end", plain.collect()).await.end);
    assert_eq!(
        (status, &why["code"], took(began)),
        (504, &json!("task_timeout"), 29),
        "250 ms before mcpd's own"
    );
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_work_finish_refuses_the_rest_and_leaves_nothing() {
    let mut world = World::with(FakeMcpd::builder(), |config| config.max_in_flight = 1).await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    let waiting = world.mcpd.infer_stream("llama", &chat("waits")).expect("accepted");
    // A task event that crosses the goodbye on its way.
    let crossing = world.mcpd.infer_stream("llama", &chat("crosses")).expect("accepted");
    world.drain();
    for call in [waiting, crossing] {
        let (status, why) = error(&soon("the answer", call.collect()).await.end);
        assert_eq!((status, &why["code"]), (503, &json!("shutting_down")));
    }
    world.inactive("llama").await;
    assert_eq!(world.mcpd.infer("llama", &chat("late")).await.status, 503);
    finish_well(&client, call, &offer, "two").await;
    assert_eq!(world.stopped().await, Stopped::Drained);
    assert!(world.mcpd.state().tasks.is_empty(), "{:?}", world.mcpd.state().tasks);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_what_does_not_finish_in_time_and_says_so() {
    let mut world = World::with(FakeMcpd::builder(), |config| config.drain_timeout = 7 * SECOND).await;
    let mut client = world.serving("llama").await;
    let (call, _offer) = begun(&world, &mut client).await;
    let began = Instant::now();
    let stopped = world.stop_agent().await;
    assert_eq!((stopped, began.elapsed().as_secs()), (Stopped::Drained, 7));
    let end = soon("the end", call.collect()).await.end;
    assert!(
        matches!(&end, TaskEnd::Failed { message, .. } if message.contains("the agent is stopping")),
        "{end:?}"
    );
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_at_once_and_tells_the_callers() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let (call, _offer) = begun(&world, &mut client).await;
    world.drain();
    sleep(SECOND).await;
    let began = Instant::now();
    world.abort();
    assert_eq!(world.stopped().await, Stopped::Aborted);
    assert!(began.elapsed() <= SECOND, "{:?}", began.elapsed());
    let end = soon("the end", call.collect()).await.end;
    let told = |message: &str| message.contains("the agent is stopping");
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if told(message)), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_waits_two_seconds_at_most_for_an_mcpd_that_takes_nothing() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let (_call, _offer) = begun(&world, &mut client).await;
    world.mcpd.refuse(fake_mcpd::Refused::Calls, None);
    let began = Instant::now();
    world.abort();
    assert_eq!(world.stopped().await, Stopped::Aborted);
    assert_eq!(began.elapsed().as_secs(), 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_mcpd_that_closes_every_channel_at_once_is_not_hammered_and_the_state_says_what_is_wrong() {
    let world = World::start().await;
    world.mcpd.close_channels(0);
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    sleep(300 * SECOND).await;
    let opened = world.calls(CallKind::Stream).len();
    assert!((3..=12).contains(&opened), "{opened} channels in five minutes");
    let agent = client.status().await.agent.expect("a status");
    assert_eq!(agent.state(), pb::AgentState::Refused, "{agent:?}");
    assert!(agent.detail.contains("another process"), "{}", agent.detail);
}

#[tokio::test(start_paused = true)]
async fn results_that_fail_for_a_minute_are_in_the_status_until_one_gets_through() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    world.mcpd.answer(Aim { times: 0, ..Aim::next(CallKind::Result) }, Answer::status(503));
    let call = world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted");
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("late")).await;
    sleep(50 * SECOND).await;
    let detail = |status: pb::WatchStatusResponse| status.agent.expect("a status").detail;
    assert_eq!(detail(client.status().await), "");
    sleep(20 * SECOND).await;
    let said = detail(client.status().await);
    assert!(said.contains("results have not got through"), "{said}");
    world.mcpd.clear_faults();
    let end = soon("the end", call.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Reply { status: 200, .. }), "{end:?}");
    sleep(2 * SECOND).await;
    assert_eq!(detail(client.status().await), "");
}

crate::support::over_https![
    an_inference_goes_on_although_the_control_channel_broke,
    a_half_open_channel_is_given_up_after_its_idle_timeout,
    a_part_whose_reply_was_lost_arrives_once,
    a_stream_whose_part_was_lost_is_no_success_although_its_provider_had_ended,
    after_a_sleep_the_agent_is_online_within_two_seconds_of_the_network_answering,
    a_heartbeat_that_nobody_knows_registers_the_same_session_again,
    overload_is_refused_at_once_in_openais_shape_with_when_to_come_back,
    a_task_that_buffers_four_mib_ends_and_no_other_task_waits,
    a_provider_hears_within_100_ms_that_the_caller_left_and_its_late_chunks_go_nowhere,
    late_chunks_are_counted_after_the_providers_own_end_and_after_its_session,
    a_slot_is_held_until_the_cancel_is_confirmed_or_its_bound_has_passed,
    each_of_the_four_deadlines_has_an_error_of_its_own,
    a_drain_lets_work_finish_refuses_the_rest_and_leaves_nothing,
    a_drain_ends_what_does_not_finish_in_time_and_says_so,
    a_second_signal_ends_at_once_and_tells_the_callers,
    an_mcpd_that_closes_every_channel_at_once_is_not_hammered_and_the_state_says_what_is_wrong,
];
