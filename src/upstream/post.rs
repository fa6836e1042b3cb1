//! The POSTs of one task's result parts.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, Request, Response, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue},
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    client::{Connected, Mcpd},
    contract::{IDEMPOTENCY_HEADER, endpoint, result_path},
    reply::{describe, drain, is_html, never_applied, retry_after, say},
};
use crate::domain::TaskId;

/// For one result POST, from its begin to the last byte of the reply.
const POST_TIMEOUT: Duration = Duration::from_secs(30);
/// POSTs under way at once before further ones wait for a place. Each needs a connection of some 25 KiB, and on few cores more at
/// once are not faster; what waits merges meanwhile.
pub const POSTS_AT_ONCE: usize = 32;
/// The longest wait for a place: callers who are slow to take their parts can hold up the others so long and no longer.
pub const PLACE_PATIENCE: Duration = Duration::from_millis(25);

/// How mcpd answered one part of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartReply {
    /// It has it.
    Accepted,
    /// Nobody waits for the task.
    NobodyWaits(String),
    /// The part is too large for it.
    TooLarge(String),
    /// It will never take it.
    Refused(String),
    /// The token is not good; with whether another one is there now.
    Unauthorized(String, bool),
    /// It has not applied it, and may later.
    NotApplied(String, Option<Duration>),
    /// It may have applied it or not.
    Ambiguous(String, Option<Duration>),
}

/// A place among the POSTs under way; without one it was waited for in vain, and the POST goes out all the same.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

/// The way of one task's parts to mcpd. The URL is made once.
#[derive(Debug)]
pub struct ResultPosts {
    mcpd: Mcpd,
    /// `None` for an id that no URL can carry.
    path: Option<String>,
    url: Option<Url>,
}

impl ResultPosts {
    /// The way of `task`'s parts.
    pub fn new(mcpd: Mcpd, task: &TaskId) -> Self {
        Self { mcpd, path: result_path(task), url: None }
    }

    /// The mcpd that they go to.
    pub fn mcpd(&self) -> &Mcpd {
        &self.mcpd
    }

    /// Their path; `None` for an id that no URL can carry.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Waits for a place among the POSTs under way, but not for long.
    pub async fn place(&self) -> Place {
        Place(timeout(PLACE_PATIENCE, self.mcpd.places().acquire_owned()).await.ok().and_then(Result::ok))
    }

    /// Posts one part under its key; the answer's status comes with its meaning.
    pub async fn post(&mut self, key: &str, body: Bytes) -> (Option<u16>, PartReply) {
        let Some(c) = self.mcpd.connected() else {
            return (None, PartReply::NotApplied("no credentials".to_owned(), None));
        };
        let Some(request) = self.request(&c, key, body) else {
            return (None, PartReply::Refused("the task's id cannot be put into a URL".to_owned()));
        };
        match c.calls.execute(request).await {
            Ok(response) => (Some(response.status().as_u16()), self.part_reply(&c, response).await),
            Err(error) if never_applied(&error) => (None, PartReply::NotApplied(say(&error), None)),
            Err(error) => (None, PartReply::Ambiguous(say(&error), None)),
        }
    }

    fn request(&mut self, c: &Connected, key: &str, body: Bytes) -> Option<Request> {
        let mut request = Request::new(Method::POST, self.url_at(&c.url)?);
        *request.timeout_mut() = Some(POST_TIMEOUT);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HeaderName::from_static(IDEMPOTENCY_HEADER), HeaderValue::from_str(key).ok()?);
        headers.insert(AUTHORIZATION, c.token.clone());
        *request.body_mut() = Some(body.into());
        Some(request)
    }

    fn url_at(&mut self, mcpd: &str) -> Option<Url> {
        if self.url.is_none() {
            self.url = Url::parse(&endpoint(mcpd, self.path.as_deref()?)).ok();
        }
        self.url.clone()
    }

    async fn part_reply(&self, c: &Arc<Connected>, response: Response) -> PartReply {
        self.mcpd.note_keep_alive(c, response.headers());
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let html = is_html(response.headers());
        if status.is_success() && !html {
            drain(response).await;
            return PartReply::Accepted;
        }
        let said = describe("a result", status, response, &c.secret).await;
        match status.as_u16() {
            404 | 410 => PartReply::NobodyWaits(said),
            413 => PartReply::TooLarge(said),
            401 => {
                let changed = self.mcpd.refresh(c);
                PartReply::Unauthorized(said, changed)
            }
            408 | 425 | 429 | 503 => PartReply::NotApplied(said, retry_after),
            200..=299 | 500..=599 => PartReply::Ambiguous(said, retry_after),
            _ => PartReply::Refused(said),
        }
    }
}
