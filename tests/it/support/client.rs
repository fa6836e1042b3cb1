//! A scripted local program: it says exactly what the test tells it to.

use std::{path::Path, time::Duration};

use mcprelay::pb::{
    self, Hello, Provider, SessionRequest, SessionResponse, TaskChunk, TaskFinished,
    bridge_service_client::BridgeServiceClient, piece, session_request, session_response, task_chunk,
    task_finished,
};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use super::soon;

/// A provider of an Ollama.
pub fn provider(name: &str, publish: bool) -> Provider {
    Provider {
        name: name.to_owned(),
        r#type: "ollama".to_owned(),
        model: "m".to_owned(),
        tier: "fast".to_owned(),
        publish,
        ..Provider::default()
    }
}

/// An opted-in provider with a model of its own.
pub fn named(name: &str, model: &str) -> Provider {
    Provider { model: model.to_owned(), ..provider(name, true) }
}

/// One task as the agent offered it.
pub type Offered = pb::TaskOffer;

/// A connected local program.
pub struct Client {
    pub rpc: BridgeServiceClient<Channel>,
    to_agent: Option<mpsc::Sender<SessionRequest>>,
    from_agent: Streaming<SessionResponse>,
    generation: u32,
}

impl Client {
    /// Connects and says Hello; returns once the agent said Welcome.
    pub async fn connect(socket: &Path, client_id: &str) -> Self {
        let mut client = Self::silent(socket).await;
        client.send(hello(client_id)).await;
        match client.payload().await {
            session_response::Payload::Welcome(_) => client,
            other => panic!("Welcome comes first, not {other:?}"),
        }
    }

    /// The same with a message limit in bytes.
    pub async fn connect_limited(socket: &Path, client_id: &str, max_message_bytes: u32) -> Self {
        let client = Self::silent(socket).await;
        let client_id = client_id.to_owned();
        let hello = Hello { client_id, client_version: "test/1".to_owned(), max_message_bytes };
        client.send(session_request::Payload::Hello(hello)).await;
        client
    }

    /// The same, where the agent may be gone or go away meanwhile.
    pub async fn try_connect(socket: &Path, client_id: &str) -> Option<Self> {
        let mut rpc = try_connect(socket).await.ok()?;
        let (to_agent, requests) = mpsc::channel(4096);
        let first = SessionRequest { payload: Some(hello(client_id)) };
        to_agent.send(first).await.ok()?;
        let from_agent = rpc.session(ReceiverStream::new(requests)).await.ok()?.into_inner();
        Some(Self { rpc, to_agent: Some(to_agent), from_agent, generation: 0 })
    }

    /// What sends to the agent, for somebody who works beside this client.
    pub fn sender(&self) -> mpsc::Sender<SessionRequest> {
        self.to_agent.clone().expect("the session is open")
    }

    /// Opens a session and says nothing.
    pub async fn silent(socket: &Path) -> Self {
        let mut rpc = connect(socket).await;
        let (to_agent, requests) = mpsc::channel(4096);
        let session = soon("the session", rpc.session(ReceiverStream::new(requests))).await;
        let from_agent = session.expect("the agent takes sessions").into_inner();
        Self { rpc, to_agent: Some(to_agent), from_agent, generation: 0 }
    }

    /// Sends one message.
    pub async fn send(&self, payload: session_request::Payload) {
        let to_agent = self.to_agent.as_ref().expect("the session is open");
        // A session that the agent has ended takes nothing more; the test sees it in what comes next.
        let _ = to_agent.send(SessionRequest { payload: Some(payload) }).await;
    }

    /// Sends a message whose payload this agent cannot know.
    pub async fn send_nothing(&self) {
        let to_agent = self.to_agent.as_ref().expect("the session is open");
        to_agent.send(SessionRequest { payload: None }).await.expect("the session is open");
    }

    /// The next message, or how the stream ended: `None` is a clean end.
    pub async fn message(&mut self) -> Result<Option<session_response::Payload>, Status> {
        let message = soon("a message of the agent", self.from_agent.message()).await?;
        Ok(message.map(|m| m.payload.expect("the agent says something")))
    }

    async fn payload(&mut self) -> session_response::Payload {
        self.message().await.expect("the stream goes on").expect("the stream goes on")
    }

    /// The status that ended the stream, other messages skipped.
    pub async fn ended(&mut self) -> Status {
        loop {
            match self.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    /// The next message that the closure takes; others are skipped.
    pub async fn wait_for<T>(&mut self, mut take: impl FnMut(session_response::Payload) -> Option<T>) -> T {
        let taken = async {
            loop {
                if let Some(taken) = take(self.payload().await) {
                    return taken;
                }
            }
        };
        soon("such a message", taken).await
    }

    /// Pushes a whole set; returns the verdicts.
    pub async fn push(&mut self, providers: &[Provider]) -> Vec<pb::ProviderVerdict> {
        self.generation += 1;
        let (generation, providers) = (self.generation, providers.to_vec());
        let snapshot = pb::ProviderSnapshot { generation, providers };
        self.send(session_request::Payload::ProviderSnapshot(snapshot)).await;
        self.verdicts().await
    }

    /// The next verdicts for the last snapshot.
    pub async fn verdicts(&mut self) -> Vec<pb::ProviderVerdict> {
        let generation = self.generation;
        self.wait_for(|payload| match payload {
            session_response::Payload::ProviderSnapshotResult(r) if r.generation == generation => {
                Some(r.verdicts)
            }
            _ => None,
        })
        .await
    }

    /// The next offer.
    pub async fn offer(&mut self) -> Offered {
        self.wait_for(|payload| match payload {
            session_response::Payload::TaskOffer(offer) => Some(offer),
            _ => None,
        })
        .await
    }

    /// The next request to stop a task.
    pub async fn cancel(&mut self) -> pb::TaskCancel {
        self.wait_for(|payload| match payload {
            session_response::Payload::TaskCancel(cancel) => Some(cancel),
            _ => None,
        })
        .await
    }

    /// Sends one raw chunk.
    pub async fn chunk(&self, task: &Offered, json: &str) {
        let output = Some(task_chunk::Output::ChunkJson(json.to_owned().into()));
        self.output(task, output).await;
    }

    /// Sends a plain piece of text.
    pub async fn delta(&self, task: &Offered, text: &str) {
        let delta = pb::Delta { content: text.to_owned(), ..pb::Delta::default() };
        self.output(task, Some(task_chunk::Output::Delta(delta))).await;
    }

    /// Sends any piece of output, or a sign of life.
    pub async fn output(&self, task: &Offered, output: Option<task_chunk::Output>) {
        let chunk = TaskChunk { task_id: task.task_id.clone(), output, more: vec![] };
        self.send(session_request::Payload::TaskChunk(chunk)).await;
    }

    /// Sends several pieces in one message.
    pub async fn together(&self, task: &Offered, first: task_chunk::Output, more: Vec<piece::Output>) {
        let more = more.into_iter().map(|output| pb::Piece { output: Some(output) }).collect();
        let chunk = TaskChunk { task_id: task.task_id.clone(), output: Some(first), more };
        self.send(session_request::Payload::TaskChunk(chunk)).await;
    }

    /// Ends a task; after chunks `None` is success.
    pub async fn finish(&self, task: &Offered, outcome: Option<task_finished::Outcome>) {
        let finished = TaskFinished { task_id: task.task_id.clone(), outcome, usage: None };
        self.send(session_request::Payload::TaskFinished(finished)).await;
    }

    /// Ends a task with a whole OpenAI body.
    pub async fn finish_body(&self, task: &Offered, body: &str) {
        self.finish(task, Some(task_finished::Outcome::BodyJson(body.to_owned().into()))).await;
    }

    /// Ends a task with a plain answer.
    pub async fn finish_text(&self, task: &Offered, text: &str) {
        let result = pb::CompletionResult { content: text.to_owned(), ..pb::CompletionResult::default() };
        self.finish(task, Some(task_finished::Outcome::Result(result))).await;
    }

    /// Confirms a cancel.
    pub async fn finish_cancelled(&self, task_id: &str) {
        let outcome = Some(task_finished::Outcome::Cancelled(pb::Cancelled {}));
        let finished = TaskFinished { task_id: task_id.to_owned(), outcome, usage: None };
        self.send(session_request::Payload::TaskFinished(finished)).await;
    }

    /// Ends a task with an error.
    pub async fn finish_error(&self, task: &Offered, error: pb::Error) {
        self.finish(task, Some(task_finished::Outcome::Error(error))).await;
    }

    /// Says goodbye.
    pub async fn drain(&self) {
        self.drain_within(Duration::ZERO).await;
    }

    /// Says goodbye, with how long it stays.
    pub async fn drain_within(&self, grace: Duration) {
        let grace_ms = grace.as_millis().try_into().expect("fits");
        self.send(session_request::Payload::Drain(pb::Drain { grace_ms, reason: "test".to_owned() })).await;
    }

    /// Ends the stream from this side without a word.
    pub fn half_close(&mut self) {
        self.to_agent = None;
    }

    /// The status as it is now.
    pub async fn status(&mut self) -> pb::WatchStatusResponse {
        let watch = self.rpc.watch_status(pb::WatchStatusRequest {}).await.expect("the agent has a status");
        let first = soon("the status", watch.into_inner().message()).await;
        first.expect("a status").expect("a status")
    }
}

/// The agent's status as it changes.
pub struct Watch {
    statuses: Streaming<pb::WatchStatusResponse>,
    _rpc: BridgeServiceClient<Channel>,
}

impl Watch {
    /// Begins to watch.
    pub async fn open(socket: &Path) -> Self {
        let mut rpc = connect(socket).await;
        let watch = soon("the status", rpc.watch_status(pb::WatchStatusRequest {})).await;
        Self { statuses: watch.expect("the agent has a status").into_inner(), _rpc: rpc }
    }

    /// The first status from now on that fulfils the condition.
    pub async fn until(
        &mut self,
        mut condition: impl FnMut(&pb::WatchStatusResponse) -> bool,
    ) -> pb::WatchStatusResponse {
        let fulfilled = async {
            loop {
                let status = self.statuses.message().await.expect("the status goes on");
                let status = status.expect("the status goes on");
                if condition(&status) {
                    return status;
                }
            }
        };
        soon("such a status", fulfilled).await
    }

    /// Why there are no more of them.
    pub async fn ended(&mut self) -> Status {
        let ended = async {
            loop {
                match self.statuses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                }
            }
        };
        soon("the end of the statuses", ended).await
    }
}

/// A Hello with a large message limit.
pub fn hello(client_id: &str) -> session_request::Payload {
    session_request::Payload::Hello(Hello {
        client_id: client_id.to_owned(),
        client_version: "test/1".to_owned(),
        max_message_bytes: 64 << 20,
    })
}

/// A client of the bridge.
async fn connect(socket: &Path) -> BridgeServiceClient<Channel> {
    soon("the socket", try_connect(socket)).await.expect("the agent listens")
}

async fn try_connect(socket: &Path) -> Result<BridgeServiceClient<Channel>, tonic::transport::Error> {
    Ok(BridgeServiceClient::new(try_channel(socket).await?)
        .max_decoding_message_size(64 << 20)
        .max_encoding_message_size(usize::MAX))
}

/// A connection to the socket.
pub async fn channel(socket: &Path) -> Channel {
    soon("the socket", try_channel(socket)).await.expect("the agent listens")
}

async fn try_channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}
