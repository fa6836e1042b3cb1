//! What the loss of a session means: the grace in which it may return, and what becomes of its tasks.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_session_that_returns_within_the_grace_gets_its_unsent_task_again_and_the_list_does_not_flap() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let unsent = infer(&world);
    let offer = client.offer().await;
    client.half_close();
    pass(Duration::from_secs(9)).await;
    assert!(world.mcpd.state().is_active("llama"), "still listed");
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let again = client.offer().await;
    assert_eq!(again.task_id, offer.task_id);
    assert!(again.timeout_ms <= offer.timeout_ms - 9_000, "what is left of its time");
    client.finish_body(&again, &completion("back")).await;
    assert_eq!(&reply(unsent).await.body[..], completion("back").as_bytes());
    assert_eq!(world.calls(CallKind::Register).len(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_lost_sessions_task_that_has_sent_something_ends_at_once_with_an_error_that_says_so() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let mut call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("half")).await;
    soon("a chunk", call.chunk()).await.expect("a chunk");
    let lost = Instant::now();
    drop(client);
    let end = soon("the end", call.collect()).await.end;
    assert!(lost.elapsed() < Duration::from_secs(1));
    let TaskEnd::Failed { message, .. } = end else { panic!("{end:?}") };
    assert!(message.contains("connection to mcplocal lost"), "{message}");
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    serves(&world, &mut client).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_with_which_three_sessions_were_lost_ends_instead_of_costing_a_fourth() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let call = infer(&world);
    for _ in 0..2 {
        client.offer().await;
        client.half_close();
        client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    }
    client.offer().await;
    client.half_close();
    let reply = reply(call).await;
    assert_eq!(reply.status, 502);
    assert!(String::from_utf8_lossy(&reply.body).contains("went away before its end"), "{reply:?}");
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    serves(&world, &mut client).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn after_the_grace_the_provider_is_withdrawn_and_its_unsent_task_answered() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let call = infer(&world);
    client.offer().await;
    let lost = Instant::now();
    client.half_close();
    assert_eq!(reply(call).await.status, 503);
    let waited = lost.elapsed();
    assert!(waited >= Duration::from_millis(9_900) && waited < Duration::from_secs(11), "{waited:?}");
    world.inactive("llama").await;
    let registers = world.calls_of(CallKind::Register, 2).await;
    assert_eq!(registers[1].json()["providers"], json!([]));
    let mut client = world.serving("llama").await;
    serves(&world, &mut client).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn the_grace_is_within_the_queue_timeout() {
    let world =
        World::with(FakeMcpd::builder(), |config| config.queue_timeout = Duration::from_secs(3)).await;
    let mut client = world.serving("llama").await;
    let call = infer(&world);
    client.offer().await;
    let lost = Instant::now();
    client.half_close();
    assert!(matches!(reply(call).await.status, 503 | 504));
    assert!(lost.elapsed() <= Duration::from_millis(3_100), "{:?}", lost.elapsed());
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_that_comes_within_the_grace_waits_for_the_returning_session() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    client.half_close();
    pass(Duration::from_secs(1)).await;
    let call = infer(&world);
    pass(Duration::from_secs(5)).await;
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("hi")).await;
    assert_eq!(reply(call).await.status, 200);
    world.assert_clean();
}
