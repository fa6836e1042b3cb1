//! The POSTs of one task's result parts.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Response, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    client::{Connected, Mcpd},
    contract::{
        IDEMPOTENCY_HEADER, NDJSON, UploadReply as ReplyBody, endpoint, result_path, result_stream_path,
    },
    pool::{Content, NoAnswer, Post},
    reply::{JSON, REPLY_LIMIT, Reader, describe},
    upload::Lines,
};
use crate::{
    domain::TaskId,
    http::{drain, is_html, read, retry_after},
};

/// For one result POST, from when it may have left to the head of the reply.
const POST_TIMEOUT: Duration = Duration::from_secs(30);
/// For the rest of a reply. What it means stands in its head.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);
/// How many POSTs may be under way at once before further ones wait for a place. Each needs a connection of some 25 KiB, and on few cores
/// more of them are not faster; output that waits merges meanwhile.
pub const POSTS_AT_ONCE: usize = 32;
/// The longest wait for a place: callers who are slow to take their parts can delay the others by no more than this.
pub const PLACE_PATIENCE: Duration = Duration::from_millis(25);

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

impl PartReply {
    /// Why mcpd does not take results now, as far as this is not about the one part.
    fn trouble(&self) -> Option<&str> {
        match self {
            Self::Accepted | Self::NobodyWaits(_) | Self::TooLarge(_) | Self::Refused(_) => None,
            Self::Unauthorized(why, _) | Self::NotApplied(why, _) | Self::Ambiguous(why, _) => Some(why),
        }
    }
}

/// How mcpd answered an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UploadReply {
    /// mcpd has every part below this number; without one it does not say.
    Received(Option<u32>),
    /// Nobody waits for the task.
    NobodyWaits,
    /// There is no room for something that lasts.
    NoRoom,
    /// mcpd, or something on the way there, takes no uploads, or not this one.
    Refused(String),
    /// The connection broke, or the trouble may pass, after this wait if mcpd asked for one.
    Broken(String, Option<Duration>),
}

impl UploadReply {
    fn trouble(&self) -> Option<&str> {
        match self {
            Self::Broken(why, _) => Some(why),
            _ => None,
        }
    }
}

/// A place among the POSTs under way. Without a permit the wait for one was in vain, and the POST goes out nevertheless.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

/// Posts one task's parts to mcpd.
#[derive(Clone, Debug)]
pub struct ResultPosts {
    mcpd: Mcpd,
    /// `None` for an id that no URL can carry.
    path: Option<String>,
    task: TaskId,
    /// Built once; a task's mcpd stays the same.
    url: Option<Url>,
}

impl ResultPosts {
    /// Posts for the parts of `task`.
    pub fn new(mcpd: Mcpd, task: &TaskId) -> Self {
        Self { mcpd, path: result_path(task), task: task.clone(), url: None }
    }

    /// The mcpd that the parts go to.
    pub fn mcpd(&self) -> &Mcpd {
        &self.mcpd
    }

    /// The path of the POSTs; `None` for an id that no URL can carry.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// The path of an upload; `None` for an id that no URL can carry.
    pub(super) fn upload_path(&self) -> Option<String> {
        result_stream_path(&self.task)
    }

    /// Waits for a place among the POSTs under way, but not for long.
    pub async fn place(&self) -> Place {
        Place(timeout(PLACE_PATIENCE, self.mcpd.places().acquire_owned()).await.ok().and_then(Result::ok))
    }

    /// Posts one part under its key; the answer's status comes with its meaning.
    pub async fn post(&mut self, key: &str, body: Bytes) -> (Option<u16>, PartReply) {
        let (status, reply) = self.post_once(key, body).await;
        self.mcpd.results().note(reply.trouble());
        (status, reply)
    }

    async fn post_once(&mut self, key: &str, body: Bytes) -> (Option<u16>, PartReply) {
        let Some(c) = self.mcpd.connected() else {
            return (None, PartReply::NotApplied("no credentials".to_owned(), None));
        };
        let (Some(headers), Some(url)) = (headers(&c, key), self.url(&c)) else {
            return (None, PartReply::Refused("the task's id cannot be put into a URL".to_owned()));
        };
        let post = Post { url: &url, headers: &headers, content: Content::Whole(&body, POST_TIMEOUT) };
        match c.results.post(post).await {
            Ok(response) => (Some(response.status().as_u16()), self.part_reply(&c, response).await),
            Err(unanswered) if unanswered.maybe_processed => {
                (None, PartReply::Ambiguous(unanswered.why.to_string(), None))
            }
            Err(unanswered) => (None, PartReply::NotApplied(unanswered.why.to_string(), None)),
        }
    }

    /// Uploads lines until there is an answer; its status comes with its meaning.
    pub(super) async fn upload(&mut self, lines: &Arc<Lines>) -> (Option<u16>, UploadReply) {
        let (status, reply) = self.upload_once(lines).await;
        self.mcpd.results().note(reply.trouble());
        (status, reply)
    }

    async fn upload_once(&mut self, lines: &Arc<Lines>) -> (Option<u16>, UploadReply) {
        let Some(c) = self.mcpd.connected() else {
            return (None, UploadReply::Broken("no credentials".to_owned(), None));
        };
        let url = self.upload_path().and_then(|path| endpoint(&c.url, &path).parse().ok());
        let Some(url) = url else {
            return (None, UploadReply::Refused("the task's id cannot be put into a URL".to_owned()));
        };
        let content_type = HeaderValue::from_static(NDJSON);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, content_type), (AUTHORIZATION, c.token.clone())]);
        let post = Post { url: &url, headers: &headers, content: Content::Lines(lines) };
        match c.results.post(post).await {
            Ok(response) => (Some(response.status().as_u16()), self.upload_reply(&c, response).await),
            Err(unanswered) if matches!(unanswered.why, NoAnswer::NoTurn) => (None, UploadReply::NoRoom),
            Err(unanswered) => (None, UploadReply::Broken(unanswered.why.to_string(), None)),
        }
    }

    async fn upload_reply(&self, c: &Arc<Connected>, response: Response) -> UploadReply {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let is_html = is_html(response.headers());
        if matches!(status.as_u16(), 200..=299 | 409) && !is_html {
            let body = timeout(TAIL_TIMEOUT, read(response, REPLY_LIMIT)).await;
            let reply = body.ok().and_then(Result::ok);
            let reply = reply.and_then(|body| serde_json::from_slice::<ReplyBody>(&body).ok());
            return match reply {
                None if !status.is_success() => UploadReply::Broken("a gap was found".to_owned(), None),
                reply => UploadReply::Received(reply.map(|reply| reply.next)),
            };
        }
        let said = describe("an upload", Reader::Caller, status, response, &c.secret).await.to_string();
        match status.as_u16() {
            404 | 410 => UploadReply::NobodyWaits,
            // The next connection has another token, where there is one.
            401 => {
                self.mcpd.refresh(c);
                UploadReply::Broken(said, None)
            }
            501 | 505 => UploadReply::Refused(said),
            408 | 409 | 425 | 429 | 200..=299 | 500..=599 => UploadReply::Broken(said, retry_after),
            _ => UploadReply::Refused(said),
        }
    }

    fn url(&mut self, c: &Connected) -> Option<Url> {
        if self.url.is_none() {
            self.url = self.path.as_deref().and_then(|path| endpoint(&c.url, path).parse().ok());
        }
        self.url.clone()
    }

    async fn part_reply(&self, c: &Arc<Connected>, response: Response) -> PartReply {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        // An HTML page comes from something in between, and does not mean that mcpd accepted the part.
        if status.is_success() && !is_html(response.headers()) {
            // The end lets the connection be used again; one that does not come changes nothing.
            let _ = timeout(TAIL_TIMEOUT, drain(response, REPLY_LIMIT)).await;
            return PartReply::Accepted;
        }
        let said = describe("a result", Reader::Caller, status, response, &c.secret).await.to_string();
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

fn headers(c: &Connected, key: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, JSON.clone());
    headers.insert(IDEMPOTENCY_KEY.clone(), HeaderValue::from_str(key).ok()?);
    headers.insert(AUTHORIZATION, c.token.clone());
    Some(headers)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::Instant,
    };

    use super::*;
    use crate::upstream::{client::Access, connect::HttpSettings};

    /// What a part is answered with by a server that says `words` and then nothing, or closes.
    async fn told(words: &'static str, closes: bool) -> PartReply {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mcpd = Mcpd::new(HttpSettings::default(), Arc::new(|| None));
        mcpd.set_access(&Access { url, token: "t".into() }).unwrap();
        let mut posts = ResultPosts::new(mcpd, &TaskId::new("t1").unwrap());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            while !read.ends_with(b"a part") {
                stream.read_buf(&mut read).await.unwrap();
            }
            stream.write_all(words.as_bytes()).await.unwrap();
            (!closes).then_some(stream)
        };
        tokio::join!(posts.post("t1/0", Bytes::from_static(b"a part")), serve).0.1
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_head_is_acceptance_although_the_reply_never_ends() {
        let begun = Instant::now();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(told(head, false).await, PartReply::Accepted);
        assert!(begun.elapsed() <= TAIL_TIMEOUT, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_reaches_callers_tells_no_address_of_mcpds() {
        let refusal = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\n\r\n";
        let (PartReply::TooLarge(refused), PartReply::Ambiguous(lost, _)) =
            (told(refusal, false).await, told("", true).await)
        else {
            panic!("a refusal and a loss");
        };
        for words in [refused, lost] {
            assert!(!words.contains("127.0.0.1") && !words.contains("http"), "{words}");
        }
    }
}
