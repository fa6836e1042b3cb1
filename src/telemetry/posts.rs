//! The POSTs of one task's result parts: a span and a measurement each.

use std::sync::Arc;

use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanKind, Status},
};
use tokio::time::Instant;

use super::{
    Handle,
    names::{key, span, value},
};

/// mcpd as the target of POSTs; made once, since reading a URL costs more than a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Scheme, host and port, without credentials and without a slash at the end.
    origin: Arc<str>,
    labels: [KeyValue; 3],
}

/// Whose POSTs they are and where they go. Cheap to clone and free of the task's own handle, so that the delivery may run
/// as a task of its own.
#[derive(Clone, Default)]
pub struct Posts(Option<Arc<Target>>);

struct Target {
    handle: Handle,
    parent: Option<Context>,
    /// On the span only: it has the task's id in it.
    url: Arc<str>,
    server: Server,
}

/// One POST under way.
pub struct PostTrace(Option<Open>);

struct Open {
    target: Arc<Target>,
    span: Option<opentelemetry_sdk::trace::Span>,
    began: Instant,
}

impl Server {
    /// The server of `url`, any path of it; empty for what is not a URL.
    pub fn of(url: &str) -> Self {
        let url = reqwest::Url::parse(url).ok();
        let origin = url.as_ref().map(|u| u.origin().ascii_serialization()).unwrap_or_default();
        let host = url.as_ref().and_then(|u| u.host_str()).unwrap_or_default();
        let port = url.as_ref().and_then(reqwest::Url::port_or_known_default).unwrap_or_default();
        let labels = [
            KeyValue::new(key::HTTP_REQUEST_METHOD, value::POST),
            KeyValue::new(key::SERVER_ADDRESS, Arc::<str>::from(host)),
            KeyValue::new(key::SERVER_PORT, i64::from(port)),
        ];
        Self { origin: origin.into(), labels }
    }

    /// Of the measurement of a POST that got this status, or no reply.
    pub(super) fn labels(&self, status: Option<u16>) -> Vec<KeyValue> {
        self.labels.iter().cloned().chain(outcome(status)).collect()
    }
}

/// What a reply's status says, and whether it is an error.
fn outcome(status: Option<u16>) -> impl Iterator<Item = KeyValue> {
    let code = status.map(|s| KeyValue::new(key::HTTP_RESPONSE_STATUS_CODE, i64::from(s)));
    let error = match status {
        Some(s) if s < 400 => None,
        Some(s) => Some(KeyValue::new(key::ERROR_TYPE, s.to_string())),
        None => Some(KeyValue::new(key::ERROR_TYPE, value::NO_REPLY)),
    };
    code.into_iter().chain(error)
}

impl Posts {
    pub(super) fn new(handle: &Handle, parent: Option<Context>, server: &Server, path: &str) -> Self {
        if parent.is_none() && !handle.metrics.enabled() {
            return Self(None);
        }
        let url = if parent.is_some() { format!("{}{path}", server.origin) } else { String::new() };
        Self(Some(Arc::new(Target {
            handle: handle.clone(),
            parent,
            url: url.into(),
            server: server.clone(),
        })))
    }

    /// A POST begins; `resend_count` is 0 for the first try of a part and counts its repetitions.
    pub fn post(&self, resend_count: u32) -> PostTrace {
        PostTrace(self.0.as_ref().map(|target| Open {
            span: target.span(resend_count),
            target: target.clone(),
            began: Instant::now(),
        }))
    }
}

impl Target {
    fn span(&self, resend_count: u32) -> Option<opentelemetry_sdk::trace::Span> {
        let (parent, spans) = (self.parent.as_ref()?, self.handle.spans.as_ref()?);
        // Room for the reply's too.
        let mut attributes = Vec::with_capacity(7);
        attributes.extend(self.server.labels.iter().cloned());
        attributes.push(KeyValue::new(key::URL_FULL, self.url.clone()));
        if resend_count > 0 {
            attributes.push(KeyValue::new(key::HTTP_RESEND_COUNT, i64::from(resend_count)));
        }
        Some(spans.child(span::POST, SpanKind::Client, attributes, parent))
    }
}

impl PostTrace {
    /// The reply's status, or `None` where there was no reply. An error stays on this span: a later try may heal it.
    pub fn end(self, status: Option<u16>) {
        let Some(open) = self.0 else { return };
        if let Some(mut span) = open.span {
            span.set_attributes(outcome(status));
            if status.is_none_or(|s| s >= 400) {
                span.set_status(Status::error(""));
            }
        }
        open.target.handle.metrics.post_sent(open.began.elapsed(), &open.target.server, status);
    }
}
