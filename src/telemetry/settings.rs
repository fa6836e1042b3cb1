//! Those of the standard's `OTEL_*` variables that the SDK does not read: whether and where to something is
//! exported, what is propagated, what counts as content, and the resource. Samplers, batches, limits, headers,
//! compression and the metrics' interval are the SDK's. What is not understood becomes a sentence, because the
//! log does not exist yet.

use std::time::Duration;

use opentelemetry::KeyValue;
use percent_encoding::percent_decode_str;

use super::names;

/// Who exports, in the conventions' words.
const SERVICE_NAME: &str = "service.name";
const SERVICE_VERSION: &str = "service.version";

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

/// What the environment asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Otel {
    pub(super) traces: Option<Export>,
    pub(super) metrics: Option<Export>,
    /// Of the process: its name, and what the environment adds.
    pub(super) resource: Vec<KeyValue>,
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
        reader.check_sampler();
        let resource = reader.resource();
        let propagate = reader.propagate();
        let capture_content = reader.capture_content();
        let problems = reader.problems;
        Self { traces, metrics, resource, propagate, capture_content, problems }
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
        let endpoint = own.or_else(|| {
            let base = self.value("OTEL_EXPORTER_OTLP_ENDPOINT")?;
            Some(match protocol {
                Protocol::Grpc => base,
                Protocol::HttpProtobuf => {
                    format!("{}/v1/{}", base.trim_end_matches('/'), signal.to_ascii_lowercase())
                }
            })
        });
        match protocol {
            // Allowed without a scheme there, and TLS then unless somebody declines.
            Protocol::Grpc => {
                endpoint.map(|e| if e.contains("://") { e } else { self.with_scheme(signal, &e) })
            }
            Protocol::HttpProtobuf => endpoint,
        }
    }

    fn with_scheme(&self, signal: &str, endpoint: &str) -> String {
        let insecure = self.either(signal, "INSECURE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        format!("{}://{endpoint}", if insecure { "http" } else { "https" })
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

    /// The SDK, which reads it, tells nobody that it does not know a name.
    fn check_sampler(&mut self) {
        let name = "OTEL_TRACES_SAMPLER";
        let known = ["always_on", "always_off", "traceidratio"];
        if let Some(value) = self.value(name)
            && !known.contains(&value.strip_prefix("parentbased_").unwrap_or(&value))
        {
            let what = "is none of always_on, always_off, traceidratio, nor one of them after parentbased_";
            self.problem(name, what, "parentbased_always_on is used");
        }
    }

    /// The SDK, which reads the same variables, takes the attributes as they stand; the standard has them percent-encoded, and none
    /// taken where one is wrong.
    fn resource(&mut self) -> Vec<KeyValue> {
        let list = self.value("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
        let attributes: Option<Vec<_>> = parts.map(attribute).collect();
        let mut attributes = attributes.unwrap_or_else(|| {
            let what = "has a part that is not key=value, percent-encoded";
            self.problem("OTEL_RESOURCE_ATTRIBUTES", what, "all of it is left out");
            Vec::new()
        });
        if let Some(name) = self.value("OTEL_SERVICE_NAME") {
            attributes.retain(|each| each.key.as_str() != SERVICE_NAME);
            attributes.push(KeyValue::new(SERVICE_NAME, name));
        }
        for (key, ours) in [(SERVICE_NAME, names::SCOPE), (SERVICE_VERSION, env!("CARGO_PKG_VERSION"))] {
            if attributes.iter().all(|each| each.key.as_str() != key) {
                attributes.push(KeyValue::new(key, ours));
            }
        }
        attributes
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
        let problem = format!("{name} {what}; {instead}.");
        // Both signals read what they share.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

fn attribute(pair: &str) -> Option<KeyValue> {
    let (key, value) = pair.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
    let decoded = |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
    Some(KeyValue::new(decoded(key)?, decoded(value)?))
}

#[cfg(test)]
mod tests;
