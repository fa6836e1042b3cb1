//! The provider: an OpenAI-compatible server whose every answer is known beforehand.

use std::{convert::Infallible, io, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::State,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use mcprelay_bench::tokens::Spec;
use tokio::net::TcpListener;

use crate::http::{Connection, Connections, event_stream, json, serve as serve_http};

/// Tokens that leave in one write where the model needs no time: about one TCP segment of a real network each two.
const BURST: u32 = 16;
const MODELS: &str = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;
/// Where the number of connections that inferences came over is.
pub const CONNECTIONS_PATH: &str = "/_bench/connections";

/// Serves until the process is killed.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let count = async |State(connections): State<Arc<Connections>>| connections.count().to_string();
    let routes = Router::new()
        .route("/v1/chat/completions", post(infer))
        .route(CONNECTIONS_PATH, get(count))
        .fallback(async || json(200, MODELS))
        .with_state(Arc::<Connections>::default());
    serve_http(listener, routes, None).await
}

async fn infer(
    State(connections): State<Arc<Connections>>,
    Extension(connection): Extension<Connection>,
    Json(spec): Json<Spec>,
) -> Response {
    connections.saw(&connection);
    if spec.stream {
        return event_stream(Body::from_stream(events(spec)));
    }
    think(&spec, spec.tokens).await;
    json(200, spec.completion())
}

/// The events of an answer, as many at once as leave in one write.
fn events(spec: Spec) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let step = if spec.delay_us == 0 { BURST } else { 1 };
    stream::unfold(Some(0), move |first| async move {
        let (first, mut events) = (first?, String::new());
        if first >= spec.tokens {
            spec.end_into(&mut events);
            return Some((Ok(events.into()), None));
        }
        let end = spec.tokens.min(first + step);
        think(&spec, end - first).await;
        (first..end).for_each(|index| spec.event_into(&mut events, index));
        Some((Ok(events.into()), Some(end)))
    })
}

/// The time the model needs; none at all still lets the other connections have their turn.
async fn think(spec: &Spec, tokens: u32) {
    match spec.delay() * tokens {
        none if none.is_zero() => tokio::task::yield_now().await,
        time => tokio::time::sleep(time).await,
    }
}
