//! The export against collectors that misbehave.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use tracing::{Level, Subscriber as _, level_filters::LevelFilter};

use super::{super::setup::start, *};

/// Long enough for a thread to be scheduled on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// The end's bound in these tests, and what the test adds for a busy machine.
const BOUND: Duration = Duration::from_millis(300);
const MARGIN: Duration = Duration::from_secs(4);
/// What `run` makes: the channel's opening, the root, queue, chat, the delivery, and three POSTs.
const SPANS_OF_A_TASK: u64 = 8;
/// The SDK's defaults of `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` and `OTEL_BSP_MAX_QUEUE_SIZE`.
const SPANS_OF_AN_EXPORT: u64 = 512;
const SPANS_IN_THE_QUEUE: u64 = 2048;
/// Tells this test's own program that it is the process to look at: the SDK reads the environment of its process.
const ROLE: &str = "MCPRELAY_TEST_OF_THE_SDK";
/// A trace that a share of a half takes, and one that it does not: the lower half of the id decides.
const LOW_TRACE: &str = "4bf92f3577b34da60000000000000001";
const HIGH_TRACE: &str = "4bf92f3577b34da6ffffffffffffffff";

/// Ends `telemetry` and tells how long that took.
fn shut_down(telemetry: Telemetry, bound: Duration) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = Instant::now();
    runtime.block_on(telemetry.shutdown(bound));
    drop(runtime);
    began.elapsed()
}

/// A collector that takes connections and never answers.
fn hanging() -> (TcpListener, String) {
    let listener = TcpListener::bind(loopback()).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// A collector that takes everything and tells the first lines of its requests.
fn willing() -> (String, mpsc::Receiver<String>) {
    let (listener, url) = hanging();
    // More requests than a test makes.
    let (tell, told) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Before the answer: who has that may look at once.
            let _ = tell.send(first_line(&mut stream));
            let _ = stream.write_all(OK);
        }
    });
    (url, told)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Reads a request, and gives its first line.
fn first_line(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    let whole = |r: &[u8]| {
        let text = String::from_utf8_lossy(r).to_lowercase();
        let (head, _) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
        let body = r.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        (r.len() >= body + length).then(|| head.lines().next().unwrap_or_default().to_owned())
    };
    loop {
        if let Some(line) = whole(&request) {
            return line;
        }
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
            _ => return "cut off".into(),
        }
    }
}

fn traced(telemetry: &Telemetry) {
    traced_under(telemetry, None);
}

/// Traces a task under the process's own subscriber, as the agent does; gives the context that its provider got.
fn traced_under(telemetry: &Telemetry, traceparent: Option<&str>) -> BTreeMap<String, String> {
    let handle = telemetry.handle();
    let (lines, _) = super::super::log::layer(LogFormat::Json, "off", None, std::io::sink);
    let subscriber = super::super::setup::subscriber(&handle, lines);
    tracing::subscriber::with_default(subscriber, || run(&handle, traceparent, EndKind::Answered))
}

#[test]
fn a_willing_collector_gets_the_last_spans_and_metrics_at_the_end() {
    let (url, told) = willing();
    let telemetry = telemetry(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)], None);
    traced(&telemetry);
    let losses = telemetry.losses();
    assert!(shut_down(telemetry, PATIENCE) < PATIENCE);
    let mut requests: Vec<_> = told.try_iter().collect();
    requests.sort();
    assert_eq!(requests, ["post /v1/metrics http/1.1", "post /v1/traces http/1.1"]);
    assert_eq!(losses.lost(), 0);
}

#[test]
fn a_hanging_collector_holds_up_neither_a_task_nor_the_end() {
    for protocol in ["http/protobuf", "grpc"] {
        let (_listener, url) = hanging();
        let telemetry = telemetry(
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)],
            None,
        );
        let began = Instant::now();
        for _ in 0..200 {
            traced(&telemetry);
        }
        assert!(began.elapsed() < MARGIN, "{protocol}: tasks took {:?}", began.elapsed());
        let losses = telemetry.losses();
        let took = shut_down(telemetry, BOUND);
        assert!(took < BOUND + MARGIN, "{protocol}: the end took {took:?}");
        assert_eq!(losses.lost(), 200 * SPANS_OF_A_TASK, "{protocol}");
    }
}

/// A collector that answers each request only when it is let, or at once when the sender is gone.
fn slow() -> (String, mpsc::Receiver<()>, mpsc::SyncSender<()>) {
    let (listener, url) = hanging();
    // More requests than a test makes.
    let (tell, told) = mpsc::sync_channel(64);
    let (let_go, leave) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = tell.send(());
            let _ = leave.recv();
            first_line(&mut stream);
            let _ = stream.write_all(OK);
        }
    });
    (url, told, let_go)
}

/// Telemetry whose first export a slow collector keeps, with the queue behind it full.
fn kept_waiting() -> (Telemetry, mpsc::Receiver<()>, mpsc::SyncSender<()>) {
    let (url, told, let_go) = slow();
    let telemetry =
        telemetry(&[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url)], None);
    for _ in 0..SPANS_OF_AN_EXPORT / SPANS_OF_A_TASK {
        traced(&telemetry);
    }
    told.recv_timeout(PATIENCE).unwrap();
    let began = Instant::now();
    for _ in 0..SPANS_IN_THE_QUEUE / SPANS_OF_A_TASK {
        traced(&telemetry);
    }
    assert!(began.elapsed() < MARGIN, "tasks took {:?} while an export was under way", began.elapsed());
    (telemetry, told, let_go)
}

#[test]
fn a_slow_collector_holds_up_no_task_and_loses_no_span_once_it_catches_up() {
    let (telemetry, told, let_go) = kept_waiting();
    let losses = telemetry.losses();
    assert_eq!(losses.lost(), 5 * SPANS_OF_AN_EXPORT, "all of them wait");
    drop(let_go);
    assert!(shut_down(telemetry, PATIENCE) < PATIENCE);
    assert_eq!((losses.lost(), told.try_iter().count()), (0, 4));
}

#[test]
fn the_end_waits_for_its_bound_and_not_for_every_export_of_a_slow_collector() {
    let (telemetry, _told, let_go) = kept_waiting();
    let losses = telemetry.losses();
    let_go.send(()).unwrap();
    let took = shut_down(telemetry, BOUND);
    assert!(took < BOUND + MARGIN, "the end took {took:?}");
    assert!(losses.lost() >= 4 * SPANS_OF_AN_EXPORT, "one export was answered: {}", losses.lost());
}

/// What this process's telemetry makes of one task: how many spans, and the flags that its provider gets.
fn sampled_here() {
    let (_listener, url) = hanging();
    let get = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(url.clone()),
        name => std::env::var(name).ok(),
    };
    let (telemetry, _) =
        start(&Settings { log_format: LogFormat::Text, metrics_listen: None }, &get).unwrap();
    let parent = std::env::var("TRACEPARENT").ok();
    let offered = traced_under(&telemetry, parent.as_deref());
    let losses = telemetry.losses();
    shut_down(telemetry, Duration::ZERO);
    println!("spans: {} {}", losses.lost(), offered["traceparent"].rsplit('-').next().unwrap_or_default());
}

/// The line that a process of `test` prints under these variables.
fn line_of(test: &str, variables: &[(&str, &str)]) -> String {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let name = format!("telemetry::tests::export::{test}");
    command.args(["--exact", &name, "--nocapture"]).env(ROLE, "1").envs(variables.iter().copied());
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("spans: ").map(|(_, said)| said.to_owned()));
    line.unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn the_sampler_decides_what_is_recorded_and_the_provider_is_told() {
    if std::env::var_os(ROLE).is_some() {
        return sampled_here();
    }
    let sampled = |sampler: &str, argument: &str, parent: Option<&str>| {
        let parent = parent.map(|parent| ("TRACEPARENT", parent));
        let sampler = (!sampler.is_empty()).then_some(("OTEL_TRACES_SAMPLER", sampler));
        let argument = (!argument.is_empty()).then_some(("OTEL_TRACES_SAMPLER_ARG", argument));
        let variables: Vec<_> = [parent, sampler, argument].into_iter().flatten().collect();
        let line = line_of("the_sampler_decides_what_is_recorded_and_the_provider_is_told", &variables);
        let (spans, flags) = line.split_once(' ').unwrap();
        (spans.parse().unwrap(), flags.to_owned())
    };
    let yes = format!("00-{LOW_TRACE}-00f067aa0ba902b7-01");
    let no = format!("00-{LOW_TRACE}-00f067aa0ba902b7-00");
    let high = format!("00-{HIGH_TRACE}-00f067aa0ba902b7-01");
    // The channel's span is the root of a trace of its own.
    let (all, task, channel) = (SPANS_OF_A_TASK, SPANS_OF_A_TASK - 1, 1);
    for (sampler, argument, parent, spans, flags) in [
        ("", "", Some(&yes), all, "01"),
        ("", "", Some(&no), channel, "00"),
        ("", "", None, all, "01"),
        ("always_on", "", Some(&no), all, "01"),
        ("always_off", "", Some(&yes), 0, "00"),
        ("traceidratio", "1", Some(&no), all, "01"),
        ("traceidratio", "0", Some(&yes), 0, "00"),
        ("parentbased_always_off", "", Some(&yes), task, "01"),
        ("parentbased_always_off", "", None, 0, "00"),
        ("parentbased_traceidratio", "0", Some(&high), task, "01"),
        ("parentbased_traceidratio", "1", Some(&no), channel, "00"),
    ] {
        let got = sampled(sampler, argument, parent.map(|p| &**p));
        assert_eq!(got, (spans, flags.to_owned()), "{sampler} {argument} {parent:?}");
    }
    // Whether the channel's own trace is among the half is left to its id.
    assert_eq!(sampled("traceidratio", "0.5", Some(&no)).1, "01");
    assert_eq!(sampled("traceidratio", "0.5", Some(&high)).1, "00");
}

#[test]
fn the_sdks_limits_of_a_span_and_of_a_batch_are_the_environments() {
    const TEST: &str = "the_sdks_limits_of_a_span_and_of_a_batch_are_the_environments";
    if std::env::var_os(ROLE).is_some() {
        let (handle, collected) = in_memory(Content::LeftOut, PostSpans::Telling);
        run(&handle, None, EndKind::Answered);
        let spans = collected.take();
        let most = |count: fn(&SpanData) -> usize| spans.iter().map(count).max().unwrap();
        let (attributes, events, links) =
            (most(|s| s.attributes.len()), most(|s| s.events.len()), most(|s| s.links.len()));
        let (url, told) = willing();
        let get = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(url.clone()),
            _ => None,
        };
        let settings = Settings { log_format: LogFormat::Text, metrics_listen: None };
        let (telemetry, _) = start(&settings, &get).unwrap();
        traced(&telemetry);
        shut_down(telemetry, PATIENCE);
        let requests = told.try_iter().count();
        println!("spans: {attributes} attributes, {events} events, {links} links, {requests} requests");
        return;
    }
    let limits = [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "3"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "0"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
    ];
    assert_eq!(line_of(TEST, &limits), "3 attributes, 0 events, 0 links, 4 requests");
    assert!(line_of(TEST, &[]).ends_with(" attributes, 1 events, 1 links, 1 requests"));
}

#[test]
fn the_length_of_the_queue_is_the_environments() {
    const TEST: &str = "the_length_of_the_queue_is_the_environments";
    if std::env::var_os(ROLE).is_none() {
        let lengths = [("OTEL_BSP_MAX_QUEUE_SIZE", "3"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")];
        return assert_eq!(line_of(TEST, &lengths), "1 under way, 3 waiting");
    }
    let (url, told, let_go) = slow();
    let telemetry =
        telemetry(&[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url)], None);
    traced(&telemetry);
    told.recv_timeout(PATIENCE).unwrap();
    // More than there is room for, while the first export is under way.
    traced(&telemetry);
    drop(let_go);
    shut_down(telemetry, PATIENCE);
    println!("spans: 1 under way, {} waiting", told.try_iter().count());
}

#[test]
fn a_refusing_collector_costs_the_spans_and_nothing_else() {
    let (listener, url) = hanging();
    drop(listener);
    let telemetry = telemetry(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)], None);
    traced(&telemetry);
    let losses = telemetry.losses();
    assert!(shut_down(telemetry, BOUND) < BOUND + MARGIN);
    assert_eq!(losses.lost(), SPANS_OF_A_TASK);
}

#[test]
fn a_burst_beyond_the_queue_is_counted_as_lost_and_memory_stays_bounded() {
    let (telemetry, _told, let_go) = kept_waiting();
    let beyond = 100 * SPANS_OF_A_TASK;
    for _ in 0..beyond / SPANS_OF_A_TASK {
        traced(&telemetry);
    }
    let losses = telemetry.losses();
    // Only once the collector takes what waits can be seen how much that was.
    drop(let_go);
    assert!(shut_down(telemetry, PATIENCE) < PATIENCE);
    assert_eq!(losses.lost(), beyond, "what was beyond the queue, and no more");
}

#[test]
fn a_bad_endpoint_is_a_sentence_without_its_value_and_the_relay_goes_on() {
    let get = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "s3cret nonsense".to_owned());
    let settings = Settings { log_format: LogFormat::Text, metrics_listen: None };
    let (telemetry, problems) = start(&settings, &get).unwrap();
    assert_eq!(problems.len(), 2);
    assert!(problems.iter().all(|p| p.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && !p.contains("s3cret")));
    assert!(telemetry.handle().spans.is_none() && !telemetry.handle().metrics().enabled());
}

#[test]
fn without_a_collector_there_is_no_thread_and_no_span() {
    let telemetry = telemetry(&[], None);
    assert!(telemetry.handle().spans.is_none() && !telemetry.handle().metrics().enabled());
    assert!(shut_down(telemetry, BOUND) < BOUND);
}

#[test]
fn the_innermost_of_the_libraries_is_not_even_asked_about() {
    let (_listener, url) = hanging();
    for variables in [&[][..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*url)]] {
        let telemetry = telemetry(variables, None);
        let (lines, _) = super::super::log::layer(LogFormat::Json, "warn,mcprelay=info", None, std::io::sink);
        let subscriber = super::super::setup::subscriber(&telemetry.handle(), lines);
        assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::INFO));
        tracing::subscriber::with_default(subscriber, || {
            assert!(tracing::info_span!(target: "h2", "a library's").is_disabled());
            assert!(tracing::event_enabled!(target: "mcprelay", Level::INFO));
        });
        shut_down(telemetry, Duration::ZERO);
    }
}
