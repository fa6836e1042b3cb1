//! The standard `OTEL_*` variables that the SDK leaves to us: it reads endpoints, headers, the queue and the resource by itself,
//! but neither `OTEL_SDK_DISABLED` nor `OTEL_PROPAGATORS`, and it cannot know whether to export at all. The sampler it would
//! read, but say what it does not understand to a log that does not exist yet.

use std::time::Duration;

use opentelemetry_sdk::trace::Sampler;

/// Longest wait for a collector's reply unless the environment says otherwise; the standard's default.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How spans and metrics reach a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    HttpProtobuf,
    Grpc,
}

/// The export of one signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) protocol: Protocol,
    /// The whole URL; `None` is the SDK's default on this machine.
    pub(super) endpoint: Option<String>,
    /// Longest wait for a reply.
    pub(super) timeout: Duration,
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampling {
    /// Whether a caller's own decision stands; then the share is for traces that begin here.
    parent_based: bool,
    /// Of all traces, from 0 to 1. Which ones follows from their ids, so that all programs with one share choose the same.
    share: f64,
}

impl Default for Sampling {
    /// The standard's `parentbased_always_on`.
    fn default() -> Self {
        Self { parent_based: true, share: 1.0 }
    }
}

impl Sampling {
    pub(super) fn sampler(self) -> Sampler {
        let share = Sampler::TraceIdRatioBased(self.share);
        if self.parent_based { Sampler::ParentBased(Box::new(share)) } else { share }
    }
}

/// What the environment asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Otel {
    pub(super) traces: Option<Export>,
    pub(super) metrics: Option<Export>,
    pub(super) sampling: Sampling,
    pub(super) propagate: bool,
    pub(super) capture_content: bool,
    /// A sentence for each value that is not understood, to be logged once logging works.
    pub(super) problems: Vec<String>,
}

/// Reads variables, and collects what is wrong with them.
struct Reader<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl Otel {
    /// `get` gives a variable's value.
    pub(super) fn read(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut reader = Reader { get, problems: Vec::new() };
        let disabled = reader.is_true("OTEL_SDK_DISABLED");
        let traces = reader.export("TRACES").filter(|_| !disabled);
        let metrics = reader.export("METRICS").filter(|_| !disabled);
        let sampling = reader.sampling();
        let propagate = reader.propagate();
        let capture_content = reader.capture_content();
        Self { traces, metrics, sampling, propagate, capture_content, problems: reader.problems }
    }
}

impl Reader<'_> {
    /// An empty value is as good as none, says the standard.
    fn value(&self, name: &str) -> Option<String> {
        (self.get)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    fn is_true(&self, name: &str) -> bool {
        self.value(name).is_some_and(|v| v.eq_ignore_ascii_case("true"))
    }

    /// The signal's own variable, else the general one.
    fn either(&self, signal: &str, what: &str) -> Option<String> {
        self.value(&format!("OTEL_EXPORTER_OTLP_{signal}_{what}"))
            .or_else(|| self.value(&format!("OTEL_EXPORTER_OTLP_{what}")))
    }

    /// Nothing is exported unless somebody names a collector or asks for "otlp".
    fn export(&mut self, signal: &str) -> Option<Export> {
        let name = format!("OTEL_{signal}_EXPORTER");
        let wanted = match self.value(&name).as_deref() {
            None => self.either(signal, "ENDPOINT").is_some(),
            Some("otlp") => true,
            Some("none") => false,
            Some(_) => {
                self.problem(&name, "is neither otlp nor none", "nothing is exported");
                false
            }
        };
        wanted.then(|| {
            let protocol = self.protocol(signal);
            let endpoint = self.endpoint(signal, protocol);
            Export { protocol, endpoint, timeout: self.timeout(signal) }
        })
    }

    /// A signal's own endpoint is taken as it is; the general one is the base of the signal's path, for HTTP only.
    fn endpoint(&self, signal: &str, protocol: Protocol) -> Option<String> {
        let own = self.value(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"));
        own.or_else(|| {
            let base = self.value("OTEL_EXPORTER_OTLP_ENDPOINT")?;
            Some(match protocol {
                Protocol::Grpc => base,
                Protocol::HttpProtobuf => {
                    format!("{}/v1/{}", base.trim_end_matches('/'), signal.to_ascii_lowercase())
                }
            })
        })
    }

    fn protocol(&mut self, signal: &str) -> Protocol {
        match self.either(signal, "PROTOCOL").as_deref() {
            None | Some("http/protobuf") => Protocol::HttpProtobuf,
            Some("grpc") => Protocol::Grpc,
            Some(_) => {
                let instead = "http/protobuf is used";
                self.problem("OTEL_EXPORTER_OTLP_PROTOCOL", "is neither http/protobuf nor grpc", instead);
                Protocol::HttpProtobuf
            }
        }
    }

    fn timeout(&mut self, signal: &str) -> Duration {
        let Some(text) = self.either(signal, "TIMEOUT") else { return EXPORT_TIMEOUT };
        text.parse().ok().filter(|ms| *ms > 0).map(Duration::from_millis).unwrap_or_else(|| {
            let name = "OTEL_EXPORTER_OTLP_TIMEOUT";
            self.problem(name, "is not a number of milliseconds above 0", "10 s is used");
            EXPORT_TIMEOUT
        })
    }

    fn sampling(&mut self) -> Sampling {
        let Some(name) = self.value("OTEL_TRACES_SAMPLER") else { return Sampling::default() };
        let name = name.to_ascii_lowercase();
        let delegate = name.strip_prefix("parentbased_");
        let share = match delegate.unwrap_or(&name) {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.share(),
            _ => {
                let what =
                    "is none of always_on, always_off, traceidratio, nor one of them after parentbased_";
                self.problem("OTEL_TRACES_SAMPLER", what, "parentbased_always_on is used");
                return Sampling::default();
            }
        };
        Sampling { parent_based: delegate.is_some(), share }
    }

    /// The standard's default is everything.
    fn share(&mut self) -> f64 {
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let Some(text) = self.value(name) else { return 1.0 };
        text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).unwrap_or_else(|| {
            self.problem(name, "is not a number from 0 to 1", "1 is used");
            1.0
        })
    }

    /// Of the standard's propagators only the trace context has a place in a task.
    fn propagate(&mut self) -> bool {
        let Some(list) = self.value("OTEL_PROPAGATORS") else { return true };
        let mut names = list.split(',').map(str::trim);
        if names.clone().any(|n| !matches!(n, "tracecontext" | "baggage" | "none")) {
            self.problem("OTEL_PROPAGATORS", "knows only tracecontext and none here", "the rest is ignored");
        }
        names.any(|n| n == "tracecontext")
    }

    fn capture_content(&mut self) -> bool {
        let name = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT";
        match self.value(name).map(|v| v.to_ascii_lowercase()).as_deref() {
            None | Some("false" | "no_content") => false,
            Some("true" | "span_only" | "span_and_event") => true,
            Some(_) => {
                self.problem(name, "is none of true, span_only, span_and_event", "no content is recorded");
                false
            }
        }
    }

    /// The value itself stays out of the log: it may hold a secret.
    fn problem(&mut self, name: &str, what: &str, instead: &str) {
        self.problems.push(format!("{name} {what}; {instead}."));
    }
}

#[cfg(test)]
mod tests {
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
        let none =
            read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]"), ("OTEL_METRICS_EXPORTER", "none")]);
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
    fn a_sampler_is_read_with_its_argument_in_any_case() {
        let sampling = |name: &str, arg: &str| {
            let otel = read(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]);
            assert_eq!(otel.problems, Vec::<String>::new(), "{name} {arg}");
            (otel.sampling.parent_based, otel.sampling.share)
        };
        assert_eq!(sampling("", ""), (true, 1.0));
        assert_eq!(sampling("always_on", "0.5"), (false, 1.0));
        assert_eq!(sampling("Always_Off", ""), (false, 0.0));
        assert_eq!(sampling("traceidratio", "0.25"), (false, 0.25));
        assert_eq!(sampling("traceidratio", ""), (false, 1.0));
        assert_eq!(sampling("parentbased_always_on", ""), (true, 1.0));
        assert_eq!(sampling("parentbased_always_off", ""), (true, 0.0));
        assert_eq!(sampling("parentbased_traceidratio", "0"), (true, 0.0));
    }

    #[test]
    fn a_sampler_that_is_not_understood_is_said_and_everything_is_recorded() {
        for (name, arg) in [
            ("s3cret", "0"),
            ("parentbased_s3cret", "0"),
            ("traceidratio", "s3cret"),
            ("traceidratio", "1.5"),
            ("parentbased_traceidratio", "-1"),
            ("parentbased_traceidratio", "NaN"),
        ] {
            let otel = read(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]);
            assert_eq!(otel.sampling.share, 1.0, "{name} {arg}");
            assert_eq!(otel.problems.len(), 1, "{name} {arg}: {:?}", otel.problems);
            assert!(otel.problems[0].contains("OTEL_TRACES_SAMPLER") && !otel.problems[0].contains("s3cret"));
        }
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
}
