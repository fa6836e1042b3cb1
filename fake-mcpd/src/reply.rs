//! Replies and their bodies.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::faults::Answer;
use crate::wire;

/// The connection is cut without a reply.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on order")]
pub(crate) struct Cut;

/// A reply. Its body is whole, a caller's stream, or a control channel.
pub(crate) type Reply = Response<UnsyncBoxBody<Bytes, Cut>>;

/// A JSON reply.
pub(crate) fn json_reply(status: u16, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// An error towards providers: one sentence.
pub(crate) fn error_reply(status: u16, message: &str) -> Reply {
    json_reply(status, wire::json(&serde_json::json!({"error": message})))
}

/// An SSE reply.
pub(crate) fn sse_reply(body: impl Body<Data = Bytes, Error = Cut> + Send + 'static) -> Reply {
    let mut reply = Response::new(body.boxed_unsync());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    reply.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
    reply
}

/// Sets a header, unless its text cannot be one.
pub(crate) fn set_header(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

/// The answer that a fault ordered.
pub(crate) fn ordered_reply(answer: &Answer) -> Reply {
    let message = format!("fake-mcpd was told to answer {}", answer.status);
    let mut reply = match (&answer.body, answer.html) {
        (Some(body), _) => json_reply(answer.status, body.clone().into()),
        (None, true) => json_reply(answer.status, HTML_PAGE.into()),
        (None, false) => error_reply(answer.status, &message),
    };
    if answer.html {
        set_header(&mut reply, CONTENT_TYPE, "text/html");
    }
    if let Some(seconds) = answer.retry_after {
        set_header(&mut reply, RETRY_AFTER, &seconds.to_string());
    }
    reply
}

/// What a proxy or a captive portal says.
const HTML_PAGE: &str = "<!doctype html><html><body><h1>Welcome</h1></body></html>";
