//! The calls to mcpd, each with a deadline, a bound on what is read, and one meaning for every way it can fail.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use super::contract::{
    Conflicts, HEARTBEAT_PATH, HeartbeatRequest, IDEMPOTENCY_HEADER, IDEMPOTENT_RESULTS, PublishedProvider,
    REGISTER_PATH, RegisterReply, RegisterRequest, SESSION_HEADER, STREAM_PATH, endpoint, result_path,
};
use crate::{
    domain::{CallFailure, Printable, Provider, ProviderName, TaskId},
    telemetry::Server,
};

/// For TCP and TLS together: a peer that needs longer is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a register or heartbeat call, from its begin to the last byte of the reply.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// For the same after a wake from sleep, when connections and the network may be dead: one attempt a second has to fit.
const WAKE_TIMEOUT: Duration = Duration::from_millis(900);
/// For one result POST, from its begin to the last byte of the reply.
const POST_TIMEOUT: Duration = Duration::from_secs(30);
/// TCP keep-alive of the control channel: what finds a dead peer where mcpd sends no keep-alive of its own.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// How long an idle connection is kept, before the server says otherwise: Node closes its own at 5 s.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);
/// Least time between two changes of that: a server whose hints alternate must not cost a pool each.
const IDLE_CHANGE: Duration = Duration::from_secs(60);
/// Most bytes read of a register reply; a thousand rows fit.
const REGISTER_REPLY_LIMIT: usize = 4 << 20;
/// Most bytes read of any other reply, whose content does not matter.
const REPLY_LIMIT: usize = 64 << 10;
/// Most characters of mcpd's own words in a message for people.
const QUOTE: usize = 200;

/// Where mcpd is and who we are.
#[derive(Clone, Debug)]
pub struct Access {
    /// mcpd's base URL, without credentials in it.
    pub url: String,
    /// The bearer token.
    pub token: SecretString,
}

/// Reads the credentials again; `None` where there are no usable ones.
pub type Reload = Arc<dyn Fn() -> Option<Access> + Send + Sync>;

/// What the HTTP clients are built with.
#[derive(Clone, Debug, Default)]
pub struct HttpSettings {
    /// A PEM file with CAs to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Why no HTTP client could be built.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The CA file cannot be used.
    #[error("cannot use the CA file {}: {reason}", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token cannot be a header.
    #[error("the token has characters that no HTTP header can carry")]
    Token,
    /// TLS or the client itself cannot be set up.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
}

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

#[derive(Debug)]
struct Connected {
    url: String,
    server: Server,
    token: HeaderValue,
    secret: SecretString,
    calls: Client,
    channel: Client,
    idle: Duration,
    idle_since: Instant,
    idempotent: bool,
}

/// mcpd, as the agent calls it. Cheap to clone; all clones share connections and credentials.
#[derive(Clone)]
pub struct Mcpd {
    settings: HttpSettings,
    reload: Reload,
    shared: Arc<Mutex<Option<Arc<Connected>>>>,
}

impl std::fmt::Debug for Mcpd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mcpd").finish_non_exhaustive()
    }
}

impl Mcpd {
    /// An mcpd without credentials yet: every call fails until [`Mcpd::set_access`].
    pub fn new(settings: HttpSettings, reload: Reload) -> Self {
        Self { settings, reload, shared: Arc::default() }
    }

    /// Uses other credentials from the next call on. Connections are kept where only the token changed.
    pub fn set_access(&self, access: &Access) -> Result<(), HttpError> {
        let mut token = HeaderValue::from_str(&format!("Bearer {}", access.token.expose_secret()))
            .map_err(|_| HttpError::Token)?;
        token.set_sensitive(true);
        let former = self.connected().filter(|c| c.url == access.url);
        let (calls, channel, idle, idempotent) = match former {
            Some(same) => (same.calls.clone(), same.channel.clone(), same.idle, same.idempotent),
            None => (
                self.build_calls(&access.url, IDLE_CONNECTION)?,
                self.build_channel(&access.url)?,
                IDLE_CONNECTION,
                false,
            ),
        };
        let (url, secret, server) = (access.url.clone(), access.token.clone(), Server::of(&access.url));
        self.replace(Connected {
            server,
            url,
            token,
            secret,
            calls,
            channel,
            idle,
            idle_since: Instant::now(),
            idempotent,
        });
        Ok(())
    }

    /// Where mcpd is, once that is known.
    pub fn url(&self) -> Option<String> {
        self.connected().map(|c| c.url.clone())
    }

    /// Where mcpd is, as traces name it.
    pub fn server(&self) -> Option<Server> {
        self.connected().map(|c| c.server.clone())
    }

    /// Whether mcpd drops a part whose key it has already applied.
    pub fn is_idempotent(&self) -> bool {
        self.connected().is_some_and(|c| c.idempotent)
    }

    /// Gives up every kept connection: after a sleep they may be dead without knowing it.
    pub fn drop_connections(&self) {
        if let Some(c) = self.connected()
            && let Ok(calls) = self.build_calls(&c.url, c.idle)
        {
            self.replace(Connected { calls, ..copy(&c) });
        }
    }

    // ---- calls -----------------------------------------------------------------------------------------------------

    /// Registers the whole set; the session's sticky id is the answer.
    pub async fn register(
        &self,
        session: Option<&str>,
        providers: &[Provider],
        after_wake: bool,
    ) -> Result<String, CallFailure> {
        let c = self.connected_or_fail()?;
        let timeout = call_timeout(after_wake);
        let body = RegisterRequest {
            provider_session_id: session,
            providers: providers.iter().map(PublishedProvider::from).collect(),
        };
        let request = c.calls.post(endpoint(&c.url, REGISTER_PATH)).timeout(timeout).json(&body);
        let response = self.send(&c, request).await.map_err(|e| CallFailure::Passing(e, None))?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => {}
            StatusCode::CONFLICT => return Err(conflict(response).await),
            _ => return Err(self.failure(&c, "register", response).await),
        }
        let shown = format!("register at {}", c.url);
        let body = read(response, REGISTER_REPLY_LIMIT)
            .await
            .map_err(|why| CallFailure::Passing(format!("{shown}: {why}"), None))?;
        let reply: RegisterReply = serde_json::from_slice(&body).map_err(|e| {
            let what = if looks_like_html(&body) {
                "an HTML page".to_owned()
            } else {
                format!("no JSON that makes sense ({e})")
            };
            CallFailure::Passing(
                format!("{shown} was answered 200 with {what}; is the URL really mcpd's?"),
                None,
            )
        })?;
        self.note_features(&c, &reply);
        reply.provider_session_id.filter(|id| !id.is_empty() && HeaderValue::from_str(id).is_ok()).ok_or_else(
            || CallFailure::Passing(format!("{shown} was answered without a usable providerSessionId"), None),
        )
    }

    /// Says that the session lives.
    pub async fn heartbeat(&self, session: &str, after_wake: bool) -> Result<(), CallFailure> {
        if after_wake {
            self.drop_connections();
        }
        let c = self.connected_or_fail()?;
        let timeout = call_timeout(after_wake);
        let body = HeartbeatRequest { provider_session_id: session };
        let request = c.calls.post(endpoint(&c.url, HEARTBEAT_PATH)).timeout(timeout).json(&body);
        let response = self.send(&c, request).await.map_err(|e| CallFailure::Passing(e, None))?;
        // A page from something in between says nothing of the session.
        if !response.status().is_success() || is_html(response.headers()) {
            return Err(self.failure(&c, "heartbeat", response).await);
        }
        // Read to its end, so that the connection can be used again.
        read(response, REPLY_LIMIT)
            .await
            .map(drop)
            .map_err(|why| CallFailure::Passing(format!("heartbeat: {why}"), None))
    }

    /// The request that opens the control channel.
    pub(super) fn channel(&self, session: &str) -> Result<RequestBuilder, CallFailure> {
        let c = self.connected_or_fail()?;
        let request = c.channel.get(endpoint(&c.url, STREAM_PATH)).header(AUTHORIZATION, c.token.clone());
        Ok(request.header(SESSION_HEADER, session))
    }

    /// What a refused control channel means.
    pub(super) async fn channel_refused(&self, response: Response) -> CallFailure {
        match self.connected() {
            Some(c) => self.failure(&c, "the control channel", response).await,
            None => no_credentials(),
        }
    }

    /// Posts one part of a task's result under its key; the answer's status comes with its meaning.
    pub async fn post_part(&self, task: &TaskId, key: &str, body: Bytes) -> (Option<u16>, PartReply) {
        let Some(c) = self.connected() else {
            return (None, PartReply::NotApplied("no credentials".to_owned(), None));
        };
        let Some(path) = result_path(task) else {
            return (None, PartReply::Refused("the task's id cannot be put into a URL".to_owned()));
        };
        let request = c
            .calls
            .post(endpoint(&c.url, &path))
            .timeout(POST_TIMEOUT)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(IDEMPOTENCY_HEADER, key)
            .header(AUTHORIZATION, c.token.clone())
            .body(body);
        match request.send().await {
            Ok(response) => (Some(response.status().as_u16()), self.part_reply(&c, response).await),
            Err(error) if error.is_connect() => (None, PartReply::NotApplied(say(&error), None)),
            Err(error) => (None, PartReply::Ambiguous(say(&error), None)),
        }
    }

    async fn part_reply(&self, c: &Connected, response: Response) -> PartReply {
        self.note_keep_alive(c, response.headers());
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let html = is_html(response.headers());
        if status.is_success() && !html {
            // The status is the answer; the body is only read so that the connection can be used again.
            let _ = read(response, REPLY_LIMIT).await;
            return PartReply::Accepted;
        }
        let said = describe("a result", status, response, &c.secret).await;
        match status.as_u16() {
            404 | 410 => PartReply::NobodyWaits(said),
            413 => PartReply::TooLarge(said),
            401 => {
                let changed = self.refresh(c);
                PartReply::Unauthorized(said, changed)
            }
            408 | 425 | 429 | 503 => PartReply::NotApplied(said, retry_after),
            200..=299 | 500..=599 => PartReply::Ambiguous(said, retry_after),
            _ => PartReply::Refused(said),
        }
    }

    async fn send(&self, c: &Connected, request: RequestBuilder) -> Result<Response, String> {
        let response = request.header(AUTHORIZATION, c.token.clone()).send().await.map_err(|e| say(&e))?;
        self.note_keep_alive(c, response.headers());
        Ok(response)
    }

    /// The meaning of a reply that is not the expected one (the contract's table).
    async fn failure(&self, c: &Connected, what: &str, response: Response) -> CallFailure {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let detail = describe(what, status, response, &c.secret).await;
        match status.as_u16() {
            401 | 403 => CallFailure::Unauthorized { detail, changed: self.refresh(c) },
            404 | 410 => CallFailure::Unknown(detail),
            _ => CallFailure::Passing(detail, retry_after),
        }
    }

    /// Reads the credentials again after a refusal; `true` if there is another token for the same mcpd. Another mcpd is the agent's
    /// matter, because it needs another session.
    fn refresh(&self, refused: &Connected) -> bool {
        if let Some(now) = self.connected()
            && now.secret.expose_secret() != refused.secret.expose_secret()
        {
            return true;
        }
        let Some(access) = (self.reload)() else { return false };
        let other = access.token.expose_secret() != refused.secret.expose_secret();
        other && access.url == refused.url && self.set_access(&access).is_ok()
    }

    // ---- clients ---------------------------------------------------------------------------------------------------

    fn connected(&self) -> Option<Arc<Connected>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn connected_or_fail(&self) -> Result<Arc<Connected>, CallFailure> {
        self.connected().ok_or_else(no_credentials)
    }

    fn replace(&self, connected: Connected) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(connected));
    }

    fn note_features(&self, c: &Arc<Connected>, reply: &RegisterReply) {
        let idempotent = reply.features.iter().any(|f| f == IDEMPOTENT_RESULTS);
        if let Some(now) = self.connected()
            && now.url == c.url
            && now.idempotent != idempotent
        {
            self.replace(Connected { idempotent, ..copy(&now) });
        }
    }

    /// Follows the server's own word on how long it keeps an idle connection: half of it is safe.
    fn note_keep_alive(&self, c: &Connected, headers: &HeaderMap) {
        let Some(idle) = keep_alive(headers).map(|timeout| timeout / 2) else { return };
        let Some(now) = self.connected().filter(|now| now.url == c.url && now.idle != idle) else { return };
        let first = now.idle == IDLE_CONNECTION;
        if (first || now.idle_since.elapsed() >= IDLE_CHANGE)
            && let Ok(calls) = self.build_calls(&now.url, idle)
        {
            self.replace(Connected { calls, idle, idle_since: Instant::now(), ..copy(&now) });
        }
    }

    fn build_calls(&self, url: &str, idle: Duration) -> Result<Client, HttpError> {
        let builder = self.builder(url)?.pool_idle_timeout(idle);
        builder.build().map_err(|e| HttpError::Client(say(&e)))
    }

    fn build_channel(&self, url: &str) -> Result<Client, HttpError> {
        let builder = self.builder(url)?.pool_max_idle_per_host(0).tcp_keepalive(TCP_KEEPALIVE);
        builder.build().map_err(|e| HttpError::Client(say(&e)))
    }

    fn builder(&self, url: &str) -> Result<reqwest::ClientBuilder, HttpError> {
        let mut builder = Client::builder()
            .user_agent(concat!("mcprelay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // A redirect could carry the token to another origin, and no provider API needs one.
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(url) {
            builder = builder.no_proxy();
        }
        if let Some(path) = &self.settings.ca_file {
            let bad = |reason: String| HttpError::CaFile { path: path.clone(), reason };
            let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
            let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(say(&e)))?;
            if found.is_empty() {
                return Err(bad("it has no PEM certificate".to_owned()));
            }
            builder = found.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
        }
        Ok(builder)
    }
}

fn call_timeout(after_wake: bool) -> Duration {
    if after_wake { WAKE_TIMEOUT } else { CALL_TIMEOUT }
}

fn copy(c: &Connected) -> Connected {
    Connected {
        url: c.url.clone(),
        server: c.server.clone(),
        token: c.token.clone(),
        secret: c.secret.clone(),
        calls: c.calls.clone(),
        channel: c.channel.clone(),
        ..*c
    }
}

fn no_credentials() -> CallFailure {
    CallFailure::Passing("there are no credentials".to_owned(), None)
}

/// Whether the URL's host is this machine.
pub fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        None => false,
    }
}

async fn conflict(response: Response) -> CallFailure {
    let body = read(response, REPLY_LIMIT).await.unwrap_or_default();
    let names = serde_json::from_slice::<Conflicts>(&body).unwrap_or_default().conflicts;
    CallFailure::Conflict(
        names.iter().filter_map(|name| ProviderName::new(name).ok()).collect::<BTreeSet<_>>(),
    )
}

/// The whole body, if it is within the limit.
async fn read(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| say(&e))? {
        if body.len() + piece.len() > limit {
            return Err(format!("the reply is longer than {limit} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// One sentence about a reply, with the beginning of what mcpd said, fit for a terminal.
async fn describe(what: &str, status: StatusCode, response: Response, token: &SecretString) -> String {
    let mut url = response.url().clone();
    // A URL that somebody gave with a password in it is shown without.
    let _ = url.set_password(None).and_then(|()| url.set_username(""));
    let location = format!("{}{}", url.origin().ascii_serialization(), url.path());
    let html = is_html(response.headers());
    let body = read(response, REPLY_LIMIT).await.unwrap_or_default();
    // Some servers and proxies repeat what they refuse; this text goes to logs and the status.
    let said = String::from_utf8_lossy(&body).replace(token.expose_secret(), "[token]");
    let said: String = said.trim().chars().take(QUOTE).collect();
    match said.as_str() {
        "" => format!("{what}: mcpd answered {status} at {location}"),
        _ if html => {
            format!("{what}: {status} with an HTML page at {location}; is something between here and mcpd?")
        }
        said => format!("{what}: mcpd answered {status} at {location}: {}", Printable(said)),
    }
}

fn is_html(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/html"))
}

fn looks_like_html(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// `Retry-After` in seconds; its date form needs a clock that both sides share, and is not used by rate limiters.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u32 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

/// `Keep-Alive: timeout=N`, in a range in which half of it makes sense.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("keep-alive")?.to_str().ok()?;
    let seconds: u64 = text.split(',').find_map(|item| item.trim().strip_prefix("timeout="))?.parse().ok()?;
    (1..=600).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// What went wrong with a call, down to its cause. The URL in it has no credentials, because none are ever put there.
fn say(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let part = next.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_name_and_by_number() {
        for url in ["http://127.0.0.1:1/x", "http://localhost", "http://[::1]:8080", "https://127.8.8.8"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1", "https://localhost.example.com", "nonsense"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[tokio::test]
    async fn a_token_that_a_server_repeats_is_cut_out_of_its_words() {
        let reply = axum::http::Response::new("Bearer s3cret-token is not known");
        let token = SecretString::from("s3cret-token");
        let text = describe("register", StatusCode::UNAUTHORIZED, reply.into(), &token).await;
        assert!(text.ends_with(": Bearer [token] is not known"), "{text}");
    }

    #[test]
    fn a_servers_keep_alive_is_read_and_nonsense_is_not() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", HeaderValue::from_static(text));
            keep_alive(&headers)
        };
        assert_eq!(read("timeout=5"), Some(Duration::from_secs(5)));
        assert_eq!(read("max=100, timeout=72"), Some(Duration::from_secs(72)));
        assert_eq!(read("timeout=0"), None);
        assert_eq!(read("timeout=99999999"), None);
    }
}
