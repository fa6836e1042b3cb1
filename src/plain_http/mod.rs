//! Requests to a server that is reached without TLS and without a proxy, on hyper's HTTP/1.1 and with connections of our own.
//!
//! reqwest reads a URL again for every request and for every response, and asks its policies of redirect and repetition: a quarter of
//! what a result POST costs, and a stream has one for nearly every token. Trust, proxies and credentials in URLs stay reqwest's alone.
//! hyper-util's client keeps connections to any server; there is one here, so there is nothing to look up.

mod answer;
mod io;
mod link;
mod pool;
#[cfg(test)]
mod tests;

use std::{error::Error as StdError, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, Uri,
    header::{HOST, HeaderMap, HeaderValue},
};
use hyper_util::{
    client::{legacy::connect::HttpConnector, proxy::matcher::Matcher},
    rt::TokioIo,
};
use reqwest::{ResponseBuilderExt as _, Url};
use tokio::{net::TcpStream, time::timeout};
use tower::{Service, ServiceExt as _};

pub(crate) use self::{
    answer::{Answer, BrokenOff},
    link::Body,
};
use self::{
    link::{Link, exchange},
    pool::{Idled, Pool},
};
use crate::credentials::is_loopback;

/// How long connections may take to be made, and how long idle ones are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) connect: Duration,
    pub(crate) idle: Duration,
}

/// Why there is no answer. The words are those of hyper-util's client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no connection.
    #[error("client error (Connect)")]
    Connect(#[source] Box<dyn StdError + Send + Sync>),
    /// Connections ended before a byte of the request went out.
    #[error("client error (Canceled)")]
    Unsent(#[source] hyper::Error),
    /// A connection ended with the request on it.
    #[error("client error (SendRequest)")]
    Lost {
        /// The connection had been used before, so the server may have been closing it.
        kept: bool,
        #[source]
        cause: hyper::Error,
    },
}

impl Error {
    /// Whether the server certainly has nothing of the request.
    pub(crate) fn is_unsent(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Unsent(_))
    }
}

/// Sends requests to one server, on connections that all clones share.
#[derive(Clone, Debug)]
pub(crate) struct PlainClient {
    connector: HttpConnector,
    /// How long a connection may take to be made.
    limit: Duration,
    server: Uri,
    host: HeaderValue,
    pool: Arc<Pool>,
}

/// The client for the server of `url`; `None` where it takes reqwest to get there.
pub(crate) fn client(url: &Url, times: Times) -> Option<PlainClient> {
    let server: Uri = url.as_str().parse().ok()?;
    // As reqwest decides: the environment's variables, and never for this machine.
    let through_a_proxy = || !is_loopback(url) && Matcher::from_system().intercept(&server).is_some();
    if url.scheme() != "http" || !url.username().is_empty() || url.password().is_some() || through_a_proxy() {
        return None;
    }
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(times.connect));
    // The URL has no port where it is HTTP's own.
    let host = server.authority()?.as_str().parse().ok()?;
    Some(PlainClient { connector, limit: times.connect, server, host, pool: Arc::new(Pool::new(times.idle)) })
}

/// What a request on its way to the server of `url` asks for: its path and query.
pub(crate) fn target(url: &str) -> Option<Uri> {
    let uri: Uri = url.parse().ok()?;
    uri.into_parts().path_and_query.map(Uri::from)
}

impl PlainClient {
    /// Posts `body` to a [`target`]. The answer's head has come when it is there.
    ///
    /// # Errors
    /// Where there is no answer. What a connection did not take at all has gone over another one, so a connection that the server gave
    /// up while it was idle is no error.
    pub(crate) async fn post(
        &self,
        target: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Body>, Error> {
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (Method::POST, target, headers);
        request.headers_mut().insert(HOST, self.host.clone());
        let mut anew = false;
        loop {
            let (link, idled) = self.link().await?;
            let mut error = match exchange(link, request, &self.pool).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            request = match (error.take_message(), idled) {
                (Some(unsent), Some(_)) => unsent,
                (Some(unsent), None) if !anew => {
                    anew = true;
                    unsent
                }
                (Some(_), None) => return Err(Error::Unsent(error.into_error())),
                (None, idled) => return Err(self.lost(idled, error.into_error())),
            };
        }
    }

    fn lost(&self, idled: Option<Idled>, cause: hyper::Error) -> Error {
        // What is no HTTP has nothing to do with how long the connection was idle.
        if let Some(idled) = idled.filter(|_| !cause.is_parse()) {
            self.pool.lost(idled);
        }
        Error::Lost { kept: idled.is_some(), cause }
    }

    /// An idle connection, with how it idled, or a new one; whichever is there first.
    async fn link(&self) -> Result<(Box<Link>, Option<Idled>), Error> {
        if let Some((link, idled)) = self.pool.take() {
            return Ok((link, Some(idled)));
        }
        let waiting = self.pool.wait();
        let mut connecting = Box::pin(connect(self.connector.clone(), self.server.clone(), self.limit));
        loop {
            tokio::select! {
                biased;
                made = &mut connecting => {
                    self.pool.made();
                    return Ok((made?, None));
                }
                () = waiting.returned() => {}
            }
            if let Some((link, idled)) = self.pool.take() {
                // It is nearly there, and what made it necessary will come again.
                self.pool.put_later(connecting);
                return Ok((link, Some(idled)));
            }
        }
    }
}

/// `limit` is for all of it, because the connector's own is not for finding the addresses.
async fn connect<C>(connector: C, server: Uri, limit: Duration) -> Result<Box<Link>, Error>
where
    C: Service<Uri, Response = TokioIo<TcpStream>, Error: Into<Box<dyn StdError + Send + Sync>>>,
{
    let made =
        timeout(limit, connector.oneshot(server)).await.map_err(|error| Error::Connect(error.into()))?;
    let io = made.map_err(|error| Error::Connect(error.into()))?;
    Link::new(io.into_inner()).await.map_err(|error| Error::Connect(error.into()))
}

/// Reads a reply whose content does not matter to its end, so that its connection can be used again; but no more than `limit` bytes.
pub(crate) async fn drain(mut body: Body, limit: usize) {
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
pub(crate) fn as_reqwest(response: Response<Body>, url: Url) -> reqwest::Response {
    let (head, body) = response.into_parts();
    let builder = Response::builder().status(head.status).url(url);
    let mut response = builder.body(reqwest::Body::wrap(body)).expect("a status and a URL make a response");
    *response.headers_mut() = head.headers;
    response.into()
}
