//! An OpenAI-compatible server with one model, whose next answer a test sets.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{
    Router,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use tokio::{net::TcpListener, task::JoinHandle};

const MODELS: &str = r#"{"data":[{"id":"real"}]}"#;

/// What was asked, and what is answered.
#[derive(Default)]
struct Script {
    answer: String,
    is_stream: bool,
    seen: Vec<String>,
}

/// The server. Dropping it closes its port.
pub struct Mock {
    pub url: String,
    script: Arc<Mutex<Script>>,
    serving: JoinHandle<()>,
}

impl Mock {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let script = Arc::default();
        let app = Router::new()
            .route("/v1/models", get(|| async { MODELS }))
            .route("/v1/chat/completions", post(answer))
            .with_state(Arc::clone(&script));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Self { url, script, serving }
    }

    /// Answers with one body from now on.
    pub fn answers(&self, body: &str) {
        let mut script = lock(&self.script);
        (script.answer, script.is_stream) = (body.to_owned(), false);
    }

    /// Answers with a stream from now on, whose lines end with `end`.
    pub fn streams(&self, chunks: &[String], end: &str) {
        let event = |chunk: &str| {
            let lines = chunk.split('\n').map(|line| format!("data: {line}{end}"));
            lines.chain([end.to_owned()]).collect::<String>()
        };
        let events = chunks.iter().map(String::as_str).chain(["[DONE]"]).map(event);
        let mut script = lock(&self.script);
        (script.answer, script.is_stream) = (events.collect(), true);
    }

    /// The bodies that came since this was last asked.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.script).seen)
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, body: String) -> Response {
    let mut script = lock(&script);
    script.seen.push(body);
    let kind = if script.is_stream { "text/event-stream" } else { "application/json" };
    ([(CONTENT_TYPE, kind)], script.answer.clone()).into_response()
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}
