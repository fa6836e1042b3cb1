//! The body of a request, of which is known how far it has gone.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// The largest piece that is handed over at once. Between two pieces the sockets are looked at, so that a server which refuses a large
/// request before it has read it is heard, instead of the write that fails for its closing.
const PIECE: usize = 256 << 10;
/// How long the second piece waits: a server on this machine that refuses a request for its head has done so by then. A server elsewhere
/// makes the pieces wait by itself.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// How far a request has gone. Clients poll a body only once they have a connection, and with HTTP/2 a stream on it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    begun: AtomicBool,
    whole: AtomicBool,
}

impl Progress {
    /// The first byte may leave now.
    pub(crate) fn begin(&self) -> bool {
        !self.begun.swap(true, Relaxed)
    }

    /// Enough may leave now for the server to act on it.
    pub(crate) fn complete(&self) {
        self.whole.store(true, Relaxed);
    }

    /// Whether a byte of the request may have left.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Relaxed)
    }

    /// Whether so much may have left that the server can have acted on it: of most requests, the last byte.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Relaxed)
    }
}

type Turn = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The body of one attempt of a request.
pub(crate) struct Outgoing {
    rest: Bytes,
    progress: Arc<Progress>,
    /// What has to be waited for before the next piece.
    turn: Option<Turn>,
}

impl Outgoing {
    /// `body` on its way, and how far it has gone.
    pub(crate) fn new(body: Bytes) -> (Self, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        (Self { rest: body, progress: Arc::clone(&progress), turn: None }, progress)
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(turn) = &mut self.turn {
            std::task::ready!(turn.as_mut().poll(cx));
            self.turn = None;
        }
        let is_first = self.progress.begin();
        let len = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(len);
        if self.rest.is_empty() {
            self.progress.complete();
        } else if is_first {
            self.turn = Some(Box::pin(tokio::time::sleep(FIRST_PAUSE)));
        } else {
            self.turn = Some(Box::pin(tokio::task::yield_now()));
        }
        Poll::Ready((len > 0).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("rest", &self.rest.len()).field("progress", &self.progress).finish()
    }
}
