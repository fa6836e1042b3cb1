//! The sender against gRPC collectors that break off, refuse and vanish.

use std::{collections::VecDeque, net::SocketAddr};

use axum::http;
use bytes::Bytes;
use h2::{
    Reason,
    server::{Connection, SendResponse, handshake},
};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What a collector does with a request.
enum Answer {
    Takes,
    /// Closes the connection.
    Breaks,
    /// Closes the connection, with this as its last word.
    Leaves(Reason),
    Resets(Reason),
    /// The status' code, and its details in base64.
    Refuses(&'static str, &'static str),
}

use Answer::{Breaks, Leaves, Refuses, Resets, Takes};

/// `google.rpc.Status` with a `RetryInfo` of no time at all.
const AT_ONCE: &str = "Gi4KKHR5cGUuZ29vZ2xlYXBpcy5jb20vZ29vZ2xlLnJwYy5SZXRyeUluZm8SAgoA";

/// A collector that gives these answers, and takes all that comes after them.
fn collector(worker: &Worker, answers: impl IntoIterator<Item = Answer>) -> SocketAddr {
    let mut answers: VecDeque<_> = answers.into_iter().collect();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    worker.handle().spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            converse(handshake(stream).await.unwrap(), &mut answers).await;
        }
    });
    address
}

/// Answers on one connection until it ends.
async fn converse(mut connection: Connection<TcpStream, Bytes>, answers: &mut VecDeque<Answer>) {
    while let Some(Ok((_request, mut respond))) = connection.accept().await {
        match answers.pop_front().unwrap_or(Takes) {
            Takes => take(&mut respond),
            Breaks => return,
            Leaves(reason) => connection.abrupt_shutdown(reason),
            Resets(reason) => respond.send_reset(reason),
            Refuses(code, details) => refuse(&mut respond, code, details),
        }
    }
}

fn take(respond: &mut SendResponse<Bytes>) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    // A message of no bytes.
    stream.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
    stream
        .send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect())
        .unwrap();
}

fn refuse(respond: &mut SendResponse<Bytes>, code: &str, details: &str) {
    let head = http::Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", code)
        .header("grpc-status-details-bin", details);
    respond.send_response(head.body(()).unwrap(), true).unwrap();
}

fn to(address: SocketAddr, timeout: Duration) -> Export {
    let endpoint = Some(format!("http://{address}"));
    Export { protocol: Protocol::Grpc, endpoint, timeout, headers: reqwest::header::HeaderMap::new() }
}

/// How many of three spans, each in a request of its own, such a collector does not get.
fn lost(answers: impl IntoIterator<Item = Answer>) -> u64 {
    let worker = Worker::start().unwrap();
    let export = to(collector(&worker, answers), PATIENCE);
    let (batches, losses) = start(&worker, &export, Batching { queue: 100, batch: 1, delay: NEVER });
    for _ in 0..3 {
        batches.on_end(some_span());
    }
    batches.force_flush().unwrap();
    losses.lost()
}

#[test]
fn spans_outlive_a_connection_that_breaks() {
    assert_eq!(lost([Breaks]), 0);
    assert_eq!(lost([Takes, Leaves(Reason::NO_ERROR)]), 0);
    assert_eq!(lost([Leaves(Reason::ENHANCE_YOUR_CALM), Takes]), 0);
    assert_eq!(lost([Resets(Reason::INTERNAL_ERROR), Resets(Reason::REFUSED_STREAM)]), 0);
}

#[test]
fn a_refusal_is_tried_again_if_the_standard_or_the_collector_says_so() {
    let [unavailable, exhausted, invalid] = ["14", "8", "3"];
    assert_eq!(lost([Refuses(unavailable, "")]), 0);
    assert_eq!(lost([Refuses(exhausted, AT_ONCE)]), 0);
    assert_eq!(lost([Refuses(exhausted, "")]), 1);
    assert_eq!(lost([Refuses(invalid, AT_ONCE)]), 1);
}

#[test]
fn a_connection_whose_peer_vanished_is_left_for_another() {
    let worker = Worker::start().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let export = to(listener.local_addr().unwrap(), Duration::from_millis(300));
    let (tell, told) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        // Both stay open, and nobody ever reads them.
        let streams = [listener.accept().unwrap(), listener.accept().unwrap()];
        tell.send(streams).unwrap();
    });
    let (batches, _losses) = start(&worker, &export, Batching { queue: 100, batch: 1, delay: NEVER });
    for _ in 0..3 {
        batches.on_end(some_span());
    }
    assert!(told.recv_timeout(PATIENCE).is_ok(), "all went into the first connection");
}
