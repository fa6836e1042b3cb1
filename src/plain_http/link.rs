//! One connection. Whoever has a request on it drives it, in the future that waits for the answer and then in the body that reads it: no
//! task of its own that would be woken for every step and would wake the waiting one in its turn.

use std::{
    fmt,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Body as _, Frame, Incoming},
    client::conn::{
        TrySendError,
        http1::{Builder, Connection, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::unconstrained};

use super::{io::Io, pool::Pool};

/// What goes out: a request whose body is there as a whole.
pub(super) type Outgoing = Request<Full<Bytes>>;

/// An open connection.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    driver: Connection<TokioIo<Io>, Full<Bytes>>,
    /// How many answers have been read from it to their end.
    pub(super) answers: u32,
}

impl Link {
    pub(super) async fn new(stream: TcpStream) -> hyper::Result<Box<Self>> {
        let (sender, driver) = Builder::new().handshake(TokioIo::new(Io::new(stream))).await?;
        Ok(Box::new(Self { sender, driver, answers: 0 }))
    }

    /// Whether it ends here: nothing is on it, and the server has closed it or says something nobody asked for.
    pub(super) fn is_over(&mut self) -> bool {
        self.drive(&mut unheard()).is_ready()
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        Pin::new(&mut self.driver).poll(cx)
    }
}

/// For what only changes while its connection is driven, which is just before it is asked.
fn unheard() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Sends `request` and waits for the head of its answer. An idle connection is read before anything is written on it: where it turns out
/// to be over, the error has the request in it.
pub(super) async fn exchange(
    mut link: Box<Link>,
    request: Outgoing,
    pool: &Arc<Pool>,
) -> Result<Response<Body>, TrySendError<Outgoing>> {
    // Without tokio's budget, whose end would wake the waker that nobody hears.
    let mut answer = pin!(unconstrained(link.sender.try_send_request(request)));
    let mut link = Some(link);
    let head = std::future::poll_fn(|cx| {
        drive(&mut link, cx);
        answer.as_mut().poll(&mut unheard())
    });
    let (head, incoming) = head.await?.into_parts();
    let mut body = Body { incoming, link, pool: Arc::clone(pool) };
    if body.incoming.is_end_stream() {
        body.give_back();
    }
    Ok(Response::from_parts(head, body))
}

/// A connection that has ended must go: what is still in it would wait for ever.
fn drive(link: &mut Option<Box<Link>>, cx: &mut Context<'_>) {
    if link.as_mut().is_some_and(|link| link.drive(cx).is_ready()) {
        *link = None;
    }
}

/// The body of an answer. Read to its end it gives its connection back; dropped before, it closes it.
pub(crate) struct Body {
    incoming: Incoming,
    link: Option<Box<Link>>,
    pool: Arc<Pool>,
}

impl Body {
    fn give_back(&mut self) {
        // A server that answers before it has read the request leaves a connection that is not ready.
        if let Some(mut link) = self.link.take().filter(|link| link.sender.is_ready()) {
            link.answers = link.answers.saturating_add(1);
            self.pool.put(link);
        }
    }

    fn poll_incoming(&mut self) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.incoming).poll_frame(&mut unheard())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // The beginning has often come with the head.
        let mut polled = self.poll_incoming();
        if polled.is_pending() {
            drive(&mut self.link, cx);
            polled = self.poll_incoming();
        }
        match &polled {
            Poll::Ready(Some(Err(_))) => self.link = None,
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(_))) if self.incoming.is_end_stream() => self.give_back(),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.incoming.fmt(f)
    }
}
