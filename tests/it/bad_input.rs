//! What bad input gets, here that from mcpd: a clear error on the side it came from, while everything else goes on. Every test ends by
//! showing that the same session, or another one, still works.

mod local_programs;

use std::time::Duration;

use fake_mcpd::{Aim, Answer, CallKind, FakeMcpd, InferReply, InferRequest};
use mcprelay::pb::{self, AgentState, session_request::Payload};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    Client, Logs, Watch, World, chat, chunk, completion, hello, last_chunk, pass, provider, soon,
};

/// The first result that mcpd gets for a task of the test's own making.
async fn answer_to(world: &World, task: &str) -> Value {
    let result = |e: &fake_mcpd::Entry| e.is_call(CallKind::Result) && e.task.as_deref() == Some(task);
    soon("a result", world.mcpd.wait_for(result)).await.json()
}

/// An inference from its call to its answer.
async fn works(world: &World, client: &mut Client, llm: &str) {
    let call = world.mcpd.submit(InferRequest::new(llm, &chat("still there?"))).expect("accepted");
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("yes")).await;
    let reply: InferReply = soon("the end", call.collect()).await.end.into();
    assert_eq!((reply.status, &reply.body[..]), (200, completion("yes").as_bytes()));
}

async fn world() -> (World, Client) {
    let world = World::start().await;
    let client = world.serving("llama").await;
    (world, client)
}

#[tokio::test(start_paused = true)]
async fn a_task_event_that_is_not_json_is_logged_and_the_channel_goes_on() {
    let logs = Logs::keep();
    let (world, mut client) = world().await;
    world.mcpd.send_raw("event: task\\ndata: <html>nonsense\\n\\n");
    works(&world, &mut client, "llama").await;
    assert_eq!(logs.lines_with("cannot even be answered").len(), 1);
    let totals = client.status().await.totals.expect("there are totals");
    assert_eq!((totals.tasks, totals.tasks_ok, totals.tasks_failed), (2.0, 1.0, 1.0), "it is counted, too");
    assert_eq!(world.calls(CallKind::Stream).len(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_sse_are_no_reason_to_end_the_channel() {
    let (world, mut client) = world().await;
    world.mcpd.send_garbage();
    world.active("llama").await;
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_task_event_whose_id_can_be_read_is_answered_so_that_no_caller_hangs() {
    let (world, mut client) = world().await;
    world.mcpd.send_task(r#"{"taskId":"t-broken","kind":7,"llmName":["llama"]}"#);
    let answer = answer_to(&world, "t-broken").await;
    assert!(answer["error"].as_str().is_some_and(|e| e.contains("cannot be read at line 1")), "{answer}");
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_event_without_an_id_is_logged_and_dropped() {
    let logs = Logs::keep();
    let (world, mut client) = world().await;
    for data in
        [r#"{"kind":"infer","llmName":"llama","request":{}}"#, r#"{"kind":"infer","taskId":"","request":{}}"#]
    {
        world.mcpd.send_raw(format!("event: task\\ndata: {data}\\n\\n"));
    }
    works(&world, &mut client, "llama").await;
    assert_eq!(logs.lines_with("cannot even be answered").len(), 2);
    assert_eq!(world.calls(CallKind::Result).len(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_of_an_unknown_kind_is_answered_with_an_error_that_names_it() {
    let (world, mut client) = world().await;
    world.mcpd.send_task(r#"{"kind":"dance\u001b[31m","taskId":"t-kind","llmName":"llama","request":{}}"#);
    let answer = answer_to(&world, "t-kind").await;
    let error = answer["error"].as_str().expect("one sentence");
    assert!(error.contains("kind 'dance"), "{error}");
    assert!(!error.contains('\u{1b}'), "nothing that moves a cursor: {error:?}");
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_for_an_unknown_or_withdrawn_llm_is_answered_with_503() {
    let (world, mut client) = world().await;
    client.push(&[provider("llama", true), provider("gone", false)]).await;
    for (id, llm) in [("t-unknown", "nobody"), ("t-gone", "gone"), ("t-empty", "")] {
        world.mcpd.send_task(json!({"kind":"infer","taskId":id,"llmName":llm,"request":{}}).to_string());
        let answer = answer_to(&world, id).await;
        assert_eq!(
            (&answer["status"], &answer["body"]["error"]["code"]),
            (&json!(503), &json!("provider_unavailable"))
        );
    }
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_without_a_request_is_answered_with_an_error() {
    let (world, mut client) = world().await;
    world.mcpd.send_task(r#"{"kind":"infer","taskId":"t-empty","llmName":"llama","request":[1]}"#);
    let answer = answer_to(&world, "t-empty").await;
    assert!(answer["error"].as_str().is_some_and(|e| e.contains("no OpenAI request body")), "{answer}");
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_delivered_twice_runs_once_also_after_its_end() {
    let (world, mut client) = world().await;
    world.mcpd.deliver_twice(1);
    let call = world.mcpd.submit(InferRequest::new("llama", &chat("once"))).expect("accepted");
    let offer = client.offer().await;
    client.finish_body(&offer, &completion("once")).await;
    assert_eq!(InferReply::from(soon("the end", call.collect()).await.end).status, 200);
    let again = json!({"kind":"infer","taskId":offer.task_id,"llmName":"llama","request":{}});
    world.mcpd.send_task(again.to_string());
    let call = world.mcpd.submit(InferRequest::new("llama", &chat("another"))).expect("accepted");
    let next = client.offer().await;
    assert_ne!(next.task_id, offer.task_id, "the next offer is the next task");
    client.finish_body(&next, &completion("another")).await;
    assert_eq!(InferReply::from(soon("the end", call.collect()).await.end).status, 200);
    assert_eq!(world.results(&offer.task_id).len(), 1);
    let mut watch = Watch::open(&world.config.socket).await;
    watch.until(|s| s.totals.is_some_and(|totals| totals.tasks_repeated == 2.0)).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_id_that_mcpd_uses_again_while_it_runs_leaves_the_first_task_alone_and_is_warned_of() {
    let (world, mut client) = world().await;
    let logs = Logs::keep();
    let call = world.mcpd.submit(InferRequest::new("llama", &chat("first"))).expect("accepted");
    let offer = client.offer().await;
    let again = json!({"kind":"infer","taskId":offer.task_id,"llmName":"llama","request":chat("second")});
    world.mcpd.send_task(again.to_string());
    let mut watch = Watch::open(&world.config.socket).await;
    watch.until(|s| s.totals.is_some_and(|totals| totals.tasks_repeated == 1.0)).await;
    client.finish_body(&offer, &completion("first")).await;
    let reply = InferReply::from(soon("the end", call.collect()).await.end);
    assert!(String::from_utf8_lossy(&reply.body).contains("first"), "{reply:?}");
    assert_eq!(world.results(&offer.task_id).len(), 1, "nothing is posted for the second");
    assert_eq!(logs.lines_with("under an id that it has used already").len(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn unknown_events_and_fields_and_a_bad_cancel_are_ignored() {
    let (world, mut client) = world().await;
    for frame in [
        "event: future\\ndata: {\"a\":1}\\n\\n",
        "data: no event name\\n\\n",
        "event: cancel\\ndata: not json\\n\\n",
        "event: cancel\\ndata: {\"taskId\":\"never heard of\"}\\n\\n",
        "event: hello\\ndata: 7\\n\\n",
        "id: 4\\n\\n",
    ] {
        world.mcpd.send_raw(frame);
    }
    works(&world, &mut client, "llama").await;
    assert_eq!(world.calls(CallKind::Stream).len(), 1);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_event_over_the_limit_is_answered_and_the_channel_goes_on() {
    let logs = Logs::keep();
    let world = World::with(FakeMcpd::builder(), |config| config.event_limit = 64 << 10).await;
    let mut client = world.serving("llama").await;
    let call = world.mcpd.infer_stream("llama", &chat(&"x".repeat(100_000))).expect("accepted");
    let reply: InferReply = soon("the end", call.collect()).await.end.into();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (413, &json!("too_large")));
    assert_eq!(logs.lines_with("--event-limit can raise it").len(), 1);
    for large in ["event: future\ndata: ", "event: cancel\ndata: ", ": "] {
        world.mcpd.send_raw(format!("{large}{}\n\n", "x".repeat(100_000)));
    }
    works(&world, &mut client, "llama").await;
    assert_eq!(world.calls(CallKind::Stream).len(), 1, "the channel stayed open");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_over_the_limit_is_answered_by_the_id_behind_its_request_and_never_by_one_inside() {
    let logs = Logs::keep();
    let world = World::with(FakeMcpd::builder(), |config| config.event_limit = 64 << 10).await;
    let mut client = world.serving("llama").await;
    let text = "x".repeat(100_000);
    let inside = format!(r#"{{"kind":"infer","request":{{"text":"{text}","taskId":"inside"}}}}"#);
    world.mcpd.send_task(inside);
    let behind =
        format!(r#"{{"kind":"infer","request":{{"text":"{text}","taskId":"inside"}},"taskId":"behind"}}"#);
    world.mcpd.send_task(behind);
    let delivered = |e: &fake_mcpd::Entry| e.is_call(CallKind::Result);
    let entry = soon("its result", world.mcpd.wait_for(delivered)).await;
    assert_eq!(entry.task.as_deref(), Some("behind"));
    assert_eq!(logs.lines_with("its taskId is out of sight").len(), 1);
    works(&world, &mut client, "llama").await;
    assert_eq!(world.calls(CallKind::Stream).len(), 1, "the channel stayed open");
}

#[tokio::test(start_paused = true)]
async fn a_register_reply_without_a_session_id_is_an_error_in_the_status_and_tried_again() {
    let world = World::start().await;
    world.mcpd.hide_session_id(1);
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::Backoff).await;
    assert!(link.detail.contains("without a usable providerSessionId"), "{}", link.detail);
    assert!(!world.path("provider-session").exists(), "nothing is kept");
    // mcpd has a row of a session that nobody knows; it goes when that session's heartbeats stay out.
    world.active("llama").await;
    works(&world, &mut client, "llama").await;
}

#[tokio::test(start_paused = true)]
async fn a_200_that_is_an_html_page_is_an_error_on_every_call() {
    let world = World::start().await;
    world.mcpd.answer(Aim::next(CallKind::Register), Answer::status(200).html());
    let mut client = world.client_with("mcplocal", &[provider("llama", true)]).await;
    let link = world.link(AgentState::Backoff).await;
    assert!(link.detail.contains("HTML page") && link.advice.contains("really mcpd's"), "{link:?}");
    world.mcpd.answer(Aim::next(CallKind::Stream), Answer::status(200).html());
    let named = |link: &pb::AgentStatus| link.detail.contains("not an event stream but text/html");
    let mut watch = crate::support::Watch::open(&world.config.socket).await;
    watch.until(|s| s.agent.as_ref().is_some_and(named)).await;
    world.active("llama").await;
    let logs = Logs::keep();
    world.mcpd.answer(Aim::next(CallKind::Heartbeat), Answer::status(200).html());
    world.calls_of(CallKind::Heartbeat, 2).await;
    assert_eq!(logs.lines_with("heartbeat missed").len(), 1);
    works(&world, &mut client, "llama").await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn credentials_that_break_while_the_agent_is_online_are_one_warning_and_everything_goes_on() {
    let logs = Logs::keep();
    let (world, mut client) = world().await;
    let mut call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one")).await;
    soon("a chunk", call.chunk()).await.expect("a chunk");
    world.write("credentials", "token=abc");
    pass(Duration::from_secs(5)).await;
    let warnings = logs.lines_with("is not JSON");
    assert_eq!(warnings.len(), 1);
    assert!(!warnings[0].contains("abc"), "{warnings:?}");
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    assert!(soon("the end", call.collect()).await.is_done());
    works(&world, &mut client, "llama").await;
    world.link(AgentState::Online).await;
}

#[tokio::test(start_paused = true)]
async fn a_mode_that_lets_others_read_the_token_is_one_warning_however_often_the_file_is_read() {
    use std::{fs, os::unix::fs::PermissionsExt as _};
    let logs = Logs::keep();
    let mut world = World::offline(FakeMcpd::builder(), |_| {}).await;
    world.write_credentials();
    fs::set_permissions(world.path("credentials"), fs::Permissions::from_mode(0o640)).expect("it is ours");
    world.start_agent();
    let mut client = world.serving("llama").await;
    for n in 0..3 {
        world.write("config.json", &json!({"n": n, "grows": "x".repeat(n)}).to_string());
        pass(Duration::from_secs(6)).await;
    }
    world.mcpd.answer(Aim::next(CallKind::Heartbeat).times(2), Answer::status(401));
    pass(Duration::from_secs(70)).await;
    assert_eq!(logs.lines_with("so others may read the token").len(), 1);
    works(&world, &mut client, "llama").await;
}

crate::support::over_https![
    a_task_event_that_is_not_json_is_logged_and_the_channel_goes_on,
    bytes_that_are_no_sse_are_no_reason_to_end_the_channel,
    a_broken_task_event_whose_id_can_be_read_is_answered_so_that_no_caller_hangs,
    a_task_event_without_an_id_is_logged_and_dropped,
    a_task_of_an_unknown_kind_is_answered_with_an_error_that_names_it,
    a_task_for_an_unknown_or_withdrawn_llm_is_answered_with_503,
    a_task_without_a_request_is_answered_with_an_error,
    a_task_delivered_twice_runs_once_also_after_its_end,
    unknown_events_and_fields_and_a_bad_cancel_are_ignored,
    an_event_over_the_limit_is_answered_and_the_channel_goes_on,
    a_task_over_the_limit_is_answered_by_the_id_behind_its_request_and_never_by_one_inside,
    a_register_reply_without_a_session_id_is_an_error_in_the_status_and_tried_again,
    a_200_that_is_an_html_page_is_an_error_on_every_call,
    credentials_that_break_while_the_agent_is_online_are_one_warning_and_everything_goes_on,
    a_mode_that_lets_others_read_the_token_is_one_warning_however_often_the_file_is_read,
];
