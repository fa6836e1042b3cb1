//! The main job: a pushed provider becomes a virtual LLM, and an inference on it streams to mcpd's caller.

use crate::support::{World, chat, chunk, completion, last_chunk, provider, soon};
use mcprelay::pb;

#[tokio::test(start_paused = true)]
async fn an_opted_in_provider_is_listed_and_another_is_not() {
    let world = World::start().await;
    let mut client = world.client("mcplocal").await;
    let verdicts = client.push(&[provider("yes", true), provider("no", false)]).await;
    let words: Vec<_> = verdicts.iter().map(pb::ProviderVerdict::verdict).collect();
    assert_eq!(words, [pb::Verdict::Published, pb::Verdict::NotOptedIn]);
    world.active("yes").await;
    let names: Vec<_> = world.mcpd.llms().into_iter().map(|llm| llm.spec.name).collect();
    assert_eq!(names, ["yes"]);
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_streamed_inference_reaches_the_caller_token_by_token() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let mut call = world.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    assert!(offer.streaming);
    for text in ["one ", "two ", "three"] {
        client.chunk(&offer, &chunk(text)).await;
        let got = soon("the chunk", call.chunk()).await.expect("a chunk");
        assert_eq!(got, chunk(text), "each token alone, byte for byte, because nothing was under way");
    }
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    let rest = soon("the end", call.collect()).await;
    assert!(rest.is_done(), "{rest:?}");
    world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_plain_inference_gets_the_providers_own_body() {
    let world = World::start().await;
    let mut client = world.serving("llama").await;
    let infer = async { world.mcpd.infer("llama", &chat("hi")).await };
    let serve = async {
        let offer = client.offer().await;
        assert!(!offer.streaming);
        client.finish_body(&offer, &completion("hello")).await;
    };
    let (reply, ()) = tokio::join!(infer, serve);
    assert_eq!((reply.status, &reply.body[..]), (200, completion("hello").as_bytes()));
    world.assert_clean();
}
