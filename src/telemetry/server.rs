//! mcpd as the target of POSTs, in traces and in metrics.

use std::sync::Arc;

use opentelemetry::KeyValue;

use super::names::{key, value};

/// mcpd as the target of POSTs; made once, since reading a URL costs more than a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Scheme, host and port, without credentials and without a slash at the end.
    pub(super) origin: Arc<str>,
    pub(super) host: Arc<str>,
    pub(super) port: i64,
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
pub(super) fn error_type(status: Option<u16>) -> Option<String> {
    match status {
        Some(status) if status < 400 => None,
        Some(status) => Some(status.to_string()),
        None => Some(value::NO_REPLY.to_owned()),
    }
}
