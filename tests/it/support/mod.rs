//! A world for one test: a fake mcpd, an agent on a socket in a temporary home, and scripted local programs.

mod client;
pub mod connect;
pub mod hostile;
mod logs;
pub mod process;
pub mod proxy;
mod scheme;
pub mod wire;

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fake_mcpd::{CallKind, Entry, FakeMcpd, Kind, LlmView};
use mcprelay::{
    agent::{Agent, AgentError, Deps, FactSource, SleepClock, Stop, Stopped, TellFacts},
    config::{Config, TASKS_FILE},
    domain::{Fact, Facts, UnixTime},
    pb::{self, AgentState},
    telemetry,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};

pub use client::{Client, Watch, channel, hello, named, provider};
pub use logs::Logs;
pub use scheme::Scheme;
pub(crate) use scheme::over_https;

/// How long a condition may take in the test's own clock. With a paused clock it costs nothing.
const PATIENCE: Duration = Duration::from_secs(900);

/// The machine's clock when a test begins, in seconds since 1970: 2027-01-15 in every zone where people live but two.
pub const EPOCH: u64 = 1_800_010_800;

/// What all ids and all jitter follow from, unless a test says otherwise.
const SEED: u64 = 7;

/// Binding the agent's socket sets the process's umask for a moment, in which no other thread must create a folder.
fn one_at_a_time() -> impl Drop {
    static UMASK: Mutex<()> = Mutex::new(());
    UMASK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for something that has to happen.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Lets this much of the paused clock's time pass, with everything that is due in it.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Everything one test needs. Dropping it stops it all.
pub struct World {
    pub mcpd: FakeMcpd,
    pub home: TempDir,
    pub config: Config,
    /// How long the machine has slept, in ms.
    pub slept: Arc<AtomicU64>,
    /// What is so on the machine; its clock goes on with the test's.
    pub facts: Arc<Mutex<Facts>>,
    /// Fixes the agent's jitter.
    pub seed: u64,
    /// Where the agent's spans and measurements go: nowhere, unless a test says otherwise before it starts the agent.
    pub telemetry: telemetry::Handle,
    began: Instant,
    agent: Option<(Stop, JoinHandle<Result<Stopped, AgentError>>)>,
}

impl World {
    /// A fake mcpd with its defaults and an agent with credentials for it.
    pub async fn start() -> Self {
        Self::with(FakeMcpd::builder(), |_| {}).await
    }

    /// The same with settings of the test's own.
    pub async fn with(mcpd: fake_mcpd::Builder, change: impl FnOnce(&mut Config)) -> Self {
        let mut world = Self::offline(mcpd, change).await;
        world.write_credentials();
        world.start_agent();
        world
    }

    /// A home without credentials, and no agent yet.
    pub async fn offline(mcpd: fake_mcpd::Builder, change: impl FnOnce(&mut Config)) -> Self {
        Self::over(Scheme::current(), mcpd, change).await
    }

    /// The same over a scheme of the caller's choice.
    pub async fn over(
        scheme: Scheme,
        mut mcpd: fake_mcpd::Builder,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        if let Some(tls) = scheme.tls() {
            mcpd = mcpd.tls(tls);
        }
        let mcpd = mcpd.seed(SEED).start().await.expect("a loopback port");
        let home = {
            let _umask = one_at_a_time();
            tempfile::tempdir().expect("a temporary folder")
        };
        let mut config = Config::defaults(home.path()).expect("the defaults are valid");
        config.ca_file = mcpd.ca_file().map(Path::to_owned);
        config.keep_awake = false;
        change(&mut config);
        Self {
            mcpd,
            home,
            config,
            slept: Arc::default(),
            facts: Arc::new(Mutex::new(Facts {
                now: UnixTime(EPOCH),
                minute_of_week: 0,
                on_battery: Fact::Is(false),
                idle_for: Fact::Is(Duration::MAX),
            })),
            began: Instant::now(),
            seed: SEED,
            telemetry: telemetry::Handle::off(),
            agent: None,
        }
    }

    /// Puts the fake mcpd's URL and token into the home.
    pub fn write_credentials(&self) {
        self.write(
            "credentials",
            &json!({"mcpdUrl": self.mcpd.url(), "token": self.mcpd.token()}).to_string(),
        );
    }

    /// mcpd's URL as it is behind a relay.
    pub fn url_through(&self, relay: &proxy::Proxy) -> String {
        self.mcpd.url().replace(&self.mcpd.address().to_string(), &relay.address().to_string())
    }

    /// Writes a file of the home, mode 0600, in one step as editors do.
    pub fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        fs::write(&new, text).expect("the home is writable");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        fs::rename(new, path).expect("the home is writable");
    }

    /// A file of the home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// What is so on the machine, as the agent is told.
    fn facts(&self) -> TellFacts {
        let (facts, began) = (Arc::clone(&self.facts), self.began);
        Arc::new(move || {
            let facts = *facts.lock().unwrap_or_else(PoisonError::into_inner);
            Facts { now: UnixTime(facts.now.0 + began.elapsed().as_secs()), ..facts }
        })
    }

    /// Changes what is so on the machine.
    pub fn now(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) {
        let slept = Arc::clone(&self.slept);
        let deps = Deps {
            clock: SleepClock::Told(Arc::new(move || Duration::from_millis(slept.load(Ordering::Relaxed)))),
            facts: FactSource::Told(self.facts()),
            seed: self.seed,
            telemetry: self.telemetry.clone(),
            ..Deps::default()
        };
        let _umask = one_at_a_time();
        let agent = Agent::new(&self.config, deps).expect("the home is free");
        let stop = Stop::default();
        self.agent = Some((stop.clone(), tokio::spawn(agent.run(stop))));
    }

    /// Begins an orderly stop.
    pub fn drain(&self) {
        self.agent.as_ref().expect("the agent runs").0.drain.cancel();
    }

    /// Ends it at once.
    pub fn abort(&self) {
        self.agent.as_ref().expect("the agent runs").0.abort.cancel();
    }

    /// Waits for the agent's end.
    pub async fn stopped(&mut self) -> Stopped {
        let (_stop, agent) = self.agent.take().expect("the agent runs");
        soon("the agent to stop", agent)
            .await
            .expect("the agent does not panic")
            .expect("the agent does not fail")
    }

    /// Stops the agent in an orderly way.
    pub async fn stop_agent(&mut self) -> Stopped {
        self.drain();
        self.stopped().await
    }

    /// Kills the agent as `kill -9` would: nothing more is said to anybody.
    pub async fn kill_agent(&mut self) {
        let (_stop, agent) = self.agent.take().expect("the agent runs");
        // What its destructors still write, a killed one would not have.
        let tasks = self.path(TASKS_FILE);
        let written = fs::read(&tasks).ok();
        agent.abort();
        let _ = agent.await;
        if let Some(written) = written {
            fs::write(tasks, written).expect("the home is writable");
        }
        // Its server is a task of its own, which lets the lock go as it ends.
        let lock = self.config.socket.with_extension("sock.lock");
        let free = || fs::File::open(&lock).is_ok_and(|lock| lock.try_lock().is_ok());
        let freed = async {
            while !free() {
                tokio::task::yield_now().await;
            }
        };
        soon("the killed agent's lock", freed).await;
    }

    /// A connected local program with `client_id`.
    pub async fn client(&self, client_id: &str) -> Client {
        Client::connect(&self.config.socket, client_id).await
    }

    /// A connected local program that has pushed these providers and was told the verdict.
    pub async fn client_with(&self, client_id: &str, providers: &[mcprelay::pb::Provider]) -> Client {
        let mut client = self.client(client_id).await;
        client.push(providers).await;
        client
    }

    /// A local program with one opted-in provider that mcpd lists as active.
    pub async fn serving(&self, llm: &str) -> Client {
        let client = self.client_with("mcplocal", &[provider(llm, true)]).await;
        self.active(llm).await;
        client
    }

    /// Waits until mcpd lists an LLM as active and its channel is open.
    pub async fn active(&self, llm: &str) {
        let online = |s: &fake_mcpd::Snapshot| s.is_active(llm) && s.sessions.iter().any(|s| s.connected);
        soon("an active row", self.mcpd.wait_until(online)).await;
    }

    /// Waits until mcpd lists an LLM as inactive, or not at all.
    pub async fn inactive(&self, llm: &str) {
        soon("an inactive row", self.mcpd.wait_until(|s| !s.is_active(llm))).await;
    }

    /// Waits until the agent says that its link is in this state, and gives what it says.
    pub async fn link(&self, state: AgentState) -> pb::AgentStatus {
        let mut watch = Watch::open(&self.config.socket).await;
        let status = watch.until(|s| s.agent.as_ref().is_some_and(|a| a.state() == state)).await;
        status.agent.expect("the link has a status")
    }

    /// mcpd's row of an LLM.
    pub fn row(&self, llm: &str) -> LlmView {
        self.mcpd.llms().into_iter().find(|row| row.spec.name == llm).expect("mcpd lists it")
    }

    /// Waits until mcpd has got so many calls of a kind, and gives them all.
    pub async fn calls_of(&self, kind: CallKind, count: usize) -> Vec<Entry> {
        let mut seen = 0;
        let enough = |e: &Entry| {
            seen += usize::from(e.is_call(kind));
            seen >= count
        };
        soon("that many calls", self.mcpd.wait_for(enough)).await;
        self.calls(kind)
    }

    /// The journal's calls of one kind.
    pub fn calls(&self, kind: CallKind) -> Vec<Entry> {
        self.mcpd.journal().into_iter().filter(|e| e.is_call(kind)).collect()
    }

    /// All results that mcpd got for a task, in order: the same whichever way they came.
    pub fn results(&self, task: &str) -> Vec<Value> {
        let without_number = |part: &Entry| {
            let mut part = part.json();
            part.as_object_mut().map(|members| members.remove("n"));
            part
        };
        self.parts(task).iter().map(without_number).collect()
    }

    /// The journal's entries of a task's parts, whichever way they came.
    pub fn parts(&self, task: &str) -> Vec<Entry> {
        let mut journal = self.mcpd.journal();
        journal.retain(|e| e.is_part() && e.task.as_deref() == Some(task));
        journal
    }

    /// Nothing in the journal broke the contract.
    pub fn assert_clean(&self) {
        let violations = self.mcpd.violations();
        assert!(violations.is_empty(), "{violations:#?}\n{:#?}", self.mcpd.journal());
    }

    /// Every call so far, as kinds in order.
    pub fn kinds(&self) -> Vec<Kind> {
        self.mcpd.journal().into_iter().map(|e| e.kind).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((_, agent)) = &self.agent {
            agent.abort();
        }
    }
}

/// The times between one entry and the next, in ms.
pub fn gaps(entries: &[Entry]) -> Vec<u64> {
    entries.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).collect()
}

/// A chat body.
pub fn chat(prompt: &str) -> Value {
    json!({"model": "any", "messages": [{"role": "user", "content": prompt}]})
}

/// An OpenAI chunk with one piece of text.
pub fn chunk(text: &str) -> String {
    json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
    .to_string()
}

/// The last OpenAI chunk of a stream.
pub fn last_chunk() -> String {
    json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    .to_string()
}

/// A whole OpenAI answer.
pub fn completion(text: &str) -> String {
    json!({"id": "c1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})
    .to_string()
}
