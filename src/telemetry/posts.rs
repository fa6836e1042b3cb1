//! The POSTs of one task's result parts: a span and a measurement each.

use std::sync::Arc;

use opentelemetry::{KeyValue, trace::SpanKind};
use tokio::time::Instant;

use super::{
    Handle, Metrics,
    names::{key, span, value},
    spans::{Ended, Open, Trace},
};

/// mcpd as the target of POSTs; made once, since reading a URL costs more than a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Scheme, host and port, without credentials and without a slash at the end.
    origin: Arc<str>,
    host: Arc<str>,
    port: i64,
}

/// Whose POSTs they are and where they go. Cheap to clone and free of the task's own handle, so that the delivery may run
/// as a task of its own.
#[derive(Clone, Default)]
pub struct Posts(Option<Arc<Target>>);

struct Target {
    metrics: Metrics,
    trace: Option<Arc<Trace>>,
    /// On the span only: it has the task's id in it.
    url: String,
    server: Server,
}

/// One POST under way.
pub struct PostTrace(Option<UnderWay>);

struct UnderWay {
    target: Arc<Target>,
    began: Instant,
    resend_count: u32,
}

impl Server {
    /// The server of `url`, any path of it; empty for what is not a URL.
    pub fn of(url: &str) -> Self {
        let url = reqwest::Url::parse(url).ok();
        let origin = url.as_ref().map(|u| u.origin().ascii_serialization()).unwrap_or_default();
        let host = url.as_ref().and_then(|u| u.host_str()).unwrap_or_default();
        let port = url.as_ref().and_then(reqwest::Url::port_or_known_default).unwrap_or_default();
        Self { origin: origin.into(), host: host.into(), port: port.into() }
    }

    /// Of the measurement of a POST that got this status, or no reply.
    pub(super) fn labels(&self, status: Option<u16>) -> Vec<KeyValue> {
        let mut labels = vec![
            KeyValue::new(key::HTTP_REQUEST_METHOD, value::POST),
            KeyValue::new(key::SERVER_ADDRESS, self.host.clone()),
            KeyValue::new(key::SERVER_PORT, self.port),
        ];
        labels.extend(status.map(|s| KeyValue::new(key::HTTP_RESPONSE_STATUS_CODE, i64::from(s))));
        labels.extend(error_type(status).map(|error| KeyValue::new(key::ERROR_TYPE, error)));
        labels
    }
}

/// What is wrong with a reply that had this status, or with none.
fn error_type(status: Option<u16>) -> Option<String> {
    match status {
        Some(status) if status < 400 => None,
        Some(status) => Some(status.to_string()),
        None => Some(value::NO_REPLY.to_owned()),
    }
}

impl Posts {
    pub(super) fn new(handle: &Handle, trace: Option<Arc<Trace>>, server: &Server, path: &str) -> Self {
        let trace = trace.filter(|trace| trace.sampled);
        if trace.is_none() && !handle.metrics.enabled() {
            return Self(None);
        }
        let url = if trace.is_some() { [&*server.origin, path].concat() } else { String::new() };
        Self(Some(Arc::new(Target { metrics: handle.metrics.clone(), trace, url, server: server.clone() })))
    }

    /// A POST begins; `resend_count` is 0 for the first try of a part and counts its repetitions.
    pub fn post(&self, resend_count: u32) -> PostTrace {
        let target = self.0.clone();
        PostTrace(target.map(|target| UnderWay { target, began: Instant::now(), resend_count }))
    }
}

impl UnderWay {
    /// `reply` is its status, if there was one; `None` where the POST was given up.
    fn ended(&self, at: Instant, reply: Option<Option<u16>>) {
        let Some(trace) = &self.target.trace else { return };
        let error = reply.and_then(error_type);
        let server = &self.target.server;
        let open = Open::new(trace.time(self.began));
        let span = Ended {
            error: error.as_ref().map(|_| ""),
            ..Ended::new((open, trace.time(at)), (span::POST, SpanKind::Client), trace.root)
        };
        trace.ended(&span, |to| {
            to.text(key::HTTP_REQUEST_METHOD, value::POST);
            to.text(key::SERVER_ADDRESS, &*server.host);
            to.whole(key::SERVER_PORT, server.port);
            to.text(key::URL_FULL, &*self.target.url);
            to.whole(key::HTTP_RESEND_COUNT, (self.resend_count > 0).then_some(self.resend_count.into()));
            to.whole(key::HTTP_RESPONSE_STATUS_CODE, reply.flatten().map(i64::from));
            to.text(key::ERROR_TYPE, error.as_deref());
        });
    }
}

impl PostTrace {
    /// The reply's status, or `None` where there was no reply. An error stays on this span: a later try may heal it.
    pub fn end(mut self, status: Option<u16>) {
        let Some(open) = self.0.take() else { return };
        let now = Instant::now();
        open.ended(now, Some(status));
        open.target.metrics.post_sent(now - open.began, &open.target.server, status);
    }
}

impl Drop for PostTrace {
    /// The POST was given up: nobody knows its reply.
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.ended(Instant::now(), None);
        }
    }
}
