//! The trace and the metrics of a task that goes through the whole agent. Other people's collectors see the same in tests/peers.

use std::{collections::BTreeMap, time::Duration};

use fake_mcpd::{Aim, Answer, Builder, CallKind, FakeMcpd, InferRequest, Kind};
use mcprelay::{
    pb::{self, task_finished::Outcome},
    telemetry::{Collected, Content, PostSpans, in_memory},
};
use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;
use tokio::time::sleep;

use crate::support::{Client, World, chat, chunk, completion, last_chunk, provider, soon};

const CALLER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// The provider's model in the support code.
const CHAT: &str = "chat m";
/// How often a condition is looked at, in the test's own clock.
const LOOK: Duration = Duration::from_millis(1);

/// A heartbeat is due within it.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A world whose agent traces into memory.
struct Traced {
    world: World,
    collected: Collected,
    spans: Vec<SpanData>,
}

impl Traced {
    async fn start(content: Content, mcpd: Builder) -> Self {
        let (handle, collected) = in_memory(content, PostSpans::Telling);
        let mut world = World::offline(mcpd, |_| {}).await;
        world.telemetry = handle;
        world.write_credentials();
        world.start_agent();
        Self { world, collected, spans: Vec::new() }
    }

    async fn serving(content: Content) -> (Self, Client) {
        let traced = Self::start(content, FakeMcpd::builder()).await;
        let client = traced.world.serving("llama").await;
        (traced, client)
    }

    /// A streamed inference in the caller's trace.
    fn ask(&self, prompt: &str) -> fake_mcpd::Call {
        let request = InferRequest {
            traceparent: Some(CALLER.to_owned()),
            ..InferRequest::streaming("llama", &chat(prompt))
        };
        self.world.mcpd.submit(request).expect("accepted")
    }

    /// All spans so far, once a task's root has ended.
    async fn spans(&mut self) -> &[SpanData] {
        let ended = async {
            while !self.spans.iter().any(|s| s.name == "process task") {
                self.spans.extend(self.collected.take());
                sleep(LOOK).await;
            }
        };
        soon("the root's end", ended).await;
        &self.spans
    }

    /// The context that mcpd put into its first task.
    fn task_context(&self) -> String {
        let sent = self
            .world
            .mcpd
            .journal()
            .into_iter()
            .find_map(|e| e.traceparent.filter(|_| e.kind == Kind::Task));
        sent.expect("mcpd sent a task with a context")
    }
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("there is no {name} in {spans:#?}"))
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|kv| kv.key.as_str() == key).map(|kv| kv.value.to_string())
}

fn is_error(span: &SpanData) -> bool {
    matches!(span.status, Status::Error { .. }) || attribute(span, "error.type").is_some()
}

fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

async fn answer(client: &Client, offer: &pb::TaskOffer, text: &str) {
    client.chunk(offer, &chunk(text)).await;
    client.chunk(offer, &last_chunk()).await;
    client.finish(offer, None).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_is_one_tree_from_mcpds_span_to_the_providers_with_the_channel_as_a_link() {
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    let call = traced.ask("hi");
    let offer = client.offer().await;
    answer(&client, &offer, "hello").await;
    assert!(soon("the end", call.collect()).await.is_done());
    let relay = traced.task_context();
    let spans = traced.spans().await;
    let (root, chat, channel) =
        (named(spans, "process task"), named(spans, CHAT), named(spans, "open control channel"));
    assert_eq!(
        root.parent_span_id.to_string(),
        relay.split('-').nth(2).unwrap(),
        "mcpd's span, not its caller's"
    );
    let tree: BTreeMap<_, _> =
        spans.iter().map(|s| (s.name.to_string(), (s.span_kind.clone(), s.parent_span_id))).collect();
    let want = [
        ("open control channel", SpanKind::Client, SpanId::INVALID),
        ("process task", SpanKind::Consumer, root.parent_span_id),
        ("queue", SpanKind::Internal, id(root)),
        (CHAT, SpanKind::Client, id(root)),
        ("deliver", SpanKind::Internal, id(root)),
        ("POST", SpanKind::Client, id(named(spans, "deliver"))),
    ];
    assert_eq!(tree, want.map(|(name, kind, parent)| (name.to_owned(), (kind, parent))).into());
    let in_trace = spans.iter().filter(|s| s.name != "open control channel");
    assert!(in_trace.clone().all(|s| s.span_context.trace_id().to_string() == CALLER_TRACE));
    assert_eq!(root.links.iter().map(|l| l.span_context.span_id()).collect::<Vec<_>>(), [id(channel)]);
    assert!(spans.iter().all(|s| !is_error(s)), "{spans:#?}");
    let offered = format!("00-{CALLER_TRACE}-{}-01", id(chat));
    assert_eq!(offer.w3c_trace_context, [("traceparent".to_owned(), offered)].into());
    traced.world.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_task_that_came_back_has_two_queues_and_two_attempts_and_only_the_first_failed() {
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    let call = traced.ask("hi");
    let first = client.offer().await;
    client.half_close();
    drop(client);
    let mut client = traced.world.client_with("mcplocal", &[provider("llama", true)]).await;
    let second = client.offer().await;
    assert_ne!(first.w3c_trace_context, second.w3c_trace_context);
    answer(&client, &second, "hello").await;
    assert!(soon("the end", call.collect()).await.is_done());
    let spans = traced.spans().await;
    let errors = |name: &str| spans.iter().filter(|s| s.name == name).map(is_error).collect::<Vec<_>>();
    assert_eq!(errors(CHAT), [true, false]);
    assert_eq!(errors("queue"), [false, false]);
    assert_eq!(errors("process task"), [false], "what a second attempt healed does not mark the task");
}

#[tokio::test(start_paused = true)]
async fn a_post_that_a_retry_healed_marks_only_itself() {
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    traced.world.mcpd.answer(Aim::next(CallKind::Result), Answer::status(503));
    let call = traced.ask("hi");
    let offer = client.offer().await;
    answer(&client, &offer, "hello").await;
    assert!(soon("the end", call.collect()).await.is_done());
    let spans = traced.spans().await;
    let failed: Vec<_> = spans.iter().filter(|s| is_error(s)).map(|s| s.name.to_string()).collect();
    assert_eq!(failed, ["POST"]);
    let resent: Vec<_> = spans.iter().filter_map(|s| attribute(s, "http.request.resend_count")).collect();
    assert_eq!(resent, ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_is_a_cancelled_task_and_no_error() {
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    let call = traced.ask("hi");
    let offer = client.offer().await;
    drop(call);
    let cancel = client.cancel().await;
    client.finish_cancelled(&cancel.task_id).await;
    assert_eq!(cancel.task_id, offer.task_id);
    let spans = traced.spans().await;
    let root = named(spans, "process task");
    assert_eq!(attribute(root, "mcprelay.task.outcome").as_deref(), Some("cancelled"));
    assert_eq!(attribute(root, "mcprelay.task.cancel_reason").as_deref(), Some("caller_gone"));
    assert!(spans.iter().all(|s| !is_error(s)), "{spans:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_marks_the_task_and_its_inference_with_the_metrics_own_word() {
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    let call = traced.ask("MARKER in the prompt");
    let offer = client.offer().await;
    let error = pb::Error {
        code: pb::ErrorCode::ContextLength.into(),
        message: "MARKER in the error".to_owned(),
        ..pb::Error::default()
    };
    client.finish_error(&offer, error).await;
    soon("the end", call.collect()).await;
    let page = {
        let spans = traced.spans().await;
        let failed: BTreeMap<_, _> =
            spans.iter().filter_map(|s| Some((s.name.to_string(), attribute(s, "error.type")?))).collect();
        assert_eq!(failed.keys().collect::<Vec<_>>(), [CHAT, "process task"]);
        assert!(!format!("{spans:?}").contains("MARKER"), "an error text may quote a prompt");
        let word = failed["process task"].clone();
        assert!(failed.values().all(|w| *w == word));
        (word, traced.collected.metrics())
    };
    assert!(page.1.contains(&format!("error_type=\"{}\"", page.0)), "{}", page.1);
}

#[tokio::test(start_paused = true)]
async fn content_is_recorded_on_demand_whichever_way_the_answer_came() {
    for whole in [false, true] {
        let (mut traced, mut client) = Traced::serving(Content::Recorded).await;
        let call = traced.ask("a question");
        let offer = client.offer().await;
        match whole {
            false => answer(&client, &offer, "an answer").await,
            true => client.finish(&offer, Some(Outcome::BodyJson(completion("an answer").into()))).await,
        }
        soon("the end", call.collect()).await;
        let chat = named(traced.spans().await, CHAT).clone();
        let (asked, said) =
            (attribute(&chat, "gen_ai.input.messages"), attribute(&chat, "gen_ai.output.messages"));
        assert!(asked.is_some_and(|text| text.contains("a question")));
        assert!(
            said.is_some_and(|text| text.contains("an answer") && text.contains("\"stop\"")),
            "{chat:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_could_not_be_opened_is_a_failed_span_and_no_task_links_to_it() {
    let mut traced = Traced::start(Content::LeftOut, FakeMcpd::builder()).await;
    traced.world.mcpd.answer(Aim::next(CallKind::Stream), Answer::status(503));
    let mut client = traced.world.serving("llama").await;
    let call = traced.ask("hi");
    let offer = client.offer().await;
    answer(&client, &offer, "hello").await;
    soon("the end", call.collect()).await;
    let spans = traced.spans().await;
    let openings: Vec<_> = spans.iter().filter(|s| s.name == "open control channel").collect();
    assert_eq!(openings.iter().map(|s| is_error(s)).collect::<Vec<_>>(), [true, false]);
    let root = named(spans, "process task");
    assert_eq!(root.links.iter().map(|l| l.span_context.span_id()).collect::<Vec<_>>(), [id(openings[1])]);
}

/// On the real clock, which is what spans are timed with.
#[tokio::test]
async fn in_a_paced_inference_the_children_explain_the_roots_duration() {
    const PACE: Duration = Duration::from_millis(50);
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    let call = traced.ask("hi");
    let offer = client.offer().await;
    for n in 0..10 {
        sleep(PACE).await;
        client.chunk(&offer, &chunk(&format!("word{n} "))).await;
    }
    client.chunk(&offer, &last_chunk()).await;
    client.finish(&offer, None).await;
    soon("the end", call.collect()).await;
    let spans = traced.spans().await;
    let root = named(spans, "process task");
    let mut children: Vec<_> = spans.iter().filter(|s| s.parent_span_id == id(root)).collect();
    children.sort_by_key(|s| s.start_time);
    let (mut explained, mut until) = (Duration::ZERO, root.start_time);
    for child in children {
        explained += child.end_time.duration_since(child.start_time.max(until)).unwrap_or_default();
        until = until.max(child.end_time);
    }
    let whole = root.end_time.duration_since(root.start_time).unwrap();
    assert!(whole >= PACE * 10 && explained >= whole.mul_f64(0.95), "{explained:?} of {whole:?}");
}

/// Everything that the dashboard draws is on the page after one task of each kind, so no panel is for ever empty.
#[tokio::test(start_paused = true)]
async fn the_dashboards_metrics_are_on_the_page() {
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    let call = traced.ask("hi");
    let offer = client.offer().await;
    client.chunk(&offer, &chunk("one")).await;
    client.chunk(&offer, &chunk("two")).await;
    let usage = r#"{"id":"c1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
    client.chunk(&offer, &last_chunk()).await;
    client.chunk(&offer, usage).await;
    client.finish(&offer, None).await;
    soon("the end", call.collect()).await;
    traced.spans().await;
    traced.world.mcpd.drop_channels();
    let (collected, world) = (&traced.collected, &traced.world);
    let page = async {
        while collected.metrics().contains("mcprelay_link_reconnects_total 0") {
            sleep(HEARTBEAT).await;
        }
        world.mcpd.answer(Aim::next(CallKind::Heartbeat), Answer::status(503));
        while collected.metrics().contains("mcprelay_link_heartbeats_missed_total 0") {
            sleep(HEARTBEAT).await;
        }
        collected.metrics()
    };
    let page = soon("a reconnect and a missed heartbeat", page).await;
    let dashboard = include_str!("../../docs/grafana-dashboard.json");
    let wanted: std::collections::BTreeSet<_> = dashboard
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|w| ["gen_ai_client_", "http_client_", "mcprelay_"].iter().any(|p| w.starts_with(p)))
        .filter(|w| !matches!(*w, "mcprelay_llm" | "mcprelay_task_outcome"))
        .collect();
    assert!(wanted.len() >= 10, "{wanted:?}");
    let absent: Vec<_> = wanted.iter().filter(|name| !page.contains(**name)).collect();
    assert!(absent.is_empty(), "{absent:?} is not on the page:\n{page}");
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_provider_is_measured_and_ends_with_it() {
    let (traced, client) = Traced::serving(Content::LeftOut).await;
    let states = || {
        let page = traced.collected.metrics();
        let lines =
            page.lines().filter_map(|line| line.strip_prefix("mcprelay_provider_state{")).map(str::to_owned);
        lines.filter(|line| line.ends_with(" 1")).collect::<Vec<_>>()
    };
    assert_eq!(states(), [r#"mcprelay_llm="llama",mcprelay_provider_state="ready"} 1"#]);
    drop(client);
    let gone = async {
        let mut seen = Vec::new();
        while !states().is_empty() {
            seen.extend(states());
            sleep(LOOK).await;
        }
        seen
    };
    let seen = soon("the end of the grace period", gone).await;
    assert!(seen.iter().any(|state| state.contains(r#""lost"} 1"#)), "{seen:?}");
}

/// Ids are for spans and logs: as a label each would be a series of its own.
#[tokio::test(start_paused = true)]
async fn no_metric_bears_an_id() {
    let (mut traced, mut client) = Traced::serving(Content::LeftOut).await;
    let call = traced.ask("hi");
    let task = call.task_id().to_owned();
    let offer = client.offer().await;
    answer(&client, &offer, "hello").await;
    soon("the end", call.collect()).await;
    let root = named(traced.spans().await, "process task").clone();
    assert_eq!(attribute(&root, "mcprelay.task.id").as_deref(), Some(&*task));
    let session = traced.world.mcpd.state().sessions[0].id.clone();
    let page = traced.collected.metrics();
    for id in [task, session, CALLER_TRACE.to_owned()] {
        assert!(!page.contains(&id), "{id} is in {page}");
    }
}
