//! The encoding against the library's own, and the sender against collectors that refuse.

mod grpc;
mod tasks;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    Array, InstrumentationScope, KeyValue, StringValue, Value,
    trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::trace::tonic::group_spans_by_resource_and_scope,
};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanLinks, SpanProcessor as _},
};
use proptest::{collection::vec, prelude::*, strategy::ValueTree as _};
use prost::Message as _;

use super::{
    Batches, Batching, Frame, Sender,
    encode::{self, Request},
};
use crate::telemetry::{
    export::{Losses, Worker},
    settings::{Export, Protocol},
};

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("ours")
        .with_version("1.2.3")
        .with_schema_url("https://example.com/1")
        .with_attributes([KeyValue::new("scope", true)])
        .build()
}

fn resource() -> Resource {
    Resource::builder_empty()
        .with_schema_url([KeyValue::new("service.name", "näme")], "https://example.com/2")
        .build()
}

/// A text of up to 300 characters, so that a length needs one byte or two.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,8}", ".{100,300}"]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300..1e300).prop_map(Value::F64),
        vec(text(), 0..3).prop_map(|all| {
            Value::Array(Array::String(all.into_iter().map(StringValue::from).collect()))
        }),
        vec(any::<i64>(), 0..3).prop_map(|all| Value::Array(Array::I64(all))),
        vec(any::<bool>(), 0..3).prop_map(|all| Value::Array(Array::Bool(all))),
        vec(-1.0..1.0, 0..3).prop_map(|all: Vec<f64>| Value::Array(Array::F64(all))),
    ]
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    vec(("[a-z.]{0,20}", value()).prop_map(|(key, value)| KeyValue::new(key, value)), 0..6)
}

fn context() -> impl Strategy<Value = SpanContext> {
    let state = prop_oneof![
        Just(TraceState::NONE),
        "[a-z]{1,200}".prop_map(|v| { TraceState::from_key_value([("vendor", v)]).unwrap_or_default() })
    ];
    (any::<[u8; 16]>(), any::<[u8; 8]>(), any::<bool>(), any::<bool>(), state).prop_map(
        |(trace, span, sampled, remote, state)| {
            let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
            SpanContext::new(TraceId::from_bytes(trace), SpanId::from_bytes(span), flags, remote, state)
        },
    )
}

fn time() -> impl Strategy<Value = SystemTime> {
    // Some of it before 1970.
    (0..u64::MAX / 2).prop_map(|n| UNIX_EPOCH - Duration::from_secs(9) + Duration::from_nanos(n))
}

fn event() -> impl Strategy<Value = Event> {
    (text(), time(), attributes(), 0..3_u32)
        .prop_map(|(name, time, attributes, dropped)| Event::new(name, time, attributes, dropped))
}

fn link() -> impl Strategy<Value = Link> {
    (context(), attributes(), 0..200_u32)
        .prop_map(|(context, attributes, dropped)| Link::new(context, attributes, dropped))
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![Just(Status::Unset), Just(Status::Ok), text().prop_map(Status::error)]
}

prop_compose! {
    fn span()(
        span_context in context(),
        parent in prop_oneof![Just([0; 8]), any::<[u8; 8]>()],
        parent_span_is_remote in any::<bool>(),
        span_kind in prop_oneof![
            Just(SpanKind::Internal), Just(SpanKind::Server), Just(SpanKind::Client), Just(SpanKind::Producer), Just(SpanKind::Consumer)
        ],
        name in text(),
        times in (time(), time()),
        attributes in attributes(),
        dropped in (0..300_u32, 0..300_u32, 0..300_u32),
        events in vec(event(), 0..3),
        links in vec(link(), 0..3),
        status in status(),
    ) -> SpanData {
        let mut of_span = SpanEvents::default();
        (of_span.events, of_span.dropped_count) = (events, dropped.1);
        let mut to_others = SpanLinks::default();
        (to_others.links, to_others.dropped_count) = (links, dropped.2);
        SpanData {
            span_context,
            parent_span_id: SpanId::from_bytes(parent),
            parent_span_is_remote,
            span_kind,
            name: name.into(),
            start_time: times.0,
            end_time: times.1,
            attributes,
            dropped_attributes_count: dropped.0,
            events: of_span,
            links: to_others,
            status,
            instrumentation_scope: scope(),
        }
    }
}

fn encoded(spans: &[SpanData]) -> Request {
    let frame = Frame::new(&resource(), &scope());
    let mut bytes = vec![0; frame.room()];
    for each in spans {
        encode::span(&mut bytes, each);
    }
    frame.close(bytes)
}

proptest! {
    #[test]
    fn the_bytes_say_what_the_librarys_own_message_says(spans in vec(span(), 1..4)) {
        let request = encoded(&spans);
        prop_assert_eq!(request.as_bytes_value().encode_to_vec(), request.whole().to_vec());
        let ours = ExportTraceServiceRequest::decode(request.whole()).unwrap();
        let theirs = group_spans_by_resource_and_scope(spans, &(&resource()).into());
        prop_assert_eq!(ours.resource_spans, theirs);
    }
}

#[test]
fn a_length_of_any_size_is_written_right() {
    for length in [0, 1, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152] {
        let mut bytes = vec![b'x'];
        super::wire::nested(&mut bytes, 1, |out| out.resize(out.len() + length, b'y'));
        // Protobuf's own reader of one field of bytes.
        assert_eq!(Vec::<u8>::decode(&bytes[1..]).unwrap(), vec![b'y'; length]);
    }
}

/// A request as a collector sees it.
struct Received {
    head: String,
    body: Vec<u8>,
}

/// A collector with these answers, one connection each; then it hangs.
fn collector(answers: &[&str]) -> (String, mpsc::Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (tell, told) = mpsc::sync_channel(64);
    let answers: Vec<_> = answers.iter().map(|a| (*a).to_owned()).collect();
    std::thread::spawn(move || {
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            let head = head.to_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            tell.send(Received { head, body }).unwrap();
        }
        let _hanging = listener.accept();
    });
    (url, told)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const BAD: &str = "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// A pause that no clock can hold.
const NEVER_AGAIN: &str = "HTTP/1.1 503 Busy\r\nRetry-After: 18446744073709551615\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// The rest of either body never comes.
const BAD_CUT: &str = "HTTP/1.1 400 Bad\r\nContent-Length: 9\r\n\r\n";
const OK_CUT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
const PAGE: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 3\r\nConnection: close\r\n\r\n<p>";
/// Two spans rejected, because "no".
const PARTIAL: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\n\x0a\x06\x08\x02\x12\x02no";
/// Long enough for a thread to be scheduled on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// A delay that no test waits for.
const NEVER: Duration = Duration::from_secs(3600);

fn some_span() -> SpanData {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    span().new_tree(&mut runner).unwrap().current()
}

/// Batches for the collector at `url`; the worker ends when it is dropped.
fn batches(url: &str, batch: usize, delay: Duration) -> (Batches, Arc<Losses>, Worker) {
    batching(url, Batching { queue: 100, batch, delay })
}

fn batching(url: &str, batching: Batching) -> (Batches, Arc<Losses>, Worker) {
    let worker = Worker::start().unwrap();
    let headers = [("x-team".parse().unwrap(), "a team".parse().unwrap())].into_iter().collect();
    let export =
        Export { protocol: Protocol::HttpProtobuf, endpoint: Some(url.into()), timeout: PATIENCE, headers };
    let (batches, losses) = start(&worker, &export, batching);
    (batches, losses, worker)
}

fn start(worker: &Worker, export: &Export, batching: Batching) -> (Batches, Arc<Losses>) {
    let losses = Arc::new(Losses::default());
    let sender = Sender::new(worker, export, Frame::new(&resource(), &scope()), losses.clone()).unwrap();
    (Batches::start(batching, sender, worker.handle()), losses)
}

/// Exports `spans` spans, at most `batch` in a request, and tells how many were lost.
fn export(url: &str, spans: usize, batch: usize) -> u64 {
    let (batches, losses, _worker) = batches(url, batch, NEVER);
    for _ in 0..spans {
        batches.on_end(some_span());
    }
    batches.force_flush().unwrap();
    losses.lost()
}

#[test]
fn a_collector_gets_whole_batches_with_its_headers_and_the_rest_at_a_flush() {
    let (url, told) = collector(&[OK, OK, OK]);
    assert_eq!(export(&url, 5, 2), 0);
    let sizes: Vec<_> = told
        .iter()
        .map(|request| {
            assert!(request.head.contains("\r\nx-team: a team\r\n"), "{}", request.head);
            assert!(
                request.head.contains("\r\nuser-agent: mcprelay-otlp-exporter-rust/"),
                "{}",
                request.head
            );
            assert!(
                request.head.contains("\r\ncontent-type: application/x-protobuf\r\n"),
                "{}",
                request.head
            );
            let message = ExportTraceServiceRequest::decode(&*request.body).unwrap();
            message.resource_spans[0].scope_spans[0].spans.len()
        })
        .take(3)
        .collect();
    assert_eq!(sizes, [2, 2, 1]);
}

#[test]
fn a_refusal_that_may_pass_is_tried_again_with_the_same_bytes() {
    let (url, told) = collector(&[BUSY, OK]);
    assert_eq!(export(&url, 1, 10), 0);
    let bodies: Vec<_> = told.iter().map(|request| request.body).take(2).collect();
    assert_eq!(bodies[0], bodies[1]);
}

#[test]
fn a_refusal_for_good_loses_the_batch_and_not_the_next_one() {
    let (url, told) = collector(&[BAD, OK]);
    assert_eq!(export(&url, 3, 2), 2);
    assert_eq!(told.iter().take(2).count(), 2);
}

/// How many spans are lost of two batches, the first of which is answered with this and the second taken.
fn lost_of_3(first: &str) -> u64 {
    let (url, told) = collector(&[first, OK]);
    let lost = export(&url, 3, 2);
    let requests: Vec<_> = told.iter().map(|request| request.body).take(2).collect();
    assert_ne!(requests[0], requests[1], "the first batch was sent again after {first}");
    lost
}

#[test]
fn a_pause_that_no_clock_can_hold_loses_the_batch_and_not_the_exporter() {
    assert_eq!(lost_of_3(NEVER_AGAIN), 2);
}

#[test]
fn a_status_counts_without_the_body_that_belongs_to_it() {
    assert_eq!(lost_of_3(BAD_CUT), 2);
    assert_eq!(lost_of_3(OK_CUT), 0);
}

#[test]
fn spans_that_a_web_page_answers_count_as_lost() {
    assert_eq!(lost_of_3(PAGE), 2);
}

#[test]
fn a_queue_of_any_size_can_be_asked_for() {
    let (url, _told) = collector(&[OK]);
    let (batches, losses, _worker) = batching(&url, Batching { queue: usize::MAX, batch: 1, delay: NEVER });
    batches.on_end(some_span());
    batches.force_flush().unwrap();
    assert_eq!(losses.lost(), 0);
}

#[test]
fn spans_that_a_collector_rejects_count_as_lost() {
    let (url, _told) = collector(&[PARTIAL]);
    assert_eq!(export(&url, 5, 10), 2);
}

#[test]
fn a_batch_that_is_full_in_bytes_goes_before_its_number_is_reached() {
    let (url, told) = collector(&[OK, OK]);
    let (batches, losses, _worker) = batches(&url, 100, NEVER);
    let mut long = some_span();
    long.name = "x".repeat(1 << 20).into();
    batches.on_end(long);
    assert!(told.recv_timeout(PATIENCE).unwrap().body.len() > 1 << 20);
    batches.shutdown_with_timeout(PATIENCE).unwrap();
    assert_eq!(losses.lost(), 0);
}

#[test]
fn spans_that_wait_are_sent_when_their_time_has_come() {
    let (url, told) = collector(&[OK]);
    let (batches, _losses, _worker) = batches(&url, 100, Duration::from_millis(1));
    batches.on_end(some_span());
    assert!(told.recv_timeout(PATIENCE).is_ok());
}
