//! The way to mcpd through a proxy for CONNECT, with real processes: the proxy's address comes from the environment.

use fake_mcpd::{FakeMcpd, InferRequest, Tls};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    chat,
    connect::ConnectProxy,
    process::{Process, mcprelay},
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
    let write = |name: &str, value: serde_json::Value| {
        std::fs::write(home.path().join(name), value.to_string()).expect("the home is writable");
    };
    write("credentials", json!({"mcpdUrl": format!("https://{NAME}"), "token": mcpd.token()}));
    let echo = json!({"name": "echo", "type": "echo", "model": "m", "publish": true});
    write("config.json", json!({"llm": {"providers": [echo]}}));
    home
}

/// An agent with a provider whose environment names a proxy.
fn agent(home: &TempDir, mcpd: &FakeMcpd, proxy: &str, no_proxy: &str) -> Process {
    let mut agent = mcprelay(home.path(), &["run", "--provide", "--reconnect-min", "200ms"]);
    agent.arg("--ca-file").arg(mcpd.ca_file().expect("TLS"));
    for name in ["https_proxy", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"] {
        agent.env_remove(name);
    }
    agent.env("HTTPS_PROXY", proxy).env("NO_PROXY", no_proxy);
    Process::start(agent)
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
