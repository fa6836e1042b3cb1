//! What a killed agent left behind, and what its successor makes of it.

use std::time::Duration;

use fake_mcpd::{Aim, Answer, CallKind, Entry, FakeMcpd, TaskEnd};
use mcprelay::config::TASKS_FILE;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    faults::begun,
    support::{World, chat, completion, gaps, soon},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_killed_agents_tasks_are_ended_by_its_successor_and_never_run_again() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    world.kill_agent().await;
    drop(client);
    sleep(5 * SECOND).await;
    world.start_agent();
    let mut client = world.serving("llama").await;
    let id = call.task_id().to_owned();
    let end = soon("the end", call.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if message.contains("was restarted")), "{end:?}");
    let keys: Vec<_> = world.mcpd.journal().into_iter().filter_map(|e| e.key).collect();
    let expected = [format!("{id}/0"), format!("{id}/restart")];
    assert_eq!(keys, expected, "one end, under its own key");
    // mcpd hands the same task over once more, and then another one.
    let again = json!({"kind": "infer", "taskId": offer.task_id, "llmName": "llama", "streaming": true, "request": {}});
    world.mcpd.send_raw(format!("event: task\\ndata: {again}\\n\\n"));
    let (_call, next) = begun(&world, &mut client).await;
    assert_ne!(next.task_id, offer.task_id);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn the_tasks_of_a_killed_agent_get_their_end_although_mcpd_answers_badly_for_a_while() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let (call, _offer) = begun(&world, &mut client).await;
    world.kill_agent().await;
    drop(client);
    world.mcpd.answer(Aim::next(CallKind::Result).times(12), Answer::status(503));
    world.start_agent();
    let _client = world.serving("llama").await;
    let end = soon("the end", call.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if message.contains("was restarted")), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_killed_agents_task_waits_as_long_as_mcpd_asks() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let (call, _offer) = begun(&world, &mut client).await;
    world.kill_agent().await;
    drop(client);
    world.mcpd.answer(Aim::next(CallKind::Result).times(2), Answer::status(429).retry_after(20));
    world.start_agent();
    let _client = world.serving("llama").await;
    soon("the end", call.collect()).await;
    let ends = world.calls(CallKind::Result).split_off(1);
    assert_eq!(ends.len(), 3);
    assert!(gaps(&ends).iter().all(|ms| (20_000..21_000).contains(ms)), "{:?}", gaps(&ends));
}

#[tokio::test(start_paused = true)]
async fn a_killed_agents_task_is_not_run_by_its_successor_however_long_that_had_nothing_to_publish() {
    let mut world = World::start().await;
    let mut client = world.serving("llama").await;
    let (call, offer) = begun(&world, &mut client).await;
    world.kill_agent().await;
    drop((client, call));
    world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(503).retry_after(600));
    world.start_agent();
    // Longer than ended ids are remembered; and then mcpd does not take the end yet.
    sleep(660 * SECOND).await;
    let mut client = world.serving("llama").await;
    world.calls_of(CallKind::Result, 2).await;
    let again = json!({"kind": "infer", "taskId": offer.task_id, "llmName": "llama", "streaming": true, "request": {}});
    world.mcpd.send_raw(format!("event: task\\ndata: {again}\\n\\n"));
    let (_call, next) = begun(&world, &mut client).await;
    assert_ne!(next.task_id, offer.task_id);
    let key = format!("{}/restart", offer.task_id);
    let settled = |e: &Entry| e.key.as_ref() == Some(&key) && e.status != Some(503);
    soon("its end", world.mcpd.wait_for(settled)).await;
    let runs =
        world.calls(CallKind::Result).iter().filter(|e| e.task.as_ref() == Some(&offer.task_id)).count();
    assert_eq!(runs, 3, "its first token, its end that was not taken, and its end");
}

#[tokio::test(start_paused = true)]
async fn an_id_is_on_disk_before_any_program_has_the_offer() {
    let world = World::with(FakeMcpd::builder(), |config| config.max_in_flight = 8).await;
    let mut client = world.serving("llama").await;
    for burst in 1..=8 {
        let calls: Vec<_> = (0..burst).map(|_| world.mcpd.infer_stream("llama", &chat("hi"))).collect();
        let mut offered = Vec::new();
        for _ in &calls {
            let offer = client.offer().await;
            // Killed now, the agent would have to leave the id behind.
            let written = std::fs::read_to_string(world.path(TASKS_FILE)).expect("the file is there");
            let (begun, over) = (format!("+{}", offer.task_id), format!("-{}", offer.task_id));
            assert!(written.lines().any(|l| l == begun) && !written.lines().any(|l| l == over), "{written}");
            offered.push(offer);
        }
        for offer in &offered {
            client.finish_body(offer, &completion("ok")).await;
        }
        for call in calls {
            soon("the end", call.expect("accepted").collect()).await;
        }
    }
    world.assert_clean();
}

crate::support::over_https![
    a_killed_agents_tasks_are_ended_by_its_successor_and_never_run_again,
    the_tasks_of_a_killed_agent_get_their_end_although_mcpd_answers_badly_for_a_while,
    the_end_of_a_killed_agents_task_waits_as_long_as_mcpd_asks,
    a_killed_agents_task_is_not_run_by_its_successor_however_long_that_had_nothing_to_publish,
    an_id_is_on_disk_before_any_program_has_the_offer,
];
