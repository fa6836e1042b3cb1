//! Tasks that end before their answer: the caller leaves, or a token does not come in time.

use std::time::Duration;

use fake_mcpd::{Call, FakeMcpd, InferReply, InferRequest, TaskEnd};
use mcprelay::pb::{self, task_chunk};
use serde_json::json;

use crate::support::{World, chat, chunk, completion, pass, soon};

fn streaming(world: &World) -> Call {
    world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted")
}

async fn reply(call: Call) -> InferReply {
    soon("the end", call.collect()).await.end.into()
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_cancels_down_to_the_provider_and_nothing_more_is_posted() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let mut call = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one")).await;
    soon("a chunk", call.chunk()).await.expect("a chunk");
    drop(call);
    let cancel = client.cancel().await;
    assert_eq!(
        (cancel.task_id.as_str(), cancel.reason()),
        (offer.task_id.as_str(), pb::CancelReason::CallerGone)
    );
    let before = world.results(&offer.task_id).len();
    client.chunk(&offer, &chunk("too late")).await;
    client.finish_cancelled(&offer.task_id).await;
    let next = world.mcpd.submit(InferRequest::new("llama", &chat("next"))).expect("accepted");
    let second = client.offer().await;
    client.finish_body(&second, &completion("next")).await;
    assert_eq!(reply(next).await.status, 200);
    assert_eq!(world.results(&offer.task_id).len(), before);
    assert_eq!(client.status().await.totals.expect("totals").tasks_cancelled, 1.0);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_first_or_a_next_token_ends_with_504_or_an_error() {
    let seconds = Duration::from_secs;
    let world = World::with(FakeMcpd::builder(), |config| {
        (config.first_token_timeout, config.idle_token_timeout) = (seconds(20), seconds(5));
    })
    .await;
    let mut client = world.serving("llama").await;
    let silent = streaming(&world);
    let offer = client.offer().await;
    assert_eq!(client.cancel().await.reason(), pb::CancelReason::Deadline);
    let got = reply(silent).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (504, &json!("first_token_timeout")));
    client.finish_cancelled(&offer.task_id).await;
    let stuck = streaming(&world);
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one")).await;
    let end = soon("the end", stuck.collect()).await.end;
    let TaskEnd::Failed { message, .. } = end else { panic!("{end:?}") };
    assert!(message.contains("next token within 5.0 s"), "{message}");
    client.finish_cancelled(&offer.task_id).await;
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_postpone_the_token_deadlines_and_are_not_relayed() {
    let world =
        World::with(FakeMcpd::builder(), |config| config.first_token_timeout = Duration::from_secs(20)).await;
    let mut client = world.serving("llama").await;
    let call = streaming(&world);
    let offer = client.offer().await;
    for _ in 0..3 {
        pass(Duration::from_secs(15)).await;
        client.output(&offer, None::<task_chunk::Output>).await;
    }
    client.finish_text(&offer, "at last").await;
    let got = soon("the end", call.collect()).await;
    assert!(got.is_done() && got.text() == "at last", "{got:?}");
    world.assert_clean();
}
