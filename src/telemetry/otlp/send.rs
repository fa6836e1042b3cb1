//! Batches on their way to the collector, by HTTP or by gRPC.

use std::{error::Error as _, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use reqwest::{
    Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Extensions, codegen::http::uri::PathAndQuery, metadata::MetadataMap, transport::Channel};

use super::{
    batches::Batch,
    encode::{Frame, Request},
};
use crate::telemetry::{
    export::{Health, Losses, MAX_REPLY_BYTES, Worker, chain, read_reply},
    settings::{Export, Protocol},
};

/// The standard's port on this machine.
const DEFAULT_HTTP: &str = "http://localhost:4318/v1/traces";
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

/// `google.rpc.Status`, of which only this much is wanted.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
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
            // A collector may ask for any pause; one that the clock cannot hold is too long as well.
            let wait = jittered(pause).max(refusal.pause.unwrap_or_default());
            let next = Instant::now().checked_add(wait).filter(|next| refusal.passing && *next < end);
            let Some(next) = next else { return Err(refusal.reason) };
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
        let channel = worker.channel(export).map_err(|_| BadTarget)?;
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
    if !status.is_success() {
        // What stands in the body changes nothing, and it may never end.
        let pause = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let passing = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        return Err(Refusal { reason: status.to_string(), passing, pause: pause.map(Duration::from_secs) });
    }
    if response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
        let reason = "the reply is a web page, as no collector sends it".to_owned();
        return Err(Refusal { reason, passing: false, pause: None });
    }
    // Some collectors answer with nothing, or with JSON: the status is what counts, and spans that were taken must not be sent again.
    let body = read_reply(&mut response).await.unwrap_or_default();
    Ok(Reply::decode(&*body).unwrap_or_default())
}

async fn by_grpc(channel: Channel, request: tonic::Request<Bytes>) -> Result<Reply, Refusal> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
    client.ready().await.map_err(|e| Refusal::unreached(&e))?;
    let codec = tonic_prost::ProstCodec::default();
    let reply = client.unary(request, PathAndQuery::from_static(METHOD), codec).await;
    reply.map(tonic::Response::into_inner).map_err(|status| refused(&status))
}

fn refused(status: &tonic::Status) -> Refusal {
    let pause = asked_pause(status);
    // The standard's list.
    let listed = match status.code() {
        Code::Unavailable
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::DataLoss => true,
        Code::ResourceExhausted => pause.is_some(),
        _ => false,
    };
    // With a source it is not the collector's word: the connection broke, as it does when a collector restarts.
    let broken = status.source();
    let reason = match broken {
        Some(source) => chain(source),
        None => format!("{}: {}", status.code(), status.message()),
    };
    Refusal { reason, passing: listed || broken.is_some(), pause }
}

/// The pause that the `google.rpc.RetryInfo` in the status' details asks for.
fn asked_pause(status: &tonic::Status) -> Option<Duration> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay?;
    // One in the past is none.
    Some(Duration::try_from(delay).unwrap_or_default())
}

/// Between half of `pause` and all of it, so that many agents do not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
