//! The throw-away provider, and a caller of it: every call the check makes.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::{Body, RequestBuilder, Response, header};
use serde_json::{Value, json, value::RawValue};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Broken,
    frames::{Frame, Frames},
};
use crate::{
    cli::http::Mcpd,
    domain::TaskId,
    upstream::contract::{
        CANCEL_EVENT, CancelEvent, EVENT_STREAM, HEARTBEAT_PATH, HELLO_EVENT, HeartbeatRequest, HelloEvent,
        IDEMPOTENCY_HEADER, LLMS_PATH, LlmRow, NDJSON, PING_EVENT, PublishedProvider, RECEIVED_EVENT,
        REGISTER_PATH, ReceivedEvent, RegisterRequest, ResultPart, SESSION_HEADER, STREAM_PATH, TASK_EVENT,
        TaskEvent, idempotency_key, infer_path, push_line, result_path, result_stream_path,
    },
};

/// How long any single step may take: nothing that mcpd is asked for takes long.
pub(super) const STEP: Duration = Duration::from_secs(10);
/// What the throw-away provider claims to be.
pub(super) const KIND: &str = "mcprelay-check";
/// Its model.
pub(super) const MODEL: &str = "none";

/// The check's two parties.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) mcpd: Mcpd,
    /// The throw-away provider's name.
    pub(super) name: String,
}

/// An answer that has been read.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    /// Null if it is not JSON.
    pub(super) body: Value,
}

impl Reply {
    /// Fails unless the status is one of these.
    pub(super) fn expect(self, statuses: &[u16]) -> Result<Self, Broken> {
        match statuses.contains(&self.status) {
            true => Ok(self),
            false => {
                let wanted = statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
                Err(Broken::Not(format!("it answers {} and not {wanted}", self.status)))
            }
        }
    }
}

/// A task as it came down the channel.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) streaming: bool,
    pub(super) request: Value,
}

impl Peer {
    /// The body of every inference of the check. Its unknown field must arrive too.
    pub(super) fn question(&self, stream: bool) -> Value {
        json!({
            "model": self.name, "stream": stream, "x_mcprelay_check": {"kept": true},
            "messages": [{"role": "user", "content": "mcprelay check-mcpd: no answer needed"}],
        })
    }

    /// Registers the provider, or nothing at all, under a session or a new one.
    pub(super) async fn register(&self, session: Option<&str>, with_provider: bool) -> Result<Reply, Broken> {
        let description = "throw-away provider of mcprelay check-mcpd";
        let provider =
            PublishedProvider { name: &self.name, kind: KIND, model: MODEL, tier: "", description };
        let providers = if with_provider { vec![provider] } else { Vec::new() };
        let body = RegisterRequest { provider_session_id: session, providers };
        read(self.mcpd.post(REGISTER_PATH).json(&body)).await
    }

    pub(super) async fn heartbeat(&self, session: &str) -> Result<Reply, Broken> {
        read(self.mcpd.post(HEARTBEAT_PATH).json(&HeartbeatRequest { provider_session_id: session })).await
    }

    /// The provider's row as callers see it; `None` if there is none.
    pub(super) async fn row(&self) -> Result<Option<LlmRow>, Broken> {
        let reply = read(self.mcpd.get(LLMS_PATH)).await?.expect(&[200])?;
        let rows: Vec<LlmRow> = serde_json::from_value(reply.body)
            .map_err(|_| Broken::Not("its list is not a list of rows".into()))?;
        Ok(rows.into_iter().find(|row| row.name.as_ref() == Some(&self.name)))
    }

    pub(super) async fn open(&self, session: &str) -> Result<Response, Broken> {
        let request =
            self.mcpd.get(STREAM_PATH).header(SESSION_HEADER, session).header(header::ACCEPT, EVENT_STREAM);
        send(request).await
    }

    /// Posts one part of a task's result.
    pub(super) async fn post(
        &self,
        task: &TaskId,
        part: u32,
        result: &ResultPart<'_>,
    ) -> Result<Reply, Broken> {
        let path = result_path(task).ok_or_else(|| Broken::Not("no URL can carry its task id".into()))?;
        let request =
            self.mcpd.post(&path).header(IDEMPOTENCY_HEADER, idempotency_key(task, part)).json(result);
        read(request).await
    }

    /// Posts a whole answer.
    pub(super) async fn post_status(
        &self,
        task: &TaskId,
        status: u16,
        body: &Value,
        headers: BTreeMap<&'static str, String>,
    ) -> Result<Reply, Broken> {
        let text = body.to_string();
        let body: &RawValue = serde_json::from_str(&text).map_err(|error| Broken::Not(error.to_string()))?;
        self.post(task, 0, &ResultPart::Status { status, body, headers }).await
    }

    /// Begins an upload of a task's parts.
    pub(super) fn upload(&self, task: &TaskId) -> Result<Upload, Broken> {
        let path =
            result_stream_path(task).ok_or_else(|| Broken::Not("no URL can carry its task id".into()))?;
        let (lines, rest) = mpsc::channel::<Bytes>(16);
        let body = Body::wrap_stream(ReceiverStream::new(rest).map(Ok::<_, Infallible>));
        let request = self.mcpd.post(&path).header(header::CONTENT_TYPE, NDJSON).body(body);
        Ok(Upload { lines, reply: tokio::spawn(read(request)) })
    }

    /// Calls the provider as anybody would, in the background, because the check itself has to answer.
    pub(super) fn infer(&self, stream: bool) -> Call {
        let path = infer_path(&self.name).unwrap_or_default();
        let request = self.mcpd.post(&path).json(&self.question(stream));
        Call(tokio::spawn(request.send()))
    }
}

/// An upload under way. Dropping it breaks it.
#[derive(Debug)]
pub(super) struct Upload {
    lines: mpsc::Sender<Bytes>,
    reply: JoinHandle<Result<Reply, Broken>>,
}

impl Upload {
    /// Sends a part as a line.
    pub(super) async fn send(&self, number: u32, part: &ResultPart<'_>) {
        let part = serde_json::to_vec(part).unwrap_or_default();
        let mut line = Vec::new();
        push_line(&mut line, number, &part);
        // An mcpd that has answered already reads nothing more.
        let _ = self.lines.send(line.into()).await;
    }

    /// The answer, which may come while the body is open.
    pub(super) async fn reply(&mut self) -> Result<Reply, Broken> {
        (&mut self.reply).await.unwrap_or_else(|_| Err(Broken::Not("it does not answer".into())))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.reply.abort();
    }
}

/// An inference under way, seen by its caller. Dropping it means that the caller goes away.
pub(super) struct Call(JoinHandle<reqwest::Result<Response>>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Call {
    /// The head of the answer.
    pub(super) async fn response(&mut self) -> Result<Response, Broken> {
        match timeout(STEP, &mut self.0).await {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(_) => Err(Broken::Not("the caller's connection broke".into())),
            Err(_) => Err(Broken::Not(format!("the caller got no answer within {} s", STEP.as_secs()))),
        }
    }

    /// The whole answer.
    pub(super) async fn reply(&mut self) -> Result<Reply, Broken> {
        whole(self.response().await?).await
    }
}

async fn send(request: RequestBuilder) -> Result<Response, Broken> {
    match timeout(STEP, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => {
            Err(Broken::Not(format!("it does not answer ({})", crate::http::root_cause(&error))))
        }
        Err(_) => Err(Broken::Not(format!("it does not answer within {} s", STEP.as_secs()))),
    }
}

/// Sends a call and reads its answer.
pub(super) async fn read(request: RequestBuilder) -> Result<Reply, Broken> {
    whole(send(request).await?).await
}

async fn whole(response: Response) -> Result<Reply, Broken> {
    let status = response.status().as_u16();
    let header = response.headers().get(header::RETRY_AFTER);
    let retry_after = header.and_then(|value| value.to_str().ok()).map(str::to_owned);
    match timeout(STEP, response.bytes()).await {
        Ok(Ok(bytes)) => {
            Ok(Reply { status, retry_after, body: serde_json::from_slice(&bytes).unwrap_or_default() })
        }
        _ => Err(Broken::Not("its answer breaks off".into())),
    }
}

/// The control channel, and what has been seen on it.
#[derive(Debug)]
pub(super) struct Channel {
    frames: Frames,
    /// When it was opened.
    pub(super) opened: Instant,
    /// Whether a ping or a comment has come.
    pub(super) kept_alive: bool,
    /// Ids of the tasks that were cancelled.
    cancelled: Vec<String>,
    /// What mcpd says that it has of uploads.
    received: Vec<ReceivedEvent>,
}

impl Channel {
    pub(super) fn new(response: Response) -> Self {
        let (opened, frames) = (Instant::now(), Frames::new(response));
        Self { frames, opened, kept_alive: false, cancelled: Vec::new(), received: Vec::new() }
    }

    /// The next event that is neither a keep-alive nor a cancel, within `wait`.
    async fn event(&mut self, wait: Duration) -> Result<(String, String), Broken> {
        let until = Instant::now() + wait;
        loop {
            if let Some(event) = self.frame(until).await? {
                return Ok(event);
            }
        }
    }

    /// Takes one frame; keep-alives and cancels are noted, and `None` is returned for them.
    async fn frame(&mut self, until: Instant) -> Result<Option<(String, String)>, Broken> {
        let frame = tokio::time::timeout_at(until, self.frames.next()).await;
        match frame.map_err(|_| Broken::Silent)?.map_err(Broken::Not)? {
            None => Err(Broken::Not("the channel was closed".into())),
            Some(Frame::Comment) => {
                self.kept_alive = true;
                Ok(None)
            }
            Some(Frame::Event { name, .. }) if name == PING_EVENT => {
                self.kept_alive = true;
                Ok(None)
            }
            Some(Frame::Event { name, data }) if name == CANCEL_EVENT => {
                self.cancelled.extend(serde_json::from_str::<CancelEvent>(&data).map(|event| event.task_id));
                Ok(None)
            }
            Some(Frame::Event { name, data }) if name == RECEIVED_EVENT => {
                self.received.extend(serde_json::from_str::<ReceivedEvent>(&data));
                Ok(None)
            }
            Some(Frame::Event { name, data }) => Ok(Some((name, data))),
        }
    }

    /// The session that the greeting names.
    pub(super) async fn hello(&mut self) -> Result<Option<String>, Broken> {
        let (name, data) = self.event(STEP).await?;
        match name == HELLO_EVENT {
            true => Ok(serde_json::from_str::<HelloEvent>(&data).unwrap_or_default().provider_session_id),
            false => Err(Broken::Not(format!("its first event is \"{name}\""))),
        }
    }

    /// The next task for the throw-away provider.
    pub(super) async fn task(&mut self, llm: &str) -> Result<Task, Broken> {
        loop {
            let (name, data) = self.event(STEP).await?;
            if name != TASK_EVENT {
                continue;
            }
            let event: TaskEvent<'_> = serde_json::from_str(&data)
                .map_err(|error| Broken::Not(format!("a task's data is not what it should be: {error}")))?;
            if event.llm_name != llm {
                return Err(Broken::Not(format!("a task's llmName is \"{}\"", event.llm_name)));
            }
            let id = TaskId::new(&event.task_id).map_err(|why| Broken::Not(format!("a task's id {why}")))?;
            let request = event.request.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            return Ok(Task { id, streaming: event.streaming, request });
        }
    }

    /// Whether the task is cancelled within `wait`.
    pub(super) async fn is_cancelled(&mut self, task: &TaskId, wait: Duration) -> Result<bool, Broken> {
        let until = Instant::now() + wait;
        while !self.cancelled.iter().any(|id| id == task.as_str()) {
            match self.frame(until).await {
                Ok(_) => {}
                Err(Broken::Silent) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Fails unless mcpd says within a step that it has every part of the task below `next`.
    pub(super) async fn is_received(&mut self, task: &TaskId, next: u32) -> Result<(), Broken> {
        let until = Instant::now() + STEP;
        let told = |event: &ReceivedEvent| event.task_id == task.as_str() && event.next >= next;
        while !self.received.iter().any(told) {
            self.frame(until).await?;
        }
        Ok(())
    }

    /// Whether a keep-alive comes until then.
    pub(super) async fn is_kept_alive(&mut self, until: Instant) -> Result<bool, Broken> {
        while !self.kept_alive {
            match self.frame(until).await {
                Ok(_) => {}
                Err(Broken::Silent) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The next data of a caller's stream; `None` at its end.
pub(super) async fn next_data(answer: &mut Frames) -> Result<Option<String>, Broken> {
    loop {
        match timeout(STEP, answer.next()).await.map_err(|_| Broken::Silent)?.map_err(Broken::Not)? {
            Some(Frame::Comment) => {}
            Some(Frame::Event { data, .. }) => return Ok(Some(data)),
            None => return Ok(None),
        }
    }
}
