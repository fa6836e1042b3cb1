//! Connections: accepted or reset, served, cut on demand, closed when idle.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::dispatch::handle;
use crate::hub::Hub;
use crate::tls;

/// Accepts connections for ever; dropping the future ends them all.
pub(crate) async fn serve(hub: Arc<Hub>, listener: TcpListener, tls: Option<TlsAcceptor>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if hub.refuses_connections() => drop(stream.set_zero_linger()),
                Ok((stream, _)) => drop(connections.spawn(connection(Arc::clone(&hub), stream, tls.clone()))),
                // Out of descriptors, most likely: give the others time to close theirs.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// A pause after a failed accept, so that a lasting failure does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves one connection, from its handshake on, until it ends or is cut on order.
async fn connection(hub: Arc<Hub>, stream: TcpStream, tls: Option<TlsAcceptor>) {
    // Small frames must leave at once; a socket that cannot is served all the same.
    let _ = stream.set_nodelay(true);
    let mut cuts = hub.cuts();
    let served = async {
        let Some(tls) = tls else { return requests(hub, stream, false).await };
        // A handshake that fails is the other side's to report.
        if let Ok(stream) = tls.accept(stream).await {
            let http2 = tls::is_http2(&stream);
            requests(hub, stream, http2).await;
        }
    };
    tokio::select! {
        biased;
        _ = cuts.changed() => {}
        () = served => {}
    }
}

/// Answers a connection's requests until it ends, idles too long, or a reply is cut: a connection of HTTP/2 with all its streams,
/// as one of HTTP/1.1.
async fn requests(hub: Arc<Hub>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, http2: bool) {
    let keep_alive = hub.settings.keep_alive;
    let (requested, cut) = (Notify::new(), Arc::new(Notify::new()));
    let service = service_fn(|request| {
        requested.notify_one();
        let (reply, cut) = (handle(Arc::clone(&hub), request), Arc::clone(&cut));
        async move { reply.await.inspect_err(|_| cut.notify_one()) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().header_read_timeout(None);
    if let Some(most) = hub.settings.streams {
        server.http2().max_concurrent_streams(most);
    }
    let server = if http2 { server.http2_only() } else { server.http1_only() };
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        () = cut.notified() => return,
        _ = &mut connection => return,
        // What is under way is finished, nothing more is taken.
        () = idle(keep_alive, &requested) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        () = cut.notified() => {}
        _ = &mut connection => {}
    }
}

/// Ends once no request came for the keep-alive timeout.
async fn idle(timeout: Option<Duration>, requested: &Notify) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    while tokio::time::timeout(timeout, requested.notified()).await.is_ok() {}
}
