//! A server in OpenAI's dialect that does what a test tells it, on loopback.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    serve::ListenerExt as _,
};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};
use mcprelay::{
    domain::ProviderName,
    provide::{Host, HostConfig, config_file::Entry},
};
use reqwest::header::HeaderMap;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::agent::{Agent, BOUND, Session};

/// Requests kept for a test that looks: more than any makes.
const MAX_SEEN: usize = 64;

/// One chat request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

type Chat = Box<dyn Fn(Seen) -> BoxFuture<'static, Response> + Send + Sync>;

/// The scripted server. Dropping it closes its port.
pub(crate) struct Server {
    pub(crate) url: String,
    script: Arc<Script>,
    seen: mpsc::Receiver<Seen>,
    serving: JoinHandle<()>,
}

struct Script {
    chat: Chat,
    pages: Mutex<Vec<(&'static str, u16, String)>>,
    /// Whether `GET`s are answered.
    answers_pages: watch::Sender<bool>,
    asked: AtomicUsize,
    connections: Arc<AtomicUsize>,
    seen: mpsc::Sender<Seen>,
}

impl Server {
    /// Answers chat requests with `chat`, and lists the model "real".
    pub(crate) async fn start<F>(chat: impl Fn(Seen) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response> + Send + 'static,
    {
        Self::start_on("127.0.0.1:0", chat).await
    }

    pub(crate) async fn start_on<F>(address: &str, chat: impl Fn(Seen) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (found, seen) = mpsc::channel(MAX_SEEN);
        let models = r#"{"object":"list","data":[{"id":"real","object":"model","max_model_len":4096}]}"#;
        let connections = Arc::new(AtomicUsize::new(0));
        let script = Arc::new(Script {
            chat: Box::new(move |seen| Box::pin(chat(seen))),
            pages: Mutex::new(vec![("/v1/models", 200, models.to_owned())]),
            answers_pages: watch::Sender::new(true),
            asked: AtomicUsize::new(0),
            connections: connections.clone(),
            seen: found,
        });
        let app = Router::new().fallback(answer).with_state(script.clone());
        let counted = listener.tap_io(move |_| {
            connections.fetch_add(1, Ordering::Relaxed);
        });
        let serving = tokio::spawn(async move { axum::serve(counted, app).await.unwrap() });
        Self { url, script, seen, serving }
    }

    /// Sets what a `GET` of `path` gets.
    pub(crate) fn page(&self, path: &'static str, status: u16, body: &str) {
        let mut pages = self.script.pages.lock().unwrap();
        pages.retain(|(known, ..)| *known != path);
        pages.push((path, status, body.to_owned()));
    }

    /// Sets that a `GET` of `path` is sent elsewhere.
    pub(crate) fn redirect(&self, path: &'static str, target: &str) {
        self.page(path, 308, target);
    }

    /// No `GET` is answered any more.
    pub(crate) fn hold_pages(&self) {
        self.script.answers_pages.send_replace(false);
    }

    /// The next chat request.
    pub(crate) async fn seen(&mut self) -> Seen {
        timeout(BOUND, self.seen.recv()).await.expect("a request").unwrap()
    }

    /// How many `GET`s there were.
    pub(crate) fn asked(&self) -> usize {
        self.script.asked.load(Ordering::Relaxed)
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.script.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(script): State<Arc<Script>>, request: Request) -> Response {
    if request.method() == "GET" {
        script.asked.fetch_add(1, Ordering::Relaxed);
        let held = script.answers_pages.subscribe().wait_for(|answers| *answers).await.is_err();
        assert!(!held, "its sender is in the script");
        let pages = script.pages.lock().unwrap();
        let page = pages.iter().find(|(path, ..)| *path == request.uri().path());
        let (status, body) = page.map_or((404, String::new()), |(_, status, body)| (*status, body.clone()));
        return if (300..400).contains(&status) { redirect_to(&body) } else { json(status, body) };
    }
    assert_eq!(request.uri().path(), "/v1/chat/completions");
    let headers = request.headers().clone();
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let seen = Seen { headers, body: String::from_utf8(body.to_vec()).unwrap() };
    // A test that does not look does not miss what is too much.
    let _ = script.seen.try_send(seen.clone());
    (script.chat)(seen).await
}

/// A JSON answer.
pub(crate) fn json(status: u16, body: impl Into<String>) -> Response {
    answer_of(status, "application/json", Body::from(body.into()))
}

/// A redirect.
pub(crate) fn redirect_to(target: &str) -> Response {
    let mut response = json(308, "");
    response.headers_mut().insert("location", target.parse().unwrap());
    response
}

/// An event stream that ends.
pub(crate) fn sse(body: impl Into<String>) -> Response {
    answer_of(200, "text/event-stream; charset=utf-8", Body::from(body.into()))
}

/// An event stream that says `first` and then nothing more, without an end; `gone` tells when its caller has left.
pub(crate) fn endless(first: &'static str, gone: DropGuard) -> Response {
    let pieces = stream::unfold((Some(first), gone), |(first, gone)| async move {
        match first {
            Some(first) => Some((Ok::<_, Infallible>(Bytes::from_static(first.as_bytes())), (None, gone))),
            None => std::future::pending().await,
        }
    });
    answer_of(200, "text/event-stream", Body::from_stream(pieces))
}

pub(crate) fn answer_of(status: u16, kind: &str, body: Body) -> Response {
    Response::builder().status(status).header("content-type", kind).body(body).unwrap().into_response()
}

/// A running host with one opted-in provider called "virtual", and the agent's end of its session.
pub(crate) struct Relay {
    pub(crate) session: Session,
    _agent: Agent,
    _home: TempDir,
    _stop: DropGuard,
}

impl Relay {
    /// Serves `server` as the model "real".
    pub(crate) async fn to(server: &Server) -> Self {
        Self::with(entry("vllm", &server.url)).await
    }

    pub(crate) async fn with(entry: Entry) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut agent = Agent::listen(&home.path().join("s"));
        let stop = host(&home, Some(vec![entry]));
        let mut session = agent.session().await;
        session.snapshot().await;
        Self { session, _agent: agent, _home: home, _stop: stop }
    }

    /// Runs one request to its end.
    pub(crate) async fn ask(&mut self, request: &str) -> crate::agent::Answer {
        self.session.offer("t1", "virtual", request).await;
        self.session.answer("t1").await
    }
}

/// Starts a host that ends with the guard.
pub(crate) fn host(home: &TempDir, entries: Option<Vec<Entry>>) -> DropGuard {
    let mut host = Host::new(HostConfig::new(home.path(), home.path().join("s")));
    if let Some(entries) = entries {
        host = host.with_providers(entries);
    }
    let stop = CancellationToken::new();
    tokio::spawn(host.run(stop.clone()));
    stop.drop_guard()
}

/// The opted-in entry "virtual" with the model "real".
pub(crate) fn entry(kind: &str, url: &str) -> Entry {
    let name = ProviderName::new("virtual").unwrap();
    Entry { url: Some(url.to_owned()), ..Entry::new(name, kind, "real") }
}
