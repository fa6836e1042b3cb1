//! Real processes and their real ends: killed, stopped, started again, and a network between them that misbehaves.

use std::{net::SocketAddr, path::Path, time::Duration};

use fake_mcpd::{Call, FakeMcpd, TaskEnd};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::UnixDatagram,
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
pub(crate) fn home(url: &str, token: &str) -> TempDir {
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

pub(crate) fn prompt() -> String {
    (0..WORDS).map(|n| format!("w{n} ")).collect::<String>().trim_end().to_owned()
}

pub(crate) async fn active(mcpd: &FakeMcpd) {
    soon("an active row", mcpd.wait_until(|state| state.is_active("echo"))).await;
}

/// A stream of which the first words have come.
pub(crate) async fn begun(mcpd: &FakeMcpd) -> (Call, String) {
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
async fn a_terminal_that_is_closed_lets_the_agent_finish_its_tasks() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd.url(), &mcpd.token());
    let _provider = provider(home.path());
    let agent = agent(home.path());
    let (call, begun) = begun(&mcpd).await;
    // The shell says it, and the kernel.
    signal(&agent, "-HUP");
    agent.says("stopping").await;
    signal(&agent, "-HUP");
    let got = soon("the end", call.collect()).await;
    assert_eq!(begun + &got.text(), format!("{PREFIX}{}", prompt()));
    assert_eq!(agent.ended().await, Some(0));
    clean(&mcpd);
}

#[tokio::test]
async fn an_agent_that_is_to_outlive_its_terminal_does() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd.url(), &mcpd.token());
    let _provider = provider(home.path());
    let mut start = command("nohup");
    start.args([MCPRELAY, "run", "--home"]).arg(home.path());
    let agent = Process::start(start);
    active(&mcpd).await;
    signal(&agent, "-HUP");
    works(&mcpd).await;
    assert_eq!(agent.stop().await, Some(0));
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
    let home = home(&format!("http://{}", proxy.address()), &mcpd.token());
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
fn mcpd_process(address: SocketAddr, more: &[&str]) -> Process {
    let program = Path::new(MCPRELAY).with_file_name("fake-mcpd");
    let mut start = command(&program);
    start.args(["--listen", &address.to_string(), "--token", "token"]).args(more);
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
    let mut first = mcpd_process(address, &[]);
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
    // It follows an earlier one: the heartbeat of a session that it never saw is honest.
    let _second = mcpd_process(address, &["--restarted"]);
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
    // The second mcpd cannot know the first one's task, whose next part is in its number.
    let known = |v: &&Value| v["subject"] != *task;
    let violations: Vec<_> = verdict["violations"].as_array().expect("a list").iter().filter(known).collect();
    assert!(violations.is_empty(), "{violations:?}");
}

#[tokio::test]
async fn the_service_manager_is_told_that_it_runs_how_the_link_is_and_how_many_it_offers() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd.url(), &mcpd.token());
    let address = home.path().join("notify");
    let manager = UnixDatagram::bind(&address).expect("the home is writable");
    let mut run = mcprelay(home.path(), &["run", "--provide"]);
    let _agent = Process::start({
        run.env("NOTIFY_SOCKET", &address);
        run
    });
    let heard = async {
        let (mut heard, mut message) = (String::new(), [0; 1024]);
        while !heard.contains("STATUS=online, 1 provider\n") {
            let len = manager.recv(&mut message).await.expect("the socket is ours");
            heard += std::str::from_utf8(&message[..len]).expect("text");
        }
        heard
    };
    let heard = soon("the status", heard).await;
    assert!(heard.contains("READY=1\n"), "{heard}");
}

#[tokio::test]
async fn the_doctor_looks_for_a_provider_elsewhere_through_the_proxy_as_the_host_does() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let entry =
        r#"{"name":"far","type":"openai","model":"m","url":"http://models.invalid/v1","publish":true}"#;
    std::fs::write(home.path().join("config.json"), format!(r#"{{"llm":{{"providers":[{entry}]}}}}"#))
        .expect("writes");
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", proxy.local_addr().expect("an address"));
    const MODELS: &str = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;
    let router = axum::Router::new().fallback(async || MODELS);
    let serving = tokio::spawn(async move { axum::serve(proxy, router).await });
    let mut doctor = mcprelay(home.path(), &["doctor", "-o", "json"]);
    doctor.env("http_proxy", address).env_remove("no_proxy").env_remove("NO_PROXY");
    let done = tokio::task::spawn_blocking(move || doctor.output()).await.expect("it does not panic");
    serving.abort();
    let report: Value = serde_json::from_slice(&done.expect("the program is built").stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings");
    let far =
        findings.iter().find(|finding| finding["subject"] == "provider far").expect("it was looked for");
    assert_eq!(far["result"], "ok", "{far}");
}
