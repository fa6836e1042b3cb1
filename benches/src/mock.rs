//! The provider: an OpenAI-compatible server whose every answer is known beforehand.

use std::io;

use mcprelay_bench::tokens::Spec;
use tokio::{net::TcpListener, task::spawn_local};

use crate::http1::{Conn, EVENT_STREAM_HEAD, LAST_CHUNK, Request, chunk_into, json_reply};

/// Tokens that leave in one write where the model needs no time: about one TCP segment of a real network each two.
const BURST: u32 = 16;
const MODELS: &str = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;

/// Serves until the process is killed.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        spawn_local(async move {
            // A peer that breaks off has its reasons; the load generator notices missing bytes.
            let _ = connection(Conn::new(stream)?).await;
            io::Result::Ok(())
        });
    }
}

async fn connection(mut conn: Conn) -> io::Result<()> {
    while let Some(Request { method, length, .. }) = conn.request().await? {
        let body = conn.body(length).await?;
        if method != "POST" {
            conn.write(&json_reply(200, MODELS)).await?;
            continue;
        }
        match serde_json::from_slice::<Spec>(&body) {
            Err(error) => {
                conn.write(&json_reply(400, &format!(r#"{{"error":{{"message":"{error}"}}}}"#))).await?
            }
            Ok(spec) if spec.stream => stream(&mut conn, &spec).await?,
            Ok(spec) => {
                think(&spec, spec.tokens).await;
                conn.write(&json_reply(200, &spec.completion())).await?;
            }
        }
    }
    Ok(())
}

async fn stream(conn: &mut Conn, spec: &Spec) -> io::Result<()> {
    let step = if spec.delay_us == 0 { BURST } else { 1 };
    let (mut events, mut out) = (String::new(), EVENT_STREAM_HEAD.to_vec());
    for first in (0..spec.tokens).step_by(step as usize) {
        let tokens = first..(first + step).min(spec.tokens);
        think(spec, tokens.len() as u32).await;
        tokens.for_each(|index| spec.event_into(&mut events, index));
        chunk_into(&mut out, events.as_bytes());
        conn.write(&out).await?;
        events.clear();
        out.clear();
    }
    spec.end_into(&mut events);
    chunk_into(&mut out, events.as_bytes());
    out.extend_from_slice(LAST_CHUNK);
    conn.write(&out).await
}

/// The time the model needs; none at all still lets the other connections have their turn.
async fn think(spec: &Spec, tokens: u32) {
    match spec.delay() * tokens {
        none if none.is_zero() => tokio::task::yield_now().await,
        time => tokio::time::sleep(time).await,
    }
}
