//! When chunks merge, and when they do not.

use super::*;

#[tokio::test(start_paused = true)]
async fn chunks_that_come_while_a_post_is_under_way_are_one_part() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    let words: Vec<_> = ["a ", "b ", "c ", "d"].into_iter().map(chunk).collect();
    while_the_first_is_held(&world, &client, &offer, &words).await;
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let got = collected(call).await;
    assert!(got.is_done());
    let texts: Vec<_> = got.chunks.iter().map(|c| String::from_utf8_lossy(c).into_owned()).collect();
    assert_eq!(texts, [chunk("first "), chunk("a b c d"), last_chunk()]);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn chunks_that_come_one_by_one_are_never_merged() {
    let (world, mut client) = world().await;
    let mut call = streaming(&world);
    let offer = client.offer().await;
    for n in 0..20 {
        client.chunk(&offer, &chunk(&n.to_string())).await;
        assert_eq!(soon("a chunk", call.chunk()).await.as_deref(), Some(chunk(&n.to_string()).as_bytes()));
    }
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    assert!(collected(call).await.is_done());
    assert_eq!(posts(&world, &offer.task_id).len(), 22);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn posts_that_hang_hold_up_those_of_another_task_for_a_moment_only_and_what_waits_merges() {
    let at_once = u32::try_from(POSTS_AT_ONCE).expect("few");
    let world = World::with(FakeMcpd::builder(), |config| config.max_in_flight = at_once + 1).await;
    let mut client = world.serving("llama").await;
    world.mcpd.delay(Aim::next(CallKind::Result).times(at_once), HELD);
    let mut hanging = Vec::new();
    for _ in 0..at_once {
        hanging.push((streaming(&world), client.offer().await));
        client.chunk(&hanging.last().expect("pushed").1, &chunk("slow")).await;
    }
    under_way().await;
    let mut call = streaming(&world);
    let offer = client.offer().await;
    let began = Instant::now();
    client.chunk(&offer, &chunk("a ")).await;
    client.chunk(&offer, &chunk("b")).await;
    assert_eq!(soon("a chunk", call.chunk()).await.as_deref(), Some(chunk("a b").as_bytes()));
    assert_eq!(began.elapsed().as_millis(), PLACE_PATIENCE.as_millis());
    for (task, offer) in hanging.into_iter().chain([(call, offer)]) {
        client.chunk(&offer, &last_chunk()).await;
        client.finish(&offer, None).await;
        assert!(collected(task).await.is_done());
    }
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn what_may_not_merge_is_a_barrier_and_goes_unchanged() {
    let (world, mut client) = world().await;
    let call = streaming(&world);
    let offer = client.offer().await;
    let other_id = chunk("other id").replace("c1", "c2");
    let usage = chunk("usage").replace("\"model\"", "\"usage\":{\"prompt_tokens\":1},\"model\"");
    let unknown = chunk("x").replace("\"content\"", "\"vendor\":1,\"content\"");
    let words = [
        chunk("a "),
        chunk("b "),
        other_id.clone(),
        usage.clone(),
        chunk("c "),
        unknown.clone(),
        chunk("d"),
        chunk("e"),
    ];
    while_the_first_is_held(&world, &client, &offer, &words).await;
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let got = collected(call).await;
    let texts: Vec<_> = got.chunks.iter().map(|c| String::from_utf8_lossy(c).into_owned()).collect();
    assert_eq!(
        texts,
        [chunk("first "), chunk("a b "), other_id, usage, chunk("c "), unknown, chunk("de"), last_chunk()]
    );
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_chunk_with_only_a_role_merges_forward_into_the_first_token() {
    let (world, mut client) = world().await;
    let mut call = streaming(&world);
    let offer = client.offer().await;
    let role = chunk("").replace(r#""content":"""#, r#""role":"assistant","content":"""#);
    client.chunk(&offer, &role).await;
    client.chunk(&offer, &chunk("hello")).await;
    let first: Value =
        serde_json::from_slice(&soon("a chunk", call.chunk()).await.expect("a chunk")).expect("JSON");
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": "hello"}));
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    assert!(collected(call).await.is_done());
    world.assert_clean();
}

crate::support::over_https![
    chunks_that_come_while_a_post_is_under_way_are_one_part,
    chunks_that_come_one_by_one_are_never_merged,
    posts_that_hang_hold_up_those_of_another_task_for_a_moment_only_and_what_waits_merges,
    what_may_not_merge_is_a_barrier_and_goes_unchanged,
    a_chunk_with_only_a_role_merges_forward_into_the_first_token,
];
