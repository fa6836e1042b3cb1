//! Whether a server can work now: asked at intervals, and at once when a request has failed.
//!
//! Each opted-in provider causes one request every 10 s while its server is well and on this machine ([`INTERVAL`]), every 60 s if the
//! server is elsewhere ([`REMOTE_INTERVAL`]), and about one per second while the server is not well ([`RETRY_INTERVAL`]). In between,
//! nothing wakes up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use reqwest::{Client, Url, header::LOCATION};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    failures::redirected,
    http::{BaseUrl, Key},
    models::{Models, whole},
};
use crate::{
    domain::{Printable, ProviderState, Reason},
    http::{read_at_most, root_cause},
    openai::failure::{is_loading, provider_failure},
    provide::providers::Readiness,
};

/// How often a server on this machine is asked while it is well: its owner may stop it at any time.
pub(in crate::provide) const INTERVAL: Duration = Duration::from_secs(10);
/// How often a remote server is asked while it is well: it is rarely away, and may count requests.
const REMOTE_INTERVAL: Duration = Duration::from_secs(60);
/// How often a server that is away or loading is asked: it is offered again within about this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same once it has been away for a while ([`LONG_AWAY`]): nobody is waiting for it any more.
const LONG_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// From when on an absence counts as long.
const LONG_AWAY: Duration = Duration::from_secs(60);
/// The shortest time between two questions, however many requests fail.
const FLOOR: Duration = Duration::from_millis(100);
/// How long one question may take: a server that computes with all its threads, or builds its list from many files, answers in this time.
/// One that does one thing at a time need not: while a request to it is under way, a late answer means nothing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that is read of an answer, in bytes: a list of some thousand models.
pub(in crate::provide) const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Anthropic requires the version of its interface, even for the list of models.
const ANTHROPIC_VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// How a kind of server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::provide) enum Probe {
    /// `GET /models`.
    Models,
    /// `GET /models` with Anthropic's own headers.
    AnthropicModels,
    /// `GET /health`, which says 503 while a model is loading; then `/models` and `/props` for the context.
    LlamaCpp,
}

/// The state of one provider, shared by what asks and what runs requests.
#[derive(Debug)]
pub(in crate::provide) struct Health {
    state: watch::Sender<Readiness>,
    ask: Notify,
    /// Requests that are under way now.
    running: AtomicUsize,
}

/// A request to the server, as long as it is under way.
#[derive(Debug)]
pub(in crate::provide) struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    pub(in crate::provide) fn new(readiness: Readiness) -> Arc<Self> {
        Arc::new(Self {
            state: watch::Sender::new(readiness),
            ask: Notify::new(),
            running: AtomicUsize::new(0),
        })
    }

    pub(in crate::provide) fn watch(&self) -> watch::Receiver<Readiness> {
        self.state.subscribe()
    }

    /// A request begins; it lasts as long as what is returned.
    pub(in crate::provide) fn request(&self) -> UnderWay<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        UnderWay(&self.running)
    }

    /// Whether the server has a reason to be late.
    fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// A request could not reach the server: ask at once.
    pub(in crate::provide) fn doubt(&self) {
        self.ask.notify_one();
    }

    /// A request met a model that is loading: waits until it is known to be ready (true) or gone (false). The page that is asked
    /// may call ready what the chat calls loading, so the next request waits for `wait` at least.
    pub(in crate::provide) async fn loaded(&self, wait: Duration) -> bool {
        let asked = Instant::now();
        self.set(Readiness::new(ProviderState::Loading, "the model is loading"));
        self.ask.notify_one();
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|readiness| readiness.state != ProviderState::Loading).await;
        let ready = settled.is_ok_and(|readiness| readiness.state == ProviderState::Ready);
        if ready {
            sleep_until(asked + wait).await;
        }
        ready
    }

    fn set(&self, readiness: Readiness) -> bool {
        self.state.send_if_modified(|current| {
            let changed = *current != readiness;
            if changed {
                *current = readiness;
            }
            changed
        })
    }
}

/// What asks one server.
#[derive(Debug)]
pub(in crate::provide) struct Prober {
    pub(in crate::provide) client: Client,
    pub(in crate::provide) base: BaseUrl,
    pub(in crate::provide) key: Key,
    pub(in crate::provide) model: String,
    pub(in crate::provide) probe: Probe,
    pub(in crate::provide) health: Arc<Health>,
}

impl Prober {
    /// Asks until the future is dropped.
    pub(in crate::provide) async fn run(self) {
        let mut well = Instant::now();
        loop {
            let asked = Instant::now();
            let was_busy = self.health.is_busy();
            let readiness = match self.ask().await {
                Err(Away::Late) if was_busy || self.health.is_busy() => self.health.state.borrow().clone(),
                Err(away) => Readiness::new(ProviderState::Unavailable, self.absence(&away)),
                Ok(readiness) => readiness,
            };
            let state = readiness.state;
            if state == ProviderState::Ready {
                well = asked;
            }
            let detail = readiness.detail.clone();
            if self.health.set(readiness) {
                tracing::info!(server = %self.base, model = %self.model, "{}", sentence(state, &detail));
            }
            tokio::select! {
                () = sleep_until(asked + self.interval(state, well.elapsed())) => {}
                () = self.health.ask.notified() => sleep_until(asked + FLOOR).await,
            }
        }
    }

    fn interval(&self, state: ProviderState, away: Duration) -> Duration {
        match state {
            ProviderState::Ready if self.base.is_loopback() => INTERVAL,
            ProviderState::Ready => REMOTE_INTERVAL,
            _ if away >= LONG_AWAY => LONG_RETRY_INTERVAL,
            _ => RETRY_INTERVAL,
        }
    }

    async fn ask(&self) -> Result<Readiness, Away> {
        let first = match self.probe {
            Probe::LlamaCpp => self.base.root("health"),
            Probe::Models | Probe::AnthropicModels => self.base.join("models"),
        };
        let page = self.get(first).await?;
        match self.judge(&page) {
            Some(trouble) => Ok(trouble),
            None if self.probe == Probe::LlamaCpp => Ok(self.llamacpp().await),
            None => Ok(self.capabilities(&page, None)),
        }
    }

    /// What is wrong, going by the answer to the first question; `None` if nothing is.
    fn judge(&self, page: &Page) -> Option<Readiness> {
        let base = &self.base;
        let unavailable = |detail: Reason| Some(Readiness::new(ProviderState::Unavailable, detail));
        match page.status {
            503 if is_loading(503, &page.body) || self.is_bare_loading(page) => {
                Some(Readiness::new(ProviderState::Loading, "the model is loading"))
            }
            300..=399 => unavailable(redirected(&base.to_string(), &page.location)),
            401 => unavailable(match self.key.variable() {
                Some(variable) => {
                    Reason::new(format!("{base} refuses the key in {variable}"), "put a valid one there")
                }
                None => Reason::new(format!("{base} wants a key"), "name its variable as apiKeyEnv"),
            }),
            403 => unavailable(self.refusal(page).into()),
            // A server without such a page answers nevertheless, which is what matters.
            501 => None,
            status @ 500.. => {
                unavailable(Reason::new(format!("{base} answers {status}"), "see that server's log"))
            }
            _ => None,
        }
    }

    /// llama.cpp's page of its health says 503 for nothing else; words are not needed, but other words than these mean something else.
    fn is_bare_loading(&self, page: &Page) -> bool {
        self.probe == Probe::LlamaCpp && page.body.trim_ascii().is_empty()
    }

    /// What the server says about a refusal, which need not be about the key.
    fn refusal(&self, page: &Page) -> String {
        let failure = provider_failure(Some(page.status), &page.body);
        let words = if self.key.is_in(failure.owner_detail.as_bytes()) { "" } else { &failure.owner_detail };
        let words = Printable(words).to_string().replace("; ", ", ");
        format!("{} refuses to list its models: {words}; see whether its key allows it", self.base)
    }

    /// llama.cpp tells its context on a page of its own, for the one model that it serves. Its router serves several, each with its own.
    async fn llamacpp(&self) -> Readiness {
        let list = self.get(self.base.join("models")).await.unwrap_or_default();
        let props = self.get(self.base.root("props")).await.unwrap_or_default();
        let is_router = Models::read(&list.body).is_some_and(|models| models.only().is_none());
        let props: Value = serde_json::from_slice(&props.body).unwrap_or_default();
        let context = props.pointer("/default_generation_settings/n_ctx").and_then(whole);
        self.capabilities(&list, context.filter(|_| !is_router))
    }

    /// What the server tells about the model. It is ready whatever comes of this, unless it turns out to be another program.
    fn capabilities(&self, list: &Page, context: Option<u32>) -> Readiness {
        let base = &self.base;
        let models = match (list.status, Models::read(&list.body)) {
            (200, Some(models)) => models,
            (200, None) => {
                let what = format!("{base} answers, but not with a list of models");
                let detail = Reason::new(what, "check its url in config.json");
                return Readiness::new(ProviderState::Unavailable, detail);
            }
            (404, _) => {
                let detail = Reason::new(
                    format!("{base} has no list of models (404)"),
                    "if chats fail too, check its url in config.json",
                );
                return Readiness { context_tokens: context, ..Readiness::new(ProviderState::Ready, detail) };
            }
            _ => return Readiness { context_tokens: context, ..Readiness::new(ProviderState::Ready, "") },
        };
        let only = models.only().filter(|_| self.probe == Probe::LlamaCpp);
        let ours = models.named(&self.model).or(only);
        let detail = match ours {
            None if !models.rows.is_empty() => {
                format!("{base} does not list the model {}", self.model).into()
            }
            _ => Reason::default(),
        };
        let context_tokens = context.or_else(|| ours?.context_tokens);
        Readiness { context_tokens, ..Readiness::new(ProviderState::Ready, detail) }
    }

    fn absence(&self, away: &Away) -> String {
        match away {
            Away::Late => format!(
                "{} does not answer within {} s; see whether it is busy",
                self.base,
                PROBE_TIMEOUT.as_secs()
            ),
            Away::Failed(why) if why.contains("certificate") => {
                format!("{} is not trusted: {why}; pass its authority's PEM file as --ca-file", self.base)
            }
            Away::Failed(why) => format!("{} does not answer: {why}", self.base),
        }
    }

    async fn get(&self, url: Url) -> Result<Page, Away> {
        let mut request = self.key.authorize(self.client.get(url)).timeout(PROBE_TIMEOUT);
        if self.probe == Probe::AnthropicModels {
            request = request.header(ANTHROPIC_VERSION.0, ANTHROPIC_VERSION.1);
            if let Some(key) = self.key.header() {
                request = request.header("x-api-key", key);
            }
        }
        let mut response = request.send().await?;
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let (status, location) = (response.status().as_u16(), location.unwrap_or("nowhere").to_owned());
        let body = read_at_most(&mut response, MAX_ANSWER_BYTES).await?;
        Ok(Page { status, location, body })
    }
}

/// An answer to a question; without a status there was none.
#[derive(Debug, Default)]
struct Page {
    status: u16,
    /// Where a redirect leads.
    location: String,
    body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
enum Away {
    /// None came in time.
    Late,
    Failed(String),
}

impl From<reqwest::Error> for Away {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() && !error.is_connect() { Self::Late } else { Self::Failed(root_cause(&error)) }
    }
}

fn sentence(state: ProviderState, detail: &Reason) -> String {
    match state {
        ProviderState::Ready if detail.is_empty() => "ready".to_owned(),
        ProviderState::Ready => format!("ready, but {detail}"),
        _ => format!("not ready: {detail}"),
    }
}
