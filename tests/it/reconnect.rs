//! When mcpd refuses, fails or goes away: the backoff, and every status code of the contract's table on register, channel and
//! heartbeat. The table is in `docs/reference/contract.md`, "Replies".

use std::time::Duration;

use fake_mcpd::{Aim, Answer, CallKind, Entry, FakeMcpd, Refused};
use mcprelay::pb::{self, AgentState};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Logs, Watch, World, gaps, pass, provider, soon};

/// Asserts that a wait was `base` seconds and a jitter of up to half of it.
fn assert_wait(ms: u64, base: u64) {
    let seconds = Duration::from_millis(ms).as_secs_f64();
    let base = Duration::from_secs(base).as_secs_f64();
    assert!(
        (base - 0.01..=base * 1.5 + 0.3).contains(&seconds),
        "waited {seconds} s where {base} s were due"
    );
}

fn providers_of(call: &Entry) -> Vec<String> {
    let body = call.json();
    let names =
        body["providers"].as_array().into_iter().flatten().map(|p| p["name"].as_str().unwrap_or_default());
    names.map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn a_register_error_surfaces_in_the_status_and_never_ends_the_agent() {
    let world = World::start().await;
    let answer = Answer::status(500).body(r#"{"error":"the database is away"}"#);
    world.mcpd.answer(Aim::next(CallKind::Register), answer);
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::Backoff).await;
    for part in ["register", "500", &world.mcpd.url(), "the database is away"] {
        assert!(link.detail.contains(part), "{part:?} is missing in {}", link.detail);
    }
    let wait = link.next_attempt_ms.expect("it says when it tries again");
    assert!((4_000..=7_500).contains(&wait), "{wait} ms");
    world.active("llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn backoff_waits_5_10_20_40_60_and_60_seconds_before_jitter() {
    let world = World::start().await;
    world.mcpd.answer(Aim::next(CallKind::Register).times(6), Answer::status(503));
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let waits = gaps(&world.calls_of(CallKind::Register, 7).await);
    for (ms, base) in waits.iter().zip([5, 10, 20, 40, 60, 60]) {
        assert_wait(*ms, base);
    }
    let exact =
        waits.iter().zip([5, 10, 20, 40, 60, 60]).filter(|(ms, base)| **ms < base * 1000 + 20).count();
    assert!(exact <= 1, "there is a jitter: {waits:?}");
    world.active("llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn the_backoff_starts_over_only_once_a_channel_has_proved_itself() {
    let world = World::start().await;
    world.mcpd.answer(Aim::next(CallKind::Stream).times(3), Answer::status(503));
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let opened = gaps(&world.calls_of(CallKind::Stream, 4).await);
    // Each registration in between was answered 200, and proved nothing.
    assert_eq!(world.calls(CallKind::Register).iter().filter(|e| e.status == Some(200)).count(), 4);
    for (ms, base) in opened.iter().zip([5, 10, 20]) {
        assert_wait(*ms, base);
    }
    world.active("llama").await;
    pass(Duration::from_secs(10)).await;
    let dropped = Instant::now();
    world.mcpd.drop_channels();
    world.calls_of(CallKind::Stream, 5).await;
    assert_wait(u64::try_from(dropped.elapsed().as_millis()).expect("short"), 5);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn the_configured_backoff_is_kept_to() {
    let world = World::with(FakeMcpd::builder(), |config| {
        (config.reconnect_min, config.reconnect_max) = (Duration::from_secs(1), Duration::from_secs(3));
    })
    .await;
    world.mcpd.answer(Aim::next(CallKind::Register).times(4), Answer::status(503));
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    for (ms, base) in gaps(&world.calls_of(CallKind::Register, 5).await).into_iter().zip([1, 2, 3, 3]) {
        assert_wait(ms, base);
    }
}

#[tokio::test(start_paused = true)]
async fn passing_trouble_on_register_is_tried_again_and_retry_after_honoured() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let world = World::start().await;
        world.mcpd.answer(Aim::next(CallKind::Register), Answer::status(status).retry_after(33));
        let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
        let waits = gaps(&world.calls_of(CallKind::Register, 2).await);
        assert!((33_000..=33_300).contains(&waits[0]), "{status}: {waits:?}");
        world.active("llama").await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_mcpd_that_cannot_be_reached_is_tried_again_within_the_backoff() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    world.mcpd.refuse(Refused::Connections, Some(Duration::from_secs(17)));
    world.mcpd.restart();
    let link = world.link(AgentState::Backoff).await;
    assert!(!link.detail.is_empty());
    world.active("llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_half_open_channel_is_given_up_and_reopened() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    pass(Duration::from_secs(20)).await;
    world.mcpd.go_silent();
    let silent = Instant::now();
    world.calls_of(CallKind::Stream, 2).await;
    let took = silent.elapsed().as_secs();
    assert!((55..=75).contains(&took), "{took} s: four missed keep-alives and a backoff");
    world.active("llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_never_sends_keep_alives_is_checked_by_opening_another_once_per_idle_timeout() {
    let world = World::with(FakeMcpd::builder().ping_interval(Duration::ZERO), |_| {}).await;
    let mut client = world.serving("llama").await;
    // Neither the greeting nor a task is a keep-alive.
    let call = world.mcpd.infer_stream("llama", &json!({})).expect("accepted");
    let offer = client.offer().await;
    client.finish_text(&offer, "done").await;
    soon("the end", call.collect()).await;
    let registered = world.calls(CallKind::Register).len();
    pass(Duration::from_secs(600)).await;
    let opened = world.calls(CallKind::Stream).len();
    assert!((10..=11).contains(&opened), "{opened}");
    world.link(AgentState::Online).await;
    assert_eq!(world.calls(CallKind::Register).len(), registered, "it was never given up");
    world.mcpd.send_raw(": still here\n\n");
    let said = Instant::now();
    world.calls_of(CallKind::Register, registered + 1).await;
    let took = said.elapsed().as_secs();
    assert!((60..=68).contains(&took), "{took} s: a comment is one, and then silence means something");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_dies_before_its_first_keep_alive_is_replaced_within_the_idle_timeout() {
    let world = World::with(FakeMcpd::builder().ping_interval(Duration::ZERO), |_| {}).await;
    let mut client = world.serving("llama").await;
    world.mcpd.go_silent();
    pass(Duration::from_secs(61)).await;
    let call = world.mcpd.infer_stream("llama", &json!({})).expect("accepted");
    let offer = client.offer().await;
    client.finish_text(&offer, "done").await;
    soon("the end", call.collect()).await;
}

#[tokio::test(start_paused = true)]
async fn mcpds_own_retry_field_changes_nothing() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    world.mcpd.send_raw("retry: 600000\\n\\n");
    pass(Duration::from_secs(10)).await;
    let dropped = Instant::now();
    world.mcpd.drop_channels();
    world.calls_of(CallKind::Stream, 2).await;
    assert_wait(u64::try_from(dropped.elapsed().as_millis()).expect("short"), 5);
}

#[tokio::test(start_paused = true)]
async fn a_404_on_register_is_refused_and_names_the_url_and_check_mcpd() {
    let world = World::start().await;
    world.mcpd.answer(Aim::next(CallKind::Register).times(2), Answer::status(404));
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::Refused).await;
    for part in ["no provider API", &world.mcpd.url()] {
        assert!(link.detail.contains(part), "{part:?} is missing in {}", link.detail);
    }
    assert!(link.advice.contains("check-mcpd"), "{}", link.advice);
    let waits = gaps(&world.calls_of(CallKind::Register, 3).await);
    assert_wait(waits[0], 5);
    assert_wait(waits[1], 10);
    world.active("llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_404_or_410_on_the_channel_registers_at_once_with_the_same_id_and_the_next_one_within_the_backoff()
{
    for status in [404, 410] {
        let world = World::start().await;
        let _client = world.serving("llama").await;
        let id = world.row("llama").provider_session_id;
        world.mcpd.answer(Aim::next(CallKind::Stream).times(2), Answer::status(status));
        world.mcpd.drop_channels();
        // The reconnect after the drop, the one at once, and the one after the backoff.
        let registers = world.calls_of(CallKind::Register, 4).await;
        assert!(registers[1..].iter().all(|r| r.json()["providerSessionId"] == json!(id)));
        let waits = gaps(&registers);
        assert!(waits[1] <= 260, "{waits:?}: at once means the spacing of register calls");
        assert!(waits[2] >= 5_000, "{waits:?}");
        world.active("llama").await;
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_404_or_410_on_a_heartbeat_registers_at_once_with_the_same_id() {
    for status in [404, 410] {
        let world = World::start().await;
        let _client = world.serving("llama").await;
        let id = world.row("llama").provider_session_id;
        world.mcpd.answer(Aim::next(CallKind::Heartbeat), Answer::status(status));
        let again = world.calls_of(CallKind::Register, 2).await.remove(1);
        let beat = world.calls(CallKind::Heartbeat).remove(0);
        assert!(again.at_ms - beat.at_ms <= 10, "{} ms", again.at_ms - beat.at_ms);
        assert_eq!(again.json()["providerSessionId"], json!(id));
        world.active("llama").await;
        world.link(AgentState::Online).await;
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn an_mcpd_that_forgot_everything_gets_the_same_rows_back() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    let before = world.row("llama");
    world.mcpd.forget_sessions();
    world.inactive("llama").await;
    world.active("llama").await;
    let after = world.row("llama");
    assert_eq!((after.id, after.provider_session_id), (before.id, before.provider_session_id));
}

#[tokio::test(start_paused = true)]
async fn a_401_is_tried_again_at_once_if_the_token_on_disk_has_changed() {
    let world = World::start().await;
    let mut client = world.serving("a").await;
    // Between two looks at the file.
    pass(Duration::from_millis(1_500)).await;
    world.mcpd.set_token("renewed");
    world.write_credentials();
    client.push(&[provider("a", true), provider("b", true)]).await;
    let registers = world.calls_of(CallKind::Register, 3).await;
    let statuses: Vec<_> = registers.iter().map(|r| r.status).collect();
    assert_eq!(statuses, [Some(200), Some(401), Some(200)]);
    assert!(gaps(&registers)[1] <= 260, "{:?}", gaps(&registers));
    world.active("b").await;
}

#[tokio::test(start_paused = true)]
async fn a_heartbeats_401_is_tried_again_at_once_if_the_token_on_disk_has_changed() {
    let interval = Duration::from_millis(10_500);
    let mcpd = FakeMcpd::builder().heartbeat_interval(interval);
    let world = World::with(mcpd, |config| config.heartbeat_interval = interval).await;
    let _client = world.serving("llama").await;
    // After the last look at the file and before the heartbeat.
    pass(Duration::from_millis(10_400)).await;
    world.mcpd.set_token("renewed");
    world.write_credentials();
    let beats = world.calls_of(CallKind::Heartbeat, 2).await;
    let statuses: Vec<_> = beats.iter().map(|b| b.status).collect();
    assert_eq!(statuses, [Some(401), Some(200)]);
    assert!(gaps(&beats)[0] <= 10, "{:?}", gaps(&beats));
}

#[tokio::test(start_paused = true)]
async fn a_401_or_403_is_refused_in_the_status_until_other_credentials_come() {
    for status in [401, 403] {
        let world = World::start().await;
        world.mcpd.answer(Aim::next(CallKind::Register).times(2), Answer::status(status));
        let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
        let link = world.link(AgentState::Refused).await;
        assert!(link.detail.contains(&status.to_string()) && link.advice.contains("token"), "{link:?}");
        let waits = gaps(&world.calls_of(CallKind::Register, 2).await);
        assert_wait(waits[0], 5);
        let mended = Instant::now();
        world.mcpd.set_token("another");
        world.write_credentials();
        world.active("llama").await;
        assert!(mended.elapsed() <= Duration::from_secs(5), "{:?}", mended.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_401_on_heartbeats_is_refused_in_the_status_while_the_channel_stays_open() {
    let world = World::start().await;
    let _client = world.serving("llama").await;
    world.mcpd.answer(Aim::next(CallKind::Heartbeat), Answer::status(401));
    let link = world.link(AgentState::Refused).await;
    assert!(link.detail.contains("401"), "{}", link.detail);
    world.link(AgentState::Online).await;
    assert_eq!(world.calls(CallKind::Stream).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn names_that_mcpd_gave_to_somebody_else_are_left_out_told_and_tried_again_after_a_minute() {
    let world = World::start().await;
    let taken = Answer::status(409).body(r#"{"conflicts":["taken"]}"#);
    world.mcpd.answer(Aim::next(CallKind::Register), taken);
    let mut client = world.client("mcplocal").await;
    client.push(&[provider("free", true), provider("taken", true)]).await;
    let verdicts = client.verdicts().await;
    let words: Vec<_> = verdicts.iter().map(pb::ProviderVerdict::verdict).collect();
    assert_eq!(words, [pb::Verdict::Published, pb::Verdict::Refused]);
    let error = verdicts[1].error.as_ref().expect("a refusal says why");
    assert_eq!(error.code(), pb::ErrorCode::Duplicate);
    assert!(error.message.contains("choose another name"), "{}", error.message);
    world.active("free").await;
    let registers = world.calls_of(CallKind::Register, 3).await;
    let sets: Vec<_> = registers.iter().map(providers_of).collect();
    assert_eq!(sets, [vec!["free", "taken"], vec!["free"], vec!["free", "taken"]]);
    let waited = registers[2].at_ms - registers[0].at_ms;
    assert!((60_000..=60_300).contains(&waited), "{waited} ms");
    world.active("taken").await;
    let verdicts = client.verdicts().await;
    assert!(verdicts.iter().all(|v| v.verdict() == pb::Verdict::Published), "{verdicts:?}");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn with_every_name_taken_no_call_is_made_for_a_minute() {
    let world = World::start().await;
    world.mcpd.answer(Aim::next(CallKind::Register), Answer::status(409).body(r#"{"conflicts":["llama"]}"#));
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    world.link(AgentState::Refused).await;
    pass(Duration::from_secs(55)).await;
    assert_eq!(world.kinds().iter().filter(|k| matches!(k, fake_mcpd::Kind::Call(_))).count(), 1);
    world.active("llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_register_call_that_was_given_up_does_not_reach_mcpd_behind_the_next_one() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    pass(Duration::from_secs(25)).await;
    world.mcpd.delay(Aim::next(CallKind::Register), Duration::from_secs(14));
    client.push(&[provider("llama", true), provider("qwen", true)]).await;
    // Mcpd has not answered yet when a heartbeat says that it does not know the session.
    world.mcpd.answer(Aim::next(CallKind::Heartbeat), Answer::status(404));
    world.calls_of(CallKind::Stream, 2).await;
    client.push(&[provider("llama", true)]).await;
    pass(Duration::from_secs(30)).await;
    let sets: Vec<_> = world.calls(CallKind::Register).iter().map(providers_of).collect();
    assert_eq!(sets.last().map(Vec::len), Some(1), "the newest set wins: {sets:?}");
    assert!(!world.mcpd.state().is_active("qwen"), "{sets:?}");
}

#[tokio::test(start_paused = true)]
async fn a_409_without_names_backs_off() {
    let world = World::start().await;
    world.mcpd.answer(Aim::next(CallKind::Register), Answer::status(409).body("{}"));
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::Backoff).await;
    assert!(link.detail.contains("409"), "{}", link.detail);
    assert_wait(gaps(&world.calls_of(CallKind::Register, 2).await)[0], 5);
    world.active("llama").await;
}

#[tokio::test(start_paused = true)]
async fn three_channels_closed_at_once_mean_another_process_and_a_minute_between_tries() {
    let world = World::start().await;
    world.mcpd.close_channels(4);
    let _client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::Refused).await;
    assert!(link.detail.contains("session used by another process"), "{}", link.detail);
    let waits = gaps(&world.calls_of(CallKind::Stream, 5).await);
    assert_wait(waits[0], 5);
    assert_wait(waits[1], 5);
    for wait in &waits[2..] {
        assert!((59_990..=60_300).contains(wait), "{waits:?}");
    }
    world.active("llama").await;
    world.link(AgentState::Online).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_flaps_neither_the_sessions_nor_the_log() {
    let logs = Logs::keep();
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let mut watch = Watch::open(&world.config.socket).await;
    world.mcpd.drop_channels();
    let states = [AgentState::Backoff, AgentState::Connecting, AgentState::Online];
    for state in states {
        let told = |payload| match payload {
            pb::session_response::Payload::AgentStatus(status) if status.state() == state => Some(status),
            _ => None,
        };
        client.wait_for(told).await;
    }
    let id = watch.until(|_| true).await.provider_session_id;
    assert_eq!(json!(id), world.calls(CallKind::Register)[1].json()["providerSessionId"]);
    assert_ne!(json!(id), Value::Null);
    assert_eq!(logs.lines_with("WARN").len(), 1, "one line says that it waits");
    world.active("llama").await;
}

crate::support::over_https![
    a_register_error_surfaces_in_the_status_and_never_ends_the_agent,
    backoff_waits_5_10_20_40_60_and_60_seconds_before_jitter,
    the_backoff_starts_over_only_once_a_channel_has_proved_itself,
    the_configured_backoff_is_kept_to,
    passing_trouble_on_register_is_tried_again_and_retry_after_honoured,
    an_mcpd_that_cannot_be_reached_is_tried_again_within_the_backoff,
    a_half_open_channel_is_given_up_and_reopened,
    a_channel_that_never_sends_keep_alives_is_checked_by_opening_another_once_per_idle_timeout,
    mcpds_own_retry_field_changes_nothing,
    a_404_on_register_is_refused_and_names_the_url_and_check_mcpd,
    a_404_or_410_on_the_channel_registers_at_once_with_the_same_id_and_the_next_one_within_the_backoff,
    a_404_or_410_on_a_heartbeat_registers_at_once_with_the_same_id,
    an_mcpd_that_forgot_everything_gets_the_same_rows_back,
    a_401_is_tried_again_at_once_if_the_token_on_disk_has_changed,
    a_heartbeats_401_is_tried_again_at_once_if_the_token_on_disk_has_changed,
    a_401_or_403_is_refused_in_the_status_until_other_credentials_come,
    a_401_on_heartbeats_is_refused_in_the_status_while_the_channel_stays_open,
    names_that_mcpd_gave_to_somebody_else_are_left_out_told_and_tried_again_after_a_minute,
    with_every_name_taken_no_call_is_made_for_a_minute,
    a_register_call_that_was_given_up_does_not_reach_mcpd_behind_the_next_one,
    a_409_without_names_backs_off,
    three_channels_closed_at_once_mean_another_process_and_a_minute_between_tries,
    a_lost_link_flaps_neither_the_sessions_nor_the_log,
];
