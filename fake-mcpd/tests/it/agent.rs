//! A client that does one call at a time, so that each test says exactly what is sent.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fake_mcpd::FakeMcpd;
use reqwest::header::AUTHORIZATION;
use reqwest::{Body, Certificate, Client, ClientBuilder, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Longer than any timer of a test; on a paused clock it costs nothing, and it turns a hang into a failure.
const BOUND: Duration = Duration::from_secs(600);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("it should have happened long ago")
}

/// One provider session, or what is to become one.
pub(crate) struct Agent {
    http: Client,
    url: String,
    token: String,
    pub(crate) session: String,
}

/// A control channel, read event by event.
pub(crate) struct Channel {
    response: Response,
    buffer: Vec<u8>,
}

/// A task as it was delivered.
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) data: Value,
}

impl Agent {
    /// A client without a session.
    pub(crate) fn new(mcpd: &FakeMcpd) -> Self {
        match mcpd.ca_file() {
            Some(path) => Self::trusting(path, &mcpd.url(), &mcpd.token()),
            None => Self::at(&mcpd.url(), &mcpd.token()),
        }
    }

    /// The same for an mcpd in another process.
    pub(crate) fn at(url: &str, token: &str) -> Self {
        Self::with(Client::builder(), url, token)
    }

    /// The same, trusting the authority of a PEM file.
    pub(crate) fn trusting(authority: &Path, url: &str, token: &str) -> Self {
        let pem = std::fs::read(authority).expect("the authority's file");
        let authority = Certificate::from_pem(&pem).expect("a PEM certificate");
        Self::with(Client::builder().add_root_certificate(authority), url, token)
    }

    /// The same with settings of the test's own.
    pub(crate) fn with(http: ClientBuilder, url: &str, token: &str) -> Self {
        let http = http.no_proxy().build().expect("a client");
        Self { http, url: url.to_owned(), token: token.to_owned(), session: String::new() }
    }

    /// A client whose session serves one LLM, with its channel open.
    pub(crate) async fn online(mcpd: &FakeMcpd, llm: &str) -> (Self, Channel) {
        let mut agent = Self::new(mcpd);
        assert_eq!(agent.register(&[llm]).await, 200);
        let channel = agent.channel().await;
        (agent, channel)
    }

    /// A call with the token.
    pub(crate) fn call(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().expect("a method");
        self.http
            .request(method, format!("{}{path}", self.url))
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
    }

    /// Registers a set and keeps the session id; gives the status.
    pub(crate) async fn register(&mut self, names: &[&str]) -> u16 {
        let reply = self.register_call(names).send().await.expect("a reply");
        let status = reply.status().as_u16();
        let body: Value = reply.json().await.expect("JSON");
        if let Some(id) = body["providerSessionId"].as_str() {
            self.session = id.to_owned();
        }
        status
    }

    /// The register call itself.
    pub(crate) fn register_call(&self, names: &[&str]) -> RequestBuilder {
        let provider = |name: &&str| json!({"name": name, "type": "openai", "model": "m", "futureField": 1});
        let providers: Vec<Value> = names.iter().map(provider).collect();
        let session = (!self.session.is_empty()).then_some(&self.session);
        self.call("POST", "/api/v1/llms/_provider-register")
            .json(&json!({"providerSessionId": session, "providers": providers}))
    }

    /// Sends a heartbeat; gives the status.
    pub(crate) async fn heartbeat(&self) -> u16 {
        let call = self.call("POST", "/api/v1/llms/_provider-heartbeat");
        let reply = call.json(&json!({"providerSessionId": self.session})).send().await.expect("a reply");
        reply.status().as_u16()
    }

    /// Asks for the control channel.
    pub(crate) async fn channel_response(&self) -> reqwest::Result<Response> {
        let call = self.call("GET", "/api/v1/llms/_provider-stream");
        call.header("x-mcpctl-provider-session", &self.session).send().await
    }

    /// Opens the control channel and reads its hello.
    pub(crate) async fn channel(&self) -> Channel {
        let response = self.channel_response().await.expect("a reply");
        assert_eq!(response.status(), 200);
        let mut channel = Channel { response, buffer: Vec::new() };
        let (event, data) = channel.event().await.expect("a hello");
        assert_eq!((event.as_str(), &data["providerSessionId"]), ("hello", &json!(self.session)));
        channel
    }

    /// The call that posts part `n` of a task.
    pub(crate) fn part_call(&self, task: &str, n: impl std::fmt::Display, body: &Value) -> RequestBuilder {
        let task: String = task.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.call("POST", &format!("/api/v1/llms/_provider-task/{task}/result"))
            .header("Idempotency-Key", format!("{task}/{n}"))
            .json(body)
    }

    /// Posts part `n` of a task; gives the status.
    pub(crate) async fn part(&self, task: &str, n: u64, body: Value) -> u16 {
        self.part_call(task, n, &body).send().await.expect("a reply").status().as_u16()
    }

    /// Posts a chunk with a text.
    pub(crate) async fn chunk(&self, task: &str, n: u64, text: &str) -> u16 {
        self.part(task, n, chunk(text)).await
    }

    /// Posts `[DONE]`.
    pub(crate) async fn done(&self, task: &str, n: u64) -> u16 {
        self.part(task, n, done()).await
    }
}

/// An upload that is written line by line.
pub(crate) struct Upload {
    body: http_body_util::channel::Sender<Bytes, std::convert::Infallible>,
    reply: JoinHandle<reqwest::Result<Response>>,
}

impl Agent {
    /// Begins an upload of a task's parts.
    pub(crate) fn upload(&self, task: &str) -> Upload {
        let task: String = task.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (body, rest) = http_body_util::channel::Channel::new(16);
        let call = self.call("POST", &format!("/api/v1/llms/_provider-task/{task}/result-stream"));
        let call = call.header("content-type", "application/x-ndjson").body(Body::wrap(rest));
        Upload { body, reply: tokio::spawn(call.send()) }
    }
}

impl Upload {
    /// Sends part `n`.
    pub(crate) async fn line(&mut self, n: u64, part: Value) {
        let mut line = part;
        line["n"] = n.into();
        self.raw(&format!("{line}\n")).await;
    }

    /// Sends bytes.
    pub(crate) async fn raw(&mut self, text: &str) {
        // mcpd may have answered already and read no more.
        let _ = self.body.send_data(Bytes::copy_from_slice(text.as_bytes())).await;
    }

    /// The reply, which may come while the body is open: its status and `next`; nothing if the connection was cut.
    pub(crate) async fn reply(self) -> Option<(u16, Value)> {
        let reply = soon(self.reply).await.expect("no panic").ok()?;
        let status = reply.status().as_u16();
        Some((status, reply.json::<Value>().await.unwrap_or_default()["next"].clone()))
    }
}

/// A chunk body with a text.
pub(crate) fn chunk(text: &str) -> Value {
    let data = json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    json!({"chunk": {"data": data.to_string()}})
}

/// The end of a stream.
pub(crate) fn done() -> Value {
    json!({"chunk": {"data": "[DONE]", "done": true}})
}

/// A request without anything special.
pub(crate) fn prompt() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}]})
}

impl Channel {
    /// The next event's name and data, keep-alives included; `None` at the end, clean or not.
    pub(crate) async fn event(&mut self) -> Option<(String, Value)> {
        let frame = self.frame().await?;
        let line = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let data = line("data: ").unwrap_or_default();
        Some((line("event: ").unwrap_or_default(), serde_json::from_str(&data).unwrap_or_default()))
    }

    /// The next frame as text.
    pub(crate) async fn frame(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&frame).into_owned());
            }
            self.buffer.extend(soon(self.response.chunk()).await.ok()??);
        }
    }

    /// The next task.
    pub(crate) async fn task(&mut self) -> Task {
        let data = self.named("task").await;
        Task { id: data["taskId"].as_str().expect("a taskId").to_owned(), data }
    }

    /// The next event of this name; others are passed over.
    pub(crate) async fn named(&mut self, name: &str) -> Value {
        loop {
            let (event, data) = self.event().await.expect("the channel is open");
            if event == name {
                return data;
            }
        }
    }
}
