//! The POSTs of one task's result parts.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::Uri;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    client::{Connected, Mcpd},
    connect::OUR_NAME,
    contract::{IDEMPOTENCY_HEADER, endpoint, result_path},
    reply::{REPLY_LIMIT, describe, drain, is_html, never_applied, retry_after, say},
};
use crate::{
    domain::TaskId,
    plain_http::{self, PlainClient},
};

/// For one result POST, from its start to the last byte of the reply.
const POST_TIMEOUT: Duration = Duration::from_secs(30);
/// How many POSTs may be under way at once before further ones wait for a place. Each needs a connection of some 25 KiB, and on few cores
/// more of them are not faster; output that waits merges meanwhile.
pub const POSTS_AT_ONCE: usize = 32;
/// The longest wait for a place: callers who are slow to take their parts can delay the others by no more than this.
pub const PLACE_PATIENCE: Duration = Duration::from_millis(25);

// Checked once instead of for every POST.
static JSON: HeaderValue = HeaderValue::from_static("application/json");
static AGENT: HeaderValue = HeaderValue::from_static(OUR_NAME);
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(IDEMPOTENCY_HEADER);

/// How mcpd answered one part of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartReply {
    /// mcpd has the part.
    Accepted,
    /// Nobody waits for the task.
    NobodyWaits(String),
    /// The part is too large for mcpd.
    TooLarge(String),
    /// mcpd will never accept it.
    Refused(String),
    /// The token was refused; with whether there is another one now.
    Unauthorized(String, bool),
    /// mcpd has not applied it, but may accept it later, after this wait if it asked for one.
    NotApplied(String, Option<Duration>),
    /// mcpd may or may not have applied it; with the wait that it asked for.
    Ambiguous(String, Option<Duration>),
}

/// A place among the POSTs under way. Without a permit the wait for one was in vain, and the POST goes out nevertheless.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

/// Posts one task's parts to mcpd. The URL is built once, in the form that the client in use needs.
#[derive(Debug)]
pub struct ResultPosts {
    mcpd: Mcpd,
    /// `None` for an id that no URL can carry.
    path: Option<String>,
    plain: Option<Uri>,
    full: Option<Url>,
}

impl ResultPosts {
    /// Posts for the parts of `task`.
    pub fn new(mcpd: Mcpd, task: &TaskId) -> Self {
        Self { mcpd, path: result_path(task), plain: None, full: None }
    }

    /// The mcpd that the parts go to.
    pub fn mcpd(&self) -> &Mcpd {
        &self.mcpd
    }

    /// The path of the POSTs; `None` for an id that no URL can carry.
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
        // A limit in reqwest would not cover the other client.
        let exchange = timeout(POST_TIMEOUT, self.exchange(&c, key, body));
        exchange.await.unwrap_or_else(|_| {
            let said = format!("no whole reply within {} s", POST_TIMEOUT.as_secs());
            (None, PartReply::Ambiguous(said, None))
        })
    }

    async fn exchange(&mut self, c: &Arc<Connected>, key: &str, body: Bytes) -> (Option<u16>, PartReply) {
        let Some(headers) = headers(c, key) else {
            return (None, PartReply::Refused("the part's key cannot be put into a header".to_owned()));
        };
        let reply = match &c.plain {
            Some(client) => self.plainly(c, client, headers, body).await,
            None => self.fully(c, headers, body).await,
        };
        match reply {
            Ok(response) => (Some(response.status().as_u16()), self.part_reply(c, response).await),
            Err(settled) => settled,
        }
    }

    /// One POST with the plain client. A reply that only says "accepted" is dealt with here; any other is returned to be read.
    async fn plainly(
        &mut self,
        c: &Arc<Connected>,
        client: &PlainClient,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, (Option<u16>, PartReply)> {
        if self.plain.is_none() {
            self.plain = self.path.as_deref().and_then(|path| plain_http::target(&endpoint(&c.url, path)));
        }
        let target = self.plain.clone().ok_or_else(no_url)?;
        let response = client.post(target, headers, body).await.map_err(|e| no_reply(&e, e.is_unsent()))?;
        if !is_taken(response.status(), response.headers()) {
            return Ok(plain_http::as_reqwest(response, self.url(c).ok_or_else(no_url)?));
        }
        self.mcpd.note_keep_alive(c, response.headers());
        let status = response.status().as_u16();
        plain_http::drain(response.into_body(), REPLY_LIMIT).await;
        Err((Some(status), PartReply::Accepted))
    }

    async fn fully(
        &mut self,
        c: &Connected,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, (Option<u16>, PartReply)> {
        let mut request = reqwest::Request::new(Method::POST, self.url(c).ok_or_else(no_url)?);
        (*request.headers_mut(), *request.body_mut()) = (headers, Some(body.into()));
        c.calls.execute(request).await.map_err(|e| no_reply(&e, e.is_connect() || never_applied(&e)))
    }

    fn url(&mut self, c: &Connected) -> Option<Url> {
        if self.full.is_none() {
            self.full = self.path.as_deref().and_then(|path| endpoint(&c.url, path).parse().ok());
        }
        self.full.clone()
    }

    async fn part_reply(&self, c: &Arc<Connected>, response: Response) -> PartReply {
        self.mcpd.note_keep_alive(c, response.headers());
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        if is_taken(status, response.headers()) {
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

/// An HTML page comes from something in between, and does not mean that mcpd accepted the part.
fn is_taken(status: StatusCode, headers: &HeaderMap) -> bool {
    status.is_success() && !is_html(headers)
}

fn headers(c: &Connected, key: &str) -> Option<HeaderMap> {
    // With room for the headers that the client adds.
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, JSON.clone());
    headers.insert(IDEMPOTENCY_KEY.clone(), HeaderValue::from_str(key).ok()?);
    headers.insert(AUTHORIZATION, c.token.clone());
    headers.insert(USER_AGENT, AGENT.clone());
    Some(headers)
}

fn no_url() -> (Option<u16>, PartReply) {
    (None, PartReply::Refused("the task's id cannot be put into a URL".to_owned()))
}

fn no_reply(error: &(dyn Error + 'static), unsent: bool) -> (Option<u16>, PartReply) {
    let said = say(error);
    let reply = match unsent {
        true => PartReply::NotApplied(said, None),
        false => PartReply::Ambiguous(said, None),
    };
    (None, reply)
}
