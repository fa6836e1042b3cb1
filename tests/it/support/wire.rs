//! What passed between the agent and mcpd, as the relay between them saw it: the agent's own moments, whatever a fault did later.

use serde_json::Value;
use tokio::time::Instant;

/// Text of a channel that is held for an event to become whole; events of schedules are far smaller.
const EVENT: usize = 1 << 20;

/// Something that passed, or was done to a connection.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub connection: u64,
    pub what: What,
}

/// What it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A new connection was reset.
    Refused,
    /// The agent sent a request.
    Request(Request),
    /// The head of a reply went on to the agent.
    Reply { status: u16, retry_after: Option<u64> },
    /// An event of the control channel went on to the agent, with the task it names.
    Event { name: String, task: String },
    /// The relay reset the connection, as ordered.
    Cut,
    /// The agent closed it, or was killed.
    AgentClosed,
    /// mcpd closed or reset it.
    McpdClosed,
}

/// A request of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The last part of its path that says what it is: `_provider-register`, `_provider-stream`, `_provider-heartbeat`, `result`.
    pub call: String,
    /// The `Idempotency-Key` of a result.
    pub key: Option<String>,
    /// As much of the body as came with the head; schedules' requests are small and come whole.
    pub body: String,
}

impl Request {
    /// The task that a result is of.
    pub fn task(&self) -> Option<&str> {
        self.key.as_deref()?.rsplit_once('/').map(|(task, _)| task)
    }

    /// Whether it is the end of a task.
    pub fn is_end(&self) -> bool {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body.get("status").is_some() || body.get("error").is_some() || body["chunk"]["done"] == true
    }
}

/// A request, if the piece is the beginning of one.
pub fn request(piece: &[u8]) -> Option<What> {
    if !piece.starts_with(b"POST ") && !piece.starts_with(b"GET ") {
        return None;
    }
    let text = String::from_utf8_lossy(piece);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let call = head.split(' ').nth(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    Some(What::Request(Request {
        call: call.to_owned(),
        key: header(head, "idempotency-key").map(str::to_owned),
        body: body.to_owned(),
    }))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What of a connection's replies has been read and is not whole yet.
#[derive(Debug, Default)]
pub struct Reading {
    is_channel: bool,
    text: String,
}

impl Reading {
    /// What a piece that went on to the agent says.
    pub fn reply(&mut self, piece: &[u8]) -> Vec<What> {
        let text = String::from_utf8_lossy(piece);
        let mut seen = Vec::new();
        if let Some(rest) = text.strip_prefix("HTTP/1.1 ") {
            let status = rest.split(' ').next().and_then(|status| status.parse().ok()).unwrap_or_default();
            let head = text.split("\r\n\r\n").next().unwrap_or_default();
            self.is_channel = head.contains("text/event-stream");
            let retry_after = header(head, "retry-after").and_then(|seconds| seconds.parse().ok());
            seen.push(What::Reply { status, retry_after });
        }
        if self.is_channel {
            self.text.push_str(&text);
            self.events(&mut seen);
        }
        seen
    }

    /// Takes the events that are whole out of the text.
    fn events(&mut self, seen: &mut Vec<What>) {
        while let Some(end) = self.text.find("\n\n") {
            let event: String = self.text.drain(..end + 2).collect();
            seen.extend(read_event(&event));
        }
        if self.text.len() > EVENT {
            self.text.clear();
        }
    }
}

fn read_event(event: &str) -> Option<What> {
    let after = |mark: &str| event.split_once(mark).map(|(_, rest)| rest);
    let name = after("event: ")?.lines().next()?.to_owned();
    let task = after("\"taskId\":\"").and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned();
    Some(What::Event { name, task })
}
