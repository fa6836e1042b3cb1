//! The socket's connections, in a bounded number, so that no local program can use up the agent's file descriptors, without which it
//! could not reach mcpd either.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, UdsConnectInfo};
use tracing::{debug, warn};

use super::service::UidGuard;

/// Most connections at once from users who may use the socket: one for each session, and as many for tools. Well below the 1,024
/// descriptors that a process usually may have.
const MAX_CONNECTIONS: usize = 128;
/// Most connections from other users, which are accepted only to be refused with a reason. They take no place from those who may.
const MAX_STRANGERS: usize = 16;
/// How long no connection is accepted after the system has refused one: what it lacks will not be available at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The connections as they come. A connection beyond the limits is closed at once.
pub(super) fn connections(
    listener: UnixListener,
    guard: UidGuard,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Places::new(guard);
    futures_util::stream::unfold((listener, places), |(listener, places)| async {
        let connection = places.next(&listener).await;
        Some((Ok(connection), (listener, places)))
    })
}

#[derive(Debug)]
struct Places {
    guard: UidGuard,
    own: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Places {
    fn new(guard: UidGuard) -> Self {
        Self {
            guard,
            own: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
        }
    }

    async fn next(&self, listener: &UnixListener) -> Connection {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match self.place(&stream) {
                    Some(place) => return Connection { stream, _place: place },
                    None => debug!("a connection beyond the limit is closed"),
                },
                Err(error) => {
                    warn!(%error, "cannot take a connection on the socket; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn place(&self, stream: &UnixStream) -> Option<OwnedSemaphorePermit> {
        let own = stream.peer_cred().is_ok_and(|peer| self.guard.lets_in(peer.uid()));
        let places = if own { &self.own } else { &self.strangers };
        Arc::clone(places).try_acquire_owned().ok()
    }
}

/// A connection that holds its place until it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many connections find a place, of twice as many as there are for anybody.
    fn taken(places: &Places) -> usize {
        let connections = (0..2 * MAX_CONNECTIONS).map(|_| UnixStream::pair().expect("a pair of sockets").0);
        let held: Vec<_> = connections.map_while(|stream| places.place(&stream)).collect();
        held.len()
    }

    #[tokio::test]
    async fn those_who_may_use_the_socket_and_strangers_have_places_of_their_own() {
        let own = Places::new(UidGuard::new(&[]));
        let _strangers = Arc::clone(&own.strangers).try_acquire_many_owned(16).expect("all of them");
        assert_eq!(taken(&own), MAX_CONNECTIONS);
        let strange = Places::new(UidGuard::of_nobody());
        let _own = Arc::clone(&strange.own).try_acquire_many_owned(128).expect("all of them");
        assert_eq!(taken(&strange), MAX_STRANGERS);
    }
}
