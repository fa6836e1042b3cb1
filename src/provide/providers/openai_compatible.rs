//! Every server that speaks OpenAI's chat completions: the request is passed on with the entry's model in it, and the answer's bytes
//! are passed back unchanged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use reqwest::{
    Body, Client, Response, Url,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{CannotOpen, Opened, Readiness};
use crate::{
    domain::{Failure, FailureCode, Outcome, Printable},
    http::{Frames, Outgoing, read_at_most, retry_after, root_cause, was_refused_unprocessed},
    openai::{convert::read_completion, failure::is_loading},
    provide::{
        config_file::Entry,
        openai::{
            failures::{MAX_ERROR_BODY_BYTES, Origin},
            http::{BaseUrl, Clients, Key},
            readiness::{Health, Probe, Prober},
            relay::{Form, Relay, form_of, with_model},
            rewrite::{RewrittenRequest, Wanted, rewrite_request},
        },
        task::{Chunks, Finished, Provider, Task},
    },
};

/// A request that fails this soon, before any answer, met a kept connection that the server was just closing: it is sent again, on a new
/// one. If it fails later, the server itself has failed, and may have worked on the request.
const STALE_CONNECTION: Duration = Duration::from_millis(250);
/// How often a request is sent again which the server certainly has not worked on.
const REPEATS: u32 = 3;
/// How long the end of an answer may take after its last event, for the connection to be used again.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);
/// First wait for a model that is loading; it doubles up to [`LOADING_MAX`], because each try sends the whole prompt.
const LOADING_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two tries while a model is loading, also where the server asks for more: nobody sees its progress sooner.
const LOADING_MAX: Duration = Duration::from_secs(15);

/// Checked once instead of for every request.
static JSON: HeaderValue = HeaderValue::from_static("application/json");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Makes the provider of an entry whose server is at `default_url` unless the entry says otherwise, and is asked by `probe`.
pub(super) fn open(
    entry: &Entry,
    default_url: &str,
    probe: Probe,
    clients: &Clients,
) -> Result<Opened, CannotOpen> {
    let base = BaseUrl::parse(entry.url.as_deref().unwrap_or(default_url))
        .map_err(|why| CannotOpen(format!("its url {why}")))?;
    let key = Key::from_env(entry.api_key_env.as_deref()).map_err(CannotOpen)?;
    let client = clients
        .for_url(base.url())
        .map_err(|error| CannotOpen(format!("cannot make connections to {base}: {}", root_cause(&error))))?;
    let health = Health::new(Readiness::unknown());
    let readiness = health.watch();
    let probing = entry.publish.then(|| {
        let (client, base, key) = (client.clone(), base.clone(), key.clone());
        start(Prober { client, base, key, model: entry.model.clone(), probe, health: health.clone() })
    });
    let chat = base.chat();
    let provider = Server {
        client,
        chat,
        bearer: key.bearer(),
        origin: Origin::new(&base, entry.url.is_none(), key),
        model: entry.model.clone(),
        published_model: entry.published_model.clone(),
        health,
        refuses_usage: AtomicBool::new(false),
        _probing: probing,
    };
    Ok(Opened { provider: Arc::new(provider), readiness })
}

fn start(prober: Prober) -> DropGuard {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move { stopped.run_until_cancelled(prober.run()).await });
    stop.drop_guard()
}

/// One server with one model.
struct Server {
    client: Client,
    chat: Url,
    origin: Origin,
    /// The key as a header.
    bearer: Option<HeaderValue>,
    model: String,
    /// What stands as the model in answers, where the owner says so.
    published_model: Option<String>,
    health: Arc<Health>,
    /// It has refused a request because of the wish for usage that the host had added.
    refuses_usage: AtomicBool,
    /// Ends the questions about its readiness when it goes.
    _probing: Option<DropGuard>,
}

/// A request that got no answer.
struct Unanswered {
    error: reqwest::Error,
    /// The server cannot have worked on it: it did not get the whole of it, or says so.
    unprocessed: bool,
}

/// A refusal, not judged yet.
struct Refusal {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

#[tonic::async_trait]
impl Provider for Server {
    async fn run(&self, task: Task, chunks: Chunks, cancel: CancellationToken) -> Finished {
        let _under_way = self.health.request();
        // Dropping the exchange drops the request or the response, and that closes the server's socket.
        tokio::select! {
            biased;
            finished = self.exchange(&task, &chunks) => finished,
            () = cancel.cancelled() => Outcome::Cancelled.into(),
        }
    }
}

impl Server {
    async fn exchange(&self, task: &Task, chunks: &Chunks) -> Finished {
        match self.answered(task).await {
            Ok((request, response)) => self.take(response, &request, chunks).await,
            Err(failure) => failure.into(),
        }
    }

    /// A successful answer, and the request that it answers. A server that refuses the wish for usage, which is the host's and not the
    /// caller's, is asked again without it.
    async fn answered(&self, task: &Task) -> Result<(RewrittenRequest, Response), Failure> {
        let usage = !self.refuses_usage.load(Ordering::Relaxed);
        let request = self.request(task, usage)?;
        let refusal = match self.answer(&request, task).await? {
            Ok(response) => return Ok((request, response)),
            Err(refusal) => refusal,
        };
        if !(request.usage_is_ours && refusal.is_about_usage()) {
            return Err(self.judged(&refusal));
        }
        let request = self.request(task, false)?;
        let response = self.answer(&request, task).await?.map_err(|refusal| self.judged(&refusal))?;
        self.refuses_usage.store(true, Ordering::Relaxed);
        Ok((request, response))
    }

    fn request(&self, task: &Task, usage: bool) -> Result<RewrittenRequest, Failure> {
        let wanted = Wanted { model: &self.model, stream: task.streaming, usage };
        rewrite_request(&task.request, wanted).map_err(|error| {
            let why = format!("the request is not a chat-completions body: {error}");
            Failure::new(FailureCode::InvalidRequest, why)
        })
    }

    fn judged(&self, refusal: &Refusal) -> Failure {
        if refusal.status == 503 {
            self.health.doubt();
        }
        self.origin.refused(refusal.status, &refusal.headers, &refusal.body)
    }

    /// A successful answer, or a refusal. If the model is still loading, this waits for it, for as long as the agent's deadlines allow.
    async fn answer(
        &self,
        request: &RewrittenRequest,
        task: &Task,
    ) -> Result<Result<Response, Refusal>, Failure> {
        let mut wait = LOADING_MIN;
        loop {
            let mut response = self.send(request, task).await?;
            if response.status().is_success() {
                return Ok(Ok(response));
            }
            let body = read_at_most(&mut response, MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
            let refusal =
                Refusal { status: response.status().as_u16(), headers: response.headers().clone(), body };
            let loading = is_loading(refusal.status, &refusal.body);
            if !(loading && self.health.loaded(wait.max(refusal.asks_to_wait()).min(LOADING_MAX)).await) {
                return Ok(Err(refusal));
            }
            wait *= 2;
        }
    }

    async fn send(&self, request: &RewrittenRequest, task: &Task) -> Result<Response, Failure> {
        let begun = Instant::now();
        let mut repeats = 0;
        loop {
            let unanswered = match self.post(request, task).await {
                Ok(response) => return Ok(response),
                Err(unanswered) => unanswered,
            };
            let stale = repeats == 0 && begun.elapsed() < STALE_CONNECTION && is_stale(&unanswered.error);
            if stale || (unanswered.unprocessed && repeats < REPEATS) {
                repeats += 1;
                continue;
            }
            self.health.doubt();
            return Err(self.origin.transport_failure(&unanswered.error));
        }
    }

    async fn post(&self, request: &RewrittenRequest, task: &Task) -> Result<Response, Unanswered> {
        let mut headers = headers(task);
        headers.extend(self.bearer.clone().map(|key| (AUTHORIZATION, key)));
        let (body, progress) = Outgoing::new(request.body.clone());
        let post = self.client.post(self.chat.clone()).headers(headers).body(Body::wrap(body));
        post.send().await.map_err(|error| {
            let broken_off = !progress.is_whole() && !error.is_connect();
            let unprocessed = broken_off || was_refused_unprocessed(&error);
            Unanswered { error, unprocessed }
        })
    }

    /// Reads an answer as what it is.
    async fn take(&self, response: Response, request: &RewrittenRequest, chunks: &Chunks) -> Finished {
        if let Some(coding) = coding(response.headers()) {
            let what = format!("an answer that is encoded as {}, which nobody asked for", Printable(coding));
            return self.origin.bad_output(what).into();
        }
        let label = label(response.headers(), request.stream);
        if !request.stream && label == Form::Whole {
            return self.whole(response, chunks.max_message_bytes()).await;
        }
        let mut answer = Frames::new(response);
        let mut begun = BytesMut::new();
        let mut form = (!request.stream).then_some(label);
        while form.is_none() && begun.len() < chunks.max_message_bytes() {
            match answer.next().await {
                Ok(Some(piece)) => begun.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error) => return self.origin.transport_failure(&error).into(),
            }
            form = form_of(&begun, label);
        }
        match form.unwrap_or(label) {
            Form::Events => self.relay(answer, &begun, request, chunks).await,
            Form::Whole => self.mislabelled(answer, begun, chunks.max_message_bytes()).await,
        }
    }

    /// A whole answer, byte for byte.
    async fn whole(&self, mut response: Response, limit: usize) -> Finished {
        match read_at_most(&mut response, limit).await {
            Ok(body) => self.body(body, limit),
            Err(error) => self.origin.transport_failure(&error).into(),
        }
    }

    /// A whole answer where a stream was asked for; `begun` is what has come of it.
    async fn mislabelled(&self, mut answer: Frames, mut begun: BytesMut, limit: usize) -> Finished {
        while begun.len() < limit {
            match answer.next().await {
                Ok(Some(piece)) => begun.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error) => return self.origin.transport_failure(&error).into(),
            }
        }
        self.body(begun.freeze(), limit)
    }

    fn body(&self, body: Bytes, limit: usize) -> Finished {
        if body.len() >= limit {
            return self.origin.bad_output(format_args!("an answer of more than {limit} bytes")).into();
        }
        match read_completion(&body) {
            Ok(meta) => {
                let body = with_model(body, self.published_model.as_deref());
                Finished { outcome: Outcome::Body(body), usage: meta.usage }
            }
            Err(failure) if failure.code == FailureCode::BadOutput => {
                self.origin.bad_output("something that is not a JSON object").into()
            }
            Err(_) => self.origin.reported(&body).into(),
        }
    }

    /// A streamed answer, chunk by chunk; `begun` is what has come of it.
    async fn relay(
        &self,
        mut answer: Frames,
        begun: &[u8],
        request: &RewrittenRequest,
        chunks: &Chunks,
    ) -> Finished {
        let model = self.published_model.as_deref();
        let mut relay = Relay::new(&self.origin, chunks, model, request.usage_is_ours);
        let mut taken = relay.take(begun).await;
        let outcome = loop {
            if let Err(end) = taken {
                break end;
            }
            taken = match answer.next().await {
                Ok(Some(piece)) => relay.take(&piece).await,
                Ok(None) => Err(relay.end_of_input().await),
                Err(_) if relay.is_complete() => Err(Outcome::Complete.into()),
                Err(error) => Err(self.origin.transport_failure(&error).into()),
            };
        };
        if outcome.outcome == Outcome::Complete {
            finish_reading(answer);
        }
        Finished { usage: relay.usage(), ..outcome }
    }
}

impl Refusal {
    /// Whether it names the option that asks for usage.
    fn is_about_usage(&self) -> bool {
        matches!(self.status, 400 | 422) && memchr::memmem::find(&self.body, b"stream_options").is_some()
    }

    /// How long the server asks to wait.
    fn asks_to_wait(&self) -> Duration {
        retry_after(&self.headers).unwrap_or_default()
    }
}

/// Reads what follows the last event, so that the connection goes back to the pool.
fn finish_reading(mut answer: Frames) {
    // Usually the end came together with the last event.
    if matches!(answer.next().now_or_never(), Some(Ok(None) | Err(_))) {
        return;
    }
    tokio::spawn(async move {
        let rest = async { while let Ok(Some(_)) = answer.next().await {} };
        // A server that continues after the end loses the connection.
        let _ = timeout(TAIL_TIMEOUT, rest).await;
    });
}

/// How the answer is to be read going by its content type, or else by what was asked for.
fn label(headers: &HeaderMap, asked: bool) -> Form {
    let named = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let has = |word: &[u8]| named.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    match has(b"event-stream") || (asked && !has(b"json") && !has(b"html")) {
        true => Form::Events,
        false => Form::Whole,
    }
}

/// The encoding of an answer, of which none was asked for.
fn coding(headers: &HeaderMap) -> Option<&str> {
    let coding = headers.get(CONTENT_ENCODING)?.to_str().unwrap_or("something unreadable").trim();
    (!matches!(coding.to_ascii_lowercase().as_str(), "" | "identity")).then_some(coding)
}

fn is_stale(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

/// The headers of a request: its type, and the trace that the provider's own spans belong to.
fn headers(task: &Task) -> HeaderMap {
    // With room for the headers that the client adds.
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, JSON.clone());
    for name in [TRACEPARENT, TRACESTATE] {
        let value = task.trace_context.get(name.as_str()).and_then(|value| HeaderValue::from_str(value).ok());
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    headers
}
