//! Every server that speaks OpenAI's chat completions: the request is passed on with the entry's model in it, and the answer's bytes
//! are passed back unchanged.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use reqwest::{
    Body, Client, Response, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{CannotOpen, Kind, Opened, Readiness};
use crate::{
    domain::{Failure, FailureCode, Outcome, Usage},
    http::{Frames, Outgoing, read_at_most, root_cause, was_refused_unprocessed},
    provide::{
        config_file::Entry,
        openai::{
            failures,
            http::{BaseUrl, Clients, Key},
            peek::{self, Peeker},
            readiness::{Health, Probe, Prober},
            splice::{self, Spliced},
            sse::{Event, Scanner},
        },
        task::{Chunks, Finished, Provider, Task},
    },
};

pub(super) const KINDS: &[Kind] = &[
    kind("openai"),
    kind("ollama"),
    kind("vllm"),
    kind("llamacpp"),
    kind("lmstudio"),
    kind("deepseek"),
    kind("anthropic"),
    kind("gemini"),
];

/// A request that fails this soon, before any answer, met a kept connection that the server was just closing: it is sent again, on a new
/// one. If it fails later, the server itself has failed, and may have worked on the request.
const STALE_CONNECTION: Duration = Duration::from_millis(250);
/// How often a request is sent again which the server certainly has not worked on.
const REPEATS: u32 = 3;
/// How often a server's comments are passed on as signs of life: far below the agent's token deadlines.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the end of an answer may take after its last event, for the connection to be used again.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);

/// Checked once instead of for every request.
static JSON: HeaderValue = HeaderValue::from_static("application/json");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const fn kind(name: &'static str) -> Kind {
    Kind { name, needs_model: true, open }
}

/// Where a kind of server listens unless the entry says otherwise, and how it is asked whether it is ready.
fn defaults(kind: &str) -> (&'static str, Probe) {
    match kind {
        "ollama" => ("http://127.0.0.1:11434", Probe::Models),
        "vllm" => ("http://127.0.0.1:8000", Probe::Models),
        "llamacpp" => ("http://127.0.0.1:8080", Probe::LlamaCpp),
        "lmstudio" => ("http://127.0.0.1:1234", Probe::Models),
        "deepseek" => ("https://api.deepseek.com", Probe::Models),
        "anthropic" => ("https://api.anthropic.com", Probe::AnthropicModels),
        "gemini" => ("https://generativelanguage.googleapis.com/v1beta/openai", Probe::Models),
        _ => ("https://api.openai.com", Probe::Models),
    }
}

fn open(entry: &Entry, clients: &Clients) -> Result<Opened, CannotOpen> {
    let (default_url, probe) = defaults(&entry.kind);
    let url = entry.url.as_deref().unwrap_or(default_url);
    let base = BaseUrl::parse(url).map_err(|why| CannotOpen(format!("its url {why}")))?;
    let key = Key::from_env(entry.api_key_env.as_deref()).map_err(CannotOpen)?;
    let client = clients
        .for_url(base.url())
        .map_err(|error| CannotOpen(format!("cannot make connections to {base}: {}", root_cause(&error))))?;
    let health = Health::new(Readiness::unknown());
    let readiness = health.watch();
    let model = entry.model.clone();
    let probing = entry.publish.then(|| {
        let (client, base, key) = (client.clone(), base.clone(), key.clone());
        start(Prober { client, base, key, model: model.clone(), probe, health: health.clone() })
    });
    let chat = base.join("chat/completions");
    let provider = Server {
        client,
        chat,
        name: base.to_string(),
        bearer: key.bearer(),
        key,
        model,
        health,
        peeker: Peeker::default(),
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
    /// Its base URL without credentials, for people.
    name: String,
    key: Key,
    /// The key as a header.
    bearer: Option<HeaderValue>,
    model: String,
    health: Arc<Health>,
    peeker: Peeker,
    /// Ends the questions about its readiness when it goes.
    _probing: Option<DropGuard>,
}

/// A request that got no answer.
struct Unanswered {
    error: reqwest::Error,
    /// The server cannot have worked on it: it did not get the whole of it, or says so.
    unprocessed: bool,
}

#[tonic::async_trait]
impl Provider for Server {
    async fn run(&self, task: Task, chunks: Chunks, cancel: CancellationToken) -> Finished {
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
        let request = match splice::splice(&task.request, &self.model) {
            Ok(request) => request,
            Err(error) => {
                let why = format!("the request is not a chat-completions body: {error}");
                return Failure::new(FailureCode::InvalidRequest, why).into();
            }
        };
        match self.answer(&request, task).await {
            Ok(response) if is_event_stream(response.headers(), request.stream) => {
                self.relay(response, &request, chunks).await
            }
            Ok(response) => self.whole(response, chunks.max_message_bytes()).await,
            Err(failure) => failure.into(),
        }
    }

    /// A successful answer. If the model is still loading, this waits for it, for as long as the agent's deadlines allow.
    async fn answer(&self, request: &Spliced, task: &Task) -> Result<Response, Failure> {
        loop {
            let mut response = self.send(request, task).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let status = response.status().as_u16();
            let body = read_at_most(&mut response, failures::MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
            if failures::is_loading(status, &body) && self.health.loaded().await {
                continue;
            }
            if status == 503 {
                self.health.doubt();
            }
            return Err(failures::from_answer(&self.name, status, response.headers(), body, &self.key));
        }
    }

    async fn send(&self, request: &Spliced, task: &Task) -> Result<Response, Failure> {
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
            return Err(failures::from_transport(&self.name, &unanswered.error));
        }
    }

    async fn post(&self, request: &Spliced, task: &Task) -> Result<Response, Unanswered> {
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

    /// A whole answer, byte for byte.
    async fn whole(&self, mut response: Response, limit: usize) -> Finished {
        let body = match read_at_most(&mut response, limit).await {
            Ok(body) => body,
            Err(error) => return failures::from_transport(&self.name, &error).into(),
        };
        match peek::answer(&body) {
            _ if body.len() >= limit => {
                failures::bad_output(&self.name, format_args!("an answer of more than {limit} bytes")).into()
            }
            None => failures::bad_output(&self.name, "something that is not a JSON object").into(),
            Some(answer) if answer.error => failures::from_error_chunk(&self.name, body, &self.key).into(),
            Some(answer) => Finished { outcome: Outcome::Body(body), usage: answer.usage },
        }
    }

    /// A streamed answer, chunk by chunk.
    async fn relay(&self, response: Response, request: &Spliced, chunks: &Chunks) -> Finished {
        let mut answer = Frames::new(response);
        let mut stream = Stream::new(self, request.usage_is_ours, chunks);
        let outcome = loop {
            let more = match answer.next().await {
                Ok(Some(piece)) => stream.take(piece).await,
                Ok(None) => Err(stream.end_of_input().await),
                // The answer is complete; what followed it does not matter.
                Err(_) if stream.finish => Err(Outcome::Complete.into()),
                Err(error) => Err(failures::from_transport(&self.name, &error).into()),
            };
            if let Err(end) = more {
                break end;
            }
        };
        if outcome.outcome == Outcome::Complete {
            finish_reading(answer);
        }
        Finished { usage: stream.usage, ..outcome }
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

/// One streamed answer on its way.
struct Stream<'a> {
    server: &'a Server,
    chunks: &'a Chunks,
    scanner: Scanner,
    /// The host asked for the usage chunk, not the caller, who therefore does not get it.
    drop_usage: bool,
    /// A choice has ended, so the end of input is orderly.
    finish: bool,
    usage: Option<Usage>,
    shown_alive: Option<Instant>,
}

impl<'a> Stream<'a> {
    fn new(server: &'a Server, drop_usage: bool, chunks: &'a Chunks) -> Self {
        let scanner = Scanner::default();
        Self { server, chunks, scanner, drop_usage, finish: false, usage: None, shown_alive: None }
    }

    /// Passes on the events that `piece` completes. An error is the stream's end, whether good or bad.
    async fn take(&mut self, piece: Bytes) -> Result<(), Finished> {
        self.scanner.feed(piece);
        loop {
            match self.scanner.next() {
                Ok(Some(Event::Data(data))) => self.data(data).await?,
                Ok(Some(Event::Comment)) => self.alive().await?,
                Ok(None) => return Ok(()),
                Err(too_long) => return Err(failures::bad_output(&self.server.name, too_long).into()),
            }
        }
    }

    async fn data(&mut self, data: Bytes) -> Result<(), Finished> {
        match data.trim_ascii() {
            b"[DONE]" => {
                // Without a finish_reason, only this says that the stream is complete, so the agent has to see it.
                if !self.finish {
                    self.chunks.raw(data).await?;
                }
                return Err(Outcome::Complete.into());
            }
            b"" => return Ok(()),
            _ => {}
        }
        let said = self.server.peeker.peek(&data);
        if said.error {
            return Err(failures::from_error_chunk(&self.server.name, data, &self.server.key).into());
        }
        self.finish |= said.finish;
        self.usage = said.usage.or(self.usage);
        if self.drop_usage && said.no_choices && said.usage.is_some() {
            return Ok(());
        }
        Ok(self.chunks.raw(data).await?)
    }

    async fn alive(&mut self) -> Result<(), Finished> {
        let now = Instant::now();
        if self.shown_alive.is_some_and(|shown| now - shown < ALIVE_INTERVAL) {
            return Ok(());
        }
        self.shown_alive = Some(now);
        Ok(self.chunks.alive().await?)
    }

    async fn end_of_input(&mut self) -> Finished {
        if let Some(rest) = std::mem::take(&mut self.scanner).finish()
            && let Err(end) = self.data(rest).await
        {
            return end;
        }
        match self.finish {
            true => Outcome::Complete.into(),
            false => failures::bad_output(
                &self.server.name,
                "a stream that ended without finish_reason and without [DONE]",
            )
            .into(),
        }
    }
}

/// Whether the answer is to be read as events: going by its content type, or else by what was asked for.
fn is_event_stream(headers: &HeaderMap, asked: bool) -> bool {
    let named = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let has = |word: &[u8]| named.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    has(b"event-stream") || (asked && !has(b"json") && !has(b"html"))
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
