//! A lean mcpd: the contract's happy path in memory, for loads under which fake-mcpd (its journal, its verdict, its
//! faults) would be what is measured. It refuses what it does not know and forgives nothing.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use tokio::{net::TcpListener, sync::mpsc, task::spawn_local};

use crate::http1::{Conn, EVENT_STREAM_HEAD, LAST_CHUNK, Request, chunk_into, json_reply};

/// Events that may wait for the control channel: every caller of the largest plot at once.
const CHANNEL_EVENTS: usize = 16_384;
/// Parts of one task that may wait for its caller. The agent posts one at a time, so the second already waits.
const PARTS: usize = 4;
/// Where [`Stats`] are.
pub const STATS_PATH: &str = "/_bench/stats";
const RESULT_HEAD: &str = "/api/v1/llms/_provider-task/";
const HELLO: &[u8] = b"event: hello\ndata: {\"providerSessionId\":\"bench-session\"}\n\n";
const REGISTERED: &str = r#"{"providerSessionId":"bench-session","features":["idempotent-results"],"llms":[{"id":"1","name":"bench","kind":"virtual","status":"active"}]}"#;
const ROWS: &str =
    r#"[{"id":"1","name":"bench","kind":"virtual","type":"openai","model":"m","status":"active"}]"#;

/// What the stand-in has counted since it started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Result POSTs that it took.
    pub posts: u64,
    /// Result POSTs that it answered 404: their task was over.
    pub late_posts: u64,
    /// Connections that carried at least one result POST.
    pub result_connections: u64,
}

/// One part of a result as its caller gets it.
enum Part {
    Chunk(Bytes),
    End(Bytes),
}

#[derive(Default)]
struct Mcpd {
    channel: RefCell<Option<mpsc::Sender<Vec<u8>>>>,
    tasks: RefCell<HashMap<u64, mpsc::Sender<Part>>>,
    next_task: Cell<u64>,
    stats: Cell<Stats>,
}

#[derive(Deserialize)]
struct ResultPart<'a> {
    #[serde(borrow)]
    chunk: Option<Chunk<'a>>,
    status: Option<u16>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    data: Cow<'a, str>,
    #[serde(default)]
    done: bool,
}

/// Serves until the process is killed.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let mcpd = Rc::new(Mcpd::default());
    loop {
        let (stream, _) = listener.accept().await?;
        let mcpd = Rc::clone(&mcpd);
        spawn_local(async move {
            // A peer that breaks off has its reasons; the load generator notices missing bytes.
            let _ = mcpd.connection(Conn::new(stream)?).await;
            io::Result::Ok(())
        });
    }
}

impl Mcpd {
    async fn connection(&self, mut conn: Conn) -> io::Result<()> {
        let mut posted = false;
        while let Some(Request { method, path, length }) = conn.request().await? {
            let body = conn.body(length).await?;
            if let Some(task) = result_task(&path) {
                let status = self.result(task, &body).await;
                self.count(status, !std::mem::replace(&mut posted, true));
                conn.write(&json_reply(status, "{}")).await?;
                continue;
            }
            match (method.as_str(), path.as_str()) {
                ("POST", "/api/v1/llms/_provider-register") => {
                    conn.write(&json_reply(200, REGISTERED)).await?
                }
                ("GET", "/api/v1/llms/_provider-stream") => return self.channel(conn).await,
                ("POST", "/api/v1/llms/_provider-heartbeat") => conn.write(&json_reply(200, "{}")).await?,
                ("POST", "/api/v1/llms/bench/infer") => self.infer(&mut conn, &body).await?,
                ("GET", "/api/v1/llms") => {
                    let rows = if self.channel.borrow().is_some() { ROWS } else { "[]" };
                    conn.write(&json_reply(200, rows)).await?;
                }
                ("GET", STATS_PATH) => {
                    let stats = serde_json::to_string(&self.stats.get()).unwrap_or_default();
                    conn.write(&json_reply(200, &stats)).await?;
                }
                _ => conn.write(&json_reply(404, "{}")).await?,
            }
        }
        Ok(())
    }

    /// The control channel: everything that is ready leaves in one write.
    async fn channel(&self, mut conn: Conn) -> io::Result<()> {
        let (sender, mut events) = mpsc::channel(CHANNEL_EVENTS);
        let mut out = EVENT_STREAM_HEAD.to_vec();
        chunk_into(&mut out, HELLO);
        conn.write(&out).await?;
        self.channel.replace(Some(sender));
        while let Some(event) = events.recv().await {
            out.clear();
            chunk_into(&mut out, &event);
            while let Ok(event) = events.try_recv() {
                chunk_into(&mut out, &event);
            }
            conn.write(&out).await?;
        }
        Ok(())
    }

    async fn infer(&self, conn: &mut Conn, body: &[u8]) -> io::Result<()> {
        let Some(channel) = self.channel.borrow().clone() else {
            return conn.write(&json_reply(503, r#"{"error":{"message":"no agent is connected"}}"#)).await;
        };
        let task = self.next_task.replace(self.next_task.get() + 1);
        let (sender, parts) = mpsc::channel(PARTS);
        self.tasks.borrow_mut().insert(task, sender);
        let streaming = memchr::memmem::find(body, br#""stream":true"#).is_some();
        let sent = channel.send(task_event(task, streaming, body)).await;
        let answered = match (sent, streaming) {
            (Err(_), _) => {
                conn.write(&json_reply(503, r#"{"error":{"message":"the agent has left"}}"#)).await
            }
            (Ok(()), true) => stream_answer(conn, parts).await,
            (Ok(()), false) => plain_answer(conn, parts).await,
        };
        self.tasks.borrow_mut().remove(&task);
        answered
    }

    /// Passes one part on to its caller; the status for the agent.
    async fn result(&self, task: u64, body: &[u8]) -> u16 {
        let Some(caller) = self.tasks.borrow().get(&task).cloned() else { return 404 };
        let Some(part) = read_part(body) else { return 400 };
        match caller.send(part).await {
            Ok(()) => 200,
            Err(_) => 404,
        }
    }

    fn count(&self, status: u16, first_of_connection: bool) {
        let mut stats = self.stats.get();
        *(if status == 200 { &mut stats.posts } else { &mut stats.late_posts }) += 1;
        stats.result_connections += u64::from(first_of_connection);
        self.stats.set(stats);
    }
}

fn result_task(path: &str) -> Option<u64> {
    path.strip_prefix(RESULT_HEAD)?.strip_suffix("/result")?.parse().ok()
}

fn task_event(task: u64, streaming: bool, body: &[u8]) -> Vec<u8> {
    let head = format!(
        r#"event: task{}data: {{"kind":"infer","taskId":"{task}","llmName":"bench","streaming":{streaming},"request":"#,
        '\n'
    );
    [head.as_bytes(), body, b"}\n\n"].concat()
}

fn read_part(body: &[u8]) -> Option<Part> {
    let part: ResultPart<'_> = serde_json::from_slice(body).ok()?;
    if let Some(chunk) = part.chunk {
        let event = [b"data: ", chunk.data.as_bytes(), b"\n\n"].concat().into();
        return Some(if chunk.done { Part::End(event) } else { Part::Chunk(event) });
    }
    let (status, text) = match (part.status, part.body, part.error) {
        (Some(status), Some(body), _) => (status, body.get().to_owned()),
        (_, _, Some(error)) => (502, serde_json::json!({ "error": { "message": error } }).to_string()),
        _ => return None,
    };
    Some(Part::End(json_reply(status, &text).into()))
}

async fn stream_answer(conn: &mut Conn, mut parts: mpsc::Receiver<Part>) -> io::Result<()> {
    let mut out = Vec::new();
    let mut begun = false;
    while let Some(part) = parts.recv().await {
        let over = matches!(part, Part::End(_));
        let (Part::Chunk(bytes) | Part::End(bytes)) = part;
        if bytes.starts_with(b"HTTP/") && !begun {
            return conn.write(&bytes).await;
        }
        if !std::mem::replace(&mut begun, true) {
            out.extend_from_slice(EVENT_STREAM_HEAD);
        }
        chunk_into(&mut out, &bytes);
        if over {
            out.extend_from_slice(LAST_CHUNK);
        }
        conn.write(&out).await?;
        out.clear();
        if over {
            return Ok(());
        }
    }
    Err(io::ErrorKind::BrokenPipe.into())
}

async fn plain_answer(conn: &mut Conn, mut parts: mpsc::Receiver<Part>) -> io::Result<()> {
    match parts.recv().await {
        Some(Part::End(reply)) => conn.write(&reply).await,
        Some(Part::Chunk(_)) | None => {
            conn.write(&json_reply(502, r#"{"error":{"message":"no whole answer came"}}"#)).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_reaches_the_caller_as_the_event_it_was() {
        let body = br#"{"chunk":{"data":"{\"a\":\"\\n\"}"}}"#;
        let Some(Part::Chunk(event)) = read_part(body) else { panic!("not read as a chunk") };
        assert_eq!(&event[..], b"data: {\"a\":\"\\n\"}\n\n");
    }

    #[test]
    fn only_results_have_a_task_in_their_path() {
        assert_eq!(result_task("/api/v1/llms/_provider-task/17/result"), Some(17));
        assert_eq!(result_task("/api/v1/llms/bench/infer"), None);
    }
}
