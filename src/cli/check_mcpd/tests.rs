//! The check against a small mcpd that can be made to break one clause.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::{
    cli::{report::Level, stub::Stub},
    upstream::contract::{HEARTBEAT_PATH, LLMS_PATH, REGISTER_PATH, SESSION_HEADER, STREAM_PATH},
};

/// How long the check waits for what this mcpd never sends.
const SHORT: Duration = Duration::from_millis(20);

/// What a small mcpd does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    NewRows,
    TakesTaken,
    KeepsActive,
    LosesStatus,
    EndsWithDone,
    KnowsEverySession,
}

type Shared = Arc<Mcpd>;

struct Mcpd {
    fault: Fault,
    state: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    count: u32,
    /// Sessions and the names they have registered.
    sessions: BTreeMap<String, Vec<Value>>,
    channel: Option<mpsc::Sender<String>>,
    tasks: HashMap<String, mpsc::Sender<Value>>,
}

impl Mcpd {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.state.lock().expect("not poisoned")
    }

    fn knows(&self, session: &str) -> bool {
        self.fault == Fault::KnowsEverySession || self.rows().sessions.contains_key(session)
    }
}

fn mcpd(fault: Fault) -> Router {
    let shared: Shared = Arc::new(Mcpd { fault, state: Mutex::default() });
    Router::new()
        .route(LLMS_PATH, routing::get(list))
        .route(REGISTER_PATH, routing::post(register))
        .route(STREAM_PATH, routing::get(channel))
        .route(HEARTBEAT_PATH, routing::post(heartbeat))
        .route("/api/v1/llms/{name}/infer", routing::post(infer))
        .route("/api/v1/llms/_provider-task/{task}/result", routing::post(result))
        .with_state(shared)
}

async fn list(State(mcpd): State<Shared>, headers: HeaderMap) -> Response {
    if !headers.contains_key("authorization") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let rows: Vec<Value> = mcpd.rows().sessions.values().flatten().cloned().collect();
    Json(rows).into_response()
}

async fn register(State(mcpd): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut rows = mcpd.rows();
    rows.count += 1;
    let session =
        body["providerSessionId"].as_str().map_or_else(|| format!("s{}", rows.count), str::to_owned);
    let names: Vec<_> =
        body["providers"].as_array().into_iter().flatten().map(|row| row["name"].clone()).collect();
    let others = rows.sessions.iter().filter(|(id, _)| **id != session).flat_map(|(_, rows)| rows);
    let taken = others.clone().any(|row| names.contains(&row["name"]));
    if taken && mcpd.fault != Fault::TakesTaken {
        return (StatusCode::CONFLICT, Json(json!({"conflicts": names}))).into_response();
    }
    if names.is_empty() && mcpd.fault == Fault::KeepsActive {
        return Json(json!({"providerSessionId": session})).into_response();
    }
    let row = |name| {
        let id = if mcpd.fault == Fault::NewRows { format!("r{}", rows.count) } else { format!("r-{name}") };
        json!({"id": id, "name": name, "kind": "virtual", "status": "active", "type": "mcprelay-check", "model": "none"})
    };
    let set: Vec<_> = names.iter().map(row).collect();
    rows.sessions.insert(session.clone(), set.clone());
    Json(json!({"providerSessionId": session, "llms": set, "features": ["idempotent-results"]}))
        .into_response()
}

async fn channel(State(mcpd): State<Shared>, headers: HeaderMap) -> Response {
    let session = headers[SESSION_HEADER].to_str().expect("text").to_owned();
    if !mcpd.knows(&session) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let (frames, receiver) = mpsc::channel(16);
    let hello = format!("event: hello\ndata: {}\n\n: ping\n\n", json!({"providerSessionId": session}));
    frames.try_send(hello).expect("room");
    mcpd.rows().channel = Some(frames);
    events(ReceiverStream::new(receiver))
}

fn events(frames: impl futures_util::Stream<Item = String> + Send + 'static) -> Response {
    let body = Body::from_stream(frames.map(Ok::<_, Infallible>));
    ([("content-type", "text/event-stream")], body).into_response()
}

async fn heartbeat(State(mcpd): State<Shared>, Json(body): Json<Value>) -> StatusCode {
    match mcpd.knows(body["providerSessionId"].as_str().unwrap_or_default()) {
        true => StatusCode::OK,
        false => StatusCode::NOT_FOUND,
    }
}

async fn infer(State(mcpd): State<Shared>, Path(name): Path<String>, Json(request): Json<Value>) -> Response {
    let active = mcpd.rows().sessions.values().flatten().any(|row| row["name"] == name.as_str());
    if !active || mcpd.rows().channel.is_none() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let (parts, mut received) = mpsc::channel(16);
    let frame = {
        let mut rows = mcpd.rows();
        rows.count += 1;
        let id = format!("t/{}", rows.count);
        rows.tasks.insert(id.clone(), parts);
        let stream = &request["stream"];
        let task =
            json!({"kind": "infer", "taskId": id, "llmName": name, "streaming": stream, "request": request});
        format!("event: task\ndata: {task}\n\n")
    };
    let channel = mcpd.rows().channel.clone().expect("open");
    channel.send(frame).await.expect("the check listens");
    let first = received.recv().await.expect("a part");
    match first["status"].as_u64() {
        Some(status) => {
            let lost = mcpd.fault == Fault::LosesStatus && status == 429;
            let status = StatusCode::from_u16(if lost { 502 } else { status as u16 }).expect("a status");
            let after = first["headers"]["retry-after"].as_str().unwrap_or("0").to_owned();
            (status, [("retry-after", after)], Json(first["body"].clone())).into_response()
        }
        None => {
            let done = mcpd.fault == Fault::EndsWithDone;
            let parts = stream::iter([first]).chain(ReceiverStream::new(received));
            events(parts.map(move |part| match part["chunk"]["data"].as_str() {
                None if done => "data: [DONE]\n\n".to_owned(),
                None => format!("data: {part}\n\n"),
                Some(data) => format!("data: {data}\n\n"),
            }))
        }
    }
}

async fn result(
    State(mcpd): State<Shared>,
    Path(task): Path<String>,
    headers: HeaderMap,
    Json(part): Json<Value>,
) -> StatusCode {
    let repeated = part["chunk"]["data"].as_str().is_some_and(|data| data.contains("piece 0"));
    let known = mcpd.rows().tasks.get(&task).cloned();
    let Some(caller) = known else { return StatusCode::NOT_FOUND };
    let key = headers["idempotency-key"].to_str().expect("text").to_owned();
    // A part's key is remembered like a task of its own.
    let seen = mcpd.rows().tasks.insert(key, caller.clone()).is_some();
    if seen && repeated {
        return StatusCode::OK;
    }
    if caller.send(part.clone()).await.is_err() {
        return StatusCode::GONE;
    }
    if part["chunk"].is_null() || part["chunk"]["done"] == true {
        mcpd.rows()
            .tasks
            .retain(|id, _| !id.starts_with(&task) && !id.starts_with(&task.replace('/', "%2F")));
    }
    StatusCode::OK
}

/// What the check says of this mcpd, without what is held.
async fn found(fault: Fault) -> Vec<(Level, String)> {
    let stub = Stub::serve(mcpd(fault)).await;
    let mut check = Check::new(stub.mcpd(), Format::Json, Duration::from_secs(5), SHORT);
    check.everything().await.expect("prints nothing");
    check.clean_up().await;
    let findings = check.report.findings().iter();
    findings.filter(|finding| finding.result != Level::Ok).map(|it| (it.result, it.subject.clone())).collect()
}

#[tokio::test]
async fn a_sound_mcpd_holds_every_clause_and_one_without_cancel_events_is_only_warned_of() {
    let cancel = (Level::Warning, "section 2, a caller that goes away cancels its task".to_owned());
    let upload = "section 6, a line of an upload reaches the caller before the next is sent";
    assert_eq!(found(Fault::Nothing).await, [cancel, (Level::Skipped, upload.to_owned())]);
}

#[tokio::test]
async fn each_broken_clause_is_found_and_named() {
    for (fault, clause) in [
        (Fault::NewRows, "section 4, the sticky id brings the same session and row back"),
        (Fault::TakesTaken, "section 1, a name that is taken is a conflict with a list"),
        (Fault::KeepsActive, "section 1, a row that is missing from the set goes inactive"),
        (Fault::LosesStatus, "section 3, a failure before any chunk keeps its status and body"),
        (Fault::EndsWithDone, "section 3, an error in the middle ends the caller's stream without [DONE]"),
        (Fault::KnowsEverySession, "section 1, a channel of an unknown session is refused"),
    ] {
        let findings = found(fault).await;
        assert!(findings.contains(&(Level::Failure, clause.to_owned())), "{fault:?}: {findings:#?}");
    }
}

#[tokio::test]
async fn an_http_server_that_is_no_mcpd_fails_and_is_not_tried_further() {
    let stub = Stub::serve(Router::new().fallback(async || "<html>")).await;
    let mut check = Check::new(stub.mcpd(), Format::Json, SHORT, SHORT);
    check.everything().await.expect("prints nothing");
    assert_eq!(check.report.findings().last().map(|finding| finding.result), Some(Level::Skipped));
    assert_eq!(check.report.end(), Err(Stop::Reported));
}
