//! Real processes and their real ends: killed, stopped, started again, and a network between them that misbehaves.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fake_mcpd::{Aim, Answer, Call, CallKind, FakeMcpd, InferRequest, Rule, TaskEnd};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    chat,
    process::{MCPRELAY, Process, command, mcprelay},
    proxy::{Order, Proxy, Way},
    soon,
};

/// Words of a prompt: so many tokens come back, and a few more.
const WORDS: usize = 60;
/// What every echoed answer begins with.
const PREFIX: &str = "You said: ";
/// Wait between two looks at something that has to happen.
const LOOK: Duration = Duration::from_millis(20);

/// A home with credentials for an mcpd, and an echo provider that says a word every 50 ms.
fn home(url: &str, token: &str) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, value: Value| {
        std::fs::write(home.path().join(name), value.to_string()).expect("the home is writable");
    };
    write("credentials", json!({"mcpdUrl": url, "token": token}));
    let echo = json!({"name": "echo", "type": "echo", "model": "m", "publish": true, "tokenDelayMs": 50, "maxInFlight": 4});
    write("config.json", json!({"llm": {"providers": [echo]}}));
    home
}

/// An agent that comes back quickly.
fn agent(home: &Path) -> Process {
    Process::start(mcprelay(home, &["run", "--reconnect-min", "200ms", "--reconnect-max", "1s"]))
}

fn provider(home: &Path) -> Process {
    Process::start(mcprelay(home, &["provide"]))
}

fn signal(process: &Process, name: &str) {
    let told = command("kill").args([name, &process.pid().to_string()]).status();
    assert!(told.is_ok_and(|status| status.success()), "it runs");
}

fn prompt() -> String {
    (0..WORDS).map(|n| format!("w{n} ")).collect::<String>().trim_end().to_owned()
}

async fn active(mcpd: &FakeMcpd) {
    soon("an active row", mcpd.wait_until(|state| state.is_active("echo"))).await;
}

/// A stream of which the first words have come.
async fn begun(mcpd: &FakeMcpd) -> (Call, String) {
    active(mcpd).await;
    let mut call = mcpd.infer_stream("echo", &chat(&prompt())).expect("accepted");
    let mut text = String::new();
    while text.len() < PREFIX.len() + 8 {
        text += &content(&soon("a token", call.chunk()).await.expect("it goes on"));
    }
    (call, text)
}

fn content(chunk: &[u8]) -> String {
    let chunk: Value = serde_json::from_slice(chunk).expect("JSON");
    chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
}

/// A new inference gets all its words.
async fn works(mcpd: &FakeMcpd) {
    let (call, begun) = begun(mcpd).await;
    let got = soon("the end", call.collect()).await;
    assert!(got.is_done(), "{:?}", got.end);
    assert_eq!(begun + &got.text(), format!("{PREFIX}{}", prompt()));
}

fn clean(mcpd: &FakeMcpd) {
    assert!(mcpd.violations().is_empty(), "{:#?}", mcpd.violations());
}

#[tokio::test]
async fn an_agent_that_is_killed_and_started_again_ends_what_it_left_and_works_on() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd.url(), &mcpd.token());
    let _provider = provider(home.path());
    let mut first = agent(home.path());
    let (call, _) = begun(&mcpd).await;
    first.kill();
    let _second = agent(home.path());
    let end = soon("the end", call.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if message.contains("was restarted")), "{end:?}");
    works(&mcpd).await;
    clean(&mcpd);
}

#[tokio::test]
async fn a_provider_that_is_killed_ends_what_it_had_begun_and_serves_again_when_it_is_back() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd.url(), &mcpd.token());
    let _agent = agent(home.path());
    let mut first = provider(home.path());
    let (call, _) = begun(&mcpd).await;
    let killed = Instant::now();
    first.kill();
    let end = soon("the end", call.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if message.contains("mcplocal lost")), "{end:?}");
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    let _second = provider(home.path());
    works(&mcpd).await;
    clean(&mcpd);
}

#[tokio::test]
async fn a_provider_that_is_stopped_is_noticed_by_the_keep_alive() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd.url(), &mcpd.token());
    let _agent = agent(home.path());
    let frozen = provider(home.path());
    let (call, _) = begun(&mcpd).await;
    let stopped = Instant::now();
    signal(&frozen, "-STOP");
    let end = soon("the end", call.collect()).await.end;
    assert!(matches!(&end, TaskEnd::Failed { message, .. } if message.contains("mcplocal lost")), "{end:?}");
    // A keep-alive every 20 s, with 10 s for its answer; the rest is for a busy machine.
    assert!(stopped.elapsed() < Duration::from_secs(45), "{:?}", stopped.elapsed());
    signal(&frozen, "-CONT");
    works(&mcpd).await;
    clean(&mcpd);
}

#[tokio::test]
async fn through_a_network_that_cuts_delays_and_chops_every_token_comes_once() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let proxy = Proxy::start(mcpd.address()).await.expect("a loopback port");
    let home = home(&proxy.url(), &mcpd.token());
    let (_agent, _provider) = (agent(home.path()), provider(home.path()));
    let faults: [&[Order]; 6] = [
        &[Order::CutReply, Order::CutReply, Order::CutReply],
        &[Order::Bytewise],
        &[Order::Delay(Duration::from_millis(80))],
        &[Order::CutAfter(Way::ToMcpd, 150), Order::CutAfter(Way::ToAgent, 60)],
        &[Order::CutAll, Order::CutReply],
        &[Order::Stall],
    ];
    for orders in faults {
        let (call, begun) = begun(&mcpd).await;
        orders.iter().cloned().for_each(|order| proxy.order(order));
        let rest = tokio::spawn(call.collect());
        sleep(Duration::from_millis(700)).await;
        proxy.order(Order::Clear);
        let got = soon("the end", rest).await.expect("it does not panic");
        assert!(got.is_done(), "{orders:?}: {:?}", got.end);
        assert_eq!(begun + &got.text(), format!("{PREFIX}{}", prompt()), "{orders:?}");
    }
    clean(&mcpd);
}

// ---- an mcpd that is a process too ---------------------------------------------------------------------------------

/// The fake mcpd's program, which is built with the workspace, beside the agent's own.
fn mcpd_process(address: SocketAddr) -> Process {
    let program = Path::new(MCPRELAY).with_file_name("fake-mcpd");
    let mut start = command(&program);
    start.args(["--listen", &address.to_string(), "--token", "token"]);
    assert!(program.exists(), "{} is not there; `cargo build --workspace` makes it", program.display());
    Process::start(start)
}

struct Caller {
    http: reqwest::Client,
    url: String,
}

impl Caller {
    async fn get(&self, path: &str) -> Option<Value> {
        let reply = self.http.get(format!("{}{path}", self.url)).bearer_auth("token").send().await.ok()?;
        serde_json::from_slice(&reply.bytes().await.ok()?).ok()
    }

    /// Asks for a stream until somebody serves it.
    async fn infer(&self) -> reqwest::Response {
        let mut body = chat(&prompt());
        body["stream"] = true.into();
        let url = format!("{}/api/v1/llms/echo/infer", self.url);
        loop {
            let asked = self.http.post(&url).bearer_auth("token").body(body.to_string()).send().await;
            match asked {
                Ok(reply) if reply.status().is_success() => return reply,
                _ => sleep(LOOK).await,
            }
        }
    }
}

#[tokio::test]
async fn an_mcpd_that_is_killed_and_started_again_on_its_port_is_found_again() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let address = free.local_addr().expect("it is bound");
    drop(free);
    let home = home(&format!("http://{address}"), "token");
    let mut first = mcpd_process(address);
    let mut agent = agent(home.path());
    let _provider = provider(home.path());
    let caller = Caller {
        http: reqwest::Client::builder().no_proxy().build().expect("a client"),
        url: format!("http://{address}"),
    };
    let mut stream = soon("a stream", caller.infer()).await;
    let task = stream.headers()["x-request-id"].to_str().expect("text").to_owned();
    assert!(soon("a token", stream.chunk()).await.expect("it goes on").is_some());
    first.kill();
    let broke = async { while let Ok(Some(_)) = stream.chunk().await {} };
    soon("the end of the broken stream", broke).await;
    let _second = mcpd_process(address);
    let again = soon("a stream", caller.infer()).await;
    let text = soon("its end", again.text()).await.expect("it is whole");
    let said: String = text
        .lines()
        .filter_map(|l| l.strip_prefix("data: {"))
        .map(|l| content(format!("{{{l}").as_bytes()))
        .collect();
    assert_eq!(said, format!("{PREFIX}{}", prompt()));
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    assert!(agent.is_alive(), "{}", agent.log());
    let verdict = caller.get("/_fake/verdict").await.expect("a verdict");
    // The second mcpd cannot know the first one's session and task.
    let known = |v: &&Value| v["rule"] != "heartbeat-before-register" && v["subject"] != *task;
    let violations: Vec<_> = verdict["violations"].as_array().expect("a list").iter().filter(known).collect();
    assert!(violations.is_empty(), "{violations:?}");
}

// ---- for a long time -----------------------------------------------------------------------------------------------

/// Callers at work at once.
const CALLERS: usize = 6;
/// Between two lines of figures.
const REPORT: Duration = Duration::from_secs(10);

/// What the callers of a soak got.
#[derive(Debug, Default)]
struct Harvest {
    whole: u64,
    /// Ends with an error, by what they said.
    failed: std::collections::BTreeMap<String, u64>,
    /// Answers that are not what the provider said.
    wrong: Vec<String>,
}

/// Mixed load with faults. Half an hour of it:
/// `MCPRELAY_SOAK_MINUTES=30 cargo test --release --test it soak -- --nocapture`; a normal test run has a few seconds of it.
#[tokio::test]
async fn a_soak_of_mixed_load_and_faults_breaks_nothing() {
    let minutes = std::env::var("MCPRELAY_SOAK_MINUTES").ok().map(|m| m.parse::<f64>().expect("minutes"));
    let lasting = Duration::from_secs_f64(minutes.map_or(4.0, |m| m * 60.0));
    let mcpd = Arc::new(FakeMcpd::builder().journal(1_000).start().await.expect("a loopback port"));
    let proxy = Proxy::start(mcpd.address()).await.expect("a loopback port");
    let home = home(&proxy.url(), &mcpd.token());
    let agent = agent(home.path());
    let mut served = provider(home.path());
    active(&mcpd).await;
    let harvest = Arc::<Mutex<Harvest>>::default();
    let mut callers = JoinSet::new();
    for n in 0..CALLERS {
        callers.spawn(call_on(Arc::clone(&mcpd), Arc::clone(&harvest), fastrand::Rng::with_seed(n as u64)));
    }
    let (began, mut rng, mut reported) = (Instant::now(), fastrand::Rng::with_seed(7), Instant::now());
    let mut resident = Vec::new();
    while began.elapsed() < lasting {
        trouble(&proxy, &mcpd, &mut rng).await;
        if rng.u8(..40) == 0 {
            served.kill();
            served = provider(home.path());
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            resident.push(agent.resident());
            let (seconds, kib) = (began.elapsed().as_secs(), agent.resident() >> 10);
            println!(
                "{seconds:>5} s: agent {kib} KiB, {:?}, {} violations",
                lock(&harvest),
                mcpd.violations().len()
            );
        }
    }
    callers.shutdown().await;
    let harvest = lock(&harvest);
    println!("in the end: agent {} KiB, {harvest:?}", agent.resident() >> 10);
    assert!(harvest.whole > 0 && harvest.wrong.is_empty(), "{harvest:?}");
    let honest =
        |rule: Rule| matches!(rule, Rule::MissingHeartbeat | Rule::RegisterUnderWay | Rule::RegisterTooOften);
    let violations: Vec<_> = mcpd.violations().into_iter().filter(|v| !honest(v.rule)).collect();
    assert!(violations.is_empty(), "{violations:#?}");
    flat(&resident);
}

/// Memory after a third of a long run is memory at its end.
fn flat(resident: &[usize]) {
    if let [.., last] = resident
        && resident.len() >= 30
    {
        let early = resident[..resident.len() / 3].iter().max().copied().unwrap_or_default();
        assert!(*last <= early + (8 << 20), "from {early} to {last} bytes");
    }
}

fn lock(harvest: &Mutex<Harvest>) -> MutexGuard<'_, Harvest> {
    harvest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One piece of trouble, and some peace.
async fn trouble(proxy: &Proxy, mcpd: &FakeMcpd, rng: &mut fastrand::Rng) {
    match rng.u8(..9) {
        0 => proxy.order(Order::CutAll),
        1 => proxy.order(Order::Stall),
        2 => proxy.order(Order::Delay(Duration::from_millis(rng.u64(1..200)))),
        3 => proxy.order(Order::Bytewise),
        4 => mcpd.break_channels(),
        5 => mcpd.lose_reply(Aim::next(CallKind::Result).times(3)),
        6 => mcpd.answer(Aim::next(CallKind::Result).times(3), Answer::status(503)),
        7 => mcpd.deliver_twice(3),
        _ => (0..5).for_each(|_| proxy.order(Order::CutReply)),
    }
    sleep(Duration::from_millis(rng.u64(50..800))).await;
    proxy.order(Order::Clear);
    sleep(Duration::from_millis(rng.u64(100..1_500))).await;
}

/// One caller: asks, compares, sometimes leaves, for ever.
async fn call_on(mcpd: Arc<FakeMcpd>, harvest: Arc<Mutex<Harvest>>, mut rng: fastrand::Rng) {
    loop {
        let words: String = (0..rng.usize(1..40)).map(|n| format!(" w{n}")).collect();
        let prompt = words.trim_start().to_owned();
        let streaming = rng.bool();
        let new = if streaming { InferRequest::streaming } else { InferRequest::new };
        let deadline = Some(Duration::from_secs(30));
        let Ok(mut call) = mcpd.submit(InferRequest { deadline, ..new("echo", &chat(&prompt)) }) else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        if rng.u8(..8) == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(rng.u64(..500)), call.chunk()).await;
            continue;
        }
        let got = call.collect().await;
        let (expected, mut said) = (format!("{PREFIX}{prompt}"), got.text());
        let mut harvest = lock(&harvest);
        let whole = match &got.end {
            TaskEnd::Reply { status: 200, body, .. } => {
                let body: Value = serde_json::from_slice(body).unwrap_or_default();
                said = body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
                true
            }
            TaskEnd::Done => true,
            TaskEnd::Reply { status, .. } => bump(&mut harvest, &status.to_string()),
            TaskEnd::Failed { message, .. } => bump(&mut harvest, message),
            TaskEnd::CallerGone => bump(&mut harvest, "caller gone"),
        };
        harvest.whole += u64::from(whole);
        if (whole && said != expected) || !expected.starts_with(&said) {
            harvest.wrong.push(format!("{}: {said:?} of {expected:?}, {:?}", got.task_id, got.end));
        }
    }
}

fn bump(harvest: &mut Harvest, why: &str) -> bool {
    *harvest.failed.entry(why.chars().take(60).collect()).or_default() += 1;
    false
}
