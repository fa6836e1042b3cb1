//! Variables as people write them.

use super::*;

fn read(variables: &[(&str, &str)]) -> Otel {
    Otel::read(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
}

#[test]
fn nothing_is_exported_unless_somebody_asks() {
    let otel = read(&[]);
    assert_eq!((otel.traces, otel.metrics), (None, None));
    assert!(otel.propagate && !otel.capture_content && otel.problems.is_empty());
}

fn http(endpoint: Option<&str>) -> Export {
    let endpoint = endpoint.map(str::to_owned);
    Export { protocol: Protocol::HttpProtobuf, endpoint, timeout: EXPORT_TIMEOUT }
}

#[test]
fn an_endpoint_or_an_exporter_asks_for_the_export() {
    let both = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]:4318/")]);
    assert_eq!(both.traces, Some(http(Some("http://[::1]:4318/v1/traces"))));
    assert_eq!(both.metrics, Some(http(Some("http://[::1]:4318/v1/metrics"))));
    let traces = read(&[("OTEL_TRACES_EXPORTER", "otlp")]);
    assert_eq!((traces.traces, traces.metrics), (Some(http(None)), None));
    let none = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]"), ("OTEL_METRICS_EXPORTER", "none")]);
    assert!(none.traces.is_some() && none.metrics.is_none());
}

#[test]
fn a_signals_own_variables_win_and_its_endpoint_is_verbatim() {
    let otel = read(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://[::1]/mine"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
    ]);
    let endpoint = Some("http://[::1]".to_owned());
    let traces = Export { protocol: Protocol::Grpc, endpoint, timeout: Duration::from_millis(250) };
    assert_eq!((otel.traces, otel.metrics), (Some(traces), Some(http(Some("http://[::1]/mine")))));
}

#[test]
fn a_disabled_sdk_exports_nothing_but_still_propagates() {
    let otel = read(&[("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]")]);
    assert!(otel.traces.is_none() && otel.metrics.is_none() && otel.propagate);
}

#[test]
fn propagators_without_the_trace_context_stop_it() {
    assert!(!read(&[("OTEL_PROPAGATORS", "none")]).propagate);
    assert!(!read(&[("OTEL_PROPAGATORS", "baggage")]).propagate);
    assert!(read(&[("OTEL_PROPAGATORS", "baggage, tracecontext")]).propagate);
}

#[test]
fn a_sampler_that_the_sdk_does_not_know_is_said() {
    let problems = |name: &str| read(&[("OTEL_TRACES_SAMPLER", name)]).problems.len();
    assert_eq!(["", "always_off", "traceidratio", "parentbased_traceidratio"].map(problems), [0; 4]);
    assert_eq!(["alwyas_off", "parentbased_s3cret"].map(problems), [1; 2]);
}

#[test]
fn a_grpc_endpoint_without_a_scheme_has_tls_unless_somebody_declines() {
    let endpoint = |variables: &[(&str, &str)]| {
        let general =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        read(&[&general, variables].concat()).traces.unwrap().endpoint.unwrap()
    };
    assert_eq!(endpoint(&[]), "https://collector:4317");
    assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_INSECURE", "True")]), "http://collector:4317");
    assert_eq!(
        endpoint(&[("OTEL_EXPORTER_OTLP_INSECURE", "true"), ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "false")]),
        "https://collector:4317"
    );
    assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other:1")]), "http://other:1");
}

#[test]
fn the_resource_is_decoded_and_names_the_agent_unless_somebody_else_does() {
    let resource = |name: &str, list: &str| {
        let otel = read(&[("OTEL_SERVICE_NAME", name), ("OTEL_RESOURCE_ATTRIBUTES", list)]);
        let mut pairs: Vec<_> =
            otel.resource.iter().map(|each| format!("{}={}", each.key, each.value)).collect();
        pairs.sort();
        (pairs.join(" "), otel.problems.len())
    };
    let version = concat!("service.version=", env!("CARGO_PKG_VERSION"));
    let ours = (format!("service.name=mcprelay {version}"), 0);
    assert_eq!(resource("", ""), ours);
    assert_eq!(resource(" ", " , "), ours);
    let decoded = resource("", "k=%C3%A4%2C, service.name = theirs");
    assert_eq!(decoded, (format!("k=ä, service.name=theirs {version}"), 0));
    assert_eq!(resource("mine", "service.name=theirs").0, format!("service.name=mine {version}"));
    assert_eq!(resource("", "service.version=2").0, "service.name=mcprelay service.version=2");
    for not_one in ["k=1,l", "k=1,=2", "k=%ff"] {
        assert_eq!(resource("", not_one), (ours.0.clone(), 1), "{not_one}");
    }
}

#[test]
fn what_both_signals_share_is_said_once() {
    let otel =
        read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")]);
    assert!(otel.traces.is_some() && otel.metrics.is_some());
    assert_eq!(otel.problems.len(), 1, "{:?}", otel.problems);
}

#[test]
fn what_is_not_understood_is_said_without_its_value() {
    let otel = read(&[
        ("OTEL_TRACES_EXPORTER", "s3cret"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "s3cret"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "s3cret"),
        ("OTEL_PROPAGATORS", "s3cret"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "s3cret"),
    ]);
    assert_eq!(otel.problems.len(), 5);
    assert!(otel.problems.iter().all(|p| !p.contains("s3cret")));
    assert!(!otel.capture_content);
}
