//! Batches on their way to the collector, by HTTP or by gRPC.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use reqwest::{
    Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{
    Code, Extensions,
    codegen::http::uri::PathAndQuery,
    metadata::MetadataMap,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{
    batches::Batch,
    encode::{Frame, Request},
};
use crate::telemetry::{
    export::{Health, Losses, MAX_REPLY_BYTES, Worker, chain, read_reply},
    settings::{Export, Protocol},
};

/// The standard's ports on this machine.
const DEFAULT_HTTP: &str = "http://localhost:4318/v1/traces";
const DEFAULT_GRPC: &str = "http://localhost:4317";
/// The rpc that takes spans.
const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Pause after a first failure that may pass; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Sends batches to one collector, one after the other.
#[derive(Debug)]
pub(in crate::telemetry) struct Sender {
    collector: Collector,
    frame: Frame,
    /// For one batch, its repetitions included.
    timeout: Duration,
    health: Health,
    losses: Arc<Losses>,
}

#[derive(Debug)]
enum Collector {
    Http { client: reqwest::Client, url: Url, headers: HeaderMap },
    Grpc { channel: Channel, metadata: MetadataMap },
}

/// The endpoint is not one, or there is no way to it. Says nothing of its value, which may hold a secret.
#[derive(Debug)]
pub(in crate::telemetry) struct BadTarget;

/// A batch that was not taken.
struct Refusal {
    reason: String,
    /// Whether the same batch may be taken later.
    passing: bool,
    /// What the collector asked for.
    pause: Option<Duration>,
}

impl Refusal {
    fn unreached(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { reason: chain(error), passing: true, pause: None }
    }
}

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

/// `ExportTracePartialSuccess`.
#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl Sender {
    pub(in crate::telemetry) fn new(
        worker: &Worker,
        export: &Export,
        frame: Frame,
        losses: Arc<Losses>,
    ) -> Result<Self, BadTarget> {
        let collector = match export.protocol {
            Protocol::HttpProtobuf => Collector::http(worker, export)?,
            Protocol::Grpc => Collector::grpc(worker, export)?,
        };
        Ok(Self { collector, frame, timeout: export.timeout, health: Health::new("traces"), losses })
    }

    /// What a batch begins with.
    pub(super) fn room(&self) -> usize {
        self.frame.room()
    }

    pub(super) fn losses(&self) -> Arc<Losses> {
        self.losses.clone()
    }

    /// Delivers `batch` or, when its time is up, loses it.
    pub(super) async fn deliver(&self, batch: Batch) {
        if batch.count == 0 {
            return;
        }
        let failure = match self.repeat(&self.frame.close(batch.spans)).await {
            Ok(reply) => self.taken(batch.count, reply.partial_success.unwrap_or_default()),
            Err(reason) => Some(reason),
        };
        self.health.note(failure.as_deref());
    }

    /// Counts what was taken of `count` spans, and says what was not.
    fn taken(&self, count: u64, refused: PartialSuccess) -> Option<String> {
        let rejected = u64::try_from(refused.rejected_spans).unwrap_or_default().min(count);
        self.losses.delivered(count - rejected);
        (rejected > 0).then(|| format!("{rejected} of {count} spans were refused: {}", refused.error_message))
    }

    /// Sends until the collector has taken it, or says that it never will, or the time is up; then the last reason.
    async fn repeat(&self, spans: &Request) -> Result<Reply, String> {
        let end = Instant::now() + self.timeout;
        let mut pause = FIRST_PAUSE;
        let mut why = "no reply in time".to_owned();
        loop {
            let refusal = match timeout_at(end, self.collector.send(spans)).await {
                Err(_) => return Err(why),
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(refusal)) => refusal,
            };
            let next = Instant::now() + jittered(pause).max(refusal.pause.unwrap_or_default());
            if !refusal.passing || next >= end {
                return Err(refusal.reason);
            }
            why = refusal.reason;
            pause *= 2;
            sleep_until(next).await;
        }
    }
}

impl Collector {
    fn http(worker: &Worker, export: &Export) -> Result<Self, BadTarget> {
        let url: Url = export.endpoint.as_deref().unwrap_or(DEFAULT_HTTP).parse().map_err(|_| BadTarget)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BadTarget);
        }
        let mut headers = export.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let client = worker.http(export).map_err(|_| BadTarget)?;
        Ok(Self::Http { client, url, headers })
    }

    fn grpc(worker: &Worker, export: &Export) -> Result<Self, BadTarget> {
        let endpoint = export.endpoint.clone().unwrap_or_else(|| DEFAULT_GRPC.into());
        let endpoint = Endpoint::from_shared(endpoint).map_err(|_| BadTarget)?;
        let endpoint = if endpoint.uri().scheme_str() == Some("https") {
            // tonic's own default trusts nobody.
            endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots()).map_err(|_| BadTarget)?
        } else {
            endpoint
        };
        let _on_the_worker = worker.handle().enter();
        let channel = endpoint.connect_timeout(export.timeout).connect_lazy();
        Ok(Self::Grpc { channel, metadata: MetadataMap::from_headers(export.headers.clone()) })
    }

    async fn send(&self, spans: &Request) -> Result<Reply, Refusal> {
        match self {
            Self::Http { client, url, headers } => {
                by_http(client.post(url.clone()).headers(headers.clone()).body(spans.whole())).await
            }
            Self::Grpc { channel, metadata } => {
                let (metadata, message) = (metadata.clone(), spans.as_bytes_value());
                by_grpc(channel.clone(), tonic::Request::from_parts(metadata, Extensions::default(), message))
                    .await
            }
        }
    }
}

async fn by_http(request: reqwest::RequestBuilder) -> Result<Reply, Refusal> {
    let mut response = request.send().await.map_err(|e| Refusal::unreached(&e.without_url()))?;
    let status = response.status();
    let pause = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
    let body = read_reply(&mut response).await.map_err(|e| Refusal::unreached(&*e))?;
    if status.is_success() {
        // Some collectors answer with nothing, or with JSON: the status is what counts.
        return Ok(Reply::decode(&*body).unwrap_or_default());
    }
    let passing = matches!(status.as_u16(), 429 | 502 | 503 | 504);
    Err(Refusal { reason: status.to_string(), passing, pause: pause.map(Duration::from_secs) })
}

async fn by_grpc(channel: Channel, request: tonic::Request<Bytes>) -> Result<Reply, Refusal> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
    client.ready().await.map_err(|e| Refusal::unreached(&e))?;
    let codec = tonic_prost::ProstCodec::default();
    let reply = client.unary(request, PathAndQuery::from_static(METHOD), codec).await;
    reply.map(tonic::Response::into_inner).map_err(|status| Refusal {
        reason: format!("{}: {}", status.code(), status.message()),
        // The standard's list. ResourceExhausted may pass only where the collector says when.
        passing: matches!(
            status.code(),
            Code::Unavailable
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::DataLoss
        ),
        pause: None,
    })
}

/// Between half of `pause` and all of it, so that many agents do not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
