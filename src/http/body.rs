//! Reading the body of an answer, never without a bound.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use reqwest::Response;

use super::with_causes;

/// Most bytes that [`Frames`] puts together: a batch of some hundred tokens.
const TOGETHER: usize = 64 << 10;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The connection failed in the middle of it.
    #[error("{}", with_causes(.0))]
    Broken(#[from] reqwest::Error),
    /// It has more bytes than the limit, which is given.
    #[error("the reply is longer than {0} bytes")]
    TooLong(usize),
}

/// The whole body, if it has no more than `limit` bytes.
pub(crate) async fn read(mut response: Response, limit: usize) -> Result<Bytes, ReadError> {
    let body = read_at_most(&mut response, limit.saturating_add(1)).await?;
    if body.len() > limit { Err(ReadError::TooLong(limit)) } else { Ok(body) }
}

/// The whole body, cut off at `limit` bytes.
pub(crate) async fn read_at_most(response: &mut Response, limit: usize) -> Result<Bytes, reqwest::Error> {
    // Most answers come in one piece, which is not copied.
    let Some(mut first) = response.chunk().await? else { return Ok(Bytes::new()) };
    first.truncate(limit);
    let mut body = BytesMut::new();
    while first.len() + body.len() < limit
        && let Some(piece) = response.chunk().await?
    {
        if body.is_empty() {
            body.extend_from_slice(&std::mem::take(&mut first));
        }
        let room = limit - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    Ok(if body.is_empty() { first } else { body.freeze() })
}

/// Reads an answer whose content does not matter to its end, so that its connection can be used again; but no more than `limit` bytes.
pub(crate) async fn drain(mut response: Response, limit: usize) {
    let mut seen = 0;
    while let Ok(Some(piece)) = response.chunk().await {
        seen += piece.len();
        if seen > limit {
            // Dropping the rest closes the connection.
            return;
        }
    }
}

/// The title of a page, which is where an ingress says what is wrong.
pub(crate) fn page_title(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<title>")?;
    Some(rest.split_once("</title>")?.0)
}

/// A streamed answer, read in as few pieces as it takes: what has come by the time that somebody looks is one piece.
#[derive(Debug)]
pub(crate) struct Frames {
    response: Response,
    /// What ended the answer, where bytes before it had to be handed out first.
    ended: Option<Result<(), reqwest::Error>>,
}

impl Frames {
    pub(crate) fn new(response: Response) -> Self {
        Self { response, ended: None }
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, reqwest::Error> {
        match self.ended.take() {
            Some(Ok(())) => return Ok(None),
            Some(Err(error)) => return Err(error),
            None => {}
        }
        let Some(first) = self.response.chunk().await? else { return Ok(None) };
        let mut more = BytesMut::new();
        while first.len() + more.len() < TOGETHER
            && let Some(piece) = self.at_once().await
        {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&piece);
        }
        Ok(Some(if more.is_empty() { first } else { more.freeze() }))
    }

    /// A further piece, if it is there. The connection's task holds one piece ready at a time, so it is given a turn first.
    async fn at_once(&mut self) -> Option<Bytes> {
        let mut turn_given = false;
        poll_fn(|cx| requeued(cx, &mut turn_given)).await;
        match self.response.chunk().now_or_never()? {
            Ok(Some(piece)) => return Some(piece),
            Ok(None) => self.ended = Some(Ok(())),
            Err(error) => self.ended = Some(Err(error)),
        }
        None
    }
}

/// Pending once, and woken at once: whoever is ready to run comes first. A yield of tokio's would also look at the sockets, for a system
/// call a piece.
fn requeued(cx: &Context<'_>, turn_given: &mut bool) -> Poll<()> {
    if std::mem::replace(turn_given, true) {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
