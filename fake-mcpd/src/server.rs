//! Connections: accepted or reset, served, cut on demand, closed when idle.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::hub::Hub;
use crate::request::handle;

/// Accepts connections for ever; dropping the future ends them all.
pub(crate) async fn serve(hub: Arc<Hub>, listener: TcpListener) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if hub.refuses_connections() => drop(stream.set_zero_linger()),
                Ok((stream, _)) => drop(connections.spawn(connection(Arc::clone(&hub), stream))),
                // Out of descriptors, most likely: give the others time to close theirs.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// A pause after a failed accept, so that a lasting failure does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves one connection until it ends, idles too long, or is cut on order.
async fn connection(hub: Arc<Hub>, stream: TcpStream) {
    // Small frames must leave at once; a socket that cannot is served all the same.
    let _ = stream.set_nodelay(true);
    let mut cuts = hub.cuts();
    let keep_alive = hub.settings.keep_alive;
    let requested = Arc::new(Notify::new());
    let service = service_fn(|request| {
        requested.notify_one();
        handle(Arc::clone(&hub), request)
    });
    let mut server = http1::Builder::new();
    let connection = server.header_read_timeout(None).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        _ = cuts.changed() => return,
        _ = &mut connection => return,
        // What is under way is finished, nothing more is taken.
        () = idle(keep_alive, &requested) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        _ = cuts.changed() => {}
        _ = &mut connection => {}
    }
}

/// Ends once no request came for the keep-alive timeout.
async fn idle(timeout: Option<Duration>, requested: &Notify) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    while tokio::time::timeout(timeout, requested.notified()).await.is_ok() {}
}
