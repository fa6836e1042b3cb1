//! The HTTP clients for mcpd: what they trust, what they go through, and how long they keep a connection.

use std::{path::PathBuf, time::Duration};

use reqwest::{Client, ClientBuilder, Url, redirect};

use super::reply::say;
use crate::{
    credentials::is_loopback,
    plain_http::{self, PlainClient, Times},
};

/// What we call ourselves.
pub(super) const OUR_NAME: &str = concat!("mcprelay/", env!("CARGO_PKG_VERSION"));
/// What rustls says about a certificate that no trusted authority has signed.
pub const UNKNOWN_ISSUER: &str = "UnknownIssuer";
/// For TCP and TLS together: a peer that needs longer is considered unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keep-alive of the control channel: it detects a dead peer if mcpd sends no keep-alives itself.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// This many unanswered probes mean a dead peer. It is detected one minute after its last word, instead of eleven with the system's
/// default.
const TCP_KEEPALIVE_RETRIES: u32 = 3;
/// Between two pings on an HTTP/2 connection with a call on it; the same numbers as the bridge's keep-alive.
const HTTP2_PING: Duration = Duration::from_secs(20);
/// How long the answer to such a ping may take.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What the HTTP clients are built with.
#[derive(Clone, Debug, Default)]
pub struct HttpSettings {
    /// A PEM file with CAs to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Why no HTTP client could be built.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The CA file cannot be used.
    #[error("cannot use the CA file {} ({reason}): pass a readable PEM file as --ca-file and start again", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token cannot be a header.
    #[error("the token has characters that no HTTP header can carry")]
    Token,
    /// TLS or the client itself cannot be set up.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
}

impl HttpSettings {
    /// The client for calls, which keeps idle connections for `idle`.
    pub(super) fn calls(&self, url: &str, idle: Duration) -> Result<Client, HttpError> {
        build(self.calls_builder(url, idle)?)
    }

    fn calls_builder(&self, url: &str, idle: Duration) -> Result<ClientBuilder, HttpError> {
        Ok(self.builder(url)?.pool_idle_timeout(idle))
    }

    /// The client for result POSTs; `None` if mcpd can only be reached through TLS or a proxy.
    pub(super) fn plain(url: &str, idle: Duration) -> Option<PlainClient> {
        plain_http::client(&url.parse().ok()?, Times { connect: CONNECT_TIMEOUT, idle })
    }

    /// The client for the control channel.
    pub(super) fn channel(&self, url: &str) -> Result<Client, HttpError> {
        let builder = self.builder(url)?.pool_max_idle_per_host(0).tcp_keepalive(TCP_KEEPALIVE);
        build(builder.tcp_keepalive_interval(TCP_KEEPALIVE).tcp_keepalive_retries(TCP_KEEPALIVE_RETRIES))
    }

    fn builder(&self, url: &str) -> Result<ClientBuilder, HttpError> {
        let mut builder = Client::builder()
            .user_agent(OUR_NAME)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // Without pings a dead HTTP/2 connection would be shared by every further call, each of which keeps it from becoming idle.
            .http2_keep_alive_interval(HTTP2_PING)
            .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
            // A redirect could carry the token to another origin, and no provider API needs one.
            .redirect(redirect::Policy::none());
        if Url::parse(url).is_ok_and(|url| is_loopback(&url)) {
            // Without TLS nobody needs the system's certificates, which cost some milliseconds and a megabyte.
            builder = builder.no_proxy().tls_built_in_root_certs(!url.starts_with("http:"));
        }
        for certificate in self.extra_certificates()? {
            builder = builder.add_root_certificate(certificate);
        }
        Ok(builder)
    }

    fn extra_certificates(&self) -> Result<Vec<reqwest::Certificate>, HttpError> {
        let Some(path) = &self.ca_file else { return Ok(Vec::new()) };
        let bad = |reason: String| HttpError::CaFile { path: path.clone(), reason };
        let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(say(&e)))?;
        if found.is_empty() {
            return Err(bad("it has no PEM certificate".to_owned()));
        }
        Ok(found)
    }
}

fn build(builder: ClientBuilder) -> Result<Client, HttpError> {
    builder.build().map_err(|e| HttpError::Client(say(&e)))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::Instant,
    };

    use super::*;

    /// An HTTP/2 server's empty SETTINGS, and its acknowledgement of the client's.
    const GREETING: [u8; 18] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];

    /// Greets one connection and is deaf from then on, as a peer behind a cable that was pulled.
    async fn deaf_after_the_greeting(listener: TcpListener) -> std::io::Result<()> {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(&GREETING).await?;
        while stream.read(&mut [0; 1024]).await? > 0 {}
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_http2_connection_is_given_up_however_busy_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let _server = tokio::spawn(deaf_after_the_greeting(listener));
        let builder = HttpSettings::default().calls_builder(&url, Duration::from_secs(4)).unwrap();
        let client = builder.http2_prior_knowledge().build().unwrap();
        let begun = Instant::now();
        let patient = client.post(&url).timeout(Duration::from_secs(600));
        patient.send().await.expect_err("nobody answers");
        let took = begun.elapsed();
        assert!(took <= HTTP2_PING + HTTP2_PING_TIMEOUT + Duration::from_secs(1), "{took:?}");
    }
}
