//! `mcprelay status` beside a running agent, as people and scripts call it.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use fake_mcpd::FakeMcpd;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    chat,
    process::{Process, command, mcprelay, output, text},
    soon,
};

fn opt_in(home: &Path, publish: bool) {
    let echo = json!({"name": "echo", "type": "echo", "publish": publish, "tokenDelayMs": 50});
    let config = json!({"llm": {"providers": [echo]}});
    fs::write(home.join("config.json"), config.to_string()).expect("the home is writable");
}

/// A home with credentials for `mcpd` and one provider.
fn home(mcpd: &FakeMcpd, publish: bool) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    let credentials = json!({"mcpdUrl": mcpd.url(), "token": mcpd.token()}).to_string();
    fs::write(home.path().join("credentials"), credentials).expect("the home is writable");
    opt_in(home.path(), publish);
    home
}

fn run(home: &Path) -> Process {
    Process::start(mcprelay(home, &["run", "--provide"]))
}

const WAIT: [&str; 5] = ["status", "--wait", "online", "--timeout", "20s"];

#[tokio::test]
async fn waiting_right_after_a_provider_was_opted_in_waits_and_otherwise_says_why_it_is_in_vain() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd, false);
    let agent = run(home.path());
    agent.says("echo: not published").await;
    let file = fs::File::options().append(true).open(home.path().join("config.json")).expect("it is there");
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("it is ours");
    let early = output(home.path(), &WAIT).await;
    assert_eq!(early.status.code(), Some(1), "{}", text(&early));
    assert!(text(&early).contains("it will not get online by itself: no provider is opted in"), "{early:?}");
    opt_in(home.path(), true);
    let waited = output(home.path(), &WAIT).await;
    assert_eq!(waited.status.code(), Some(0), "{}", text(&waited));
    assert!(text(&waited).contains("mcpd: online"), "{}", text(&waited));
}

#[tokio::test]
async fn a_stopping_agent_says_how_many_tasks_are_left_and_for_how_long() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = home(&mcpd, true);
    let agent = run(home.path());
    soon("an active row", mcpd.wait_until(|state| state.is_active("echo"))).await;
    let prompt = "word ".repeat(60);
    let mut call = mcpd.infer_stream("echo", &chat(prompt.trim_end())).expect("accepted");
    soon("a token", call.chunk()).await.expect("it goes on");
    let told = command("kill").arg(agent.pid().to_string()).status();
    assert!(told.is_ok_and(|status| status.success()), "it runs");
    agent.says("told to stop; a second signal stops at once").await;
    agent.says("stopping: ").await;
    let said = text(&output(home.path(), &["status"]).await);
    let link = said.lines().find(|line| line.starts_with("mcpd: ")).expect("the link");
    assert!(link.contains("draining, ") && link.contains("1 task left, for "), "{said}");
    assert!(said.contains("ready   withdrawn "), "{said}");
    assert!(soon("the end", call.collect()).await.is_done());
    agent.says("\"stopped\"").await;
    assert_eq!(agent.ended().await, Some(0));
}
