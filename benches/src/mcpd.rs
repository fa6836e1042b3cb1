//! A lean mcpd: the contract's happy path in memory, for loads under which fake-mcpd (its journal, its verdict, its
//! faults) would be what is measured. It refuses what it does not know and forgives nothing.

use std::{
    borrow::Cow,
    collections::HashMap,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use crate::http::{Connection, Connections, TlsArgs, event_stream, json, serve as serve_http};

/// Events that may wait for the control channel: every caller at once.
const CHANNEL_EVENTS: usize = 1024;
/// Parts of one task that may wait for its caller. The agent posts one at a time, so the second already waits.
const PARTS: usize = 4;
/// Where [`Stats`] are.
pub const STATS_PATH: &str = "/_bench/stats";
/// Where it says which providers are online.
pub const ROWS_PATH: &str = "/api/v1/llms";
const HELLO: &str = "event: hello\ndata: {\"providerSessionId\":\"bench-session\"}\n\n";
const REGISTERED: &str = r#"{"providerSessionId":"bench-session","features":["idempotent-results","result-stream"],"llms":[{"id":"1","name":"bench","kind":"virtual","status":"active"}]}"#;
/// The same of an mcpd that takes no uploads.
const REGISTERED_FOR_POSTS: &str = r#"{"providerSessionId":"bench-session","features":["idempotent-results"],"llms":[{"id":"1","name":"bench","kind":"virtual","status":"active"}]}"#;
/// Least time between two `received` of an upload.
const RECEIVED_EVERY: Duration = Duration::from_secs(1);
const ROWS: &str =
    r#"[{"id":"1","name":"bench","kind":"virtual","type":"openai","model":"m","status":"active"}]"#;

/// Arguments of `mcpd`.
#[derive(Clone, Debug, Args)]
pub struct McpdArgs {
    #[command(flatten)]
    tls: TlsArgs,
    /// Take no answer as one upload
    #[arg(long)]
    no_result_stream: bool,
}

/// What the stand-in has counted since it started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Result POSTs that it took; an upload is one.
    pub posts: u64,
    /// Result POSTs that it answered 404: their task was over.
    pub late_posts: u64,
    /// Connections that carried at least one result POST.
    pub connections: u64,
}

/// One part of a result as its caller gets it.
#[derive(Debug, PartialEq)]
enum Part {
    /// An event of a stream, and whether it is the last.
    Event(Bytes, bool),
    /// A whole answer: its status and body.
    Whole(u16, String),
}

#[derive(Default)]
struct Mcpd {
    state: Mutex<Shared>,
    connections: Connections,
}

#[derive(Default)]
struct Shared {
    channel: Option<mpsc::Sender<Bytes>>,
    tasks: HashMap<u64, mpsc::Sender<Part>>,
    next_task: u64,
    stats: Stats,
}

/// A line of an upload, without its part.
#[derive(Deserialize)]
struct Line {
    n: u64,
}

#[derive(Deserialize)]
struct ResultPart<'a> {
    #[serde(borrow)]
    chunk: Option<Chunk<'a>>,
    status: Option<u16>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    data: Cow<'a, str>,
    #[serde(default)]
    done: bool,
}

type Shares = State<Arc<Mcpd>>;

/// Serves until the process is killed.
pub async fn serve(listener: TcpListener, args: McpdArgs) -> io::Result<()> {
    let registered = if args.no_result_stream { REGISTERED_FOR_POSTS } else { REGISTERED };
    let routes = Router::new()
        .route("/api/v1/llms/_provider-register", post(async move || json(200, registered)))
        .route("/api/v1/llms/_provider-heartbeat", post(async || json(200, "{}")))
        .route("/api/v1/llms/_provider-stream", get(async |State(mcpd): Shares| mcpd.channel()))
        .route("/api/v1/llms/_provider-task/{task}/result", post(result))
        .route("/api/v1/llms/_provider-task/{task}/result-stream", post(upload))
        .route("/api/v1/llms/bench/infer", post(async |State(mcpd): Shares, body| mcpd.infer(body).await))
        .route(ROWS_PATH, get(async |State(mcpd): Shares| json(200, mcpd.rows())))
        .route(STATS_PATH, get(async |State(mcpd): Shares| Json(mcpd.stats())))
        .with_state(Arc::default());
    serve_http(listener, routes, args.tls.acceptor()?).await
}

async fn result(
    State(mcpd): Shares,
    Extension(connection): Extension<Connection>,
    Path(task): Path<u64>,
    body: Bytes,
) -> (StatusCode, &'static str) {
    mcpd.connections.saw(&connection);
    (mcpd.result(task, &body).await, "{}")
}

/// Takes lines until the last part; it is lines as far as they are in order, and nobody's otherwise.
async fn upload(
    State(mcpd): Shares,
    Extension(connection): Extension<Connection>,
    Path(task): Path<u64>,
    body: Body,
) -> (StatusCode, String) {
    mcpd.connections.saw(&connection);
    mcpd.shared().stats.posts += 1;
    let (mut body, mut rest, mut next, mut told) = (body.into_data_stream(), BytesMut::new(), 1, None);
    while let Some(Ok(piece)) = body.next().await {
        rest.extend_from_slice(&piece);
        while let Some(end) = memchr::memchr(b'\n', &rest) {
            let line = rest.split_to(end + 1);
            let Some((number, part)) = read_line(&line) else { continue };
            if number != next {
                return (StatusCode::CONFLICT, format!(r#"{{"next":{next}}}"#));
            }
            let is_end = !matches!(part, Part::Event(_, false));
            match mcpd.caller(task, &part) {
                Some(caller) if caller.send(part).await.is_ok() => next += 1,
                _ => return (StatusCode::NOT_FOUND, String::new()),
            }
            if is_end {
                return (StatusCode::OK, format!(r#"{{"next":{next}}}"#));
            }
            if told.is_none_or(|at: Instant| at.elapsed() >= RECEIVED_EVERY) {
                told = Some(Instant::now());
                mcpd.received(task, next).await;
            }
        }
    }
    (StatusCode::OK, format!(r#"{{"next":{next}}}"#))
}

impl Mcpd {
    async fn received(&self, task: u64, next: u64) {
        let event = format!("event: received\ndata: {{\"taskId\":\"{task}\",\"next\":{next}}}\n\n");
        let channel = self.shared().channel.clone();
        if let Some(channel) = channel {
            // An agent without a channel hears it from the reply.
            let _ = channel.send(event.into()).await;
        }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> Stats {
        Stats { connections: self.connections.count(), ..self.shared().stats }
    }

    fn rows(&self) -> &'static str {
        if self.shared().channel.is_some() { ROWS } else { "[]" }
    }

    fn channel(&self) -> Response {
        let (sender, events) = mpsc::channel(CHANNEL_EVENTS);
        self.shared().channel = Some(sender);
        let events = stream::iter([Bytes::from_static(HELLO.as_bytes())]).chain(ReceiverStream::new(events));
        event_stream(Body::from_stream(events.map(Ok::<_, Infallible>)))
    }

    async fn infer(&self, body: Bytes) -> Response {
        let Some(channel) = self.shared().channel.clone() else { return error(503, "no agent is connected") };
        let (task, mut parts) = self.begin();
        if channel.send(task_event(task, &body)).await.is_err() {
            return error(503, "the agent has left");
        }
        match parts.recv().await {
            Some(Part::Whole(status, body)) => json(status, body),
            Some(first) => {
                let rest = ReceiverStream::new(parts);
                event_stream(Body::from_stream(stream::iter([first]).chain(rest).map(event)))
            }
            None => error(502, "no answer came"),
        }
    }

    fn begin(&self) -> (u64, mpsc::Receiver<Part>) {
        let (sender, parts) = mpsc::channel(PARTS);
        let mut shared = self.shared();
        let task = shared.next_task;
        shared.next_task += 1;
        shared.tasks.insert(task, sender);
        (task, parts)
    }

    /// Passes one part on to its caller; the status for the agent.
    async fn result(&self, task: u64, body: &[u8]) -> StatusCode {
        let Some(part) = read_part(body) else { return StatusCode::BAD_REQUEST };
        match self.caller(task, &part) {
            Some(caller) if caller.send(part).await.is_ok() => {
                self.shared().stats.posts += 1;
                StatusCode::OK
            }
            _ => {
                self.shared().stats.late_posts += 1;
                StatusCode::NOT_FOUND
            }
        }
    }

    /// Who waits for `part`; after the last one nobody does any more.
    fn caller(&self, task: u64, part: &Part) -> Option<mpsc::Sender<Part>> {
        let mut shared = self.shared();
        match part {
            Part::Event(_, false) => shared.tasks.get(&task).cloned(),
            Part::Event(_, true) | Part::Whole(..) => shared.tasks.remove(&task),
        }
    }
}

fn task_event(task: u64, body: &[u8]) -> Bytes {
    let streaming = memchr::memmem::find(body, br#""stream":true"#).is_some();
    let head = format!(
        "event: task\ndata: {{\"kind\":\"infer\",\"taskId\":\"{task}\",\"llmName\":\"bench\",\"streaming\":{streaming},\"request\":"
    );
    [head.as_bytes(), body, b"}\n\n"].concat().into()
}

fn read_line(line: &[u8]) -> Option<(u64, Part)> {
    let Line { n } = serde_json::from_slice(line).ok()?;
    Some((n, read_part(line)?))
}

fn read_part(body: &[u8]) -> Option<Part> {
    let part: ResultPart<'_> = serde_json::from_slice(body).ok()?;
    if let Some(Chunk { data, done }) = part.chunk {
        return Some(Part::Event([b"data: ", data.as_bytes(), b"\n\n"].concat().into(), done));
    }
    match (part.status, part.body, part.error) {
        (Some(status), Some(body), _) => Some(Part::Whole(status, body.get().to_owned())),
        (_, _, Some(error)) => Some(Part::Whole(502, error_body(&error))),
        _ => None,
    }
}

/// A part of a stream as its caller gets it. An error after the head can only be an event of it.
fn event(part: Part) -> Result<Bytes, Infallible> {
    Ok(match part {
        Part::Event(event, _) => event,
        Part::Whole(_, body) => format!("data: {body}\n\n").into(),
    })
}

fn error(status: u16, message: &str) -> Response {
    json(status, error_body(message))
}

fn error_body(message: &str) -> String {
    serde_json::json!({ "error": { "message": message } }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_reaches_the_caller_as_the_event_it_was() {
        let part = read_part(br#"{"chunk":{"data":"{\"a\":\"\\n\"}"}}"#);
        assert_eq!(part, Some(Part::Event("data: {\"a\":\"\\n\"}\n\n".into(), false)));
    }

    #[tokio::test]
    async fn a_result_for_a_task_that_is_over_is_counted_as_late() {
        let mcpd = Mcpd::default();
        let (task, _parts) = mcpd.begin();
        let end = br#"{"status":200,"body":{}}"#;
        assert_eq!(mcpd.result(task, end).await, StatusCode::OK);
        assert_eq!(mcpd.result(task, end).await, StatusCode::NOT_FOUND);
        assert_eq!((mcpd.stats().posts, mcpd.stats().late_posts), (1, 1));
    }
}
