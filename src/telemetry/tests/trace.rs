//! The tree of one task's spans.

use opentelemetry::trace::{SpanId, SpanKind, Status};

use super::*;

const CHAT: &str = "chat llama3.2";

fn trace_of(traceparent: Option<&str>, end: EndKind) -> Vec<SpanData> {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    run(&handle, traceparent, end);
    collected.take()
}

#[test]
fn a_task_is_one_tree_under_its_caller_with_the_channel_as_a_link() {
    let spans = trace_of(Some(CALLER), EndKind::Answered);
    let root = named(&spans, "process task");
    let channel = named(&spans, "open control channel");
    assert_eq!(root.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert!(root.parent_span_is_remote);
    assert_eq!(root.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    let links: Vec<_> = root.links.iter().map(|l| l.span_context.span_id()).collect();
    assert_eq!(links, [channel.span_context.span_id()]);
    assert_ne!(channel.span_context.trace_id(), root.span_context.trace_id());

    let parent = |s: &SpanData| (s.name.to_string(), s.span_kind.clone(), s.parent_span_id);
    let (root_id, deliver_id) =
        (root.span_context.span_id(), named(&spans, "deliver").span_context.span_id());
    let post = || ("POST".to_owned(), SpanKind::Client, deliver_id);
    let want = [
        ("open control channel".to_owned(), SpanKind::Client, SpanId::INVALID),
        ("queue".to_owned(), SpanKind::Internal, root_id),
        post(),
        post(),
        post(),
        ("deliver".to_owned(), SpanKind::Internal, root_id),
        (CHAT.to_owned(), SpanKind::Client, root_id),
        ("process task".to_owned(), SpanKind::Consumer, root.parent_span_id),
    ];
    assert_eq!(spans.iter().map(parent).collect::<Vec<_>>(), want);
}

#[test]
fn the_chat_span_says_what_was_asked_and_answered() {
    let spans = trace_of(None, EndKind::Answered);
    let chat = named(&spans, CHAT);
    let (waited, rest): (Vec<_>, Vec<_>) =
        attributes(chat).into_iter().partition(|a| a.contains("time_to_first_chunk"));
    assert_eq!(waited.len(), 1);
    assert_eq!(
        rest,
        [
            "gen_ai.operation.name=chat",
            "gen_ai.provider.name=ollama",
            "gen_ai.request.max_tokens=9",
            "gen_ai.request.model=llama3.2",
            "gen_ai.request.temperature=0.5",
            "gen_ai.response.finish_reasons=[\"stop\"]",
            "gen_ai.response.id=chatcmpl-1",
            "gen_ai.response.model=llama3.2:1b",
            "gen_ai.usage.cache_read.input_tokens=4",
            "gen_ai.usage.input_tokens=11",
            "gen_ai.usage.output_tokens=3",
            "gen_ai.usage.reasoning.output_tokens=2",
            "server.address=127.0.0.1",
            "server.port=11434",
        ]
    );
    let events: Vec<_> = chat.events.iter().map(|e| e.name.clone()).collect();
    assert_eq!(events, ["first chunk"]);
}

#[test]
fn usage_is_on_exactly_one_span_and_only_if_the_provider_counted() {
    let with_usage = |spans: &[SpanData]| {
        spans.iter().filter(|s| attributes(s).iter().any(|a| a.contains("usage"))).count()
    };
    assert_eq!(with_usage(&trace_of(None, EndKind::Answered)), 1);

    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let task = task(None);
    let mut trace = TaskTrace::start(&handle, &task, &ChannelTrace::default());
    trace.running(&provider());
    trace.end(&TaskReport::new(EndKind::Answered));
    assert_eq!(with_usage(&collected.take()), 0);
    assert!(!collected.metrics().contains("gen_ai_client_inference_usage"));
}

#[test]
fn the_provider_gets_the_context_of_the_chat_span_and_no_baggage() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let offered = run(&handle, Some(CALLER), EndKind::Answered);
    let spans = collected.take();
    let chat = named(&spans, CHAT).span_context.clone();
    let want = format!("00-{}-{}-01", chat.trace_id(), chat.span_id());
    assert_eq!(offered, BTreeMap::from([("traceparent".to_owned(), want)]));
}

#[test]
fn an_invalid_or_absent_context_begins_a_new_trace() {
    for traceparent in
        [None, Some("00-nonsense"), Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
    {
        let spans = trace_of(traceparent, EndKind::Answered);
        let root = named(&spans, "process task");
        assert_eq!(root.parent_span_id, SpanId::INVALID);
        assert!(root.span_context.is_valid());
    }
}

#[test]
fn an_unsampled_caller_is_not_recorded_but_its_trace_goes_on() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let offered = run(&handle, Some(&CALLER.replace("-01", "-00")), EndKind::Answered);
    let spans = collected.take();
    assert_eq!(spans.iter().map(|s| &s.name[..]).collect::<Vec<_>>(), ["open control channel"]);
    let traceparent = &offered["traceparent"];
    assert!(traceparent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{traceparent}");
    assert!(traceparent.ends_with("-00") && !traceparent.contains("00f067aa0ba902b7"), "{traceparent}");
}

#[test]
fn an_error_that_a_retry_healed_stays_on_its_own_span() {
    let spans = trace_of(None, EndKind::Answered);
    let failed: Vec<_> = spans.iter().filter(|s| s.status != Status::Unset).collect();
    assert_eq!(failed.len(), 1);
    let server = ["server.address=127.0.0.1", "server.port=8080"];
    let url = "url.full=http://127.0.0.1:8080/api/v1/llms/_provider-task/t-1/result";
    let mut want = vec!["error.type=503", "http.request.method=POST", "http.response.status_code=503"];
    want.extend(server.iter().chain([&url]));
    assert_eq!(attributes(failed[0]), want);
    let resent = spans.iter().filter(|s| attributes(s).contains(&"http.request.resend_count=1".into()));
    assert_eq!(resent.count(), 1);
}

#[test]
fn a_task_that_came_back_waits_a_second_time_and_only_the_lost_attempt_is_an_error() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let task = task(None);
    let mut trace = TaskTrace::start(&handle, &task, &ChannelTrace::default());
    trace.running(&provider());
    trace.requeued(FailureCode::ProviderLost);
    trace.running(&provider());
    trace.end(&TaskReport::new(EndKind::Answered));
    let spans = collected.take();
    let count = |name: &str| spans.iter().filter(|s| s.name == name).count();
    assert_eq!((count("queue"), count(CHAT)), (2, 2));
    let errors: Vec<_> = spans.iter().filter(|s| s.status != Status::Unset).collect();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].name == CHAT && attributes(errors[0]).contains(&"error.type=provider_lost".into()));
}

#[test]
fn a_failure_marks_the_task_and_the_inference_with_the_metrics_own_word() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    run(&handle, None, FAILED);
    let spans = collected.take();
    for name in ["process task", CHAT] {
        let span = named(&spans, name);
        assert_eq!(span.status, Status::error(""), "{name}");
        assert!(attributes(span).contains(&"error.type=provider_lost".into()), "{name}");
    }
    let metrics = collected.metrics();
    for metric in ["gen_ai_client_inference_duration_seconds_count{", "mcprelay_tasks_ended_total{"] {
        let line = metrics.lines().find(|l| l.starts_with(metric)).unwrap();
        assert!(line.contains(r#"error_type="provider_lost""#), "{line}");
    }
}

#[test]
fn a_cancellation_is_no_error() {
    let spans = trace_of(None, EndKind::Nobody);
    let root = named(&spans, "process task");
    assert_eq!(root.status, Status::Unset);
    assert!(attributes(root).contains(&"mcprelay.task.cancel_reason=caller_gone".into()));
    assert!(spans.iter().all(|s| s.name == "POST" || !attributes(s).iter().any(|a| a.starts_with("error"))));
}

#[test]
fn content_stays_inside_unless_it_is_asked_for() {
    let everything = |content| {
        let (handle, collected) = in_memory(content, PostSpans::Telling);
        run(&handle, Some(CALLER), FAILED);
        format!("{:?} {}", collected.take(), collected.metrics())
    };
    assert!(!everything(Content::LeftOut).contains(MARKER));
    let recorded = everything(Content::Recorded);
    for what in ["gen_ai.input.messages", "gen_ai.output.messages", "lost while answering"] {
        assert!(recorded.contains(what), "{what}");
    }
}

#[test]
fn no_credential_of_mcpds_url_is_exported() {
    assert!(!format!("{:?}", trace_of(None, EndKind::Answered)).contains("user:pass"));
}

#[test]
fn without_telemetry_the_callers_context_goes_through_unchanged() {
    assert_eq!(run(&Handle::off(), Some(CALLER), EndKind::Answered)["traceparent"], CALLER);
    assert!(run(&Handle::off(), Some("nonsense"), EndKind::Answered).is_empty());
    let trace = TaskTrace::start(&Handle::off(), &task(Some(CALLER)), &ChannelTrace::default());
    assert_eq!(
        trace.trace_id().map(|id| id.to_string()).as_deref(),
        Some("4bf92f3577b34da6a3ce929d0e0e4736")
    );
}

#[test]
fn propagation_can_be_turned_off() {
    let off = Handle { propagate: false, ..Handle::off() };
    assert!(run(&off, Some(CALLER), EndKind::Answered).is_empty());
}

#[tokio::test(start_paused = true)]
async fn measurements_follow_the_agents_clock_and_carry_no_id() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let task = task(None);
    let mut trace = TaskTrace::start(&handle, &task, &ChannelTrace::default());
    let level = |name: &str| {
        let text = collected.metrics();
        let line = text.lines().find(|l| l.starts_with(name)).map(str::to_owned);
        line.and_then(|l| l.rsplit(' ').next().map(str::to_owned)).unwrap_or_default()
    };
    assert_eq!(level("mcprelay_tasks_queued"), "1");
    trace.running(&provider());
    assert_eq!((level("mcprelay_tasks_queued"), level("mcprelay_tasks_running")), ("0".into(), "1".into()));
    for pause in [500, 20, 20] {
        tokio::time::advance(std::time::Duration::from_millis(pause)).await;
        trace.chunk(Instant::now());
    }
    trace.end(&TaskReport::new(EndKind::Answered));
    assert_eq!(level("gen_ai_client_inference_time_to_first_chunk_seconds_sum"), "0.5");
    assert_eq!(level("gen_ai_client_inference_time_per_output_chunk_seconds_sum"), "0.04");
    assert_eq!(level("gen_ai_client_inference_duration_seconds_sum"), "0.54");
    assert_eq!(level("mcprelay_chunks_received"), "3");
    assert_eq!(level("mcprelay_tasks_running"), "0");
    assert!(!collected.metrics().contains("t-1"));
    let waited = attributes(named(&collected.take(), CHAT)).into_iter().find(|a| a.contains("first_chunk"));
    assert_eq!(waited.as_deref(), Some("gen_ai.response.time_to_first_chunk=0.5"));
}

#[test]
fn a_post_that_was_given_up_is_a_span_without_a_reply_and_without_an_error() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let trace = TaskTrace::start(&handle, &task(None), &ChannelTrace::default());
    drop(trace.deliver(&Server::of(MCPD), PATH).post(0, false));
    let spans = collected.take();
    assert_eq!((&spans[0].name[..], &spans[0].status), ("POST", &Status::Unset));
    let said = attributes(&spans[0]);
    assert!(!said.iter().any(|a| a.starts_with("error") || a.starts_with("http.response")), "{said:?}");
}

#[test]
fn a_task_that_is_dropped_leaves_the_counts() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let task = task(None);
    drop(TaskTrace::start(&handle, &task, &ChannelTrace::default()));
    let mut trace = TaskTrace::start(&handle, &task, &ChannelTrace::default());
    trace.running(&provider());
    drop(trace);
    let text = collected.metrics();
    let levels: Vec<_> = text.lines().filter(|l| l.starts_with("mcprelay_tasks_")).collect();
    assert!(!levels.is_empty() && levels.iter().all(|l| l.ends_with(" 0")), "{levels:?}");
    assert_eq!(collected.take().len(), 5, "every span has ended: queue and root, then those with chat");
}

/// The POSTs of a delivery that became spans, by their statuses.
fn recorded(posts: PostSpans, post: impl Fn(&Posts)) -> (Vec<String>, Vec<SpanData>) {
    let (handle, collected) = in_memory(Content::LeftOut, posts);
    let trace = TaskTrace::start(&handle, &task(None), &ChannelTrace::default());
    let delivery = trace.deliver(&Server::of(MCPD), PATH);
    post(&delivery);
    delivery.end(7);
    let spans = collected.take();
    let status =
        |s: &SpanData| attributes(s).into_iter().find(|a| a.starts_with("http.response")).unwrap_or_default();
    let statuses = spans.iter().filter(|s| s.name == "POST").map(status);
    (statuses.map(|s| s.replace("http.response.status_code=", "")).collect(), spans)
}

#[test]
fn of_a_streams_posts_the_first_the_last_and_the_odd_ones_are_spans_and_the_delivery_tells_of_all() {
    let stream = |posts: &Posts| {
        (0..100).for_each(|n| posts.post(0, false).end(Some(200 + n)));
        posts.post(0, false).end(None);
        posts.post(1, false).end(Some(300));
        posts.post(0, true).end(Some(301));
    };
    let (statuses, spans) = recorded(PostSpans::Telling, stream);
    assert_eq!(statuses, ["200", "", "300", "301"]);
    let told = attributes(named(&spans, "deliver"));
    assert!(told.contains(&"mcprelay.deliver.posts=103".into()), "{told:?}");
    assert!(told.contains(&"mcprelay.task.chunks=7".into()), "{told:?}");
    assert!(told.iter().any(|a| a.starts_with("mcprelay.deliver.longest_post=")), "{told:?}");
    assert_eq!(recorded(PostSpans::All, stream).0.len(), 32);
}

#[tokio::test(start_paused = true)]
async fn a_slow_post_is_a_span_as_long_as_it_took() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let trace = TaskTrace::start(&handle, &task(None), &ChannelTrace::default());
    let delivery = trace.deliver(&Server::of(MCPD), PATH);
    delivery.post(0, false).end(Some(200));
    for took in [1000, 1001] {
        let post = delivery.post(0, false);
        tokio::time::advance(std::time::Duration::from_millis(took)).await;
        post.end(Some(202));
    }
    let spans = collected.take();
    let lasted = |span: &SpanData| span.end_time.duration_since(span.start_time).unwrap().as_millis();
    assert_eq!(spans.iter().map(lasted).collect::<Vec<_>>()[1..], [1001]);
}

#[test]
fn however_many_posts_fail_the_terminal_one_is_the_last_of_32_spans() {
    let (statuses, spans) = recorded(PostSpans::Telling, |posts| {
        (0..100).for_each(|n| posts.post(n, false).end(Some(503)));
        posts.post(0, true).end(Some(200));
    });
    assert_eq!((statuses.len(), statuses.last().map(String::as_str)), (32, Some("200")));
    assert!(attributes(named(&spans, "deliver")).contains(&"mcprelay.deliver.posts=101".into()));
}

#[test]
fn an_upload_is_one_span_with_its_lines_and_no_longest_post() {
    let (statuses, spans) = recorded(PostSpans::Telling, |posts| {
        posts.post(0, false).end(Some(200));
        let mut upload = posts.upload(0, format!("{PATH}-stream"));
        upload.set_lines(120);
        upload.end(Some(200));
    });
    assert_eq!(statuses, ["200", "200"]);
    let upload = spans.iter().map(attributes).find(|a| a.contains(&"mcprelay.deliver.lines=120".into()));
    let upload = upload.expect("a span of the upload");
    assert!(upload.iter().any(|a| a.starts_with("url.full=") && a.ends_with("-stream")), "{upload:?}");
    assert!(attributes(named(&spans, "deliver")).contains(&"mcprelay.deliver.posts=2".into()));
}

#[test]
fn gemini_is_called_what_the_conventions_call_it() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    let mut trace = TaskTrace::start(&handle, &task(None), &ChannelTrace::default());
    trace.running(&Provider { kind: "gemini".into(), ..provider() });
    trace.end(&TaskReport::new(EndKind::Answered));
    assert!(attributes(named(&collected.take(), CHAT)).contains(&"gen_ai.provider.name=gcp.gemini".into()));
    assert!(collected.metrics().contains(r#"gen_ai_provider_name="gcp.gemini""#));
}

#[test]
fn a_failed_opening_of_the_channel_is_an_error_of_its_own() {
    let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
    ChannelOpening::start(&handle).failed("503");
    let spans = collected.take();
    assert_eq!(spans[0].status, Status::error(""));
    assert_eq!(attributes(&spans[0]), ["error.type=503"]);
}
