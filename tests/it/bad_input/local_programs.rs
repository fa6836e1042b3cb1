//! What bad input from a local program gets.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_session_that_does_not_begin_with_hello_ends_invalid_argument() {
    let (world, mut client) = world().await;
    let mut rude = Client::silent(&world.config.socket).await;
    rude.send(Payload::ProviderSnapshot(pb::ProviderSnapshot::default())).await;
    let status = rude.ended().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("must be Hello"), "{}", status.message());
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_says_anything_is_ended_in_bounded_time() {
    let (world, mut client) = world().await;
    let mut mute = Client::silent(&world.config.socket).await;
    let began = tokio::time::Instant::now();
    assert_eq!(mute.ended().await.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_second_hello_and_a_hello_without_an_id_end_the_session_invalid_argument() {
    let (world, mut client) = world().await;
    let mut twice = world.client("twice").await;
    twice.send(hello("twice")).await;
    let status = twice.ended().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("Hello came twice"), "{}", status.message());
    for id in ["", &"x".repeat(4_000)] {
        let mut nameless = Client::silent(&world.config.socket).await;
        nameless.send(hello(id)).await;
        let status = nameless.ended().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
        assert!(status.message().contains("client_id"), "{}", status.message());
    }
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_chunk_for_a_task_that_the_session_does_not_have_is_told_to_stop() {
    let (world, mut client) = world().await;
    let stranger = pb::TaskOffer { task_id: "no such task".into(), ..Default::default() };
    client.chunk(&stranger, &chunk("hello?")).await;
    let cancel = client.cancel().await;
    assert_eq!((cancel.task_id.as_str(), cancel.reason()), ("no such task", pb::CancelReason::CallerGone));
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn late_chunks_are_told_to_stop_once_and_in_any_number_do_not_end_their_session() {
    let (world, mut client) = world().await;
    let stranger = |id: String| pb::TaskOffer { task_id: id, ..Default::default() };
    for _ in 0..50 {
        client.chunk(&stranger("over".into()), &chunk("late")).await;
    }
    client.chunk(&stranger("over too".into()), &chunk("late")).await;
    assert_eq!([client.cancel().await.task_id, client.cancel().await.task_id], ["over", "over too"]);
    // Far more than may wait for a client, which reads none of the answers meanwhile.
    for n in 0..10_000 {
        client.chunk(&stranger(format!("over {n}")), &chunk("late")).await;
    }
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_did_not_read_what_it_was_sent_is_told_so_when_it_reads() {
    let (world, mut client) = world().await;
    let mut deaf = world.client("deaf").await;
    let providers: Vec<_> = (0..10).map(|n| provider(&format!("{n}{}", "x".repeat(240)), false)).collect();
    // The answers fill the 2 MiB that the connection holds, and then all the places that the agent has for them.
    for generation in 1..=4_000 {
        let snapshot = pb::ProviderSnapshot { generation, providers: providers.clone() };
        deaf.send(Payload::ProviderSnapshot(snapshot)).await;
    }
    let thrown_out =
        |s: &pb::WatchStatusResponse| s.sessions.iter().all(|session| session.client_id != "deaf");
    Watch::open(&world.config.socket).await.until(thrown_out).await;
    let status = deaf.ended().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("does not read"), "{}", status.message());
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_session_cannot_answer_another_ones_task() {
    let (world, mut client) = world().await;
    let mut thief = world.client_with("thief", &[]).await;
    let call = world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted");
    let offer = client.offer().await;
    thief.finish_body(&offer, &completion("stolen")).await;
    thief.chunk(&offer, &chunk("stolen")).await;
    assert_eq!(thief.cancel().await.task_id, offer.task_id);
    client.finish_body(&offer, &completion("mine")).await;
    let reply: InferReply = soon("the end", call.collect()).await.end.into();
    assert_eq!(&reply.body[..], completion("mine").as_bytes());
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_second_finish_is_logged_and_changes_nothing() {
    let logs = Logs::keep();
    let (world, mut client) = world().await;
    let call = world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted");
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("first")).await;
    client.finish_body(&offer, &completion("second")).await;
    let reply: InferReply = soon("the end", call.collect()).await.end.into();
    assert_eq!(&reply.body[..], completion("first").as_bytes());
    works(&world, &mut client, "llama").await;
    assert_eq!(logs.lines_with("end of a task that the session does not have").len(), 1);
    assert_eq!(world.results(&offer.task_id).len(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn output_that_is_no_json_ends_its_task_and_no_other() {
    let (world, mut client) = world().await;
    let broken = world.mcpd.infer_stream("llama", &chat("1")).expect("accepted");
    let first = client.offer().await;
    let mut fine = world.mcpd.infer_stream("llama", &chat("2")).expect("accepted");
    let second = client.offer().await;
    client.chunk(&first, "{\"choices\": oops").await;
    assert_eq!(client.cancel().await.task_id, first.task_id);
    let reply: InferReply = soon("the end", broken.collect()).await.end.into();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (502, &json!("bad_provider_output")));
    client.chunk(&second, &chunk("fine")).await;
    assert_eq!(soon("a chunk", fine.chunk()).await.as_deref(), Some(chunk("fine").as_bytes()));
    client.finish_cancelled(&first.task_id).await;
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_no_completion_is_a_502() {
    let (world, mut client) = world().await;
    for body in ["", "nonsense", "[]"] {
        let call = world.mcpd.submit(InferRequest::new("llama", &chat("hi"))).expect("accepted");
        let offer = client.offer().await;
        client.finish_body(&offer, body).await;
        let reply: InferReply = soon("the end", call.collect()).await.end.into();
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (502, &json!("bad_provider_output")),
            "{body:?}"
        );
    }
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_message_over_the_limit_ends_its_session_with_a_status_and_no_other() {
    let world = World::with(FakeMcpd::builder(), |config| config.event_limit = 64 << 10).await;
    let mut client = world.serving("llama").await;
    let mut large = world.client_with("large", &[provider("other", true)]).await;
    let task = pb::TaskOffer { task_id: "t".into(), ..Default::default() };
    large.chunk(&task, &chunk(&"x".repeat(2 << 20))).await;
    let status = large.ended().await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_with_a_text_that_is_too_long_is_refused_and_the_others_are_taken() {
    let (world, mut client) = world().await;
    let long = || "x".repeat(2 << 10);
    let detailed = pb::Provider { state_detail: long(), ..provider("detailed", true) };
    let featured = pb::Provider { features: vec![long()], ..provider("featured", true) };
    let verdicts = client.push(&[detailed, featured, provider("llama", true)]).await;
    let words: Vec<_> = verdicts.iter().map(pb::ProviderVerdict::verdict).collect();
    assert_eq!(words, [pb::Verdict::Refused, pb::Verdict::Refused, pb::Verdict::Published]);
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_with_an_empty_or_repeated_name_is_accepted_but_for_those() {
    let world = World::start().await;
    let mut client = world.client("mcplocal").await;
    let twin = pb::Provider { model: "another".into(), ..provider("llama", true) };
    let pushed = [
        provider("llama", true),
        twin,
        provider("", true),
        provider("a\nb", true),
        provider(&"n".repeat(300), true),
    ];
    let verdicts = client.push(&pushed).await;
    assert_eq!(verdicts[0].verdict(), pb::Verdict::Published);
    let refusals = [
        (pb::ErrorCode::Duplicate, "twice"),
        (pb::ErrorCode::InvalidRequest, "is empty"),
        (pb::ErrorCode::InvalidRequest, "control characters"),
        (pb::ErrorCode::InvalidRequest, "longer than 253 bytes"),
    ];
    for (verdict, (code, word)) in verdicts[1..].iter().zip(refusals) {
        assert_eq!(verdict.verdict(), pb::Verdict::Refused);
        let error = verdict.error.as_ref().expect("a refusal says why");
        assert_eq!(error.code(), code);
        assert!(error.message.contains(word), "{}", error.message);
    }
    world.active("llama").await;
    assert_eq!(world.row("llama").spec.model, "m", "the first of two counts");
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_payload_is_ignored_as_one_of_a_newer_client() {
    let (world, mut client) = world().await;
    client.send_nothing().await;
    pass(Duration::from_secs(1)).await;
    works(&world, &mut client, "llama").await;
}

crate::support::over_https![
    a_session_that_does_not_begin_with_hello_ends_invalid_argument,
    a_session_that_never_says_anything_is_ended_in_bounded_time,
    a_second_hello_and_a_hello_without_an_id_end_the_session_invalid_argument,
    a_chunk_for_a_task_that_the_session_does_not_have_is_told_to_stop,
    late_chunks_are_told_to_stop_once_and_in_any_number_do_not_end_their_session,
    a_client_that_did_not_read_what_it_was_sent_is_told_so_when_it_reads,
    a_session_cannot_answer_another_ones_task,
    a_second_finish_is_logged_and_changes_nothing,
    output_that_is_no_json_ends_its_task_and_no_other,
    a_body_that_is_no_completion_is_a_502,
    a_message_over_the_limit_ends_its_session_with_a_status_and_no_other,
    a_provider_with_a_text_that_is_too_long_is_refused_and_the_others_are_taken,
    a_snapshot_with_an_empty_or_repeated_name_is_accepted_but_for_those,
    a_message_without_a_payload_is_ignored_as_one_of_a_newer_client,
];
