//! Sends the trace and the metrics of one made-up task to the collector that the `OTEL_*` variables name, and prints the
//! trace's id: `OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 cargo run --example one_task`.
//! With a number as its argument, as many tasks.

use std::{error::Error, time::Duration};

use mcprelay::{
    domain::{Provider, ProviderName, ProviderState, Task, TaskId, Usage},
    telemetry::{
        self, ChannelOpening, Ending, Handle, LogFormat, Server, Settings, TaskLine, TaskReport, TaskTrace,
        log_task_end,
    },
};

/// The most that the end may take.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// A caller's context, so that the collector sees a remote parent.
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn main() -> Result<(), Box<dyn Error>> {
    let tasks = std::env::args().nth(1).map_or(Ok(1), |n| n.parse::<u32>())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let telemetry = telemetry::init(&Settings { log_format: LogFormat::Json, metrics_listen: None })?;
    let handle = telemetry.handle();
    for n in 0..tasks {
        relay(&handle, n)?;
    }
    runtime.block_on(telemetry.shutdown(SHUTDOWN));
    Ok(())
}

fn relay(handle: &Handle, n: u32) -> Result<(), Box<dyn Error>> {
    let channel = ChannelOpening::start(handle).opened();
    let (task, provider) = (task(n)?, provider()?);
    let mut trace = TaskTrace::start(handle, &task, &channel);
    trace.running(&provider, &task.request);
    let posts =
        trace.posts(&Server::of("http://127.0.0.1:8080"), "/api/v1/llms/_provider-task/example/result");
    for status in [200, 200] {
        trace.chunk();
        posts.post(0).end(Some(status));
    }
    let (usage, trace_id) = (Usage { input_tokens: Some(5), output_tokens: Some(2) }, trace.trace_id());
    let ending = Ending::Completed;
    let reasons = ["stop".to_owned()];
    trace.end(&TaskReport { usage, finish_reasons: &reasons, ..TaskReport::new(ending) });
    log_task_end(&TaskLine {
        task: &task.id,
        llm: &task.llm,
        outcome: "ok",
        took: Duration::from_millis(1),
        first_chunk: None,
        usage,
        trace_id: trace_id.as_deref(),
    });
    Ok(())
}

fn task(n: u32) -> Result<Task, Box<dyn Error>> {
    Ok(Task {
        id: TaskId::new(&format!("example-{n}"))?,
        llm: "example".into(),
        streaming: true,
        request: r#"{"model":"example","temperature":0.5,"messages":[{"role":"user","content":"MARKER"}]}"#
            .into(),
        deadline: None,
        trace_context: [("traceparent".into(), CALLER.into())].into(),
        caller: None,
    })
}

fn provider() -> Result<Provider, Box<dyn Error>> {
    Ok(Provider {
        name: ProviderName::new("example")?,
        kind: "echo".into(),
        model: "parrot".into(),
        tier: String::new(),
        description: String::new(),
        publish: true,
        max_in_flight: None,
        state: ProviderState::Ready,
        state_detail: String::new(),
        features: vec![],
        context_tokens: None,
        max_output_tokens: None,
    })
}
