//! Whole tasks, seen by a collector.

mod export;
mod page;
mod trace;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use opentelemetry_sdk::trace::SpanData;
use tokio::time::Instant;

use super::{setup::start, *};
use crate::domain::{
    EndKind, Failure, FailureCode, Outcome, Provider, ProviderName, ProviderState, RequestFacts,
    ServerAddress, Task, TaskId, Usage,
};

/// Stands for a text that must not leave the agent: in the prompt, the answer and the provider's error.
const MARKER: &str = "PLATYPUS-7";
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const MCPD: &str = "http://user:pass@127.0.0.1:8080/base";
const PATH: &str = "/api/v1/llms/_provider-task/t-1/result";

fn task(traceparent: Option<&str>) -> Arc<Task> {
    let body = format!(
        r#"{{"model":"x","temperature":0.5,"max_tokens":9,"messages":[{{"role":"user","content":"{MARKER}"}}]}}"#
    );
    Arc::new(Task {
        id: TaskId::new("t-1").unwrap(),
        llm: "my-llm".into(),
        streaming: true,
        asked: RequestFacts::read(body.as_bytes()).unwrap(),
        request: body.into(),
        deadline: None,
        trace_context: traceparent
            .map(|t| BTreeMap::from([("traceparent".into(), t.into()), ("baggage".into(), MARKER.into())]))
            .unwrap_or_default(),
        caller: None,
    })
}

fn provider() -> Provider {
    Provider {
        name: ProviderName::new("my-llm").unwrap(),
        kind: "ollama".into(),
        model: "llama3.2".into(),
        tier: String::new(),
        description: String::new(),
        publish: true,
        sharing: Vec::new(),
        max_in_flight: None,
        state: ProviderState::Ready,
        state_detail: String::new(),
        features: vec![],
        context_tokens: None,
        max_output_tokens: None,
        server: ServerAddress::of("http://127.0.0.1:11434/v1"),
    }
}

fn failure() -> Failure {
    Failure::new(FailureCode::ProviderLost, format!("lost while answering {MARKER}"))
}

/// A whole task whose second POST needs a second try; gives the context that its provider got.
fn run(handle: &Handle, traceparent: Option<&str>, end: EndKind) -> BTreeMap<String, String> {
    let channel = ChannelOpening::start(handle).opened();
    let task = task(traceparent);
    let mut trace = TaskTrace::start(handle, &task, &channel);
    trace.running(&provider());
    let offered = trace.offer_context();
    let posts = trace.deliver(&Server::of(MCPD), PATH);
    for (resend, status) in [(0, Some(200)), (0, Some(503)), (1, Some(200))] {
        trace.chunk(Instant::now());
        posts.post(resend, false).end(status);
    }
    posts.end(3);
    let reasons = [(0, "stop".to_owned())];
    let mut answer = AnswerContent::default();
    answer.outcome(&Outcome::Body(
        format!(r#"{{"choices":[{{"message":{{"content":"about {MARKER}"}}}}]}}"#).into(),
    ));
    let failure = failure();
    trace.end(&TaskReport {
        response_id: Some("chatcmpl-1"),
        response_model: Some("llama3.2:1b"),
        finish_reasons: &reasons,
        usage: Usage {
            cached_input_tokens: Some(4),
            reasoning_output_tokens: Some(2),
            ..Usage::new(Some(11), Some(3))
        },
        answer: Some(&answer),
        failure: end.error_type().map(|_| &failure),
        ..TaskReport::new(end)
    });
    offered
}

/// What [`run`] makes of a task that failed.
const FAILED: EndKind = EndKind::Failed(FailureCode::ProviderLost);

fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no span {name:?}"))
}

/// The attributes as sorted lines.
fn attributes(span: &SpanData) -> Vec<String> {
    let mut lines: Vec<_> = span.attributes.iter().map(|kv| format!("{}={}", kv.key, kv.value)).collect();
    lines.sort();
    lines
}

fn telemetry(variables: &[(&str, &str)], metrics_listen: Option<SocketAddr>) -> Telemetry {
    let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    let settings = Settings { log_format: LogFormat::Text, metrics_listen };
    let (telemetry, problems) = start(&settings, &get).unwrap();
    assert_eq!(problems, Vec::<String>::new());
    telemetry
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
