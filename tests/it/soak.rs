//! Mixed load with faults for a long time: real processes, one table of figures at the end.
//!
//! ```text
//! MCPRELAY_SOAK_MINUTES=30 cargo test --profile simulation --test it soak -- --nocapture
//! ```
//!
//! A normal test run has a few seconds of it. Callers rest between their calls, so that it takes a fraction of one core.

mod after_end;
mod nginx;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fake_mcpd::{Aim, Answer, CallKind, Collected, FakeMcpd, InferRequest, Rule, TaskEnd, Tls};
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{after_end::AfterEnd, nginx::Nginx};
use crate::support::{
    Scheme, chat,
    process::{Process, mcprelay},
    proxy::{Order, Proxy},
    soon,
    wire::{Seen, What},
};

/// What every echoed answer begins with.
const PREFIX: &str = "You said: ";
/// Callers at work at once: more than the slots of both providers, so that some wait.
const CALLERS: usize = 8;
/// Between two lines of figures.
const REPORT: Duration = Duration::from_secs(10);
/// What a program may hold more at the end than after a third of the time, in bytes: the allocator's own ups and downs.
const GROWTH: usize = 8 << 20;
/// Between two reloads of nginx: more than once in the time for which the guide lets an old worker live.
const RELOAD: Duration = Duration::from_secs(20);
/// Between two faults that break the control channel: it reconnects within 1.5 s and then has to live for 5 s.
const CHANNEL_PEACE: Duration = Duration::from_secs(8);
/// The two of them.
const CUT: &str = "every connection cut";
const BROKEN: &str = "control channel broken";
/// The contract's least time between two register calls, less what a busy machine takes to read them off the network.
const REGISTER_GAP: Duration = Duration::from_millis(200);
/// The heartbeat's interval, and what a busy machine may add.
const HEARTBEAT: Duration = Duration::from_secs(35);

/// Two providers, a slow one and one that says all at once.
fn home(url: &str, token: &str) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, value: Value| {
        std::fs::write(home.path().join(name), value.to_string()).expect("the home is writable");
    };
    let echo = |name: &str, delay: u64, slots: u64| json!({"name": name, "type": "echo", "model": "m", "publish": true, "tokenDelayMs": delay, "maxInFlight": slots});
    write("credentials", json!({"mcpdUrl": url, "token": token}));
    write("config.json", json!({"llm": {"providers": [echo("slow", 50, 3), echo("fast", 0, 2)]}}));
    home
}

fn agent(home: &Path, ca_file: Option<&Path>) -> Process {
    let mut agent = mcprelay(home, &["run", "--reconnect-min", "200ms", "--reconnect-max", "1s"]);
    if let Some(path) = ca_file {
        agent.arg("--ca-file").arg(path);
    }
    Process::start(agent)
}

/// How the agent reaches mcpd: MCPRELAY_SOAK_SCHEME is http, https1, https2 or nginx, which is https over HTTP/2 through an nginx that
/// reloads, and http behind it. What the relay cannot read over https (when the agent sent what) is not judged there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct(Scheme),
    Nginx,
}

impl Way {
    fn of_this_run() -> Self {
        match std::env::var("MCPRELAY_SOAK_SCHEME").as_deref() {
            Err(_) | Ok("http") => Self::Direct(Scheme::Http),
            Ok("https1") => Self::Direct(Scheme::Https1),
            Ok("https2") => Self::Direct(Scheme::Https2),
            Ok("nginx") => Self::Nginx,
            Ok(other) => panic!("MCPRELAY_SOAK_SCHEME is none of http, https1, https2 and nginx: {other}"),
        }
    }

    fn tls(self) -> Option<Tls> {
        match self {
            Self::Direct(scheme) => scheme.tls(),
            Self::Nginx => None,
        }
    }
}

fn provider(home: &Path) -> Process {
    Process::start(mcprelay(home, &["provide"]))
}

/// What the callers got.
#[derive(Debug, Default)]
struct Harvest {
    streamed: u64,
    plain: u64,
    left: u64,
    tokens: u64,
    /// Ends with an error, by what they said.
    failed: BTreeMap<String, u64>,
    /// Answers that are not what the provider said.
    wrong: Vec<String>,
    /// Tasks that mcpd ended, because no end had come in time.
    overdue: Vec<String>,
}

/// What was done, and what it did to the agent.
#[derive(Debug, Default)]
struct Figures {
    faults: BTreeMap<&'static str, u64>,
    kills: u64,
    resident: Vec<usize>,
    pace: Pace,
    after_end: AfterEnd,
}

#[tokio::test]
async fn a_soak_of_mixed_load_and_faults_breaks_nothing() {
    let minutes = std::env::var("MCPRELAY_SOAK_MINUTES").ok().map(|m| m.parse::<f64>().expect("minutes"));
    let lasting = Duration::from_secs_f64(minutes.map_or(4.0, |m| m * 60.0));
    let mut mcpd = FakeMcpd::builder().journal(1_000);
    let way = Way::of_this_run();
    if let Some(tls) = way.tls() {
        mcpd = mcpd.tls(tls);
    }
    let mcpd = Arc::new(mcpd.start().await.expect("a loopback port"));
    let proxy = Proxy::start(mcpd.address()).await.expect("a loopback port");
    let direct = mcpd.url().replace(&mcpd.address().to_string(), &proxy.address().to_string());
    let nginx = if way == Way::Nginx { Some(Nginx::start(proxy.address()).await) } else { None };
    let home = home(&nginx.as_ref().map_or(direct, Nginx::url), &mcpd.token());
    let ca_file = nginx.as_ref().map(Nginx::ca_file).or_else(|| mcpd.ca_file().map(Path::to_owned));
    let mut agent = agent(home.path(), ca_file.as_deref());
    let mut served = provider(home.path());
    for name in ["slow", "fast"] {
        soon("an active row", mcpd.wait_until(|state| state.is_active(name))).await;
    }
    let harvest = Arc::<Mutex<Harvest>>::default();
    let mut callers = JoinSet::new();
    for n in 0..CALLERS {
        callers.spawn(call_on(Arc::clone(&mcpd), Arc::clone(&harvest), Rng::with_seed(n as u64)));
    }
    let (began, mut rng, mut reported) = (Instant::now(), Rng::with_seed(7), Instant::now());
    let (mut figures, mut broken, mut reloaded) = (Figures::default(), None, began);
    while began.elapsed() < lasting {
        if let Some(nginx) = &nginx
            && reloaded.elapsed() >= RELOAD
        {
            reloaded = Instant::now();
            nginx.reload();
            *figures.faults.entry("nginx reloaded").or_default() += 1;
        }
        let spared = broken.is_some_and(|at: Instant| at.elapsed() < CHANNEL_PEACE);
        let what = trouble(&proxy, &mcpd, &mut rng, spared).await;
        *figures.faults.entry(what).or_default() += 1;
        if [CUT, BROKEN].contains(&what) {
            broken = Some(Instant::now());
        }
        if rng.u8(..40) == 0 {
            figures.kills += 1;
            served.kill();
            served = provider(home.path());
        }
        figures.pace.watch(proxy.seen());
        figures.after_end.watch(&mcpd);
        assert!(agent.is_alive(), "the agent has ended:\n{}", agent.log());
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            figures.resident.push(agent.resident());
            println!(
                "{:>5} s: agent {} KiB, {}",
                began.elapsed().as_secs(),
                agent.resident() >> 10,
                lock(&harvest)
            );
        }
    }
    callers.shutdown().await;
    println!("{}", table(began.elapsed(), &lock(&harvest), &figures, &agent));
    judge(way, &mcpd, &lock(&harvest), &figures);
}

/// Nothing wrong, nothing unexplained, no rule broken, no memory gained.
fn judge(way: Way, mcpd: &FakeMcpd, harvest: &Harvest, figures: &Figures) {
    assert!(harvest.streamed > 0 && harvest.plain > 0 && harvest.wrong.is_empty(), "{harvest:?}");
    let of_a_kill = |why: &String| figures.kills > 0 && why.contains("went away before its end");
    let overload = |why: &String| why.starts_with("429") || why.starts_with("503");
    let strange: Vec<_> = harvest.failed.keys().filter(|why| !of_a_kill(why) && !overload(why)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    // A task event that was under way when its channel was cut is known to nobody but mcpd, and one that nginx got may have been.
    let arrived = |task: &&String| way != Way::Nginx && figures.pace.arrived.contains(*task);
    let late: Vec<_> = harvest.overdue.iter().filter(arrived).collect();
    assert!(late.is_empty(), "{late:?} had reached the agent, and no end came in time");
    // What is held up by the network reaches mcpd close together, or late: that is judged by when the agent sent it.
    let by_arrival = |rule: Rule| matches!(rule, Rule::RegisterTooOften | Rule::MissingHeartbeat);
    let violations: Vec<_> = mcpd.violations().into_iter().filter(|v| !by_arrival(v.rule)).collect();
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(figures.pace.broken.is_empty(), "{:#?}", figures.pace.broken);
    flat(&figures.resident);
}

/// Memory after a third of a long run is memory at its end.
fn flat(resident: &[usize]) {
    if let [.., last] = resident
        && resident.len() >= 30
    {
        let early = resident[..resident.len() / 3].iter().max().copied().unwrap_or_default();
        assert!(*last <= early + GROWTH, "from {early} to {last} bytes");
    }
}

fn table(took: Duration, harvest: &Harvest, figures: &Figures, agent: &Process) -> String {
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let third = figures.resident.get(figures.resident.len() / 3).copied().unwrap_or_default();
    let count = |name: &str, n: u64| (name.to_owned(), n.to_string());
    let mut rows = vec![
        ("time".to_owned(), format!("{:.1} min", took.as_secs_f64() / 60.0)),
        count("streams whole", harvest.streamed),
        count("plain answers whole", harvest.plain),
        count("tokens compared", harvest.tokens),
        count("callers that left", harvest.left),
        count("answers that were wrong", harvest.wrong.len() as u64),
        count("tasks whose event was cut on its way", harvest.overdue.len() as u64),
        count("providers killed", figures.kills),
    ];
    rows.extend(harvest.failed.iter().map(|(why, n)| count(&format!("ends: {why}"), *n)));
    rows.extend(figures.faults.iter().map(|(what, n)| count(&format!("fault: {what}"), *n)));
    let (longest, which) = &figures.pace.longest;
    rows.push(("longest part under way".to_owned(), format!("{:.2} s ({which})", longest.as_secs_f64())));
    rows.push(count("rules broken on the wire", figures.pace.broken.len() as u64));
    rows.push(("agent's memory after a third".to_owned(), mib(third)));
    rows.push(("agent's memory at the end".to_owned(), mib(agent.resident())));
    rows.push(("agent's memory at most".to_owned(), mib(agent.peak())));
    rows.push(("agent's CPU time".to_owned(), format!("{:.1} s", agent.cpu().as_secs_f64())));
    rows.iter().map(|(what, figure)| format!("| {what} | {figure} |\n")).collect()
}

fn lock(harvest: &Mutex<Harvest>) -> MutexGuard<'_, Harvest> {
    harvest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Display for Harvest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let failed: u64 = self.failed.values().sum();
        write!(
            f,
            "{} streams and {} plain answers whole, {failed} failed, {} left, {} wrong",
            self.streamed,
            self.plain,
            self.left,
            self.wrong.len()
        )
    }
}

// ---- the agent's pace ----------------------------------------------------------------------------------------------

/// The moments of the agent's own calls, whatever the network did to them later.
#[derive(Debug, Default)]
struct Pace {
    until: Option<Instant>,
    last_register: Option<Instant>,
    last_beat: Option<Instant>,
    broken: Vec<String>,
    /// Tasks that reached the agent.
    arrived: BTreeSet<String>,
    /// The part under way on each connection, and since when.
    under_way: BTreeMap<u64, (Instant, String)>,
    /// The longest time that a part was under way, and which.
    longest: (Duration, String),
}

impl Pace {
    /// Looks at what passed since the last look.
    fn watch(&mut self, seen: Vec<Seen>) {
        let until = self.until;
        for new in seen.into_iter().filter(|s| until.is_none_or(|until| s.at > until)) {
            self.until = Some(new.at);
            if let Some((since, key)) = self.under_way.remove(&new.connection) {
                let took = new.at - since;
                if took > self.longest.0 {
                    self.longest = (took, format!("{key}, until {:?}", new.what));
                }
            }
            if let What::Event { name, task } = &new.what
                && name == "task"
            {
                self.arrived.insert(task.clone());
            }
            let What::Request(request) = &new.what else { continue };
            if let Some(key) = &request.key {
                self.under_way.insert(new.connection, (new.at, key.clone()));
            }
            match request.call.as_str() {
                "_provider-register" => {
                    let last = self.last_register.replace(new.at);
                    self.hold(
                        last.is_none_or(|last| new.at - last >= REGISTER_GAP),
                        "register calls",
                        last,
                        new.at,
                    );
                    self.last_beat.get_or_insert(new.at);
                }
                "_provider-heartbeat" => {
                    let last = self.last_beat.replace(new.at);
                    self.hold(last.is_none_or(|last| new.at - last <= HEARTBEAT), "heartbeats", last, new.at);
                }
                _ => {}
            }
        }
    }

    fn hold(&mut self, good: bool, what: &str, last: Option<Instant>, now: Instant) {
        if !good {
            self.broken.push(format!("two {what} {:?} apart", last.map(|last| now - last)));
        }
    }
}

// ---- faults and callers --------------------------------------------------------------------------------------------

/// One piece of trouble, and some peace; says what it was. Three channels in a row that live shorter than 5 s would mean another
/// process with the same session and a minute of rest, so `spare_the_channel` leaves out what breaks it.
async fn trouble(proxy: &Proxy, mcpd: &FakeMcpd, rng: &mut Rng, spare_the_channel: bool) -> &'static str {
    let what = match rng.u8(..9) {
        0 | 4 if spare_the_channel => (proxy.order(Order::CutReply), "a reply cut after it was applied").1,
        0 => (proxy.order(Order::CutAll), CUT).1,
        1 => (proxy.order(Order::Stall), "network stalled").1,
        2 => (proxy.order(Order::Delay(Duration::from_millis(rng.u64(1..200)))), "network delayed").1,
        3 => (proxy.order(Order::Bytewise), "one byte at a time").1,
        4 => (mcpd.break_channels(), BROKEN).1,
        5 => (mcpd.lose_reply(Aim::next(CallKind::Result).times(3)), "3 replies lost by mcpd").1,
        6 => {
            (mcpd.answer(Aim::next(CallKind::Result).times(3), Answer::status(503)), "3 parts answered 503").1
        }
        7 => (mcpd.deliver_twice(3), "3 tasks delivered twice").1,
        _ => ((0..5).for_each(|_| proxy.order(Order::CutReply)), "5 replies cut after they were applied").1,
    };
    sleep(Duration::from_millis(rng.u64(50..800))).await;
    proxy.order(Order::Clear);
    sleep(Duration::from_millis(rng.u64(100..1_500))).await;
    what
}

/// One caller: asks, compares, sometimes leaves, rests, for ever.
async fn call_on(mcpd: Arc<FakeMcpd>, harvest: Arc<Mutex<Harvest>>, mut rng: Rng) {
    loop {
        sleep(Duration::from_millis(rng.u64(50..500))).await;
        let words: String = (0..rng.usize(1..40)).map(|n| format!(" w{n}")).collect();
        let prompt = words.trim_start().to_owned();
        let streaming = rng.bool();
        let new = if streaming { InferRequest::streaming } else { InferRequest::new };
        let name = if rng.u8(..4) == 0 { "fast" } else { "slow" };
        let deadline = Some(Duration::from_secs(60));
        let Ok(mut call) = mcpd.submit(InferRequest { deadline, ..new(name, &chat(&prompt)) }) else {
            continue;
        };
        if rng.u8(..8) == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(rng.u64(..500)), call.chunk()).await;
            lock(&harvest).left += 1;
            continue;
        }
        let got = call.collect().await;
        lock(&harvest).add(&got, &format!("{PREFIX}{prompt}"));
    }
}

impl Harvest {
    fn add(&mut self, got: &Collected, expected: &str) {
        let mut said = got.text();
        let whole = match &got.end {
            TaskEnd::Reply { status: 200, body, .. } => {
                let body: Value = serde_json::from_slice(body).unwrap_or_default();
                said = body["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
                self.plain += 1;
                true
            }
            TaskEnd::Done => {
                self.streamed += 1;
                true
            }
            TaskEnd::Reply { status, body, .. } => {
                let body: Value = serde_json::from_slice(body).unwrap_or_default();
                let why = body["error"]["message"].as_str().unwrap_or_default();
                self.bump(&format!("{status} {why}"))
            }
            TaskEnd::Failed { code: "deadline", .. } => {
                self.overdue.push(got.task_id.clone());
                false
            }
            TaskEnd::Failed { message, .. } => self.bump(message),
            TaskEnd::CallerGone => self.bump("caller gone"),
        };
        self.tokens += said.split_whitespace().count() as u64;
        if (whole && said != expected) || !expected.starts_with(&said) {
            self.wrong.push(format!("{}: {said:?} of {expected:?}, {:?}", got.task_id, got.end));
        }
    }

    fn bump(&mut self, why: &str) -> bool {
        *self.failed.entry(why.chars().take(80).collect()).or_default() += 1;
        false
    }
}
