//! Servers that answer in ways that nobody imagined: each is from a public report of somebody who runs one.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use mcprelay::pb::ErrorCode;
use tokio::time::Instant;

use crate::{
    agent::Answer,
    server::{Relay, Seen, Server, answer_of, entry, json, redirect_to, sse},
};

const STREAM: &str = r#"{"model":"virtual","stream":true,"messages":[]}"#;
const PLAIN: &str = r#"{"model":"virtual","messages":[]}"#;
const HELLO: &str = r#"{"id":"x","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}"#;
const STOP: &str = r#"{"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const WHOLE: &str =
    r#"{"id":"x","choices":[{"index":0,"message":{"content":"Hello"},"finish_reason":"stop"}]}"#;

fn events(chunks: &[&str]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect()
}

/// What becomes of `request` at a server that always answers so.
async fn answer(request: &str, kind: &'static str, body: impl Into<String>) -> Answer {
    let body = body.into();
    let server =
        Server::start(move |_| std::future::ready(answer_of(200, kind, Body::from(body.clone())))).await;
    Relay::to(&server).await.ask(request).await
}

const SSE: &str = "text/event-stream";

#[tokio::test]
async fn an_empty_finish_reason_ends_nothing() {
    for reason in ["", "null"] {
        let piece = HELLO.replace("\"finish_reason\":null", &format!("\"finish_reason\":\"{reason}\""));
        let cut = answer(STREAM, SSE, events(&[&piece, &piece])).await;
        assert!(cut.error().message.contains("without finish_reason"), "{:?}", cut.error());
        let whole = answer(STREAM, SSE, events(&[&piece, STOP])).await;
        assert_eq!((whole.chunks.len(), whole.end.outcome), (2, None), "{reason:?}");
    }
}

#[tokio::test]
async fn an_error_in_whatever_shape_fails_the_task_with_its_words() {
    for (body, code) in [
        (
            "error: {\"code\":400,\"message\":\"over the available context size\"}\n\ndata: [DONE]\n\n",
            ErrorCode::ContextLength,
        ),
        ("error: {\"code\":400,\"message\":\"over the available context size\"}", ErrorCode::ContextLength),
        ("event: error\ndata: {\"message\":\"out of memory\"}\n\n", ErrorCode::Internal),
        ("event: error\ndata: out of memory\n\n", ErrorCode::Internal),
        (
            "event: error\ndata: {\"detail\":\"out of memory\",\"code\":503}\n\n",
            ErrorCode::ProviderUnavailable,
        ),
        (
            "data: {\"object\":\"error\",\"message\":\"out of memory\",\"code\":404}\n\n",
            ErrorCode::ModelNotFound,
        ),
        ("{\"error\":{\"message\":\"out of memory\",\"code\":429}}", ErrorCode::RateLimited),
    ] {
        let failed = answer(STREAM, SSE, body).await;
        let error = failed.error();
        assert_eq!(error.code(), code, "{body}: {error:?}");
        assert!(
            error.message.contains("memory") || error.message.contains("context size"),
            "{body}: {error:?}"
        );
    }
}

#[tokio::test]
async fn an_error_under_a_good_status_is_one_in_a_whole_answer_too() {
    for body in [
        r#"{"object":"error","message":"no such model","code":404}"#,
        r#"{"choices":[],"error":{"message":"no such model","code":404}}"#,
    ] {
        for request in [PLAIN, STREAM] {
            let failed = answer(request, "application/json", body).await;
            assert_eq!(failed.error().code(), ErrorCode::ModelNotFound, "{body}");
            assert_eq!(failed.error().message, "no such model");
        }
    }
}

#[tokio::test]
async fn an_empty_error_beside_a_good_answer_is_none() {
    for error in [r#"{"message":"","type":"","param":"","code":null}"#, "\"\"", "{}"] {
        let with = |text: &str| {
            format!(
                "{},\"error\":{error}}}",
                text.trim_end_matches('}').to_owned()
                    + &"}".repeat(text.len() - text.trim_end_matches('}').len() - 1)
            )
        };
        let streamed = answer(STREAM, SSE, events(&[&with(HELLO), &with(STOP)])).await;
        assert_eq!((streamed.chunks.len(), streamed.end.outcome), (2, None), "{error}");
        let whole = with(WHOLE);
        assert_eq!(answer(PLAIN, "application/json", whole.as_str()).await.body(), whole.as_bytes());
    }
}

#[tokio::test]
async fn a_stream_of_two_choices_is_whole_only_when_both_have_ended() {
    let second = HELLO.replace("\"index\":0", "\"index\":1");
    let cut = answer(STREAM, SSE, events(&[HELLO, &second, STOP])).await;
    assert!(cut.error().message.contains("without finish_reason"), "{:?}", cut.error());
    let end = STOP.replace("\"index\":0", "\"index\":1");
    let whole = answer(STREAM, SSE, events(&[HELLO, &second, STOP, &end])).await;
    assert_eq!((whole.chunks.len(), whole.end.outcome), (4, None));
}

#[tokio::test]
async fn a_last_event_without_a_line_end_counts_if_it_is_whole() {
    let body = events(&[HELLO]) + "data: " + STOP;
    let whole = answer(STREAM, SSE, body).await;
    assert_eq!((whole.chunks.len(), whole.end.outcome), (2, None));
    let cut = answer(STREAM, SSE, events(&[HELLO]) + "data: " + &STOP[..20]).await;
    assert_eq!(cut.chunks.len(), 1);
    assert_eq!(cut.error().code(), ErrorCode::Internal);
}

#[tokio::test]
async fn a_stream_under_a_wrong_label_is_relayed() {
    for label in ["application/json", "application/stream+json", "text/html"] {
        let relayed = answer(STREAM, label, events(&[HELLO, STOP])).await;
        assert_eq!((relayed.chunks.len(), relayed.end.outcome), (2, None), "{label}");
    }
}

#[tokio::test]
async fn a_usage_chunk_that_nobody_asked_for_is_dropped_however_odd_its_numbers() {
    for usage in ["{}", r#"{"prompt_tokens":7.5}"#, r#"{"prompt_tokens":"7"}"#] {
        let odd = format!(r#"{{"choices":[],"usage":{usage}}}"#);
        let relayed = answer(STREAM, SSE, events(&[HELLO, STOP, &odd, "[DONE]"])).await;
        assert_eq!(relayed.chunks, [HELLO, STOP], "{usage}");
    }
}

#[tokio::test]
async fn an_encoding_that_nobody_asked_for_is_named() {
    let zipped = |_: Seen| async {
        let mut response: Response = json(200, WHOLE);
        response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        response
    };
    let server = Server::start(zipped).await;
    let answer = Relay::to(&server).await.ask(PLAIN).await;
    assert!(answer.error().message.contains("gzip"), "{:?}", answer.error());
}

#[tokio::test]
async fn a_server_that_refuses_the_hosts_wish_for_usage_is_asked_without_it_from_then_on() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let strict = move |seen: Seen| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(match seen.body.contains("stream_options") {
            true => json(
                422,
                r#"{"detail":[{"loc":["body","stream_options"],"msg":"Extra inputs are not permitted"}]}"#,
            ),
            false => sse(events(&[HELLO, STOP])),
        })
    };
    let server = Server::start(strict).await;
    let mut relay = Relay::to(&server).await;
    assert_eq!(relay.ask(STREAM).await.chunks, [HELLO, STOP]);
    assert_eq!(relay.ask(STREAM).await.chunks, [HELLO, STOP]);
    assert_eq!(asked.load(Ordering::Relaxed), 3, "the second task was asked once");
}

#[tokio::test]
async fn a_page_that_says_loading_is_no_loading_model() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let page = move |_: Seen| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(answer_of(
            503,
            "text/html",
            Body::from("<title>Model</title><img loading=\"lazy\">"),
        ))
    };
    let server = Server::start(page).await;
    let answer = Relay::to(&server).await.ask(STREAM).await;
    assert_eq!(
        (answer.error().code(), answer.error().http_status),
        (ErrorCode::ProviderUnavailable, Some(503))
    );
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// The waits between the tries of one request at a server whose model loads for five of them; it asks to wait so long.
async fn waits(retry_after: Option<&'static str>) -> Vec<u64> {
    let tries = Arc::<Mutex<Vec<Instant>>>::default();
    let counted = Arc::clone(&tries);
    let loading = move |_: Seen| {
        let mut tries = counted.lock().unwrap();
        tries.push(Instant::now());
        let mut answer = match tries.len() {
            ..6 => json(503, r#"{"error":{"message":"Loading model","code":503}}"#),
            _ => json(200, WHOLE),
        };
        if let Some(seconds) = retry_after {
            answer.headers_mut().insert("retry-after", seconds.parse().unwrap());
        }
        std::future::ready(answer)
    };
    let server = Server::start(loading).await;
    let mut relay = Relay::to(&server).await;
    relay.session.offer("t1", "virtual", PLAIN).await;
    // Longer than one message may take.
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(relay.session.answer("t1").await.body(), WHOLE.as_bytes());
    let tries = tries.lock().unwrap();
    tries.windows(2).map(|two| (two[1] - two[0]).as_secs()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_loading_is_asked_ever_less_often_and_not_before_it_says() {
    assert_eq!(waits(None).await, [1, 2, 4, 8, 15]);
    assert_eq!(waits(Some("3")).await, [3, 3, 4, 8, 15]);
    assert_eq!(waits(Some("3600")).await, [15; 5]);
}

#[tokio::test]
async fn a_request_that_is_redirected_fails_and_its_owner_reads_where_to() {
    let server = Server::start(|_| async { redirect_to("https://llm.example/v1") }).await;
    let answer = Relay::to(&server).await.ask(PLAIN).await;
    let error = answer.error();
    assert_eq!(error.code(), ErrorCode::ProviderUnavailable);
    assert!(!error.message.contains("llm.example"), "{error:?}");
    assert!(error.owner_detail.contains("redirects to https://llm.example/v1; name"), "{error:?}");
}

#[tokio::test]
async fn every_request_says_who_asks_and_a_refusal_for_other_reasons_is_not_about_the_key() {
    let mut server =
        Server::start(|_| async { json(403, r#"{"error":{"message":"not available in your region"}}"#) })
            .await;
    let answer = Relay::to(&server).await.ask(PLAIN).await;
    let version = concat!("mcprelay/", env!("CARGO_PKG_VERSION"));
    assert_eq!(server.seen().await.headers["user-agent"], version);
    let detail = &answer.error().owner_detail;
    assert!(detail.contains("403") && detail.contains("not available in your region"), "{detail}");
    assert!(!detail.contains("apiKeyEnv"), "{detail}");
}

#[tokio::test]
async fn the_published_model_stands_in_every_answer() {
    let server = Server::start(|seen: Seen| async move {
        match seen.body.contains("\"stream\":true") {
            true => sse(events(&[&HELLO.replace("\"id\"", "\"model\":\"/home/m.gguf\",\"id\""), STOP])),
            false => json(200, WHOLE.replace("\"id\"", "\"model\":\"/home/m.gguf\",\"id\"")),
        }
    })
    .await;
    let mut named = entry("vllm", &server.url);
    named.published_model = Some("nice".to_owned());
    let mut relay = Relay::with(named).await;
    assert!(relay.ask(STREAM).await.chunks[0].starts_with(r#"{"model":"nice","id""#));
    assert!(relay.ask(PLAIN).await.body().starts_with(br#"{"model":"nice","id""#));
}

#[tokio::test]
async fn the_caller_reads_no_address_and_the_owner_reads_it() {
    let server =
        Server::start(|_| async { json(500, r#"{"error":{"message":"CUDA out of memory"}}"#) }).await;
    let answer = Relay::to(&server).await.ask(PLAIN).await;
    let error = answer.error();
    assert_eq!(error.message, "CUDA out of memory");
    assert!(error.owner_detail.starts_with(&server.url) && error.owner_detail.contains("CUDA"), "{error:?}");
}
