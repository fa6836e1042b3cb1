//! An answer, whichever way it came.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{Response, StatusCode, header::HeaderMap};

use super::Body;

/// An answer that came by hyper or by reqwest.
#[derive(Debug)]
pub(crate) enum Answer {
    Plain(Response<Body>),
    Full(reqwest::Response),
}

/// Why an answer has no further bytes although it is not at its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenOff {
    #[error(transparent)]
    Plain(#[from] hyper::Error),
    #[error(transparent)]
    Full(#[from] reqwest::Error),
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Plain(response) => response.status(),
            Self::Full(response) => response.status(),
        }
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        match self {
            Self::Plain(response) => response.headers(),
            Self::Full(response) => response.headers(),
        }
    }

    /// The next bytes; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, BrokenOff> {
        let response = match self {
            Self::Plain(response) => response,
            Self::Full(response) => return Ok(response.chunk().await?),
        };
        while let Some(frame) = response.body_mut().frame().await {
            // Trailers are none.
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The whole body, cut off at `limit` bytes.
    pub(crate) async fn read_at_most(&mut self, limit: usize) -> Result<Bytes, BrokenOff> {
        let Some(mut first) = self.chunk().await? else { return Ok(Bytes::new()) };
        first.truncate(limit);
        let mut body = BytesMut::new();
        // Most answers come in one piece, which is not copied.
        while first.len() + body.len() < limit
            && let Some(piece) = self.chunk().await?
        {
            if body.is_empty() {
                body.extend_from_slice(&std::mem::take(&mut first));
            }
            let room = limit - body.len();
            body.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        Ok(if body.is_empty() { first } else { body.freeze() })
    }
}
