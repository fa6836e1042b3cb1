//! The calls to mcpd, each with a deadline, a bound on what is read, and one meaning for each way it can fail.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use tokio::{sync::Semaphore, time::timeout};
use tracing::{info, warn};

use super::{
    connect::{HttpError, HttpSettings, channel_client},
    contract::{
        Conflicts, HEARTBEAT_PATH, HeartbeatRequest, IDEMPOTENT_RESULTS, PublishedProvider, REGISTER_PATH,
        RESULT_STREAM, RegisterReply, RegisterRequest, SESSION_HEADER, STREAM_PATH, endpoint,
    },
    explain::Way,
    health::ResultsHealth,
    outbox::WAITING_LIMIT,
    pool::{ClientPool, Content, NoAnswer, Post},
    post::POSTS_AT_ONCE,
    reply::{JSON, REPLY_LIMIT, Reader, describe, looks_like_html, no_answer},
    upload::UploadWays,
};
use crate::{
    domain::{CallFailure, Provider, ProviderName, Reason, Trouble},
    http::{TrustFiles, drain, is_html, read, retry_after},
    openai::MemoryBudget,
    telemetry::Server,
};

/// For a register or heartbeat call, from its start to the last byte of the reply.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// For the same after a wake from sleep, when connections and the network may be dead: it must allow one attempt per second.
const WAKE_TIMEOUT: Duration = Duration::from_millis(900);
/// Most Clients for results: so many times a server's limit of requests on one connection can be under way.
const RESULT_CLIENTS: usize = 8;
/// Most bytes read of a register reply; a thousand rows fit.
const REGISTER_REPLY_LIMIT: usize = 4 << 20;

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

/// The mcpd that the credentials lead to, and the clients for it.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    pub(super) url: Arc<str>,
    server: Server,
    pub(super) token: HeaderValue,
    pub(super) secret: SecretString,
    /// For register and heartbeat, whose connection nothing else shares.
    calls: Arc<ClientPool>,
    /// For result POSTs.
    pub(super) results: Arc<ClientPool>,
    channel: Client,
    /// How the files with the authorities were when they were read last.
    trust_files: Arc<TrustFiles>,
    ca_file: Option<PathBuf>,
    features: Features,
}

/// What mcpd can do beyond the contract's minimum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Features {
    idempotent_results: bool,
    result_stream: bool,
}

/// mcpd, as the agent calls it. Cheap to clone; all clones share connections and credentials.
#[derive(Clone)]
pub struct Mcpd {
    settings: HttpSettings,
    reload: Reload,
    shared: Arc<Mutex<Option<Arc<Connected>>>>,
    /// Where mcpd would be if the authorities could be used, and how their files were when they were tried.
    unusable: Arc<Mutex<Option<(Url, TrustFiles)>>>,
    /// One permit per result POST that may be under way.
    places: Arc<Semaphore>,
    /// The memory that waiting output may take.
    room: MemoryBudget,
    results: Arc<ResultsHealth>,
    uploads: Arc<UploadWays>,
}

impl std::fmt::Debug for Mcpd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mcpd").finish_non_exhaustive()
    }
}

impl Mcpd {
    /// An mcpd without credentials yet: every call fails until [`Mcpd::set_access`].
    pub fn new(settings: HttpSettings, reload: Reload) -> Self {
        Self {
            settings,
            reload,
            shared: Arc::default(),
            unusable: Arc::default(),
            places: Arc::new(Semaphore::new(POSTS_AT_ONCE)),
            room: MemoryBudget::new(WAITING_LIMIT),
            results: Arc::default(),
            uploads: Arc::default(),
        }
    }

    /// The same without credentials, for another mcpd. Whoever holds a clone of this one continues with its credentials.
    pub fn anew(&self) -> Self {
        Self { shared: Arc::default(), results: Arc::default(), uploads: Arc::default(), ..self.clone() }
    }

    /// Uses other credentials from the next call on. Connections are kept where only the token changed.
    ///
    /// # Errors
    /// If the token cannot be sent in a header, or no HTTP client can be built.
    pub fn set_access(&self, access: &Access) -> Result<(), HttpError> {
        let mut token = HeaderValue::from_str(&format!("Bearer {}", access.token.expose_secret()))
            .map_err(|_| HttpError::Token)?;
        token.set_sensitive(true);
        *self.unusable.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let former = self.connected().filter(|c| *c.url == *access.url);
        let connected = match former {
            Some(same) => Connected { token, secret: access.token.clone(), ..Connected::clone(&same) },
            None => self.connect(access, token)?,
        };
        self.replace(connected);
        Ok(())
    }

    fn connect(&self, access: &Access, token: HeaderValue) -> Result<Connected, HttpError> {
        let url: Url = access.url.parse().map_err(|_| HttpError::Url(access.url.clone()))?;
        let (trust, trust_files) = self.settings.trust(&url);
        let trust = match trust {
            Ok(trust) => trust,
            Err(bad) => {
                *self.unusable.lock().unwrap_or_else(PoisonError::into_inner) = Some((url, trust_files));
                return Err(bad);
            }
        };
        let pool = |most| ClientPool::new(trust.clone(), url.clone(), most).map(Arc::new);
        Ok(Connected {
            server: Server::of(&access.url),
            url: access.url.as_str().into(),
            token,
            secret: access.token.clone(),
            calls: pool(1)?,
            results: pool(RESULT_CLIENTS)?,
            channel: channel_client(&url, &trust)?,
            trust_files: Arc::new(trust_files),
            ca_file: self.settings.ca_file.clone(),
            features: Features::default(),
        })
    }

    /// Follows the files with the authorities: after a change further connections trust what they hold now, if that can be used.
    /// Returns whether there is something new to be tried.
    pub fn follow_authorities(&self) -> bool {
        let Some(c) = self.connected() else { return false };
        let Ok(url) = c.url.parse() else { return false };
        if self.settings.trust_files(&url) == *c.trust_files {
            return false;
        }
        let access = Access { url: c.url.to_string(), token: c.secret.clone() };
        match self.connect(&access, c.token.clone()) {
            Ok(connected) => {
                info!("the certificate authorities have changed, and are used from now on");
                self.replace(Connected { features: c.features, ..connected });
                true
            }
            Err(error) => {
                warn!("{error}; until that is corrected, the authorities read before stay in use");
                let trust_files = Arc::new(self.settings.trust_files(&url));
                self.replace(Connected { trust_files, ..Connected::clone(&c) });
                false
            }
        }
    }

    /// Whether credentials that could not be used for the authorities' sake may be usable now: their files have changed.
    pub fn may_access_now(&self) -> bool {
        let unusable = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        unusable.as_ref().is_some_and(|(url, files)| self.settings.trust_files(url) != *files)
    }

    /// Where mcpd is, once that is known.
    pub fn url(&self) -> Option<Arc<str>> {
        self.connected().map(|c| Arc::clone(&c.url))
    }

    /// Where mcpd is, as traces name it.
    pub fn server(&self) -> Option<Server> {
        self.connected().map(|c| c.server.clone())
    }

    /// Whether mcpd drops a part whose key it has already applied.
    pub fn is_idempotent(&self) -> bool {
        self.connected().is_some_and(|c| c.features.idempotent_results)
    }

    /// Whether a streamed answer may go to mcpd as one upload now.
    pub(super) fn takes_uploads(&self) -> bool {
        self.connected().is_some_and(|c| c.features.result_stream) && self.uploads.are_open()
    }

    /// The uploads, and what is known of their way.
    pub(super) fn uploads(&self) -> &UploadWays {
        &self.uploads
    }

    /// Gives up every connection but the channel's: after a sleep they may be dead without anybody having noticed.
    pub fn drop_connections(&self) {
        if let Some(c) = self.connected() {
            c.drop_connections();
        }
    }

    /// Registers the whole set; returns the session's sticky id.
    ///
    /// # Errors
    /// Why mcpd did not accept the set, or may not have got it.
    pub async fn register(
        &self,
        session: Option<&str>,
        providers: &[Provider],
        after_wake: bool,
    ) -> Result<String, CallFailure> {
        let c = self.connected_or_fail()?;
        let body = RegisterRequest {
            provider_session_id: session,
            providers: providers.iter().map(PublishedProvider::from).collect(),
        };
        c.within(call_timeout(after_wake), self.register_with(&c, &body, call_timeout(after_wake))).await
    }

    async fn register_with(
        &self,
        c: &Connected,
        body: &RegisterRequest<'_>,
        limit: Duration,
    ) -> Result<String, CallFailure> {
        let response = c.call(REGISTER_PATH, body, limit).await?;
        match response.status() {
            StatusCode::OK | StatusCode::CREATED => {}
            StatusCode::CONFLICT => return Err(conflict(response).await),
            _ => return Err(self.failure(c, "register", response).await),
        }
        let shown = format!("register at {}", c.url);
        let body =
            read(response, REGISTER_REPLY_LIMIT).await.map_err(|why| passing(format!("{shown}: {why}")))?;
        let reply: RegisterReply = serde_json::from_slice(&body).map_err(|e| {
            let what = if looks_like_html(&body) {
                "an HTML page".to_owned()
            } else {
                format!("JSON that cannot be read ({e})")
            };
            passing(Reason::new(
                format!("{shown} was answered 200 with {what}"),
                "check that --mcpd-url is really mcpd's",
            ))
        })?;
        self.note_features(c, &reply);
        reply
            .provider_session_id
            .filter(|id| !id.is_empty() && HeaderValue::from_str(id).is_ok())
            .ok_or_else(|| passing(format!("{shown} was answered without a usable providerSessionId")))
    }

    /// Tells mcpd that the session is alive.
    ///
    /// # Errors
    /// Why mcpd did not take it.
    pub async fn heartbeat(&self, session: &str, after_wake: bool) -> Result<(), CallFailure> {
        if after_wake {
            self.drop_connections();
        }
        let c = self.connected_or_fail()?;
        let (limit, body) = (call_timeout(after_wake), HeartbeatRequest { provider_session_id: session });
        c.within(limit, self.heartbeat_with(&c, &body, limit)).await
    }

    async fn heartbeat_with(
        &self,
        c: &Connected,
        body: &HeartbeatRequest<'_>,
        limit: Duration,
    ) -> Result<(), CallFailure> {
        let response = c.call(HEARTBEAT_PATH, body, limit).await?;
        // An HTML page comes from something in between and says nothing about the session.
        if !response.status().is_success() || is_html(response.headers()) {
            return Err(self.failure(c, "heartbeat", response).await);
        }
        drain(response, REPLY_LIMIT).await;
        Ok(())
    }

    /// The request that opens the control channel.
    pub(super) fn channel(&self, session: &str) -> Result<RequestBuilder, CallFailure> {
        let c = self.connected_or_fail()?;
        let request = c.channel.get(endpoint(&c.url, STREAM_PATH)).header(AUTHORIZATION, c.token.clone());
        Ok(request.header(SESSION_HEADER, session))
    }

    /// What the refusal of a control channel means.
    pub(super) async fn channel_refused(&self, response: Response) -> CallFailure {
        match self.connected() {
            Some(c) => self.failure(&c, "the control channel", response).await,
            None => no_credentials(),
        }
    }

    /// The meaning of a reply that is not the expected one (the contract's table).
    async fn failure(&self, c: &Connected, what: &str, response: Response) -> CallFailure {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let detail = describe(what, Reader::Owner, status, response, &c.secret).await;
        match status.as_u16() {
            401 | 403 => CallFailure::Unauthorized { detail, changed: self.refresh(c) },
            404 | 410 => CallFailure::Unknown(detail),
            _ => CallFailure::Passing(detail, retry_after),
        }
    }

    /// Reads the credentials again after a refusal; `true` if there is another token for the same mcpd. A switch to another mcpd is left to
    /// the agent, because it needs another session.
    pub(super) fn refresh(&self, refused: &Connected) -> bool {
        if let Some(now) = self.connected()
            && now.secret.expose_secret() != refused.secret.expose_secret()
        {
            return true;
        }
        let Some(access) = (self.reload)() else { return false };
        let other = access.token.expose_secret() != refused.secret.expose_secret();
        other && *access.url == *refused.url && self.set_access(&access).is_ok()
    }

    /// The memory that waiting output may take.
    pub fn room(&self) -> &MemoryBudget {
        &self.room
    }

    /// What is wrong with the way of results: they have failed for a minute, or uploads do not get through.
    pub fn results_trouble(&self) -> Option<(Trouble, Reason)> {
        let failing = self.results.trouble().map(|why| {
            let what = format!("results have not got through for over a minute: {why}");
            (Trouble::Results, Reason::new(what, "run `mcprelay doctor`"))
        });
        failing.or_else(|| self.uploads.trouble().map(|why| (Trouble::Uploads, why)))
    }

    /// Notes what became of a result POST.
    pub(super) fn results(&self) -> &ResultsHealth {
        &self.results
    }

    /// One permit per result POST that may be under way.
    pub(super) fn places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.places)
    }

    pub(super) fn connected(&self) -> Option<Arc<Connected>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn connected_or_fail(&self) -> Result<Arc<Connected>, CallFailure> {
        self.connected().ok_or_else(no_credentials)
    }

    fn replace(&self, connected: Connected) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(connected));
    }

    fn note_features(&self, c: &Connected, reply: &RegisterReply) {
        let has = |feature| reply.features.iter().any(|f| f == feature);
        let features =
            Features { idempotent_results: has(IDEMPOTENT_RESULTS), result_stream: has(RESULT_STREAM) };
        if let Some(now) = self.connected()
            && now.url == c.url
            && now.features != features
        {
            self.replace(Connected { features, ..Connected::clone(&now) });
        }
    }
}

impl Connected {
    fn way(&self) -> Way<'_> {
        Way::to(&self.url, self.ca_file.as_deref())
    }

    fn drop_connections(&self) {
        self.calls.clear();
        self.results.clear();
    }

    /// POSTs `body` and waits for the reply's head.
    async fn call(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<Response, CallFailure> {
        let url = endpoint(&self.url, path).parse().map_err(|error| passing(format!("{path}: {error}")))?;
        let body = serde_json::to_vec(body).expect("texts always serialise").into();
        let headers =
            HeaderMap::from_iter([(AUTHORIZATION, self.token.clone()), (CONTENT_TYPE, JSON.clone())]);
        let post = Post { url: &url, headers: &headers, content: Content::Whole(&body, limit) };
        match self.calls.post(post).await {
            Ok(response) => Ok(response),
            Err(unanswered) => Err(passing(no_answer(self.way(), &unanswered.why).await)),
        }
    }

    /// Bounds a call. One without a whole reply in its time leaves connections that may be dead; the results' may have died with it.
    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, CallFailure>>,
    ) -> Result<T, CallFailure> {
        let Ok(replied) = timeout(limit, call).await else {
            self.drop_connections();
            return Err(passing(no_answer(self.way(), &NoAnswer::Late(limit)).await));
        };
        replied
    }
}

fn call_timeout(after_wake: bool) -> Duration {
    if after_wake { WAKE_TIMEOUT } else { CALL_TIMEOUT }
}

fn no_credentials() -> CallFailure {
    passing("there are no credentials")
}

fn passing(why: impl Into<Reason>) -> CallFailure {
    CallFailure::Passing(why.into(), None)
}

async fn conflict(response: Response) -> CallFailure {
    let body = read(response, REPLY_LIMIT).await.unwrap_or_default();
    let names = serde_json::from_slice::<Conflicts>(&body).unwrap_or_default().conflicts;
    CallFailure::Conflict(
        names.iter().filter_map(|name| ProviderName::new(name).ok()).collect::<BTreeSet<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_all_tasks_shares_one_room_whichever_mcpd_asked_for_it() {
        let mcpd = Mcpd::new(HttpSettings::default(), Arc::new(|| None));
        let (mut output, mut others) = (mcpd.room().reservation(), mcpd.anew().room().reservation());
        output.reserve(WAITING_LIMIT).expect("it is the limit");
        assert!(others.reserve(WAITING_LIMIT / 4).is_err(), "nothing is left of it");
    }
}
