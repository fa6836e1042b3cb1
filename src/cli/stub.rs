//! Small stand-ins for mcpd on loopback and for the agent on a socket, for the commands' tests.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    pin::Pin,
};

use axum::Router;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    cli::http::Mcpd,
    config::{McpdArgs, SOCKET_FILE, parse_args},
    pb::{
        GetUsageRequest, GetUsageResponse, SessionRequest, SessionResponse, SetPausedRequest,
        SetPausedResponse, WatchStatusRequest, WatchStatusResponse,
        bridge_service_server::{BridgeService, BridgeServiceServer},
    },
};

/// A server that ends when it is dropped.
pub(crate) struct Stub {
    pub(crate) url: String,
    server: JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stub {
    /// Serves `router` on a free loopback port.
    pub(crate) async fn serve(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { url, server }
    }

    /// A client of it with a token.
    pub(crate) fn mcpd(&self) -> Mcpd {
        mcpd(&self.url)
    }
}

/// A client of the mcpd at `url` with a token.
pub(crate) fn mcpd(url: &str) -> Mcpd {
    let flag = format!("--mcpd-url={url}");
    Mcpd::new(&parse::<McpdArgs>(&[&flag]), Path::new("/nonexistent"), &token)
        .map_err(|stop| format!("{stop:?}"))
        .expect("a client")
}

/// An environment with a token and nothing else.
pub(crate) fn token(name: &str) -> Option<OsString> {
    (name == "MCPRELAY_TOKEN").then(|| "t0ken".into())
}

/// Argument structs from flags, without the influence of this process's environment.
pub(crate) fn parse<A: Args>(flags: &[&str]) -> A {
    parse_args(flags, &|_| None).expect("good flags")
}

/// A stand-in for the running agent: sends one status and leaves the stream open, and has one provider, "a".
pub(crate) struct Agent {
    home: TempDir,
    server: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Agent {
    /// Serves `status` on a socket in a home of its own.
    pub(crate) fn serve(status: WatchStatusResponse) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let listener = UnixListener::bind(home.path().join(SOCKET_FILE)).expect("binds");
        let service = BridgeServiceServer::new(Told(status));
        let server = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(async move {
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.expect("serves");
        });
        Self { home, server }
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join(SOCKET_FILE)
    }
}

struct Told(WatchStatusResponse);

type Stream<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl BridgeService for Told {
    type SessionStream = Stream<SessionResponse>;
    type WatchStatusStream = Stream<WatchStatusResponse>;

    async fn session(
        &self,
        _: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn watch_status(
        &self,
        _: Request<WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let once = stream::iter([Ok(self.0.clone())]);
        Ok(Response::new(Box::pin(once.chain(stream::pending()))))
    }

    async fn set_paused(
        &self,
        request: Request<SetPausedRequest>,
    ) -> Result<Response<SetPausedResponse>, Status> {
        match &*request.into_inner().provider_name {
            "" | "a" => Ok(Response::new(SetPausedResponse { changed: vec!["a".into()] })),
            _ => Err(Status::not_found("no such provider")),
        }
    }

    async fn get_usage(&self, _: Request<GetUsageRequest>) -> Result<Response<GetUsageResponse>, Status> {
        Err(Status::failed_precondition("no usage is kept"))
    }
}
