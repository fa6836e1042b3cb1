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
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, async_trait, service::Routes};

/// Where the number of spans is.
pub const SPANS_PATH: &str = "/_bench/spans";

/// How many spans came.
#[derive(Clone, Debug, Default)]
struct Sink(Arc<AtomicU64>);

/// Serves both of OTLP's protocols on one port until the process is killed.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let sink = Sink::default();
    let over_http = axum::Router::new()
        .route("/v1/traces", post(traces))
        .route("/v1/metrics", post(|_: Bytes| async { StatusCode::OK }))
        .route(SPANS_PATH, get(async |State(sink): State<Sink>| sink.0.load(Ordering::Relaxed).to_string()))
        .with_state(sink.clone());
    let over_grpc =
        Routes::new(TraceServiceServer::new(sink.clone())).add_service(MetricsServiceServer::new(sink));
    axum::serve(listener, over_http.merge(over_grpc.into_axum_router())).await
}

async fn traces(State(sink): State<Sink>, body: Bytes) -> StatusCode {
    match ExportTraceServiceRequest::decode(body) {
        Ok(request) => {
            sink.count(&request);
            StatusCode::OK
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

impl Sink {
    fn count(&self, request: &ExportTraceServiceRequest) {
        let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        let spans: usize = scopes.map(|scope| scope.spans.len()).sum();
        self.0.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

#[async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.count(request.get_ref());
        Ok(Response::new(Default::default()))
    }
}

#[async_trait]
impl MetricsService for Sink {
    async fn export(
        &self,
        _request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}
