//! How results travel: the first token at once, merging only while a POST is under way, keys, retries, and what is done if nobody can know
//! whether mcpd has a part. The rules are in `docs/reference/contract.md`.

mod merging;

use std::time::Duration;

use fake_mcpd::{Aim, Answer, Call, CallKind, Collected, Entry, FakeMcpd, InferReply, InferRequest, TaskEnd};
use mcprelay::{
    pb,
    upstream::post::{PLACE_PATIENCE, POSTS_AT_ONCE},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Client, Logs, Watch, World, chat, chunk, completion, last_chunk, pass, soon};

/// Longer than it takes to hand over what the tests hand over while a POST is under way.
const HELD: Duration = Duration::from_secs(2);

async fn world_of(mcpd: fake_mcpd::Builder) -> (World, Client) {
    // Part by part: what an upload does differently is in `uploads.rs`.
    let world = World::with(mcpd.result_stream(false), |_| {}).await;
    let client = world.serving("llama").await;
    (world, client)
}

async fn world() -> (World, Client) {
    world_of(FakeMcpd::builder()).await
}

fn streaming(world: &World) -> Call {
    world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted")
}

fn plain(world: &World) -> Call {
    world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted")
}

async fn collected(call: Call) -> Collected {
    soon("the end", call.collect()).await
}

async fn reply(call: Call) -> InferReply {
    collected(call).await.end.into()
}

fn posts(world: &World, task: &str) -> Vec<Entry> {
    let mut posts = world.calls(CallKind::Result);
    posts.retain(|post| post.task.as_deref() == Some(task));
    posts
}

fn keys(world: &World, task: &str) -> Vec<String> {
    posts(world, task).into_iter().filter_map(|post| post.key).collect()
}

/// The paused clock moves only when nobody has anything left to do, so by then what was handed over is held by mcpd.
async fn under_way() {
    pass(Duration::from_millis(10)).await;
}

/// Hands the agent output while the POST of the first chunk is held, and says so when the agent has all of it.
async fn while_the_first_is_held(world: &World, client: &Client, offer: &pb::TaskOffer, chunks: &[String]) {
    world.mcpd.delay(Aim::next(CallKind::Result), HELD);
    client.chunk(offer, &chunk("first ")).await;
    under_way().await;
    for chunk in chunks {
        client.chunk(offer, chunk).await;
    }
    let all = f64::from(u32::try_from(chunks.len()).expect("few") + 1);
    let mut watch = Watch::open(&world.config.socket).await;
    watch.until(|s| s.totals.as_ref().is_some_and(|t| t.chunks >= all)).await;
}

async fn next_works(world: &World, client: &mut Client) {
    let call = plain(world);
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("next")).await;
    assert_eq!(reply(call).await.status, 200, "the next task goes on working");
}

// ---- keys and retries ----------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn parts_are_numbered_from_zero_under_the_percent_encoded_task_id() {
    let (world, mut client) = world_of(FakeMcpd::builder().task_prefix("a/b ü?")).await;
    let mut call = streaming(&world);
    let offer = client.offer().await;
    assert!(offer.task_id.starts_with("a/b ü?"), "{}", offer.task_id);
    client.chunk(&offer, &chunk("one")).await;
    soon("a chunk", call.chunk()).await.expect("a chunk");
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    assert!(collected(call).await.is_done());
    let id = offer.task_id.replace("a/b ü?", "a%2Fb%20%C3%BC%3F");
    assert_eq!(keys(&world, &offer.task_id), [0, 1, 2].map(|n| format!("{id}/{n}")));
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_part_that_was_not_applied_is_sent_again_byte_for_byte_under_its_key() {
    for idempotent in [true, false] {
        let (world, mut client) = world_of(FakeMcpd::builder().idempotent_results(idempotent)).await;
        for status in [401, 408, 425, 429, 503] {
            world.mcpd.answer(Aim::next(CallKind::Result).times(2), Answer::status(status));
            let call = streaming(&world);
            let offer = client.offer().await;
            client.chunk(&offer, &chunk("one")).await;
            client.chunk(&offer, &last_chunk()).await;
            client.finish(&offer, None).await;
            let got = collected(call).await;
            assert!(got.is_done() && got.text() == "one", "{status}: {got:?}");
            let posts = posts(&world, &offer.task_id);
            assert!(posts[..3].iter().all(|p| p.key == posts[0].key && p.body == posts[0].body), "{status}");
            assert_eq!(posts[2].status, Some(200));
        }
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_on_a_part_is_honoured() {
    let (world, mut client) = world().await;
    world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(429).retry_after(9));
    let call = plain(&world);
    let offer = client.offer().await;
    let began = Instant::now();
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    assert!((8.9..=9.5).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
}

/// Until then a new login could still save the answer; other trouble may pass at any time, so there the end keeps its patience.
#[tokio::test(start_paused = true)]
async fn a_refused_token_ends_a_delivery_with_the_tasks_own_deadline_and_other_trouble_does_not() {
    for (status, streams) in [(401, false), (401, true), (503, false)] {
        let logs = Logs::keep();
        let (world, mut client) = world().await;
        world.mcpd.answer(Aim::next(CallKind::Result).times(10_000), Answer::status(status));
        let began = Instant::now();
        // fake-mcpd knows nothing of this task, so it does not cancel it at its deadline.
        let task = json!({"kind": "infer", "taskId": "t", "llmName": "llama", "streaming": streams, "request": chat("hi"), "deadlineMs": 3000});
        world.mcpd.send_task(task.to_string());
        let offer = client.offer().await;
        client.finish_body(&offer, &completion("hi")).await;
        let given_up = async {
            while logs.lines_with("mcpd did not take the task's end").is_empty() {
                pass(Duration::from_millis(100)).await;
            }
        };
        soon("its end", given_up).await;
        let took = began.elapsed().as_secs_f64();
        let expected = if status == 401 { 2.9..=3.3 } else { 60.0..=64.0 };
        assert!(expected.contains(&took), "{status}: {took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_tried_again() {
    let (world, mut client) = world_of(FakeMcpd::builder().idempotent_results(false)).await;
    let call = plain(&world);
    let offer = client.offer().await;
    // Longer than a connection is kept, so that a new one is needed.
    pass(Duration::from_secs(6)).await;
    world.mcpd.refuse(fake_mcpd::Refused::Connections, Some(Duration::from_secs(3)));
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_ambiguous_chunk_is_sent_again_where_mcpd_drops_repeats() {
    for status in [500, 502, 504] {
        let (world, mut client) = world().await;
        world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(status));
        world.mcpd.lose_reply(Aim::next(CallKind::Result).skip(1));
        let call = streaming(&world);
        let offer = client.offer().await;
        client.chunk(&offer, &chunk("once")).await;
        client.chunk(&offer, &last_chunk()).await;
        client.finish(&offer, None).await;
        let got = collected(call).await;
        assert!(got.is_done() && got.text() == "once", "{got:?}");
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn an_ambiguous_chunk_ends_the_stream_where_mcpd_does_not_drop_repeats() {
    for lost in [false, true] {
        let (world, mut client) = world_of(FakeMcpd::builder().idempotent_results(false)).await;
        let call = streaming(&world);
        let offer = client.offer().await;
        match lost {
            true => world.mcpd.lose_reply(Aim::next(CallKind::Result)),
            false => world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(502)),
        }
        client.chunk(&offer, &chunk("once")).await;
        assert_eq!(client.cancel().await.reason(), pb::CancelReason::UpstreamLost);
        client.finish_cancelled(&offer.task_id).await;
        let got = collected(call).await;
        let TaskEnd::Failed { message, .. } = &got.end else { panic!("{got:?}") };
        assert!(message.contains("could repeat tokens"), "{message}");
        assert!(got.chunks.len() <= 1);
        next_works(&world, &mut client).await;
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn an_ambiguous_end_is_always_sent_again_and_gone_then_means_settled() {
    for idempotent in [true, false] {
        let (world, mut client) = world_of(FakeMcpd::builder().idempotent_results(idempotent)).await;
        world.mcpd.lose_reply(Aim::next(CallKind::Result));
        let call = plain(&world);
        let offer = client.offer().await;
        client.finish_body(&offer, &completion("once")).await;
        assert_eq!(reply(call).await.status, 200);
        let ended = |s: &pb::WatchStatusResponse| !s.recent.is_empty();
        let status = Watch::open(&world.config.socket).await.until(ended).await;
        assert_eq!(status.recent[0].outcome, "ok", "the caller has its answer (idempotent: {idempotent})");
        assert_eq!(keys(&world, &offer.task_id).len(), 2);
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_404_or_410_on_a_part_cancels_the_inference_and_nothing_more_is_posted() {
    for status in [404, 410] {
        let logs = Logs::keep();
        let (world, mut client) = world().await;
        world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(status));
        let call = streaming(&world);
        let offer = client.offer().await;
        client.chunk(&offer, &chunk("one")).await;
        let cancel = client.cancel().await;
        assert_eq!(
            (cancel.task_id.as_str(), cancel.reason()),
            (offer.task_id.as_str(), pb::CancelReason::CallerGone)
        );
        client.chunk(&offer, &chunk("two")).await;
        client.finish_cancelled(&offer.task_id).await;
        next_works(&world, &mut client).await;
        assert_eq!(posts(&world, &offer.task_id).len(), 1);
        assert_eq!(logs.lines_with("check-mcpd").len(), 1, "on the first part the path may be wrong, too");
        drop(call);
        world.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_too_large_ends_the_task_with_a_clear_error_and_is_never_resent() {
    let (world, mut client) = world_of(FakeMcpd::builder().result_limit(100_000)).await;
    let large = chunk(&"x".repeat(200_000));
    let call = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("small ")).await;
    client.chunk(&offer, &large).await;
    assert_eq!(client.cancel().await.reason(), pb::CancelReason::UpstreamLost);
    client.finish_cancelled(&offer.task_id).await;
    let got = collected(call).await;
    let TaskEnd::Failed { message, .. } = &got.end else { panic!("{got:?}") };
    assert!(message.contains("too large for mcpd"), "{message}");
    let refused = world.calls(CallKind::Result).into_iter().filter(|e| e.status == Some(413)).count();
    assert_eq!(refused, 1);
    next_works(&world, &mut client).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_that_is_too_large_becomes_a_413_for_the_caller() {
    let (world, mut client) = world_of(FakeMcpd::builder().result_limit(100_000)).await;
    let call = plain(&world);
    let offer = client.offer().await;
    client.finish_body(&offer, &completion(&"x".repeat(200_000))).await;
    let got = reply(call).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (413, &json!("too_large")));
    next_works(&world, &mut client).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_403_on_a_part_ends_the_task() {
    let (world, mut client) = world().await;
    world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(403));
    let call = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one")).await;
    assert_eq!(client.cancel().await.reason(), pb::CancelReason::UpstreamLost);
    client.finish_cancelled(&offer.task_id).await;
    let TaskEnd::Failed { message, .. } = collected(call).await.end else { panic!("an error") };
    assert!(message.contains("403"), "{message}");
    next_works(&world, &mut client).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_lost_part_never_becomes_a_whole_answer_with_a_hole_in_it() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    // The provider is done long before mcpd refuses the first part.
    world.mcpd.delay(Aim::next(CallKind::Result), HELD);
    world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(403));
    client.chunk(&offer, &chunk("lost ")).await;
    under_way().await;
    client.chunk(&offer, &chunk("rest")).await;
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let got = collected(call).await;
    assert!(matches!(&got.end, TaskEnd::Failed { message, .. } if message.contains("403")), "{got:?}");
    assert_eq!(got.text(), "");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_200_with_an_html_page_is_not_taken_for_mcpds_word() {
    let (world, mut client) = world().await;
    world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(200).html());
    let call = plain(&world);
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    assert_eq!(keys(&world, &offer.task_id).len(), 2, "it was sent again");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn connections_are_given_up_before_the_server_closes_them() {
    let (world, mut client) =
        world_of(FakeMcpd::builder().idempotent_results(false).keep_alive(Duration::from_secs(2))).await;
    for pause in [500, 990, 1_010, 1_500, 1_990, 2_010, 3_000] {
        let call = plain(&world);
        let offer = client.offer().await;
        pass(Duration::from_millis(pause)).await;
        client.finish_body(&offer, &completion("hi")).await;
        assert_eq!(reply(call).await.status, 200);
        assert_eq!(keys(&world, &offer.task_id).len(), 1, "{pause} ms: nothing was ambiguous");
    }
    world.assert_clean();
}

crate::support::over_https![
    parts_are_numbered_from_zero_under_the_percent_encoded_task_id,
    a_part_that_was_not_applied_is_sent_again_byte_for_byte_under_its_key,
    retry_after_on_a_part_is_honoured,
    a_refused_token_ends_a_delivery_with_the_tasks_own_deadline_and_other_trouble_does_not,
    a_refused_connection_is_tried_again,
    an_ambiguous_chunk_is_sent_again_where_mcpd_drops_repeats,
    an_ambiguous_chunk_ends_the_stream_where_mcpd_does_not_drop_repeats,
    an_ambiguous_end_is_always_sent_again_and_gone_then_means_settled,
    a_404_or_410_on_a_part_cancels_the_inference_and_nothing_more_is_posted,
    a_part_that_is_too_large_ends_the_task_with_a_clear_error_and_is_never_resent,
    a_whole_answer_that_is_too_large_becomes_a_413_for_the_caller,
    a_403_on_a_part_ends_the_task,
    a_lost_part_never_becomes_a_whole_answer_with_a_hole_in_it,
    a_200_with_an_html_page_is_not_taken_for_mcpds_word,
    connections_are_given_up_before_the_server_closes_them,
];
