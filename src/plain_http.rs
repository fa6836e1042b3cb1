//! Requests to a server that is reached without TLS and without a proxy: on hyper's own client.
//!
//! reqwest reads a URL again for every request and for every response, and asks its policies of redirect and repetition: a quarter of
//! what a result POST costs, and a stream has one for nearly every token. Trust, proxies and credentials in URLs stay reqwest's alone.

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
use reqwest::{ResponseBuilderExt as _, Url};

use crate::credentials::is_loopback;

/// How long connections may take to be made, and how long idle ones are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) connect: Duration,
    pub(crate) idle: Duration,
}

/// Sends requests, on connections that all clones share.
pub(crate) type PlainClient = Client<HttpConnector, Full<Bytes>>;

/// The client for the server of `url`; `None` where it takes reqwest to get there.
pub(crate) fn client(url: &Url, times: Times) -> Option<PlainClient> {
    let uri: Uri = url.as_str().parse().ok()?;
    // As reqwest decides: the environment's variables, and never for this machine.
    let through_a_proxy = || !is_loopback(url) && Matcher::from_system().intercept(&uri).is_some();
    if url.scheme() != "http" || !url.username().is_empty() || url.password().is_some() || through_a_proxy() {
        return None;
    }
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(times.connect));
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(times.idle);
    Some(builder.build(connector))
}

/// Reads a reply whose content does not matter to its end, so that its connection can be used again; but no more than `limit` bytes.
pub(crate) async fn drain(mut body: Incoming, limit: usize) {
    let mut seen = 0;
    while let Some(Ok(frame)) = body.frame().await {
        seen += frame.data_ref().map_or(0, Bytes::len);
        if seen > limit {
            // Dropping the rest closes the connection.
            return;
        }
    }
}

/// The reply for those who read reqwest's; `url` is where it came from.
pub(crate) fn as_reqwest(response: Response<Incoming>, url: Url) -> reqwest::Response {
    let (head, body) = response.into_parts();
    let builder = Response::builder().status(head.status).url(url);
    let mut response = builder.body(reqwest::Body::wrap(body)).expect("a status and a URL make a response");
    *response.headers_mut() = head.headers;
    response.into()
}
