//! The life of a session with mcpd, from its first registration to its end, as in `docs/reference/contract.md`.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use fake_mcpd::{Aim, Answer, CallKind, FakeMcpd, InferRequest, Kind};
use mcprelay::{agent::Stopped, pb::AgentState};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Logs, World, chat, chunk, completion, gaps, last_chunk, named, pass, provider, soon};

/// Longer than any timer of the agent.
const LONG: Duration = Duration::from_secs(600);

fn session_file(world: &World) -> Value {
    let text = fs::read_to_string(world.path("provider-session")).expect("the file is there");
    serde_json::from_str(&text).expect("the file is JSON")
}

#[tokio::test(start_paused = true)]
async fn with_nothing_opted_in_no_call_is_made_at_all() {
    let world = World::start().await;
    let _client = world.client_with("mcplocal", &[provider("private", false)]).await;
    world.link(AgentState::Idle).await;
    pass(LONG).await;
    assert_eq!(world.kinds(), []);
}

#[tokio::test(start_paused = true)]
async fn the_first_registration_is_without_an_id_and_says_what_was_opted_in_and_nothing_more() {
    let world = World::start().await;
    let _client = world.client_with("mcplocal", &[provider("yes", true), provider("no", false)]).await;
    world.active("yes").await;
    let registers = world.calls(CallKind::Register);
    assert_eq!(
        registers.iter().map(fake_mcpd::Entry::json).collect::<Vec<_>>(),
        [json!({"providerSessionId": null,
                "providers": [{"name": "yes", "type": "ollama", "model": "m", "tier": "fast"}]})]
    );
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn the_sticky_id_is_kept_in_a_file_for_its_owner_alone() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    let id = world.row("llama").provider_session_id;
    assert_eq!(session_file(&world), json!({"providerSessionId": id, "mcpdUrl": world.mcpd.url()}));
    let mode = fs::metadata(world.path("provider-session")).expect("the file is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let names = fs::read_dir(world.home.path()).expect("the home is there");
    let names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
    let left = names.iter().filter(|name| name.to_string_lossy().starts_with(".mcprelay-"));
    assert_eq!(left.count(), 0, "nothing half written is left: {names:?}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_agent_comes_back_under_its_id_from_disk_and_revives_the_same_row() {
    let mut world = World::start().await;
    let client = world.serving("llama").await;
    let before = world.row("llama");
    world.kill_agent().await;
    drop(client);
    world.inactive("llama").await;
    pass(Duration::from_secs(1)).await;
    world.start_agent();
    let _client = world.serving("llama").await;
    let after = world.row("llama");
    assert_eq!((after.id, &after.provider_session_id), (before.id, &before.provider_session_id));
    let registers = world.calls(CallKind::Register);
    assert_eq!(registers.len(), 2);
    assert_eq!(registers[1].json()["providerSessionId"], json!(before.provider_session_id));
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_session_file_that_holds_just_an_id_is_accepted() {
    let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
    world.write_credentials();
    world.write("provider-session", "ps-of-another-program\n");
    world.start_agent();
    let _client = world.serving("llama").await;
    assert_eq!(world.row("llama").provider_session_id, "ps-of-another-program");
    let owned = json!({"providerSessionId": "ps-of-another-program", "mcpdUrl": world.mcpd.url()});
    assert_eq!(session_file(&world), owned, "from now on the file says whose id it is");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_come_at_the_configured_interval_and_name_the_session() {
    let interval = Duration::from_secs(7);
    let mcpd = FakeMcpd::builder().heartbeat_interval(interval);
    let world = World::with(mcpd, |config| config.heartbeat_interval = interval).await;
    let _client = world.serving("llama").await;
    let beats = world.calls_of(CallKind::Heartbeat, 5).await;
    let first = beats[0].at_ms - world.calls(CallKind::Register)[0].at_ms;
    for gap in gaps(&beats).into_iter().chain([first]) {
        assert!((6_990..=7_010).contains(&gap), "{gap} ms");
    }
    let id = world.row("llama").provider_session_id;
    assert!(beats.iter().all(|beat| beat.json() == json!({"providerSessionId": id})));
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn without_a_setting_heartbeats_come_every_thirty_seconds() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    let beats = world.calls_of(CallKind::Heartbeat, 4).await;
    assert!(gaps(&beats).iter().all(|gap| (29_990..=30_010).contains(gap)), "{:?}", gaps(&beats));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_revives_the_rows_that_mcpd_had_given_up() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    world.mcpd.answer(Aim::next(CallKind::Heartbeat).times(4), Answer::status(503));
    soon("the session to expire", world.mcpd.wait_for(|e| e.kind == Kind::SessionExpired)).await;
    world.inactive("llama").await;
    world.active("llama").await;
    assert_eq!(world.calls(CallKind::Register).len(), 1, "a heartbeat is enough");
}

#[tokio::test(start_paused = true)]
async fn missing_credentials_are_one_warning_and_a_visible_state_and_do_not_block_the_start() {
    let logs = Logs::keep();
    let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
    world.start_agent();
    let mut client = world.client("mcplocal").await;
    client.push(&[provider("llama", true)]).await;
    let link = world.link(AgentState::NoCredentials).await;
    let path = world.path("credentials").display().to_string();
    assert!(link.detail.contains(&path), "{}", link.detail);
    pass(LONG).await;
    assert_eq!(world.kinds(), []);
    let warnings = logs.lines_with("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains(&path), "{warnings:?}");
}

#[tokio::test(start_paused = true)]
async fn the_agent_is_online_within_five_seconds_of_the_credentials_appearing() {
    let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
    world.start_agent();
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    world.link(AgentState::NoCredentials).await;
    pass(LONG).await;
    let appeared = Instant::now();
    world.write_credentials();
    world.active("llama").await;
    assert!(appeared.elapsed() <= Duration::from_secs(5), "{:?}", appeared.elapsed());
}

#[tokio::test(start_paused = true)]
async fn broken_credentials_are_a_visible_state_until_somebody_mends_them() {
    let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
    world.write("credentials", "{\"mcpdUrl\": \"http://127.0.0.1:1\",\n \"token\": }secret");
    world.start_agent();
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::NoCredentials).await;
    assert!(link.detail.contains("not JSON at line 2"), "{}", link.detail);
    assert!(!link.detail.contains("secret"), "{}", link.detail);
    world.write_credentials();
    world.active("llama").await;
    world.link(AgentState::Online).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_mcpd_url_registers_afresh_without_the_other_mcpds_id() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    let other = FakeMcpd::start().await.expect("a loopback port");
    world.write("credentials", &json!({"mcpdUrl": other.url(), "token": other.token()}).to_string());
    soon("the other mcpd's row", other.wait_until(|s| s.is_active("llama"))).await;
    let first = soon("a register", other.wait_for(|e| e.is_call(CallKind::Register))).await;
    assert_eq!(first.json()["providerSessionId"], Value::Null);
    let id = other.llms()[0].provider_session_id.clone();
    let former =
        json!({"providerSessionId": world.row("llama").provider_session_id, "mcpdUrl": world.mcpd.url()});
    let kept = json!({"providerSessionId": id, "mcpdUrl": other.url(), "others": [former]});
    assert_eq!(session_file(&world), kept);
    world.inactive("llama").await;
    let before = world.mcpd.journal().len();
    pass(Duration::from_secs(60)).await;
    let since: Vec<_> = world.kinds().into_iter().skip(before).collect();
    assert!(!since.iter().any(|kind| matches!(kind, Kind::Call(_))), "{since:?}");
    assert!(other.violations().is_empty(), "{:?}", other.violations());
}

#[tokio::test(start_paused = true)]
async fn what_one_mcpd_asked_for_is_never_answered_to_another() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let mut call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one ")).await;
    soon("a token", call.chunk()).await.expect("a token");
    let other = FakeMcpd::start().await.expect("a loopback port");
    world.write("credentials", &json!({"mcpdUrl": other.url(), "token": other.token()}).to_string());
    soon("the other mcpd's row", other.wait_until(|s| s.is_active("llama"))).await;
    client.chunk(&offer, &chunk("two")).await;
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let got = soon("the end", call.collect()).await;
    assert!(got.is_done() && got.text() == "two", "{got:?}");
    let strayed = other.journal().into_iter().filter(|e| e.is_call(CallKind::Result)).count();
    assert_eq!(strayed, 0, "{:?}", other.journal());
}

#[tokio::test(start_paused = true)]
async fn an_id_from_disk_of_another_mcpd_is_not_used_even_if_the_credentials_come_later() {
    for late in [false, true] {
        let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
        let stale = json!({"providerSessionId": "ps-elsewhere", "mcpdUrl": "http://127.0.0.1:1"});
        world.write("provider-session", &stale.to_string());
        if !late {
            world.write_credentials();
        }
        world.start_agent();
        let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
        if late {
            world.link(AgentState::NoCredentials).await;
            world.write_credentials();
        }
        world.active("llama").await;
        assert_eq!(world.calls(CallKind::Register)[0].json()["providerSessionId"], Value::Null, "{late}");
    }
}

#[tokio::test(start_paused = true)]
async fn withdrawing_the_last_provider_deregisters_and_then_no_call_is_made() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    client.push(&[provider("llama", false)]).await;
    let registers = world.calls_of(CallKind::Register, 2).await;
    world.link(AgentState::Idle).await;
    assert_eq!(registers[1].json()["providers"], json!([]));
    let calls = |world: &World| world.kinds().iter().filter(|k| matches!(k, Kind::Call(_))).count();
    let before = calls(&world);
    pass(LONG).await;
    assert_eq!(calls(&world), before, "{:#?}", world.kinds());
    client.push(&[provider("llama", true)]).await;
    world.active("llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_set_is_one_register_call_and_leaves_the_channel_open() {
    let world = World::start().await;
    let mut client = world.serving("a").await;
    let ids = world.row("a").id;
    for model in ["1", "2", "3", "4", "5"] {
        client.push(&[provider("a", true), named("b", model)]).await;
    }
    let newest = |s: &fake_mcpd::Snapshot| s.llms.iter().any(|row| row.spec.model == "5");
    soon("the newest set", world.mcpd.wait_until(newest)).await;
    assert!(world.calls(CallKind::Register).len() <= 3, "one under way, and the newest set after it");
    assert_eq!(world.calls(CallKind::Stream).len(), 1);
    assert_eq!(world.row("a").id, ids);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn work_in_flight_survives_the_loss_of_the_channel() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let mut call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one ")).await;
    soon("the first chunk", call.chunk()).await.expect("a chunk");
    world.mcpd.break_channels();
    world.link(AgentState::Backoff).await;
    client.chunk(&offer, &chunk("two")).await;
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let rest = soon("the end", call.collect()).await;
    assert!(rest.is_done() && rest.text() == "two", "{rest:?}");
    assert_eq!(world.calls(CallKind::Stream).len(), 1, "the channel was away all the time");
    world.active("llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_ends_with_our_504_a_quarter_of_a_second_before_mcpds() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let request =
        InferRequest { deadline: Some(Duration::from_secs(3)), ..InferRequest::new("llama", &chat("hi")) };
    let began = Instant::now();
    let call = world.mcpd.submit(request).expect("accepted");
    let offer = client.offer().await;
    assert!((2_700..=2_750).contains(&offer.timeout_ms), "{} ms", offer.timeout_ms);
    let (reply, cancel) = tokio::join!(soon("the end", call.collect()), client.cancel());
    assert_eq!(cancel.reason(), mcprelay::pb::CancelReason::Deadline);
    let fake_mcpd::TaskEnd::Reply { status, body, .. } = reply.end else { panic!("{:?}", reply.end) };
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((status, &body["error"]["code"]), (504, &json!("task_timeout")));
    let took = began.elapsed().as_millis();
    assert!((2_745..=2_800).contains(&took), "{took} ms");
    client.finish_cancelled(&offer.task_id).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_killed_agent_are_ended_by_its_successor_and_never_run() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let id = client.offer().await.task_id;
    world.kill_agent().await;
    drop(client);
    pass(Duration::from_secs(1)).await;
    world.start_agent();
    let mut client = world.serving("llama").await;
    let ended = soon("the end", call.collect()).await;
    let fake_mcpd::TaskEnd::Failed { message, .. } = ended.end else { panic!("{:?}", ended.end) };
    assert!(message.contains("restarted"), "{message}");
    let keys: Vec<_> = world.calls(CallKind::Result).into_iter().filter_map(|e| e.key).collect();
    assert_eq!(keys, [format!("{id}/restart")]);
    // Handed over once more, it is not run; what comes behind it is.
    let again = json!({"kind": "infer", "taskId": id, "llmName": "llama", "streaming": true, "request": {}});
    world.mcpd.send_task(again.to_string());
    let _next = world.mcpd.infer_stream("llama", &chat("next")).expect("accepted");
    assert_ne!(client.offer().await.task_id, id);
    world.assert_clean();
}

// ---- stopping ------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn stop_closes_channel_timers_streams_and_socket() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    assert_eq!(world.stop_agent().await, Stopped::Drained);
    assert_eq!(client.ended().await.code(), tonic::Code::Unavailable);
    assert!(!world.config.socket.exists(), "the socket file is gone");
    soon("the channel to close", world.mcpd.wait_for(|e| e.kind == Kind::ChannelClosed)).await;
    let last = world.calls(CallKind::Register).pop().expect("a register call");
    assert_eq!(last.json()["providers"], json!([]), "it deregistered");
    let before = world.kinds();
    pass(LONG).await;
    let after: Vec<_> = world.kinds().split_off(before.len());
    assert!(!after.iter().any(|kind| matches!(kind, Kind::Call(_))), "{after:?}");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_drain_deregisters_at_once_and_lets_running_tasks_finish_while_heartbeats_go_on() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let infer = world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted");
    let offer = client.offer().await;
    world.drain();
    world.inactive("llama").await;
    world.link(AgentState::Draining).await;
    let beats = world.calls(CallKind::Heartbeat).len();
    world.calls_of(CallKind::Heartbeat, beats + 2).await;
    client.finish_body(&offer, &completion("late but whole")).await;
    let reply: fake_mcpd::InferReply = soon("the end", infer.collect()).await.end.into();
    assert_eq!((reply.status, &reply.body[..]), (200, completion("late but whole").as_bytes()));
    assert_eq!(world.stopped().await, Stopped::Drained);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_drain_answers_queued_and_new_tasks_with_503_and_running_ones_with_an_error_at_its_deadline() {
    let mut world = World::with(FakeMcpd::builder(), |c| {
        (c.max_in_flight, c.drain_timeout) = (1, Duration::from_secs(20))
    })
    .await;
    let mut client = world.serving("llama").await;
    let running = world.mcpd.submit(InferRequest::new("llama", &chat("1"))).expect("accepted");
    let offer = client.offer().await;
    let queued = world.mcpd.submit(InferRequest::new("llama", &chat("2"))).expect("accepted");
    crate::support::Watch::open(&world.config.socket).await.until(|s| s.tasks.len() == 2).await;
    world.drain();
    let began = Instant::now();
    let queued: fake_mcpd::InferReply = soon("the queued one's end", queued.collect()).await.end.into();
    assert_eq!((queued.status, &queued.json()["error"]["code"]), (503, &json!("shutting_down")));
    assert!(began.elapsed() < Duration::from_secs(1), "at once");
    world
        .mcpd
        .send_task(json!({"kind": "infer", "taskId": "late", "llmName": "llama", "request": {}}).to_string());
    let refused = soon(
        "the new one's end",
        world.mcpd.wait_for(|e| e.task.as_deref() == Some("late") && e.is_call(CallKind::Result)),
    )
    .await;
    assert_eq!(refused.json()["status"], 503);
    let cancel = client.cancel().await;
    assert_eq!((cancel.task_id, cancel.reason), (offer.task_id, mcprelay::pb::CancelReason::Shutdown.into()));
    let running: fake_mcpd::InferReply = soon("the running one's end", running.collect()).await.end.into();
    assert_eq!((running.status, &running.json()["error"]["code"]), (503, &json!("shutting_down")));
    let took = began.elapsed().as_secs_f64();
    assert!((19.9..=21.0).contains(&took), "{took} s");
    assert_eq!(world.stopped().await, Stopped::Drained);
    world.assert_clean();
}

crate::support::over_https![
    with_nothing_opted_in_no_call_is_made_at_all,
    the_first_registration_is_without_an_id_and_says_what_was_opted_in_and_nothing_more,
    the_sticky_id_is_kept_in_a_file_for_its_owner_alone,
    a_killed_agent_comes_back_under_its_id_from_disk_and_revives_the_same_row,
    a_session_file_that_holds_just_an_id_is_accepted,
    heartbeats_come_at_the_configured_interval_and_name_the_session,
    without_a_setting_heartbeats_come_every_thirty_seconds,
    a_heartbeat_revives_the_rows_that_mcpd_had_given_up,
    missing_credentials_are_one_warning_and_a_visible_state_and_do_not_block_the_start,
    the_agent_is_online_within_five_seconds_of_the_credentials_appearing,
    broken_credentials_are_a_visible_state_until_somebody_mends_them,
    a_changed_mcpd_url_registers_afresh_without_the_other_mcpds_id,
    what_one_mcpd_asked_for_is_never_answered_to_another,
    an_id_from_disk_of_another_mcpd_is_not_used_even_if_the_credentials_come_later,
    withdrawing_the_last_provider_deregisters_and_then_no_call_is_made,
    a_change_of_the_set_is_one_register_call_and_leaves_the_channel_open,
    work_in_flight_survives_the_loss_of_the_channel,
    a_task_ends_with_our_504_a_quarter_of_a_second_before_mcpds,
    tasks_of_a_killed_agent_are_ended_by_its_successor_and_never_run,
    stop_closes_channel_timers_streams_and_socket,
    a_drain_deregisters_at_once_and_lets_running_tasks_finish_while_heartbeats_go_on,
    a_drain_answers_queued_and_new_tasks_with_503_and_running_ones_with_an_error_at_its_deadline,
];
