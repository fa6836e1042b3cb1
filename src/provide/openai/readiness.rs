//! Whether a server can work now: asked at intervals, and at once when a request has failed.
//!
//! Each opted-in provider causes one request every 10 s while its server is well and on this machine ([`INTERVAL`]), every 60 s if the
//! server is elsewhere ([`REMOTE_INTERVAL`]), and about one per second while the server is not well ([`RETRY_INTERVAL`]). In between,
//! nothing wakes up.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    failures,
    http::{BaseUrl, Key},
};
use crate::{
    domain::ProviderState,
    http::{read_at_most, root_cause},
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
/// How long one question may take: even a server whose threads are all computing answers in this time.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
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
}

impl Health {
    pub(in crate::provide) fn new(readiness: Readiness) -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(readiness), ask: Notify::new() })
    }

    pub(in crate::provide) fn watch(&self) -> watch::Receiver<Readiness> {
        self.state.subscribe()
    }

    /// A request could not reach the server: ask at once.
    pub(in crate::provide) fn doubt(&self) {
        self.ask.notify_one();
    }

    /// A request met a model that is loading: waits until it is known to be ready (true) or gone (false). The page that is asked
    /// may call ready what the chat calls loading, so the next request waits as long as the next question would.
    pub(in crate::provide) async fn loaded(&self) -> bool {
        let asked = Instant::now();
        self.set(Readiness::new(ProviderState::Loading, "the model is loading"));
        self.ask.notify_one();
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|readiness| readiness.state != ProviderState::Loading).await;
        let ready = settled.is_ok_and(|readiness| readiness.state == ProviderState::Ready);
        if ready {
            sleep_until(asked + RETRY_INTERVAL).await;
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
            let readiness = self.ask().await;
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

    async fn ask(&self) -> Readiness {
        let first = match self.probe {
            Probe::LlamaCpp => self.base.root("health"),
            Probe::Models | Probe::AnthropicModels => self.base.join("models"),
        };
        let (status, body) = match self.get(first).await {
            Ok(answer) => answer,
            Err(away) => return Readiness::new(ProviderState::Unavailable, away),
        };
        match self.judge(status, &body) {
            Some(trouble) => trouble,
            None => self.capabilities(body).await,
        }
    }

    /// What is wrong, going by the answer to the first question; `None` if nothing is.
    fn judge(&self, status: StatusCode, body: &[u8]) -> Option<Readiness> {
        let base = &self.base;
        let unavailable = |detail| Some(Readiness::new(ProviderState::Unavailable, detail));
        match status.as_u16() {
            503 if self.probe == Probe::LlamaCpp || failures::is_loading(503, body) => {
                Some(Readiness::new(ProviderState::Loading, "the model is loading"))
            }
            401 | 403 => unavailable(match self.key.variable() {
                Some(variable) => format!("{base} refuses the key in {variable}"),
                None => format!("{base} wants a key; name its variable as apiKeyEnv"),
            }),
            status @ 500.. => unavailable(format!("{base} answers {status}")),
            200 if self.probe != Probe::LlamaCpp => self.no_list(body),
            // A server without such a page, or one that limits requests, answers nevertheless, which is what matters.
            _ => None,
        }
    }

    /// What is wrong with a page that should be a list of models: another program may listen where the server did.
    fn no_list(&self, body: &[u8]) -> Option<Readiness> {
        let detail = || {
            let base = &self.base;
            format!("{base} answers, but not with a list of models; check its url in config.json")
        };
        let unavailable = || Readiness::new(ProviderState::Unavailable, detail());
        (!is_list(body)).then(unavailable)
    }

    /// What the server tells about the model. It is ready whatever comes of this, unless it turns out to be another program.
    async fn capabilities(&self, first: Bytes) -> Readiness {
        let mut ready = Readiness::new(ProviderState::Ready, "");
        let (models, props) = match self.probe {
            Probe::Models | Probe::AnthropicModels => (first, Bytes::new()),
            Probe::LlamaCpp => {
                (self.page(self.base.join("models")).await, self.page(self.base.root("props")).await)
            }
        };
        if let Some(other) =
            self.no_list(&models).filter(|_| self.probe == Probe::LlamaCpp && !models.is_empty())
        {
            return other;
        }
        let models: Models = serde_json::from_slice(&models).unwrap_or_default();
        let props: Props = serde_json::from_slice(&props).unwrap_or_default();
        let ours = models.data.iter().find(|model| model.is(&self.model));
        if ours.is_none() && !models.data.is_empty() && self.probe != Probe::LlamaCpp {
            ready.detail = format!("{} does not list the model {}", self.base, self.model);
        }
        // llama.cpp serves one model, under whatever name it is asked for.
        let ours = ours.or(models.data.first().filter(|_| self.probe == Probe::LlamaCpp));
        ready.context_tokens =
            props.default_generation_settings.n_ctx.or_else(|| ours.and_then(Model::context_tokens));
        ready
    }

    async fn page(&self, url: Url) -> Bytes {
        match self.get(url).await {
            Ok((status, body)) if status.is_success() => body,
            _ => Bytes::new(),
        }
    }

    async fn get(&self, url: Url) -> Result<(StatusCode, Bytes), String> {
        let mut request = self.key.authorize(self.client.get(url)).timeout(PROBE_TIMEOUT);
        if self.probe == Probe::AnthropicModels {
            request = request.header(ANTHROPIC_VERSION.0, ANTHROPIC_VERSION.1);
            if let Some(key) = self.key.header() {
                request = request.header("x-api-key", key);
            }
        }
        let away = |error: &reqwest::Error| match error.is_timeout() {
            true => format!("{} does not answer within {} s", self.base, PROBE_TIMEOUT.as_secs()),
            false => format!("{} does not answer: {}", self.base, root_cause(error)),
        };
        let mut response = request.send().await.map_err(|error| away(&error))?;
        let body = read_at_most(&mut response, MAX_ANSWER_BYTES).await.map_err(|error| away(&error))?;
        Ok((response.status(), body))
    }
}

fn sentence(state: ProviderState, detail: &str) -> String {
    match (state, detail) {
        (ProviderState::Ready, "") => "ready".to_owned(),
        (ProviderState::Ready, detail) => format!("ready, but {detail}"),
        (_, detail) => format!("not ready: {detail}"),
    }
}

/// Whether a page is a list of models, in any of the shapes that servers give it: OpenAI's `data`, which older Ollamas leave null,
/// `models`, or a bare array as at Together.
pub(in crate::provide) fn is_list(page: &[u8]) -> bool {
    match serde_json::from_slice(page) {
        Ok(serde_json::Value::Object(members)) => {
            ["data", "models"].iter().any(|name| members.contains_key(*name))
        }
        Ok(page) => page.is_array(),
        Err(_) => false,
    }
}

/// The list of models, in the dialects that carry a context length.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::provide) struct Models {
    pub(in crate::provide) data: Vec<Model>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::provide) struct Model {
    pub(in crate::provide) id: String,
    pub(in crate::provide) owned_by: String,
    /// vLLM.
    max_model_len: Option<u32>,
    /// OpenRouter and others.
    context_length: Option<u32>,
    /// llama.cpp.
    meta: Option<Meta>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    /// What the server was started with; newer versions only.
    n_ctx: Option<u32>,
    n_ctx_train: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Props {
    default_generation_settings: Generation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Generation {
    n_ctx: Option<u32>,
}

impl Model {
    /// Ollama lists "llama3:latest" and Gemini "models/gemini-…" for what people write without it.
    fn is(&self, name: &str) -> bool {
        let bare = |id: &str| id.trim_start_matches("models/").trim_end_matches(":latest").to_owned();
        bare(&self.id) == bare(name)
    }

    fn context_tokens(&self) -> Option<u32> {
        let llamacpp = self.meta.as_ref().and_then(|meta| meta.n_ctx.or(meta.n_ctx_train));
        self.max_model_len.or(self.context_length).or(llamacpp).filter(|tokens| *tokens > 0)
    }
}
