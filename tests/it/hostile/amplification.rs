//! Local programs that want the agent to hold much: small messages that become large ones, large ones that never end, answers that
//! nobody reads, connections without end. The agent refuses, in bounded memory, and serves the others.

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use fake_mcpd::InferRequest;
use http_body::{Body, Frame};
use mcprelay::pb::{self, session_request::Payload};
use prost::Message as _;
use tonic::{Code, Status, codegen::http};
use tower::ServiceExt as _;

use super::Real;
use crate::support::{Client, World, channel, chat, hello, provider, soon};

/// What no attack may make the agent hold, in bytes: at rest it holds some 20 MiB, and two messages of 33 MiB are collected at a time.
const LARGE_MEMORY: usize = 160 << 20;
/// The largest message that the agent takes, less what frames it.
const LARGEST: usize = (33 << 20) - 64;
const SESSION: &str = "http://localhost/mcprelay.bridge.v1.BridgeService/Session";

impl Real {
    /// One inference, while or after whatever happens; then a look at the memory.
    async fn still_serves_and_is_small(&self, client: &mut Client) {
        self.still_serves("llama", client).await;
        let peak = self.agent.peak();
        println!("peak {} MiB", peak >> 20);
        assert!(peak < LARGE_MEMORY, "{} MiB", peak >> 20);
    }
}

// ---- messages as bytes -------------------------------------------------------------------------------------------------

/// A request's body: these bytes, and then nothing, for ever.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.take().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
    }
}

/// What gRPC puts before a message of this many bytes.
fn frame(length: usize) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(length).expect("it fits").to_be_bytes();
    [0, a, b, c, d]
}

fn field(number: u8, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
    bytes.extend(inner);
    bytes
}

/// The bytes of a session's begin: its Hello, then a message of `length` bytes of which these are sent.
fn begin(client_id: &str, length: usize, message: &[u8]) -> Bytes {
    let hello = pb::SessionRequest { payload: Some(hello(client_id)) }.encode_to_vec();
    let mut bytes = BytesMut::new();
    bytes.put_slice(&frame(hello.len()));
    bytes.put_slice(&hello);
    bytes.put_slice(&frame(length));
    bytes.put_slice(message);
    bytes.freeze()
}

/// A session of its own connection that has sent `begin`.
async fn raw_session(socket: &Path, begin: Bytes) -> http::Response<tonic::body::Body> {
    let request =
        http::Request::post(SESSION).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(tonic::body::Body::new(Endless(Some(begin)))).expect("a request");
    let channel = channel(socket).await;
    soon("the session", channel.oneshot(request)).await.expect("the agent takes sessions")
}

/// The status that ends a stream.
async fn end(response: http::Response<tonic::body::Body>) -> Status {
    let mut body = response.into_body();
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let frame = soon("the end", frame).await.expect("a status ends the stream").expect("it goes on");
        if let Some(trailers) = frame.trailers_ref() {
            return Status::from_header_map(trailers).expect("a status");
        }
    }
}

// ---- small ones that become large ------------------------------------------------------------------------------------

#[tokio::test]
async fn a_message_of_millions_of_empty_parts_is_refused_before_it_is_decoded() {
    let empty = |number: u8| [number << 3 | 2, 0].repeat(LARGEST / 2);
    let messages = [
        field(2, &empty(2)),                             // providers
        field(2, &field(2, &empty(10)[..LARGEST - 16])), // features of one provider
        field(3, &field(3, &empty(3)[..LARGEST - 16])),  // tool calls of a delta
        field(4, &field(3, &empty(3)[..LARGEST - 16])),  // tool calls of a result
        field(2, &[0xfa, 0x06, 0].repeat(LARGEST / 3)),  // fields that nobody knows
    ];
    let real = Real::start(&[]).await;
    let mut honest = real.serving("llama").await;
    for message in messages {
        let status = end(raw_session(&real.socket(), begin("hostile", message.len(), &message)).await).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("131072 fields"), "{status:?}");
    }
    real.still_serves_and_is_small(&mut honest).await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_with_a_long_feature_is_refused_like_one_with_any_other_long_text() {
    let world = World::start().await;
    let mut client = world.client("mcplocal").await;
    let long =
        pb::Provider { features: vec!["tools".to_owned(), "x".repeat(1025)], ..provider("long", true) };
    let verdicts = client.push(&[long, provider("llama", true)]).await;
    assert_eq!(verdicts[0].verdict(), pb::Verdict::Refused);
    assert!(verdicts[0].error.as_ref().expect("a reason").message.contains("1024 bytes"), "{verdicts:?}");
    assert_eq!(verdicts[1].verdict(), pb::Verdict::Published);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_more_than_a_mebibyte_ends_its_session_with_the_reason() {
    let world = World::start().await;
    let _honest = world.serving("honest").await;
    let mut greedy = world.client("greedy").await;
    let wordy = |n| pb::Provider { description: "x".repeat(1024), ..provider(&format!("llm-{n}"), true) };
    let snapshot = pb::ProviderSnapshot { generation: 1, providers: (0..1024).map(wordy).collect() };
    greedy.send(Payload::ProviderSnapshot(snapshot)).await;
    let status = greedy.ended().await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("1048576 are the most"), "{status:?}");
    world.active("honest").await;
}

#[tokio::test]
async fn text_that_grows_sixfold_as_json_ends_its_task_before_it_is_written() {
    const CONTROLS: usize = 20 << 20;
    let real = Real::start(&[]).await;
    let mut client = real.serving("llama").await;
    let text = || "\u{1}".repeat(CONTROLS);
    let error = || pb::Error { message: text(), ..pb::Error::default() };
    for streaming in [false, true] {
        let ask = || match streaming {
            true => real.mcpd.infer_stream("llama", &chat("hi")),
            false => real.mcpd.submit(InferRequest::new("llama", &chat("hi"))),
        };
        let mut call = ask().expect("accepted");
        let offer = client.offer().await;
        client.finish_text(&offer, &text()).await;
        assert!(told(call).await.contains("33554432 are the most"));
        call = ask().expect("accepted");
        let offer = client.offer().await;
        client.finish_error(&offer, error()).await;
        assert!(told(call).await.len() < 64 << 10, "an error is a sentence");
    }
    let call = real.mcpd.infer_stream("llama", &chat("hi")).expect("accepted");
    let offer = client.offer().await;
    client.delta(&offer, &text()).await;
    assert_eq!(client.cancel().await.task_id, offer.task_id);
    client.finish_cancelled(&offer.task_id).await;
    assert!(told(call).await.contains("33554432 are the most"));
    real.still_serves_and_is_small(&mut client).await;
}

/// How a call ends, as its caller is told.
async fn told(call: fake_mcpd::Call) -> String {
    format!("{:?}", soon("the end", call.collect()).await.end)
}

// ---- large ones that never end -------------------------------------------------------------------------------------------

#[tokio::test]
async fn sessions_that_each_begin_a_large_message_and_stop_cost_no_more_than_two_of_them() {
    let real = Real::start(&[]).await;
    let mut honest = real.serving("llama").await;
    let half = vec![0; LARGEST - (1 << 20)];
    let mut slow = Vec::new();
    for n in 0..20 {
        slow.push(raw_session(&real.socket(), begin(&format!("slow-{n}"), LARGEST, &half)).await);
    }
    real.still_serves_and_is_small(&mut honest).await;
    let status = end(slow.swap_remove(0)).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    real.still_serves_and_is_small(&mut honest).await;
}

// ---- answers that nobody reads --------------------------------------------------------------------------------------------

#[tokio::test]
async fn verdicts_that_a_client_does_not_read_end_its_session_before_they_are_many_bytes() {
    let real = Real::start(&[]).await;
    let mut honest = real.serving("llama").await;
    // Each is refused with its name in the reason, so that an answer is larger than its question.
    let providers: Vec<_> = (0..9_999).map(|n| provider(&format!("\u{1b}{n:060}"), true)).collect();
    let snapshot = pb::ProviderSnapshot { generation: 0, providers }.encode_to_vec();
    let of_generation = |generation: u8| field(2, &[&snapshot[..], &[8, generation]].concat());
    let first = of_generation(1);
    let framed = |snapshot: Vec<u8>| [&frame(snapshot.len())[..], &snapshot].concat();
    let others = (2..60).flat_map(|generation| framed(of_generation(generation)));
    let begin = [&begin("deaf", first.len(), &first)[..], &others.collect::<Vec<_>>()].concat();
    let deaf = raw_session(&real.socket(), begin.into()).await;
    real.agent.says("session ended").await;
    let status = end(deaf).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("does not read"), "{status:?}");
    real.still_serves_and_is_small(&mut honest).await;
}

// ---- connections without end ----------------------------------------------------------------------------------------------

/// Whether the agent has closed this connection, on which nobody says anything.
fn is_closed(connection: &mut UnixStream) -> bool {
    connection.set_nonblocking(true).expect("it is ours");
    loop {
        match connection.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_those_that_are_open_are_served() {
    let real = Real::start(&[]).await;
    let mut honest = real.serving("llama").await;
    let connect = |_| UnixStream::connect(real.socket()).expect("the agent listens");
    let mut many: Vec<_> = (0..200).map(connect).collect();
    let most_closed = async {
        while many.iter_mut().map(is_closed).filter(|closed| *closed).count() < 200 - 127 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("those beyond the limit to be closed", most_closed).await;
    assert_eq!(
        many.iter_mut().map(is_closed).filter(|closed| !closed).count(),
        127,
        "the honest one has the last place"
    );
    real.still_serves_and_is_small(&mut honest).await;
    drop(many);
    let again = async {
        while Client::try_connect(&real.socket(), "newcomer").await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("a place for a newcomer", again).await;
}
