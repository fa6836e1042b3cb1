//! The floor: the same HTTP calls and the same gRPC round trip as the agent's, with the same libraries, and no logic. No
//! deadlines, no retries, no queue, no checks, no merging; one POST per token. What the agent costs beyond that is due to its own logic.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use mcprelay::{
    pb::{
        self, TaskChunk, TaskFinished, TaskOffer,
        bridge_service_client::BridgeServiceClient,
        bridge_service_server::{BridgeService, BridgeServiceServer},
        session_request::Payload as ToAgent,
        session_response::Payload as ToProvider,
        task_chunk::Output,
        task_finished::Outcome,
    },
    upstream::contract::{
        CHUNK_HEAD, CHUNK_TAIL, IDEMPOTENCY_HEADER, REGISTER_PATH, SESSION_HEADER, STREAM_PATH, TaskEvent,
    },
};
use memchr::memmem;
use reqwest::{Certificate, Client};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Messages that may wait on any of the channels; waiting is the back-pressure.
const ROOM: usize = 1024;
const DONE: &[u8] = br#"{"chunk":{"data":"[DONE]","done":true}}"#;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Where the floor finds everybody.
#[derive(Clone, Debug, clap::Args)]
pub struct FloorArgs {
    /// mcpd's URL
    #[arg(long)]
    mcpd: String,
    /// The authority of mcpd's certificate
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// The provider's address
    #[arg(long)]
    provider: String,
    /// Where to bind the unix socket
    #[arg(long)]
    socket: PathBuf,
}

/// Runs both halves until one of them fails.
pub async fn run(args: FloorArgs) -> Result<(), Error> {
    let (offers, offered) = mpsc::channel(ROOM);
    let agent = Agent {
        mcpd: args.mcpd,
        http: http_client(args.ca_file)?,
        tasks: Arc::default(),
        offered: Arc::new(Mutex::new(Some(offered))),
    };
    let listener = UnixListener::bind(&args.socket)?;
    let serving = Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(BridgeServiceServer::new(agent.clone()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        served = serving => Ok(served?),
        ended = provider(args.socket, format!("http://{}/v1/chat/completions", args.provider)) => ended,
        ended = agent.follow_channel(offers) => ended,
    }
}

/// A client that trusts `ca_file` and nobody else; over TLS the server chooses the version of HTTP.
fn http_client(ca_file: Option<PathBuf>) -> Result<Client, Error> {
    let mut builder = Client::builder().tcp_nodelay(true).no_proxy().tls_built_in_root_certs(false);
    if let Some(path) = ca_file {
        builder = builder.add_root_certificate(Certificate::from_pem(&std::fs::read(path)?)?);
    }
    Ok(builder.build()?)
}

/// What goes to one task's POSTs.
type Parts = mpsc::Sender<(Bytes, bool)>;
/// What goes to the provider's half.
type Offered = Result<pb::SessionResponse, Status>;

#[derive(Clone)]
struct Agent {
    mcpd: String,
    http: Client,
    tasks: Arc<std::sync::Mutex<HashMap<String, Parts>>>,
    offered: Arc<Mutex<Option<mpsc::Receiver<Offered>>>>,
}

impl Agent {
    /// Registers and turns every task of the control channel into an offer.
    async fn follow_channel(self, offers: mpsc::Sender<Offered>) -> Result<(), Error> {
        let register =
            r#"{"providerSessionId":null,"providers":[{"name":"bench","type":"openai","model":"m"}]}"#;
        let call = self.http.post(format!("{}{REGISTER_PATH}", self.mcpd)).bearer_auth("bench");
        call.header("content-type", "application/json").body(register).send().await?.bytes().await?;
        let call = self.http.get(format!("{}{STREAM_PATH}", self.mcpd)).bearer_auth("bench");
        let mut channel = call.header(SESSION_HEADER, "bench-session").send().await?.bytes_stream();
        let mut pending = BytesMut::new();
        while let Some(piece) = channel.next().await {
            pending.extend_from_slice(&piece?);
            while let Some(end) = memmem::find(&pending, b"\n\n") {
                let event = pending.split_to(end + 2).freeze();
                if let Some(data) = event.strip_prefix(b"event: task\ndata: ") {
                    let offer = self.begin(&event, data)?;
                    offers
                        .send(Ok(pb::SessionResponse { payload: Some(ToProvider::TaskOffer(offer)) }))
                        .await?;
                }
            }
        }
        Err("the control channel has ended".into())
    }

    fn begin(&self, event: &Bytes, data: &[u8]) -> Result<TaskOffer, Error> {
        let task: TaskEvent<'_> = serde_json::from_slice(data)?;
        let request = task.request.ok_or("a task has no request")?;
        let (parts, waiting) = mpsc::channel(ROOM);
        self.tasks.lock().map_err(|_| "poisoned")?.insert(task.task_id.clone().into_owned(), parts);
        tokio::spawn(self.clone().post(task.task_id.clone().into_owned(), waiting));
        Ok(TaskOffer {
            task_id: task.task_id.into_owned(),
            provider_name: task.llm_name.into_owned(),
            request_json: event.slice_ref(request.as_bytes()),
            streaming: task.streaming,
            timeout_ms: 600_000,
            w3c_trace_context: std::collections::BTreeMap::new(),
        })
    }

    /// POSTs one task's parts, one after the other.
    async fn post(self, task: String, mut parts: mpsc::Receiver<(Bytes, bool)>) -> Result<(), Error> {
        let url = format!("{}/api/v1/llms/_provider-task/{task}/result", self.mcpd);
        let mut number = 0;
        while let Some((body, last)) = parts.recv().await {
            let call = self.http.post(&url).bearer_auth("bench").header("content-type", "application/json");
            let call = call.header(IDEMPOTENCY_HEADER, format!("{task}/{number}"));
            call.body(body).send().await?.bytes().await?;
            number += 1;
            if last {
                break;
            }
        }
        Ok(())
    }

    /// Hands what a provider says to its task's POSTs.
    async fn take(&self, payload: ToAgent) -> Result<(), Error> {
        let tasks = || self.tasks.lock().map_err(|_| "poisoned");
        let (task, part) = match payload {
            ToAgent::TaskChunk(TaskChunk { task_id, output: Some(Output::ChunkJson(chunk)), .. }) => {
                (tasks()?.get(&task_id).cloned(), (wrap(&chunk), false))
            }
            ToAgent::TaskFinished(TaskFinished { task_id, outcome, .. }) => {
                let body = match outcome {
                    Some(Outcome::BodyJson(body)) => {
                        [br#"{"status":200,"body":"#, &body[..], b"}"].concat().into()
                    }
                    _ => Bytes::from_static(DONE),
                };
                (tasks()?.remove(&task_id), (body, true))
            }
            _ => return Ok(()),
        };
        task.ok_or("a chunk has no task")?.send(part).await?;
        Ok(())
    }
}

/// A chunk as text inside the POST's JSON.
fn wrap(chunk: &[u8]) -> Bytes {
    mcprelay::json::text::wrap_escaped(CHUNK_HEAD, chunk, CHUNK_TAIL)
}

#[tonic::async_trait]
impl BridgeService for Agent {
    type SessionStream = ReceiverStream<Result<pb::SessionResponse, Status>>;
    type WatchStatusStream = ReceiverStream<Result<pb::WatchStatusResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let offered = self.offered.lock().await.take();
        let offered = offered.ok_or_else(|| Status::already_exists("there is one session"))?;
        let (agent, mut inbound) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                if let Some(payload) = message.payload
                    && let Err(error) = agent.take(payload).await
                {
                    eprintln!("floor: {error}");
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(offered)))
    }

    async fn watch_status(
        &self,
        _: Request<pb::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        Err(Status::unimplemented("the floor has no status"))
    }

    async fn set_paused(
        &self,
        _: Request<pb::SetPausedRequest>,
    ) -> Result<Response<pb::SetPausedResponse>, Status> {
        Err(Status::unimplemented("the floor cannot pause"))
    }

    async fn get_usage(
        &self,
        _: Request<pb::GetUsageRequest>,
    ) -> Result<Response<pb::GetUsageResponse>, Status> {
        Err(Status::unimplemented("the floor keeps no usage"))
    }
}

/// The other half: takes offers from the socket and asks the provider.
async fn provider(socket: PathBuf, url: String) -> Result<(), Error> {
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = tonic::transport::Endpoint::from_static("http://socket")
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .connect_with_connector(connect)
        .await?;
    let (answers, outbound) = mpsc::channel(ROOM);
    let mut client = BridgeServiceClient::new(channel);
    let mut offers = client.session(ReceiverStream::new(outbound)).await?.into_inner();
    let http = http_client(None)?;
    while let Some(message) = offers.message().await? {
        if let Some(ToProvider::TaskOffer(offer)) = message.payload {
            tokio::spawn(infer(http.clone(), url.clone(), offer, answers.clone()));
        }
    }
    Err("the session has ended".into())
}

async fn infer(
    http: Client,
    url: String,
    offer: TaskOffer,
    answers: mpsc::Sender<pb::SessionRequest>,
) -> Result<(), Error> {
    let call = http.post(url).header("content-type", "application/json").body(offer.request_json);
    let reply = call.send().await?;
    let task_id = offer.task_id;
    let outcome = if offer.streaming {
        relay_stream(reply, &task_id, &answers).await?;
        None
    } else {
        Some(Outcome::BodyJson(reply.bytes().await?))
    };
    let finished = ToAgent::TaskFinished(TaskFinished { task_id, outcome, usage: None });
    Ok(answers.send(pb::SessionRequest { payload: Some(finished) }).await?)
}

async fn relay_stream(
    reply: reqwest::Response,
    task_id: &str,
    answers: &mpsc::Sender<pb::SessionRequest>,
) -> Result<(), Error> {
    let (mut stream, mut pending) = (reply.bytes_stream(), BytesMut::new());
    while let Some(piece) = stream.next().await {
        pending.extend_from_slice(&piece?);
        while let Some(end) = memmem::find(&pending, b"\n\n") {
            let event = pending.split_to(end + 2).freeze();
            if &event[..] == b"data: [DONE]\n\n" {
                return Ok(());
            }
            let output = Some(Output::ChunkJson(event.slice(b"data: ".len()..end)));
            let chunk =
                ToAgent::TaskChunk(TaskChunk { task_id: task_id.to_owned(), output, more: Vec::new() });
            answers.send(pb::SessionRequest { payload: Some(chunk) }).await?;
        }
    }
    Ok(())
}
