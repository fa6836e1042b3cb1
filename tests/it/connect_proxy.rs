//! The way to mcpd and to providers' servers through a proxy, with real processes: the proxy's address comes from the environment.

use std::process::Command;

use fake_mcpd::{FakeMcpd, InferRequest, Tls};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    chat,
    connect::ConnectProxy,
    process::{Process, ended, mcprelay, text},
    soon,
};

/// A name that only the proxy knows.
const NAME: &str = "mcpd.test";
/// `someone:hunter-2` as a proxy is told it.
const AUTHORIZATION: &str = "Basic c29tZW9uZTpodW50ZXItMg==";

async fn mcpd() -> FakeMcpd {
    FakeMcpd::builder().tls(Tls::default().name(NAME)).start().await.expect("a loopback port")
}

fn home(mcpd: &FakeMcpd) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    write(&home, "credentials", &json!({"mcpdUrl": format!("https://{NAME}"), "token": mcpd.token()}));
    let echo = json!({"name": "echo", "type": "echo", "model": "m", "publish": true});
    write(&home, "config.json", &json!({"llm": {"providers": [echo]}}));
    home
}

fn write(home: &TempDir, name: &str, value: &serde_json::Value) {
    std::fs::write(home.path().join(name), value.to_string()).expect("the home is writable");
}

/// An agent with a provider whose environment names a proxy.
fn agent(home: &TempDir, mcpd: &FakeMcpd, proxy: &str, no_proxy: &str) -> Process {
    let mut agent = mcprelay(home.path(), &["run", "--provide", "--reconnect-min", "200ms"]);
    agent.arg("--ca-file").arg(mcpd.ca_file().expect("TLS"));
    without_proxies(&mut agent).env("HTTPS_PROXY", proxy).env("NO_PROXY", no_proxy);
    Process::start(agent)
}

/// Without the proxies of whoever runs the tests.
fn without_proxies(command: &mut Command) -> &mut Command {
    for name in ["https_proxy", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command
}

async fn works(mcpd: &FakeMcpd) {
    soon("an active row", mcpd.wait_until(|state| state.is_active("echo"))).await;
    let call = mcpd.submit(InferRequest::streaming("echo", &chat("one two"))).expect("it is active");
    let answer = soon("the answer", call.collect()).await;
    assert!(answer.is_done());
    assert_eq!(answer.text(), "You said: one two");
    assert_eq!(mcpd.violations(), []);
}

#[tokio::test]
async fn mcpd_is_reached_through_the_proxy_of_the_environment() {
    let mcpd = mcpd().await;
    let (proxy, home) = (ConnectProxy::start(mcpd.address(), None).await, home(&mcpd));
    let _agent = agent(&home, &mcpd, &format!("http://{}", proxy.address), "");
    works(&mcpd).await;
    let heads = proxy.heads();
    assert!(
        heads.iter().all(|head| head.starts_with(&format!("CONNECT {NAME}:443 HTTP/1.1\r\n"))),
        "{heads:?}"
    );
    assert!(
        !heads.is_empty() && !heads.concat().contains(&mcpd.token()),
        "the proxy sees no token: {heads:?}"
    );
}

#[tokio::test]
async fn a_proxy_gets_its_password_and_the_log_does_not() {
    let mcpd = mcpd().await;
    let proxy = ConnectProxy::start(mcpd.address(), Some(AUTHORIZATION)).await;
    let home = home(&mcpd);
    let agent = agent(&home, &mcpd, &format!("http://someone:hunter-2@{}", proxy.address), "");
    works(&mcpd).await;
    assert!(!agent.log().contains("hunter-2"), "{}", agent.log());
}

#[tokio::test]
async fn without_its_password_a_proxy_lets_nobody_through() {
    let mcpd = mcpd().await;
    let proxy = ConnectProxy::start(mcpd.address(), Some(AUTHORIZATION)).await;
    let home = home(&mcpd);
    let agent = agent(&home, &mcpd, &format!("http://someone:wrong-3@{}", proxy.address), "");
    agent.says("proxy").await;
    assert!(!proxy.heads().is_empty() && mcpd.state().sessions.is_empty());
    assert!(!agent.log().contains("wrong-3"), "{}", agent.log());
}

#[tokio::test]
async fn a_proxy_that_forbids_and_one_that_fails_are_told_apart() {
    let mcpd = mcpd().await;
    for (status, says) in [
        (403, "forbids connections to https://mcpd.test (403); have mcpd's host"),
        (502, "gets no connection to https://mcpd.test (502); check that mcpd runs"),
    ] {
        let (proxy, home) = (ConnectProxy::refusing(status).await, home(&mcpd));
        let agent = agent(&home, &mcpd, &format!("http://someone:secret-4@{}", proxy.address), "");
        agent.says(says).await;
        assert!(!agent.log().contains("secret-4"), "{}", agent.log());
    }
}

#[tokio::test]
async fn a_name_in_no_proxy_is_reached_without_it() {
    let mcpd = mcpd().await;
    let (proxy, home) = (ConnectProxy::start(mcpd.address(), None).await, home(&mcpd));
    let agent = agent(&home, &mcpd, &format!("http://{}", proxy.address), NAME);
    // The name exists for the proxy only.
    agent.says(NAME).await;
    assert_eq!(proxy.heads(), Vec::<String>::new());
}

// ---- providers' servers ---------------------------------------------------------------------------------------------

/// A home whose providers are at these URLs, with the key in `SERVERS_KEY`.
fn home_with_servers(urls: &[String]) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    let provider = |(n, url)| {
        let name = format!("p{n}");
        json!({"name": name, "type": "vllm", "model": "m", "url": url, "publish": true, "apiKeyEnv": "SERVERS_KEY"})
    };
    let providers: Vec<_> = urls.iter().enumerate().map(provider).collect();
    write(&home, "config.json", &json!({"llm": {"providers": providers}}));
    home
}

#[tokio::test]
async fn a_providers_private_authority_is_trusted_by_the_host_and_by_doctor() {
    // An mcpd lists models as any server with OpenAI's interface.
    let (mcpd, server) = (FakeMcpd::start().await.expect("a loopback port"), mcpd().await);
    let url = format!("https://127.0.0.1:{}", server.address().port());
    let home = home_with_servers(std::slice::from_ref(&url));
    write(&home, "credentials", &json!({"mcpdUrl": mcpd.url(), "token": mcpd.token()}));
    let authority = server.ca_file().expect("TLS").to_owned();
    let with_key = |arguments: &[&str]| {
        let mut command = mcprelay(home.path(), arguments);
        without_proxies(&mut command).env("SERVERS_KEY", server.token());
        command
    };
    let doctor = async |command: Command| text(&ended(command).await);
    let said = doctor(with_key(&["doctor"])).await;
    assert!(said.contains("provider p0: https://127.0.0.1") && said.contains("UnknownIssuer"), "{said}");
    let mut trusting = with_key(&["doctor"]);
    trusting.arg("--ca-file").arg(&authority);
    let said = doctor(trusting).await;
    assert!(said.contains("provider p0: ready"), "{said}");
    let mut run = with_key(&["run", "--provide"]);
    run.arg("--ca-file").arg(&authority);
    let _agent = Process::start(run);
    soon("a ready provider", mcpd.wait_until(|state| state.is_active("p0"))).await;
}

#[tokio::test]
async fn no_proxy_leads_to_this_machine_whatever_it_is_called() {
    let server = FakeMcpd::start().await.expect("a loopback port");
    let (proxy, port) = (ConnectProxy::start(server.address(), None).await, server.address().port());
    let own = nix::unistd::gethostname().expect("a name").into_string().expect("in ASCII");
    let hosts = ["127.0.0.1", "localhost", "localhost.", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", &own];
    let doctor = async |hosts: &[&str]| {
        let urls: Vec<_> = hosts.iter().map(|host| format!("http://{host}:{port}")).collect();
        let home = home_with_servers(&urls);
        let mut command = mcprelay(home.path(), &["doctor"]);
        without_proxies(&mut command).env("SERVERS_KEY", "k");
        command.env("http_proxy", format!("http://{}", proxy.address)).env_remove("NO_PROXY");
        text(&ended(command).await)
    };
    let said = doctor(&hosts).await;
    assert!(said.contains(&format!("http://{own}:{port}/v1")), "{said}");
    assert_eq!(proxy.heads(), Vec::<String>::new(), "{said}");
    let said = doctor(&["elsewhere.test"]).await;
    assert!(proxy.heads().concat().contains("elsewhere.test"), "{said}");
}
