//! An mcpd for tests: the provider contract, its callers' side, a journal, faults, and a verdict on the agent under
//! test. In a test it starts in one line and stops when dropped; all its timers are tokio's, so that a paused clock
//! works with its real loopback sockets.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
//! use fake_mcpd::{Aim, Answer, CallKind, FakeMcpd};
//!
//! let mcpd = FakeMcpd::start().await?;
//! // Point the agent under test at mcpd.url() with mcpd.token(), then for example:
//! //   mcpd.wait_until(|state| state.is_active("llama")).await;
//! //   let reply = mcpd.infer("llama", &json!({"messages": [...]})).await;
//! //   let mut stream = mcpd.infer_stream("llama", &json!({"messages": [...]}))?;
//! //   while let Some(chunk) = stream.chunk().await { ... }
//! mcpd.answer(Aim::next(CallKind::Register), Answer::status(503));
//! mcpd.order("delay,call=result,by=2s").expect("the grammar of --fault");
//! assert!(mcpd.violations().is_empty(), "{:?}", mcpd.journal());
//! # Ok(()) }
//! ```

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

mod admin;
mod armed;
mod builder;
mod call;
mod callers;
mod core;
mod dispatch;
mod duration;
mod faults;
mod hub;
mod journal;
mod knobs;
mod openai;
mod parts;
mod providers;
mod reply;
mod request;
mod results;
pub mod scenario;
mod server;
mod spec;
mod state;
mod tasks;
mod tls;
mod trace;
mod uploads;
mod verdict;
mod view;
mod wire;

pub use builder::{
    BODY_LIMIT, Builder, DEFAULT_TOKEN, HEARTBEAT_INTERVAL, PING_INTERVAL, PingStyle, SESSION_TTL,
};
pub use call::{Collected, InferReply};
pub use callers::{Call, InferRequest};
pub use faults::{Aim, Answer, Fault, Refused};
pub use journal::{Entry, Kind};
pub use spec::{BadFault, GRAMMAR, Step, Trigger};
pub use tasks::TaskEnd;
pub use tls::Tls;
pub use verdict::{Counts, Profile, Rule, VerdictView, Violation};
pub use view::{SessionView, Snapshot, TaskView};
pub use wire::{CallKind, LlmView, ProviderSpec};

use builder::Settings;
use hub::Hub;
use tls::Authority;

/// A running fake mcpd. Dropping it closes every connection and ends every task of its own.
#[derive(Debug)]
pub struct FakeMcpd {
    hub: Arc<Hub>,
    address: SocketAddr,
    tls: Option<Authority>,
    running: [JoinHandle<Infallible>; 2],
}

impl FakeMcpd {
    /// Starts one on a free loopback port, with every setting at its default.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// Sets one up.
    pub fn builder() -> Builder {
        Builder::default()
    }

    async fn launch(
        settings: Settings,
        listen: SocketAddr,
        tls: Option<Tls>,
        steps: Vec<Step>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (acceptor, tls) = tls.map(|tls| tls.start(address)).transpose()?.unzip();
        let hub = Hub::new(settings);
        hub.schedule(steps);
        let serving = tokio::spawn(server::serve(Arc::clone(&hub), listener, acceptor));
        let keeping_time = tokio::spawn(Arc::clone(&hub).keep_time());
        Ok(Self { hub, address, tls, running: [serving, keeping_time] })
    }

    /// Stops it and waits until its port is free, so that another one can take its place there.
    pub async fn stop(mut self) {
        for task in &mut self.running {
            task.abort();
            // It ends in no other way than by being aborted.
            let _ = task.await;
        }
    }

    /// `http://127.0.0.1:PORT`, or `https://127.0.0.1:PORT` with TLS.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The PEM file of the authority to trust, with TLS. Unless it was named it goes with the server.
    pub fn ca_file(&self) -> Option<&Path> {
        self.tls.as_ref().map(Authority::path)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token that it accepts, or one of the many.
    pub fn token(&self) -> String {
        self.hub.look(|core| core.token.clone()).unwrap_or_else(|| DEFAULT_TOKEN.to_owned())
    }

    /// Accepts this token from now on, and no other.
    pub fn set_token(&self, token: impl Into<String>) {
        self.hub.act(|core| core.token = Some(token.into()));
    }

    /// The journal's entries that are still there.
    pub fn journal(&self) -> Vec<Entry> {
        self.journal_since(0)
    }

    /// The same from a sequence number on.
    pub fn journal_since(&self, seq: u64) -> Vec<Entry> {
        self.hub.look(|core| core.journal.since(seq))
    }

    /// Waits for the first entry, past ones included, that fulfils the condition. It waits for ever: put a bound
    /// around it.
    pub async fn wait_for(&self, condition: impl FnMut(&Entry) -> bool) -> Entry {
        self.wait_for_since(0, condition).await
    }

    /// The same among the entries from a sequence number on.
    pub async fn wait_for_since(&self, mut seq: u64, mut condition: impl FnMut(&Entry) -> bool) -> Entry {
        let look = || {
            let entries = self.journal_since(seq);
            seq = entries.last().map_or(seq, |entry| entry.seq + 1);
            entries.into_iter().find(&mut condition)
        };
        self.hub.wait(look).await
    }

    /// Waits until the state fulfils the condition, and gives it. It waits for ever: put a bound around it.
    pub async fn wait_until(&self, mut condition: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        self.hub.wait(|| Some(self.state()).filter(&mut condition)).await
    }

    /// What it knows now.
    pub fn state(&self) -> Snapshot {
        self.hub.look(|core| Snapshot::new(&self.hub, core))
    }

    /// The list of LLMs, as `GET /api/v1/llms` gives it.
    pub fn llms(&self) -> Vec<LlmView> {
        self.hub.look(|core| self.hub.llms(core, None))
    }

    /// Makes a task of a request.
    ///
    /// # Errors
    /// The reply that an HTTP caller would have got at once.
    pub fn submit(&self, request: InferRequest) -> Result<Call, InferReply> {
        callers::submit(&self.hub, request).map_err(|refusal| {
            let (status, body) = refusal.answer();
            InferReply { status, retry_after: None, body }
        })
    }

    /// Infers without a stream.
    pub async fn infer(&self, llm: &str, body: &Value) -> InferReply {
        match self.submit(InferRequest::new(llm, body)) {
            Ok(call) => call.collect().await.end.into(),
            Err(refused) => refused,
        }
    }

    /// Infers with a stream (`"stream": true` is put into the body).
    ///
    /// # Errors
    /// The reply that an HTTP caller would have got at once.
    pub fn infer_stream(&self, llm: &str, body: &Value) -> Result<Call, InferReply> {
        self.submit(InferRequest::streaming(llm, body))
    }

    /// How the agent under test broke the contract so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.verdict().violations
    }

    /// The whole verdict.
    pub fn verdict(&self) -> VerdictView {
        self.hub.verdict()
    }
}

impl Drop for FakeMcpd {
    fn drop(&mut self) {
        self.running.iter().for_each(JoinHandle::abort);
        // Callers of this process must not wait for a server that is gone.
        self.hub.stop();
    }
}
