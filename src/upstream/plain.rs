//! Result POSTs to an mcpd that is reached without TLS and without a proxy: on hyper's own client.
//!
//! reqwest reads a URL again for every request and for every response, and asks its policies of redirect and repetition: a quarter of
//! what such a POST costs, and a stream has one for nearly every token. Trust and proxies stay reqwest's alone.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Response, Uri, body::Incoming};
use hyper_util::{
    client::{
        legacy::{Client, connect::HttpConnector},
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioTimer},
};
use reqwest::ResponseBuilderExt as _;

use super::{
    connect::{CONNECT_TIMEOUT, is_local},
    reply::REPLY_LIMIT,
};

/// Sends POSTs, on connections that all clones share.
pub(super) type PlainClient = Client<HttpConnector, Full<Bytes>>;

/// The client for the mcpd at `url`, which keeps idle connections so long; `None` where it takes reqwest to get there.
pub(super) fn client(url: &str, idle: Duration) -> Option<PlainClient> {
    let uri: Uri = url.parse().ok()?;
    // As reqwest decides: the environment's variables, and never for this machine.
    let through_a_proxy = || !is_local(url) && Matcher::from_system().intercept(&uri).is_some();
    if uri.scheme_str() != Some("http") || through_a_proxy() {
        return None;
    }
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let mut builder = Client::builder(TokioExecutor::new());
    Some(builder.pool_timer(TokioTimer::new()).pool_idle_timeout(idle).build(connector))
}

/// Reads a reply whose content does not matter to its end, so that its connection can be used again.
pub(super) async fn drain(mut body: Incoming) {
    let mut seen = 0;
    while let Some(Ok(frame)) = body.frame().await {
        seen += frame.data_ref().map_or(0, Bytes::len);
        if seen > REPLY_LIMIT {
            // Dropping the rest closes the connection.
            return;
        }
    }
}

/// A reply in the hands of who reads and describes the others; `url` is where it came from.
pub(super) fn as_reqwest(response: Response<Incoming>, url: &str) -> reqwest::Response {
    let (head, body) = response.into_parts();
    let mut builder = Response::builder().status(head.status);
    if let Ok(url) = url.parse() {
        builder = builder.url(url);
    }
    let mut response = builder.body(reqwest::Body::wrap(body)).expect("a status and a URL make a response");
    *response.headers_mut() = head.headers;
    response.into()
}
