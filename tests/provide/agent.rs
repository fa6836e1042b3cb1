//! An agent that does what a test tells it: a real tonic server on a unix socket, one handle per session.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use mcprelay::pb::{
    self,
    bridge_service_server::{BridgeService, BridgeServiceServer},
    piece,
    session_request::Payload as FromClient,
    session_response::Payload as ToClient,
    task_chunk::Output,
};
use tokio::{net::UnixListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::{Stream, wrappers::ReceiverStream, wrappers::UnixListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, async_trait};

/// How long a test waits for what must come.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// The scripted agent. Dropping it takes the socket away; sessions live on in their handles.
pub(crate) struct Agent {
    socket: PathBuf,
    sessions: mpsc::Receiver<Session>,
    serving: JoinHandle<()>,
    _stop: DropGuard,
}

impl Agent {
    pub(crate) fn listen(socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let (found, sessions) = mpsc::channel(8);
        let service = BridgeServiceServer::new(Script { found }).max_decoding_message_size(64 << 20);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        });
        Self { socket: socket.to_owned(), sessions, serving, _stop: stop.drop_guard() }
    }

    /// The next session, welcomed.
    pub(crate) async fn session(&mut self) -> Session {
        self.session_with_limit(33 << 20).await
    }

    /// The next session, told that messages may have this size.
    pub(crate) async fn session_with_limit(&mut self, max_message_bytes: u32) -> Session {
        let mut session = timeout(BOUND, self.sessions.recv()).await.expect("a session").unwrap();
        match session.next().await {
            Some(FromClient::Hello(hello)) => session.hello = hello,
            other => panic!("{other:?} instead of Hello"),
        }
        let welcome = pb::Welcome {
            session_id: "s1".to_owned(),
            agent_version: "0.0.0".to_owned(),
            max_message_bytes,
            agent_status: None,
        };
        session.send(ToClient::Welcome(welcome)).await;
        session
    }

    /// Goes away, and its sessions with it.
    pub(crate) async fn stop(self, session: Session) {
        let Self { socket, serving, _stop, .. } = self;
        drop((session, _stop));
        timeout(BOUND, serving).await.expect("the server ends").unwrap();
        std::fs::remove_file(socket).unwrap();
    }
}

/// One session, seen from the agent.
pub(crate) struct Session {
    pub(crate) hello: pb::Hello,
    inbound: Streaming<pb::SessionRequest>,
    outbound: mpsc::Sender<Result<pb::SessionResponse, Status>>,
}

/// What a task sent until its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) chunks: Vec<String>,
    pub(crate) signs_of_life: usize,
    pub(crate) end: pb::TaskFinished,
}

impl Answer {
    pub(crate) fn error(&self) -> &pb::Error {
        match &self.end.outcome {
            Some(pb::task_finished::Outcome::Error(error)) => error,
            other => panic!("{other:?} instead of an error"),
        }
    }

    pub(crate) fn body(&self) -> &[u8] {
        match &self.end.outcome {
            Some(pb::task_finished::Outcome::BodyJson(body)) => body,
            other => panic!("{other:?} instead of a body"),
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.end.outcome, Some(pb::task_finished::Outcome::Cancelled(_)))
    }

    pub(crate) fn usage(&self) -> Option<(u32, u32)> {
        let usage = self.end.usage?;
        Some((usage.input_tokens?, usage.output_tokens?))
    }
}

impl Session {
    /// The next message; none is the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<FromClient> {
        let message = timeout(BOUND, self.inbound.message()).await.expect("a message or the end");
        message.ok().flatten().map(|message| message.payload.expect("a payload"))
    }

    pub(crate) async fn send(&self, payload: ToClient) {
        self.outbound.send(Ok(pb::SessionResponse { payload: Some(payload) })).await.unwrap();
    }

    /// Ends the session with a status.
    pub(crate) async fn fail(self, status: Status) {
        self.outbound.send(Err(status)).await.unwrap();
    }

    /// The next snapshot.
    pub(crate) async fn snapshot(&mut self) -> Vec<pb::Provider> {
        match self.next().await {
            Some(FromClient::ProviderSnapshot(snapshot)) => snapshot.providers,
            other => panic!("{other:?} instead of a snapshot"),
        }
    }

    /// The next snapshot that is as it should be.
    pub(crate) async fn snapshot_where(&mut self, is: impl Fn(&[pb::Provider]) -> bool) -> Vec<pb::Provider> {
        loop {
            let providers = self.snapshot().await;
            if is(&providers) {
                return providers;
            }
        }
    }

    pub(crate) async fn offer(&self, task: &str, provider: &str, request: impl Into<String>) {
        let request = request.into();
        self.send(ToClient::TaskOffer(pb::TaskOffer {
            task_id: task.to_owned(),
            provider_name: provider.to_owned(),
            streaming: request.contains(r#""stream":true"#),
            request_json: request.into(),
            timeout_ms: 600_000,
            w3c_trace_context: [
                (
                    "traceparent".to_owned(),
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                ),
                ("tracestate".to_owned(), "a=b".to_owned()),
            ]
            .into(),
        }))
        .await;
    }

    pub(crate) async fn cancel(&self, task: &str) {
        let reason = pb::CancelReason::CallerGone.into();
        self.send(ToClient::TaskCancel(pb::TaskCancel { task_id: task.to_owned(), reason })).await;
    }

    /// Everything that `task` sends, to its end.
    pub(crate) async fn answer(&mut self, task: &str) -> Answer {
        let (mut chunks, mut signs_of_life) = (Vec::new(), 0);
        loop {
            match self.next().await.expect("the task's end") {
                FromClient::TaskChunk(chunk) if chunk.task_id == task => {
                    let before = chunks.len();
                    chunks.extend(pieces(chunk));
                    signs_of_life += usize::from(chunks.len() == before);
                }
                FromClient::TaskFinished(end) if end.task_id == task => {
                    return Answer { chunks, signs_of_life, end };
                }
                FromClient::ProviderSnapshot(_) => {}
                other => panic!("{other:?} is not of {task}"),
            }
        }
    }
}

/// The texts of a message's pieces, in their order.
fn pieces(chunk: pb::TaskChunk) -> impl Iterator<Item = String> {
    let text = |json: Bytes| String::from_utf8(json.to_vec()).unwrap();
    let first = chunk.output.map(move |output| match output {
        Output::ChunkJson(json) => text(json),
        Output::Delta(delta) => delta.content,
    });
    let more = chunk.more.into_iter().map(move |piece| match piece.output.expect("a piece says something") {
        piece::Output::ChunkJson(json) => text(json),
        piece::Output::Delta(delta) => delta.content,
    });
    first.into_iter().chain(more)
}

struct Script {
    found: mpsc::Sender<Session>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl BridgeService for Script {
    type SessionStream = ReceiverStream<Result<pb::SessionResponse, Status>>;
    type WatchStatusStream = Answers<pb::WatchStatusResponse>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, messages) = mpsc::channel(8);
        let session = Session { hello: pb::Hello::default(), inbound: request.into_inner(), outbound };
        self.found.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn watch_status(
        &self,
        _: Request<pb::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        Err(Status::unimplemented("not in this agent"))
    }

    async fn get_usage(
        &self,
        _: Request<pb::GetUsageRequest>,
    ) -> Result<Response<pb::GetUsageResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn set_paused(
        &self,
        _: Request<pb::SetPausedRequest>,
    ) -> Result<Response<pb::SetPausedResponse>, Status> {
        Err(Status::unimplemented("not in this agent"))
    }
}
