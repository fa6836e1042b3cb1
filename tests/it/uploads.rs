//! One upload per answer: what goes by it, what happens when it breaks or is held back, and that no token comes twice or not at all.

use std::time::Duration;

use fake_mcpd::{Aim, Answer, Builder, CallKind, Collected, Entry, FakeMcpd, Kind, TaskEnd};
use mcprelay::{
    pb::AgentState,
    upstream::upload::{RECEIVED_PATIENCE, UPLOAD_PAUSE},
};
use tokio::time::Instant;

use crate::support::{Client, World, chat, chunk, last_chunk, over_https, pass, soon};

/// Between two tokens.
const TOKEN: Duration = Duration::from_millis(20);

async fn world_of(mcpd: Builder) -> (World, Client) {
    let world = World::with(mcpd, |_| {}).await;
    let client = world.serving("llama").await;
    (world, client)
}

async fn world() -> (World, Client) {
    world_of(FakeMcpd::builder()).await
}

fn text(tokens: usize) -> String {
    (0..tokens).map(|n| format!("{n} ")).collect()
}

/// One stream of so many tokens, each a moment after the one before.
async fn stream(world: &World, client: &mut Client, tokens: usize) -> Collected {
    stream_with(world, client, tokens, |_| {}).await
}

/// The same, with something that happens before each token.
async fn stream_with(
    world: &World,
    client: &mut Client,
    tokens: usize,
    mut before: impl FnMut(usize),
) -> Collected {
    let call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    for n in 0..tokens {
        before(n);
        client.chunk(&offer, &chunk(&format!("{n} "))).await;
        pass(TOKEN).await;
    }
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    match tokio::time::timeout(Duration::from_secs(100), call.collect()).await {
        Ok(end) => end,
        Err(_) => panic!(
            "{:#?}",
            world
                .mcpd
                .journal()
                .iter()
                .map(|e| format!("{} {:?} {:?} {:?} {:?}", e.at_ms, e.kind, e.key, e.status, e.note))
                .collect::<Vec<_>>()
        ),
    }
}

fn assert_whole(world: &World, answer: &Collected, tokens: usize) {
    assert_eq!((answer.text(), &answer.end), (text(tokens), &TaskEnd::Done));
    world.assert_clean();
}

fn ways(parts: &[Entry]) -> Vec<&str> {
    parts.iter().map(|part| if part.kind == Kind::Line { "line" } else { "post" }).collect()
}

#[tokio::test(start_paused = true)]
async fn part_0_is_posted_and_the_rest_of_a_stream_is_one_upload() {
    let (world, mut client) = world().await;
    for _ in 0..2 {
        let answer = stream(&world, &mut client, 12).await;
        assert_whole(&world, &answer, 12);
        let parts = world.parts(&answer.task_id);
        let (first, rest) = parts.split_first().expect("parts");
        assert_eq!(ways(std::slice::from_ref(first)), ["post"]);
        assert!(rest.len() >= 12 && rest.iter().all(|part| part.kind == Kind::Line), "{:?}", ways(&parts));
    }
    assert_eq!(world.calls(CallKind::ResultStream).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_mcpd_that_does_not_offer_it_gets_no_upload() {
    let (world, mut client) = world_of(FakeMcpd::builder().result_stream(false)).await;
    let answer = stream(&world, &mut client, 5).await;
    assert_whole(&world, &answer, 5);
    assert!(ways(&world.parts(&answer.task_id)).iter().all(|way| *way == "post"));
}

#[tokio::test(start_paused = true)]
async fn a_broken_upload_goes_on_from_the_first_part_that_was_not_received() {
    for (order, idempotent) in [
        ("break-upload,lines=3", true),
        ("break-upload,lines=3,applied=true", false),
        ("break-upload,bytes=700", true),
        ("break-upload,bytes=700,applied=true", false),
        ("break-upload,lines=1,times=2", true),
        ("lose-line,line=4", false),
        ("answer,call=result-stream,status=503,retry-after=1", true),
        ("answer,call=result-stream,status=401", true),
        ("lose-reply,call=result-stream", false),
        ("lose-received,times=2", true),
    ] {
        let (world, mut client) = world_of(FakeMcpd::builder().idempotent_results(idempotent)).await;
        world.mcpd.order(order).unwrap();
        let answer = stream(&world, &mut client, 30).await;
        assert_eq!((answer.text(), &answer.end), (text(30), &TaskEnd::Done), "{order}");
        world.assert_clean();
        assert!(world.calls(CallKind::ResultStream).len() <= 3, "{order}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_held_back_costs_one_pause_once_in_ten_minutes() {
    let (world, mut client) = world().await;
    world.mcpd.hold_uploads(0);
    let begun = Instant::now();
    let answer = stream(&world, &mut client, 40).await;
    assert_whole(&world, &answer, 40);
    let parts = world.parts(&answer.task_id);
    assert!(parts.iter().all(|part| part.is_call(CallKind::Result)), "{:?}", ways(&parts));
    let pause = parts.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).max().expect("parts");
    let most = RECEIVED_PATIENCE.as_millis() as u64 + 60;
    assert!(pause <= most && begun.elapsed() < 2 * 40 * TOKEN, "{pause} ms");
    pass(Duration::from_secs(2)).await;
    let status = world.link(AgentState::Online).await;
    assert!(status.advice.contains("proxy_request_buffering off"), "{}", status.advice);
    let uploads = world.calls(CallKind::ResultStream).len();
    stream(&world, &mut client, 5).await;
    assert_eq!(world.calls(CallKind::ResultStream).len(), uploads, "it does without");
    world.mcpd.clear_faults();
    pass(UPLOAD_PAUSE).await;
    stream(&world, &mut client, 5).await;
    assert_eq!(world.calls(CallKind::ResultStream).len(), uploads + 1);
    assert_eq!(world.link(AgentState::Online).await.detail, "");
}

#[tokio::test(start_paused = true)]
async fn where_repeats_are_not_dropped_a_held_back_upload_ends_its_stream_with_an_error() {
    let (world, mut client) = world_of(FakeMcpd::builder().idempotent_results(false)).await;
    world.mcpd.hold_uploads(0);
    let answer = stream(&world, &mut client, 40).await;
    let TaskEnd::Failed { message, .. } = &answer.end else { panic!("{:?}", answer.end) };
    assert!(message.contains("could repeat tokens"), "{message}");
    let answer = stream(&world, &mut client, 5).await;
    assert_whole(&world, &answer, 5);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_refused_goes_on_by_post() {
    for status in [411, 413, 501] {
        let (world, mut client) = world().await;
        world.mcpd.answer(Aim::next(CallKind::ResultStream).times(0), Answer::status(status));
        let answer = stream(&world, &mut client, 20).await;
        assert_whole(&world, &answer, 20);
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_channel_is_away_an_upload_goes_on() {
    let (world, mut client) = world().await;
    let answer = stream_with(&world, &mut client, 60, |n| {
        if n == 10 {
            world.mcpd.break_channels();
        }
    })
    .await;
    assert_whole(&world, &answer, 60);
    assert_eq!(world.calls(CallKind::ResultStream).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_ends_the_upload_and_the_inference() {
    let (world, mut client) = world().await;
    let call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    for n in 0..3 {
        client.chunk(&offer, &chunk(&format!("{n} "))).await;
        pass(TOKEN).await;
    }
    drop(call);
    assert_eq!(client.cancel().await.task_id, offer.task_id);
    world.calls_of(CallKind::ResultStream, 1).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_middle_is_the_uploads_last_line() {
    let (world, mut client) = world().await;
    let call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    for n in 0..3 {
        client.chunk(&offer, &chunk(&format!("{n} "))).await;
        pass(TOKEN).await;
    }
    client.chunk(&offer, r#"{"error":{"message":"out of memory"}}"#).await;
    let answer = soon("the end", call.collect()).await;
    assert!(matches!(&answer.end, TaskEnd::Failed { .. }), "{:?}", answer.end);
    assert_eq!(answer.text(), text(3));
    assert_eq!(*ways(&world.parts(&answer.task_id)).last().unwrap(), "line");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn more_than_the_window_waits_and_merges_until_mcpd_says_what_it_has() {
    let (world, mut client) = world().await;
    stream(&world, &mut client, 3).await;
    let call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    let long = "x".repeat(300_000);
    let reading = tokio::spawn(call.collect());
    for _ in 0..20 {
        client.chunk(&offer, &chunk(&long)).await;
        pass(Duration::from_millis(100)).await;
    }
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let answer = soon("the end", reading).await.unwrap();
    assert_eq!((answer.text().len(), &answer.end), (20 * 300_000, &TaskEnd::Done));
    world.assert_clean();
}

over_https! {
    part_0_is_posted_and_the_rest_of_a_stream_is_one_upload,
    a_broken_upload_goes_on_from_the_first_part_that_was_not_received,
    an_upload_that_is_held_back_costs_one_pause_once_in_ten_minutes,
    while_the_channel_is_away_an_upload_goes_on,
    a_caller_who_leaves_ends_the_upload_and_the_inference,
    a_failure_in_the_middle_is_the_uploads_last_line,
}
