//! What the bench's own programs share of HTTP: a server that also speaks TLS, and one caller's connection.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Router, body::Body, http::header, response::Response};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::CertifiedKey;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tower::ServiceExt as _;

use crate::system::Scheme;

/// The first byte of a TLS connection; no HTTP request begins with it.
const TLS_HANDSHAKE: u8 = 22;

/// How a server is reached.
#[derive(Clone, Debug, Args)]
pub struct TlsArgs {
    /// What the server offers: over TLS one version of HTTP, and without TLS always HTTP/1.1
    #[arg(long, value_enum, default_value = "http")]
    scheme: Scheme,
    /// Where the authority of its throw-away certificate is written to
    #[arg(long, required_if_eq_any([("scheme", "h1"), ("scheme", "h2")]))]
    ca_file: Option<PathBuf>,
}

impl TlsArgs {
    /// The server's side of TLS with a new key; `None` without TLS.
    pub fn acceptor(&self) -> io::Result<Option<TlsAcceptor>> {
        let (Some(alpn), Some(ca_file)) = (self.scheme.alpn(), &self.ca_file) else { return Ok(None) };
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).map_err(io::Error::other)?;
        std::fs::write(ca_file, cert.pem())?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(io::Error::other)?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        Ok(Some(Arc::new(config).into()))
    }
}

/// The number of connections that carried requests of one kind.
#[derive(Debug, Default)]
pub struct Connections(AtomicU64);

/// The connection that a request came over: one of its extensions.
#[derive(Clone, Debug, Default)]
pub struct Connection(Arc<AtomicU64>);

impl Connections {
    /// Counts `connection` if this is its first request of the kind.
    pub fn saw(&self, connection: &Connection) {
        let first = connection.0.fetch_add(1, Ordering::Relaxed) == 0;
        self.0.fetch_add(first.into(), Ordering::Relaxed);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves until the process is killed. With `tls`, clients that begin with TLS get it, and the others plain HTTP: the
/// callers stay the same whatever the relay's leg is.
pub async fn serve(listener: TcpListener, routes: Router, tls: Option<TlsAcceptor>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A peer that breaks off has its reasons; the callers notice missing bytes.
        tokio::spawn(accepted(stream, routes.clone(), tls.clone()));
    }
}

async fn accepted(stream: TcpStream, routes: Router, tls: Option<TlsAcceptor>) -> io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    match tls.filter(|_| first == [TLS_HANDSHAKE]) {
        Some(tls) => connection(tls.accept(stream).await?, routes).await,
        None => connection(stream, routes).await,
    }
}

async fn connection<S>(stream: S, routes: Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Connection::default();
    let service = routes.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        request
    });
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
    served.map_err(io::Error::other)
}

/// A reply with a JSON body.
pub fn json(status: u16, body: impl Into<Body>) -> Response {
    reply(status, "application/json", body)
}

/// A reply that is an event stream.
pub fn event_stream(body: Body) -> Response {
    reply(200, "text/event-stream", body)
}

fn reply(status: u16, kind: &'static str, body: impl Into<Body>) -> Response {
    let reply = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
    reply.body(body.into()).expect("the parts are good")
}

/// One connection of a caller, over HTTP/1.1 without TLS.
#[derive(Debug)]
pub struct Caller(SendRequest<Full<Bytes>>);

impl Caller {
    /// Connects to "127.0.0.1:PORT".
    pub async fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Sends one request; the body of the last reply must have been read.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> io::Result<hyper::Response<Incoming>> {
        self.0.ready().await.map_err(io::Error::other)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "bench")
            .header(header::AUTHORIZATION, "Bearer bench")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        self.0.send_request(request).await.map_err(io::Error::other)
    }
}

/// The body at `path` of the server at "127.0.0.1:PORT".
pub async fn get(address: &str, path: &str) -> io::Result<Bytes> {
    let reply = Caller::connect(address).await?.send(Method::GET, path, Bytes::new()).await?;
    Ok(reply.into_body().collect().await.map_err(io::Error::other)?.to_bytes())
}
