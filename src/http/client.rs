//! The one place where Clients are built: for mcpd, for providers and for the commands, whatever the scheme.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, Url, redirect};

use super::{Trust, with_causes};

/// What we call ourselves.
pub(crate) const USER_AGENT: &str = concat!("mcprelay/", env!("CARGO_PKG_VERSION"));
/// Between two pings on an HTTP/2 connection; the same numbers as the bridge's keep-alive.
const HTTP2_PING: Duration = Duration::from_secs(20);
/// How long the answer to such a ping may take.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keep-alive, between two probes and before the first: it detects a dead machine without a byte of HTTP.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// This many unanswered probes mean a dead peer: one minute after its last word, instead of eleven with the system's default.
const TCP_KEEPALIVE_RETRIES: u32 = 3;

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    /// What the server chooses when a connection is made: HTTP/1.1 without TLS.
    #[default]
    Negotiated,
    /// HTTP/2, which the server is known to speak: requests that come at once then share the making of one connection.
    Http2,
}

/// How a Client differs from others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientOptions<'a> {
    /// For finding the address, TCP and TLS together.
    pub(crate) connect_timeout: Duration,
    /// How long an idle connection is kept; at zero none is used for a second request.
    pub(crate) idle: Duration,
    /// Which HTTP is spoken.
    pub(crate) version: Version,
    /// The authorities.
    pub(crate) trust: &'a Trust,
}

/// TLS or a Client cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the HTTP client: {0}")]
pub(crate) struct ClientError(String);

/// A Client for servers such as the one at `url`: with TLS or without, on this machine or elsewhere. It follows no redirects, and takes
/// no proxy to this machine.
pub(crate) fn client(url: &Url, options: ClientOptions<'_>) -> Result<Client, ClientError> {
    builder(url, options).build().map_err(|error| ClientError(with_causes(&error)))
}

fn builder(url: &Url, options: ClientOptions<'_>) -> ClientBuilder {
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(options.idle)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .tcp_keepalive_interval(TCP_KEEPALIVE)
        .tcp_keepalive_retries(TCP_KEEPALIVE_RETRIES)
        // Without pings a dead HTTP/2 connection would be shared by every further call, each of which keeps it from becoming idle.
        .http2_keep_alive_interval(HTTP2_PING)
        .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
        // hyper counts a connection with one stream on it as idle once its Client does not keep it for others.
        .http2_keep_alive_while_idle(true)
        // They come with `Trust`, so that Clients which are made later trust the same.
        .tls_built_in_root_certs(false)
        // A redirect could carry the token or a prompt to another origin, and no API that we call needs one.
        .redirect(redirect::Policy::none());
    if options.idle.is_zero() {
        builder = builder.pool_max_idle_per_host(0);
    }
    if options.version == Version::Http2 {
        builder = builder.http2_prior_knowledge();
    }
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    options.trust.authorities.iter().cloned().fold(builder, ClientBuilder::add_root_certificate)
}

/// Whether a URL's host is this machine by its name, so that no proxy belongs in between and nobody can listen in.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests;
