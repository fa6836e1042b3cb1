//! The bytes of requests and answers through everything: a caller at fake-mcpd, the agent, the provider host (or a raw session) and a
//! server in OpenAI's dialect, all in one process.

mod answers;
mod json;
mod mock;
mod requests;

#[expect(dead_code, reason = "the parts that wait are for the unit tests")]
#[path = "../../../src/openai/stream/model.rs"]
mod model;
#[path = "../../../src/openai/stream/said.rs"]
mod said;
#[path = "../../../src/openai/stream/samples.rs"]
mod samples;

use std::{cell::Cell, fmt::Debug, future::Future};

use fake_mcpd::{Call, Collected, InferReply, InferRequest};
use mcprelay::{
    domain::ProviderName,
    provide::{Host, HostConfig, config_file::Entry},
};
use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, TestRunner},
};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Client, World, soon};
use answers::{LAST, a_completion, a_stream, check, is_usage, waits};
use mock::Mock;
use requests::{Request, a_request, one_line};

/// Cases of each property in a normal run; PROPTEST_CASES sets another number.
const CASES: u32 = 32;

/// Runs `work` on random input. All of it in one world, until something fails: what comes after that must not suffer from it. What
/// fails is kept beside this file, to be committed.
fn property<W, F: Future<Output = W>, S: Strategy>(
    world: impl Fn() -> F,
    input: &S,
    work: impl AsyncFn(&mut W, S::Value),
) where
    S::Value: Debug + Clone,
{
    let (runtime, kept) = (runtime(), Cell::new(None));
    let config = ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let ran = TestRunner::new(config).run(input, |value| {
        runtime.block_on(async {
            let mut world = match kept.take() {
                Some(world) => world,
                None => world().await,
            };
            work(&mut world, value).await;
            kept.set(Some(world));
        });
        Ok(())
    });
    if let Err(failure) = ran {
        panic!("{failure}");
    }
    runtime.block_on(async { drop(kept.take()) });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
}

/// A world with the provider host in it, which serves a mock as "llama".
struct Hosted {
    world: World,
    mock: Mock,
    _host: DropGuard,
}

impl Hosted {
    async fn start() -> Self {
        let (world, mock) = (World::start().await, Mock::start().await);
        let name = ProviderName::new("llama").expect("a name");
        let entry = Entry { url: Some(mock.url.clone()), ..Entry::new(name, "openai", "real") };
        let config = HostConfig::new(world.home.path(), world.config.socket.clone()).built_in();
        let stop = CancellationToken::new();
        tokio::spawn(Host::new(config).with_providers(vec![entry]).run(stop.clone()));
        world.active("llama").await;
        Self { world, mock, _host: stop.drop_guard() }
    }
}

/// A world with a session that answers itself.
async fn raw() -> (World, Client) {
    let world = World::start().await;
    let client = world.serving("llama").await;
    (world, client)
}

fn ask(world: &World, request: &Request) -> Call {
    let request =
        InferRequest { llm: "llama".to_owned(), body: request.body().into(), ..InferRequest::default() };
    world.mcpd.submit(request).expect("accepted")
}

async fn ended(call: Call) -> Collected {
    soon("the end", call.collect()).await
}

/// The chunks that were posted for a task, byte for byte; their caller, to whom they go one per line, got the same.
fn posted(world: &World, collected: &Collected) -> Vec<String> {
    assert!(collected.is_done(), "{:?}", collected.end);
    let results = world.results(&collected.task_id);
    let data = results.iter().map(|result| result["chunk"]["data"].as_str().expect("a chunk").to_owned());
    let mut posted: Vec<_> = data.collect();
    assert_eq!(posted.pop().as_deref(), Some("[DONE]"));
    let lines: Vec<_> = posted.iter().map(|chunk| one_line(chunk)).collect();
    assert_eq!(collected.chunks, lines);
    posted
}

/// A stream as events carry it: a line end in an event is a line feed, whatever the server wrote.
fn as_events(chunks: &[String]) -> Vec<String> {
    chunks.iter().map(|chunk| chunk.replace("\r\n", "\n")).collect()
}

#[test]
fn any_plain_request_and_its_answer_go_through_the_provider_host_byte_for_byte() {
    property(Hosted::start, &(a_request(false), a_completion()), async |hosted, (request, answer)| {
        hosted.mock.answers(&answer);
        let call = ask(&hosted.world, &request);
        let got = InferReply::from(ended(call).await.end);
        assert_eq!(hosted.mock.seen(), [request.at_provider()]);
        assert_eq!((got.status, &*String::from_utf8_lossy(&got.body)), (200, answer.trim()));
        hosted.world.assert_clean();
    });
}

#[test]
fn any_stream_goes_through_the_provider_host_and_says_the_same() {
    let ends = prop::sample::select(vec!["\n", "\r\n", "\r"]);
    property(Hosted::start, &(a_request(true), a_stream(), ends), async |hosted, (request, chunks, end)| {
        let mut chunks = as_events(&chunks);
        hosted.mock.streams(&chunks, end);
        let call = ask(&hosted.world, &request);
        let posted = posted(&hosted.world, &ended(call).await);
        assert_eq!(hosted.mock.seen(), [request.at_provider()]);
        chunks.retain(|chunk| request.wants_usage() || !is_usage(chunk));
        check(&posted, &chunks);
        hosted.world.assert_clean();
    });
}

#[test]
fn any_plain_request_and_its_answer_go_through_a_session_byte_for_byte() {
    property(raw, &(a_request(false), a_completion()), async |(world, client), (request, answer)| {
        let call = ask(world, &request);
        let offer = client.offer().await;
        assert_eq!(String::from_utf8_lossy(&offer.request_json), request.as_task());
        client.finish_body(&offer, &answer).await;
        let got = InferReply::from(ended(call).await.end);
        assert_eq!((got.status, &*String::from_utf8_lossy(&got.body)), (200, answer.trim()));
        world.assert_clean();
    });
}

#[test]
fn any_stream_goes_through_a_session_and_says_the_same() {
    property(raw, &(a_request(true), a_stream()), async |(world, client), (request, chunks)| {
        let call = ask(world, &request);
        let offer = client.offer().await;
        assert_eq!(String::from_utf8_lossy(&offer.request_json), request.as_task());
        for chunk in &chunks {
            client.chunk(&offer, chunk).await;
        }
        client.finish(&offer, None).await;
        check(&posted(world, &ended(call).await), &chunks);
        world.assert_clean();
    });
}

#[test]
fn chunks_that_come_one_after_the_other_arrive_byte_for_byte() {
    property(raw, &(a_request(true), a_stream()), async |(world, client), (request, mut chunks)| {
        chunks.retain(|chunk| !waits(chunk));
        let mut call = ask(world, &request);
        let offer = client.offer().await;
        for chunk in &chunks {
            client.chunk(&offer, chunk).await;
            let got = soon("the chunk", call.chunk()).await.expect("it goes on");
            assert_eq!(String::from_utf8_lossy(&got), one_line(chunk));
        }
        client.finish(&offer, None).await;
        assert!(ended(call).await.is_done());
        assert!(chunks.last().is_some_and(|last| last.ends_with(LAST)));
        world.assert_clean();
    });
}

crate::support::over_https![
    any_plain_request_and_its_answer_go_through_the_provider_host_byte_for_byte,
    any_stream_goes_through_the_provider_host_and_says_the_same,
    any_plain_request_and_its_answer_go_through_a_session_byte_for_byte,
    any_stream_goes_through_a_session_and_says_the_same,
    chunks_that_come_one_after_the_other_arrive_byte_for_byte,
];
