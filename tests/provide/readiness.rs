//! When a provider is offered and when it is not.

use std::time::Duration;

use mcprelay::pb::{Provider, ProviderState, session_request::Payload};
use tokio::{sync::Notify, time::sleep};

use crate::{
    agent::Agent,
    server::{Relay, Server, entry, host, json},
};

fn state(providers: &[Provider]) -> ProviderState {
    providers[0].state()
}

async fn server() -> Server {
    Server::start(|_| async { json(200, r#"{"choices":[]}"#) }).await
}

#[tokio::test]
async fn a_server_that_answers_is_ready_from_the_first_snapshot_with_its_context_length() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, Some(vec![entry("vllm", &server.url)]));
    let providers = agent.session().await.snapshot().await;
    assert_eq!((state(&providers), providers[0].context_tokens), (ProviderState::Ready, Some(4096)));
    assert_eq!((providers[0].model.as_str(), providers[0].r#type.as_str()), ("real", "vllm"));
}

#[tokio::test]
async fn a_server_that_comes_goes_and_comes_back_is_offered_while_it_is_there() {
    let first = server().await;
    let address = first.url.trim_start_matches("http://").to_owned();
    let mut relay = Relay::to(&first).await;
    drop(first);
    // Nobody waits for the next question: a request that finds nobody asks at once.
    relay.session.offer("t", "virtual", "{}").await;
    let gone = loop {
        match relay.session.next().await.unwrap() {
            Payload::ProviderSnapshot(snapshot) => break snapshot.providers,
            _ => continue,
        }
    };
    assert_eq!(state(&gone), ProviderState::Unavailable);
    assert!(gone[0].state_detail.contains("does not answer"), "{}", gone[0].state_detail);
    let _second = Server::start_on(&address, |_| async { json(200, r#"{"choices":[]}"#) }).await;
    relay.session.snapshot_where(|p| state(p) == ProviderState::Ready).await;
}

#[tokio::test]
async fn llama_cpp_that_loads_is_loading_and_then_ready_with_what_it_was_started_with() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    server.page(
        "/health",
        503,
        r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
    );
    server.page("/v1/models", 200, r#"{"data":[{"id":"/m/x.gguf","meta":{"n_ctx_train":8192}}]}"#);
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, Some(vec![entry("llamacpp", &server.url)]));
    let mut session = agent.session().await;
    assert_eq!(state(&session.snapshot().await), ProviderState::Loading);
    server.page("/health", 200, r#"{"status":"ok"}"#);
    let ready = session.snapshot_where(|p| state(p) == ProviderState::Ready).await;
    assert_eq!(ready[0].context_tokens, Some(8192));
}

#[tokio::test]
async fn a_web_server_in_the_place_of_a_llama_cpp_is_not_ready() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    let page = "<!doctype html><title>It works!</title>";
    server.page("/health", 200, page);
    server.page("/v1/models", 200, page);
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, Some(vec![entry("llamacpp", &server.url)]));
    let providers = agent.session().await.snapshot().await;
    assert_eq!(state(&providers), ProviderState::Unavailable);
    assert!(providers[0].state_detail.contains("not with a list of models"), "{}", providers[0].state_detail);
}

#[tokio::test]
async fn the_context_a_llama_cpp_was_started_with_outranks_the_models() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    server.page("/health", 200, "{}");
    server.page("/v1/models", 200, r#"{"data":[{"id":"x","meta":{"n_ctx_train":8192}}]}"#);
    server.page("/props", 200, r#"{"default_generation_settings":{"n_ctx":512}}"#);
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, Some(vec![entry("llamacpp", &server.url)]));
    assert_eq!(agent.session().await.snapshot().await[0].context_tokens, Some(512));
}

#[tokio::test]
async fn a_router_of_llama_cpp_is_asked_for_the_entrys_own_model() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    let row = |id: &str, context: u32| {
        format!(r#"{{"id":"{id}","status":{{"value":"unloaded"}},"meta":{{"n_ctx":{context}}}}}"#)
    };
    let list = |rows: &[String]| format!(r#"{{"data":[{}]}}"#, rows.join(","));
    server.page("/health", 200, "{}");
    server.page("/props", 200, r#"{"default_generation_settings":{"n_ctx":512}}"#);
    server.page("/v1/models", 200, &list(&[row("other", 1024), row("real", 2048)]));
    let mut agent = Agent::listen(&home.path().join("s"));
    let known = host(&home, Some(vec![entry("llamacpp", &server.url)]));
    let ready = agent.session().await.snapshot().await;
    assert_eq!(
        (state(&ready), ready[0].context_tokens, &*ready[0].state_detail),
        (ProviderState::Ready, Some(2048), "")
    );
    drop(known);
    // One row is not any model's row either: the router loads by name.
    server.page("/v1/models", 200, &list(&[row("other", 1024)]));
    let _unknown = host(&home, Some(vec![entry("llamacpp", &server.url)]));
    let unknown = agent.session().await.snapshot().await;
    assert_eq!(unknown[0].context_tokens, None);
    assert!(unknown[0].state_detail.contains("does not list the model real"), "{unknown:?}");
}

#[tokio::test]
async fn a_server_that_redirects_is_unavailable_and_its_target_is_named() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    server.redirect("/v1/models", "https://llm.example/v1/models");
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, Some(vec![entry("vllm", &server.url)]));
    let providers = agent.session().await.snapshot().await;
    assert_eq!(state(&providers), ProviderState::Unavailable);
    assert!(
        providers[0].state_detail.contains("redirects to https://llm.example/v1/models; name"),
        "{providers:?}"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_server_is_said() {
    for (status, body, expected, detail) in [
        (401, "", ProviderState::Unavailable, "wants a key"),
        (500, "", ProviderState::Unavailable, "answers 500"),
        (503, "", ProviderState::Unavailable, "answers 503"),
        (503, "Loading model", ProviderState::Loading, "loading"),
        (
            503,
            r#"<title>Loading model</title><img loading="lazy">"#,
            ProviderState::Unavailable,
            "answers 503",
        ),
        (501, "", ProviderState::Ready, ""),
        (
            403,
            r#"{"error":{"message":"not in your region"}}"#,
            ProviderState::Unavailable,
            "not in your region",
        ),
        (404, "", ProviderState::Ready, "no list of models (404)"),
        (200, r#"{"data":[{"id":"other"}]}"#, ProviderState::Ready, "does not list the model real"),
        (200, r#"{"data":[{"id":"real:latest"}]}"#, ProviderState::Ready, ""),
        (200, r#"{"object":"list","data":null}"#, ProviderState::Ready, ""),
        (200, r#"[{"id":"real"}]"#, ProviderState::Ready, ""),
        (
            200,
            "<!doctype html><title>It works!</title>",
            ProviderState::Unavailable,
            "not with a list of models",
        ),
        (200, r#"{"hello":"world"}"#, ProviderState::Unavailable, "not with a list of models"),
        (200, "", ProviderState::Unavailable, "not with a list of models"),
    ] {
        let (home, server) = (tempfile::tempdir().unwrap(), server().await);
        server.page("/v1/models", status, body);
        let mut agent = Agent::listen(&home.path().join("s"));
        let _host = host(&home, Some(vec![entry("ollama", &server.url)]));
        let providers = agent.session().await.snapshot().await;
        assert_eq!(state(&providers), expected, "{status} {body}");
        let said = &providers[0].state_detail;
        assert!(said.contains(detail) && said.is_empty() == detail.is_empty(), "{status} {body}: {said:?}");
    }
}

#[tokio::test]
async fn a_key_that_is_not_set_is_said_and_nothing_is_asked() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    let mut agent = Agent::listen(&home.path().join("s"));
    let mut keyless = entry("openai", &server.url);
    keyless.api_key_env = Some("MCPRELAY_TEST_NO_SUCH_VARIABLE".to_owned());
    let _host = host(&home, Some(vec![keyless]));
    let providers = agent.session().await.snapshot().await;
    assert_eq!(state(&providers), ProviderState::Unavailable);
    assert!(providers[0].state_detail.contains("MCPRELAY_TEST_NO_SUCH_VARIABLE"));
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn what_is_not_opted_in_is_pushed_but_never_asked() {
    let (home, server) = (tempfile::tempdir().unwrap(), server().await);
    let mut agent = Agent::listen(&home.path().join("s"));
    let mut shy = entry("vllm", &server.url);
    shy.publish = false;
    let _host = host(&home, Some(vec![shy]));
    let mut session = agent.session().await;
    assert!(!session.snapshot().await[0].publish);
    // A whole round through the host: what it wanted to ask at its start it would have asked by now.
    session.offer("t", "nobody", "{}").await;
    session.answer("t").await;
    assert_eq!((server.asked(), server.connections()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_well_is_asked_every_ten_seconds() {
    let server = server().await;
    let mut relay = Relay::to(&server).await;
    let before = server.asked();
    sleep(Duration::from_secs(101)).await;
    // A question takes no paused time, so the count is exact.
    let asked = server.asked() - before;
    assert!((9..=11).contains(&asked), "{asked} questions in 101 s");
    relay.ask("{}").await;
}

/// Longer than several questions and their timeouts.
const A_WHILE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_server_that_does_one_thing_at_a_time_is_away_only_when_it_does_nothing() {
    let done = std::sync::Arc::new(Notify::new());
    let waits = done.clone();
    let mut server = Server::start(move |_| {
        let done = waits.clone();
        async move {
            done.notified().await;
            json(200, r#"{"choices":[]}"#)
        }
    })
    .await;
    let mut relay = Relay::to(&server).await;
    relay.session.offer("t", "virtual", "{}").await;
    server.seen().await;
    server.hold_pages();
    sleep(A_WHILE).await;
    done.notify_one();
    let next = relay.session.next().await;
    assert!(matches!(next, Some(Payload::TaskFinished(_))), "{next:?} although it was busy");
    sleep(A_WHILE).await;
    let gone = relay.session.snapshot().await;
    assert_eq!(state(&gone), ProviderState::Unavailable);
    assert!(gone[0].state_detail.contains("does not answer within 10 s"), "{gone:?}");
}
