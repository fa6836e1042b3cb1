//! A collector that takes everything at once and only counts: what telemetry costs its agent is then the agent's own cost.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    body::Bytes,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use futures_util::future::{Ready, ready};
use prost::Message;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    server::{Grpc, UnaryService},
};
use tonic_prost::ProstCodec;

/// Where the number of spans is.
pub const SPANS_PATH: &str = "/_bench/spans";

/// As much of an `ExportTraceServiceRequest` as it takes to count its spans: on the cores that it shares with the agent, reading what is in
/// them would cost more than making them. Metrics have the same outline.
#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resource>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<Scope>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {}

/// `ExportTraceServiceResponse` and the like: all was taken.
#[derive(Clone, PartialEq, Message)]
struct Taken {}

/// How many spans came.
#[derive(Clone, Debug, Default)]
struct Sink(Arc<AtomicU64>);

/// Takes what is no span by gRPC.
struct Unread;

/// Serves both of OTLP's protocols on one port until the process is killed.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let routes = axum::Router::new()
        .route("/v1/traces", post(traces))
        .route("/v1/metrics", post(|_: Bytes| async { StatusCode::OK }))
        .route(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            post(async |State(sink): State<Sink>, request| grpc(sink, request).await),
        )
        .route(
            "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            post(async |request| grpc(Unread, request).await),
        )
        .route(SPANS_PATH, get(async |State(sink): State<Sink>| sink.0.load(Ordering::Relaxed).to_string()))
        .with_state(Sink::default());
    axum::serve(listener, routes).await
}

async fn traces(State(sink): State<Sink>, body: Bytes) -> StatusCode {
    match Export::decode(body) {
        Ok(export) => {
            sink.count(&export);
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

async fn grpc<S>(service: S, request: axum::extract::Request) -> axum::http::Response<tonic::body::Body>
where
    S: UnaryService<Export, Response = Taken>,
{
    Grpc::new(ProstCodec::<Taken, Export>::default()).unary(service, request).await
}

impl Sink {
    fn count(&self, export: &Export) {
        let scopes = export.resources.iter().flat_map(|resource| &resource.scopes);
        let spans: usize = scopes.map(|scope| scope.spans.len()).sum();
        self.0.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

impl UnaryService<Export> for Sink {
    type Response = Taken;
    type Future = Ready<Result<Response<Taken>, Status>>;

    fn call(&mut self, request: Request<Export>) -> Self::Future {
        self.count(request.get_ref());
        ready(Ok(Response::new(Taken {})))
    }
}

impl UnaryService<Export> for Unread {
    type Response = Taken;
    type Future = Ready<Result<Response<Taken>, Status>>;

    fn call(&mut self, _request: Request<Export>) -> Self::Future {
        ready(Ok(Response::new(Taken {})))
    }
}
