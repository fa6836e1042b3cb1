//! What becomes of requests and answers on their way to and from an OpenAI-compatible server.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use mcprelay::pb::ErrorCode;
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::BOUND,
    server::{Relay, Seen, Server, answer_of, endless, entry, json, sse},
};

const STREAM: &str = r#"{"model":"virtual","stream":true,"messages":[]}"#;
const PLAIN: &str = r#"{"model":"virtual","messages":[]}"#;
const HELLO: &str =
    r#"{"id":"x","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}],"new":1.50}"#;
const STOP: &str = r#"{"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str =
    r#"{"id":"x","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9,"total_tokens":16}}"#;
/// How soon a cancelled task's socket must be closed.
const CANCEL_BOUND: Duration = Duration::from_millis(100);

fn events(chunks: &[&str]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect()
}

async fn streaming(body: String) -> (Server, Relay) {
    let server = Server::start(move |_| std::future::ready(sse(body.clone()))).await;
    let relay = Relay::to(&server).await;
    (server, relay)
}

#[tokio::test]
async fn a_server_that_knows_only_its_own_model_gets_it_and_every_other_byte_as_it_came() {
    let strict = |seen: Seen| async move {
        match serde_json::from_str::<serde_json::Value>(&seen.body).unwrap()["model"] == "real" {
            true => json(200, r#"{"id": "a",  "choices":[{"message":{"content":"ok"}}],"odd":1.0}"#),
            false => json(404, r#"{"error":{"message":"no such model"}}"#),
        }
    };
    let mut server = Server::start(strict).await;
    let mut relay = Relay::to(&server).await;
    let request = r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,é\u00e9"}}]}], "model" :"virtual","tools":[{"x":1.10}],"logprobs":true,"unknown":{"model":"inner"}}"#;
    let answer = relay.ask(request).await;
    assert_eq!(answer.body(), br#"{"id": "a",  "choices":[{"message":{"content":"ok"}}],"odd":1.0}"#);
    let seen = server.seen().await;
    assert_eq!(seen.body, request.replace(r#""virtual""#, r#""real""#));
    assert_eq!(seen.headers["content-type"], "application/json");
    assert_eq!(seen.headers["content-length"], seen.body.len().to_string().as_str());
    assert_eq!(seen.headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(seen.headers["tracestate"], "a=b");
    assert!(!seen.headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_key_goes_to_the_server_and_nowhere_else() {
    let mut server = Server::start(|_| async { json(401, r#"{"error":{"message":"bad key"}}"#) }).await;
    let mut with_key = entry("openai", &server.url);
    with_key.api_key_env = Some("PATH".to_owned());
    let secret = std::env::var("PATH").unwrap();
    let mut relay = Relay::with(with_key).await;
    let answer = relay.ask(PLAIN).await;
    let error = answer.error();
    assert_eq!((error.code(), error.http_status, error.body_json.len()), (ErrorCode::ProviderAuth, None, 0));
    assert!(
        error.owner_detail.contains("environment variable PATH") && !error.owner_detail.contains(&secret),
        "{error:?}"
    );
    assert_eq!(server.seen().await.headers["authorization"], format!("Bearer {secret}").as_str());
}

#[tokio::test]
async fn a_streams_chunks_arrive_byte_for_byte_and_our_usage_chunk_does_not() {
    let (mut server, mut relay) = streaming(events(&[HELLO, STOP, USAGE, "[DONE]"])).await;
    let answer = relay.ask(STREAM).await;
    assert_eq!(answer.chunks, [HELLO, STOP]);
    assert_eq!((answer.end.outcome.as_ref(), answer.usage()), (None, Some((7, 9))));
    let body = server.seen().await.body;
    assert_eq!(
        body,
        r#"{"stream_options":{"include_usage":true},"model":"real","stream":true,"messages":[]}"#
    );
}

#[tokio::test]
async fn a_usage_chunk_that_the_caller_asked_for_is_passed_on() {
    let (_server, mut relay) = streaming(events(&[HELLO, STOP, USAGE, "[DONE]"])).await;
    let answer = relay.ask(r#"{"stream":true,"stream_options":{"include_usage":true}}"#).await;
    assert_eq!(answer.chunks, [HELLO, STOP, USAGE]);
    assert_eq!(answer.usage(), Some((7, 9)));
}

#[tokio::test]
async fn usage_beside_the_last_choice_is_counted_and_passed_on() {
    let last = r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
    let (_server, mut relay) = streaming(events(&[HELLO, last, "[DONE]"])).await;
    let answer = relay.ask(STREAM).await;
    assert_eq!(
        (answer.chunks.as_slice(), answer.usage()),
        ([HELLO.to_owned(), last.to_owned()].as_slice(), Some((1, 2)))
    );
}

#[tokio::test]
async fn a_plain_answers_usage_is_counted() {
    let body =
        r#"{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
    let server = Server::start(move |_| async move { json(200, body) }).await;
    let answer = Relay::to(&server).await.ask(PLAIN).await;
    assert_eq!((answer.body(), answer.usage()), (body.as_bytes(), Some((3, 4))));
}

#[tokio::test]
async fn a_stream_may_end_without_done_but_not_without_a_finish_reason() {
    let (_server, mut relay) = streaming(events(&[HELLO, STOP])).await;
    assert_eq!(relay.ask(STREAM).await.end.outcome, None);

    let (_server, mut relay) = streaming(events(&[HELLO])).await;
    let answer = relay.ask(STREAM).await;
    assert_eq!(answer.chunks, [HELLO]);
    assert!(answer.error().message.contains("without finish_reason"), "{answer:?}");
}

#[tokio::test]
async fn a_done_without_a_finish_reason_goes_on_because_nothing_else_says_that_the_stream_is_whole() {
    let (_server, mut relay) = streaming(events(&[HELLO, "[DONE]"])).await;
    let answer = relay.ask(STREAM).await;
    assert_eq!(answer.chunks, [HELLO, "[DONE]"]);
    assert_eq!(answer.end.outcome, None);
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_is_the_tasks_error() {
    let broken = r#"{"error":{"message":"out of memory","code":500}}"#;
    let (_server, mut relay) = streaming(events(&[HELLO, broken, STOP])).await;
    let answer = relay.ask(STREAM).await;
    assert_eq!(answer.chunks, [HELLO]);
    assert_eq!((answer.error().http_status, &answer.error().body_json[..]), (Some(500), broken.as_bytes()));
}

#[tokio::test]
async fn an_event_over_the_limit_is_an_error() {
    let (_server, mut relay) = streaming(format!("data: {}\n\n", "x".repeat(5 << 20))).await;
    assert!(relay.ask(STREAM).await.error().message.contains("an event of more than 4194304 bytes"));
}

#[tokio::test]
async fn a_whole_body_on_a_stream_request_is_passed_on_as_one() {
    let body = r#"{"choices":[{"message":{"content":"all at once"}}]}"#;
    let server = Server::start(move |_| async move { json(200, body) }).await;
    assert_eq!(Relay::to(&server).await.ask(STREAM).await.body(), body.as_bytes());
}

#[tokio::test]
async fn a_good_status_over_something_else_is_an_error() {
    let page = || async { answer_of(200, "text/html", Body::from("<html>Sign in</html>")) };
    let server = Server::start(move |_| page()).await;
    let mut relay = Relay::to(&server).await;
    for request in [PLAIN, STREAM] {
        let answer = relay.ask(request).await;
        assert!(answer.error().message.contains("not a JSON object"), "{answer:?}");
    }
    let server = Server::start(|_| async { json(200, r#"{"error":{"message":"no","code":429}}"#) }).await;
    assert_eq!(Relay::to(&server).await.ask(PLAIN).await.error().code(), ErrorCode::RateLimited);
}

#[tokio::test]
async fn a_refusal_keeps_status_body_and_retry_after() {
    let body = r#"{"error":{"message":"slow down","type":"rate_limit"}}"#;
    let busy = move |_| async move {
        let mut answer = json(429, body);
        answer.headers_mut().insert("retry-after", "7".parse().unwrap());
        answer
    };
    let server = Server::start(busy).await;
    let answer = Relay::to(&server).await.ask(STREAM).await;
    let error = answer.error();
    assert_eq!(
        (error.code(), error.retryable, error.retry_after_ms),
        (ErrorCode::RateLimited, true, Some(7000))
    );
    assert_eq!((error.http_status, &error.body_json[..]), (Some(429), body.as_bytes()));
}

#[tokio::test]
async fn a_context_overflow_stays_a_400() {
    let body = r#"{"error":{"code":400,"message":"request exceeds the available context size","type":"exceed_context_size_error"}}"#;
    let server = Server::start(move |_| async move { json(400, body) }).await;
    let answer = Relay::to(&server).await.ask(PLAIN).await;
    assert_eq!((answer.error().code(), answer.error().http_status), (ErrorCode::ContextLength, Some(400)));
}

#[tokio::test]
async fn a_request_that_is_no_json_never_reaches_the_server() {
    let server = Server::start(|_| async { json(200, "{}") }).await;
    let answer = Relay::to(&server).await.ask("not json").await;
    assert_eq!(answer.error().code(), ErrorCode::InvalidRequest);
}

#[tokio::test]
async fn a_server_that_went_away_is_a_retryable_refusal() {
    let server = Server::start(|_| async { json(200, "{}") }).await;
    let mut relay = Relay::to(&server).await;
    drop(server);
    let answer = relay.ask(PLAIN).await;
    let error = answer.error();
    assert_eq!((error.code(), error.retryable), (ErrorCode::ProviderUnavailable, true), "{error:?}");
}

#[tokio::test]
async fn comments_are_signs_of_life_but_not_every_one() {
    let (_server, mut relay) =
        streaming(format!("{}{}", ": processing\n\n".repeat(50), events(&[STOP, "[DONE]"]))).await;
    let answer = relay.ask(STREAM).await;
    assert_eq!((answer.signs_of_life, answer.chunks.len()), (1, 1));
}

/// Offers `request` to a server that never ends it, cancels, and measures until the server sees its caller leave. The clock is
/// paused: a busy machine costs nothing, and a timer on the way would show.
async fn cancelled(
    request: &str,
    endless: impl Fn(CancellationToken) -> Response + Send + Sync + 'static,
    plain: bool,
) {
    let gone = CancellationToken::new();
    let (seen_gone, endless) = (gone.clone(), Arc::new(endless));
    let chat = move |_| {
        let (gone, endless) = (gone.clone(), endless.clone());
        async move {
            if plain {
                let _gone = gone.drop_guard();
                std::future::pending().await
            } else {
                endless(gone)
            }
        }
    };
    let mut server = Server::start(chat).await;
    let mut relay = Relay::to(&server).await;
    relay.session.offer("t1", "virtual", request).await;
    server.seen().await;
    if !plain {
        relay.session.next().await.expect("the first chunk");
    }
    let asked = Instant::now();
    relay.session.cancel("t1").await;
    timeout(BOUND, seen_gone.cancelled()).await.expect("the server sees it");
    let took = asked.elapsed();
    assert!(relay.session.answer("t1").await.is_cancelled());
    assert!(took < CANCEL_BOUND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_closes_a_streams_socket_at_once() {
    const FIRST: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    cancelled(STREAM, |gone| endless(FIRST, gone.drop_guard()), false).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_closes_a_plain_requests_socket_at_once() {
    cancelled(PLAIN, |_| json(200, "{}"), true).await;
}

#[tokio::test]
async fn in_the_steady_state_no_request_opens_a_connection() {
    let (server, mut relay) = streaming(events(&[HELLO, STOP, "[DONE]"])).await;
    for _ in 0..30 {
        relay.ask(STREAM).await;
    }
    // One is the first question's; an answer whose tail was late may have cost a second.
    assert!(server.connections() <= 2, "{} connections", server.connections());
}

/// Serves HTTP so badly that every connection answers one request and closes at the second, without a word.
async fn forgetful_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                assert!(connection.read(&mut request).await.unwrap() > 0);
                let answer =
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                connection.write_all(answer).await.unwrap();
                connection.read(&mut request).await
            });
        }
    });
    url
}

#[tokio::test]
async fn a_kept_connection_that_the_server_has_given_up_costs_nothing() {
    let url = forgetful_server().await;
    let mut relay = Relay::with(entry("vllm", &url)).await;
    for _ in 0..4 {
        assert_eq!(relay.ask(PLAIN).await.body(), b"{}");
    }
}

#[tokio::test]
async fn a_model_that_is_loading_is_waited_for() {
    let tries = AtomicUsize::new(0);
    let loading = move |_| {
        let first = tries.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            match first {
                true => json(
                    503,
                    r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#,
                ),
                false => json(200, r#"{"choices":[]}"#),
            }
        }
    };
    let server = Server::start(loading).await;
    let (mut relay, asked) = (Relay::to(&server).await, Instant::now());
    assert_eq!(relay.ask(PLAIN).await.body(), br#"{"choices":[]}"#);
    // Its list of models has called it ready all along.
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
}

/// Any chunk: a good one with unknown fields around it.
fn any_chunk() -> impl Strategy<Value = String> {
    ("[ -~é\u{1F600}]{0,12}", any::<i32>(), "[a-z]{1,6}", any::<bool>()).prop_map(|(text, number, key, spaced)| {
        let colon = if spaced { ": " } else { ":" };
        let text = serde_json::to_string(&text).unwrap();
        format!(
            r#"{{"x_{key}"{colon}{number}.50,"choices"{colon}[{{"index":0,"delta":{{"content"{colon}{text},"x"{colon}[1]}},"finish_reason":null}}],"usage":null}}"#
        )
    })
}

#[test]
fn any_sequence_of_chunks_comes_out_as_it_went_in() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = Arc::new(Mutex::new(String::new()));
    let served = body.clone();
    let (_server, relay) = runtime.block_on(async {
        let server = Server::start(move |_| std::future::ready(sse(served.lock().unwrap().clone()))).await;
        let relay = Relay::to(&server).await;
        (server, relay)
    });
    let relay = Mutex::new(relay);
    let cases = (prop::collection::vec(any_chunk(), 0..20), prop::sample::select(vec!["\n", "\r\n", "\r"]));
    TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })
        .run(&cases, |(mut chunks, end)| {
            chunks.push(STOP.to_owned());
            let texts: Vec<&str> = chunks.iter().map(String::as_str).chain(["[DONE]"]).collect();
            *body.lock().unwrap() = events(&texts).replace('\n', end);
            let answer = runtime.block_on(relay.lock().unwrap().ask(STREAM));
            prop_assert_eq!(answer.chunks, chunks);
            Ok(())
        })
        .unwrap();
}
