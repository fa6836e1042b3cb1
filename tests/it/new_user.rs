//! What somebody sees who tries the program for the first time: nothing that looks like trouble if there is none, and the reason if there
//! is.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, process::Stdio};

use fake_mcpd::FakeMcpd;
use serde_json::json;

use crate::support::{
    process::{MCPRELAY, command, ended, mcprelay, text},
    soon,
};

/// A home with credentials for `mcpd` and one opted-in provider that answers from the prompt.
fn furnish(home: &Path, mcpd: &FakeMcpd) {
    let config = json!({"llm": {"providers": [{"name": "echo", "type": "echo", "publish": true}]}});
    fs::write(home.join("config.json"), config.to_string()).expect("the home is writable");
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).mode(0o600).open(home.join("credentials"));
    let credentials = json!({"mcpdUrl": mcpd.url(), "token": mcpd.token()});
    serde_json::to_writer(file.expect("the home is writable"), &credentials).expect("the home is writable");
}

#[tokio::test]
async fn the_demo_shows_the_whole_path_and_complains_of_nothing() {
    let mut demo = command(MCPRELAY);
    demo.arg("demo");
    let output = ended(demo).await;
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{said}");
    for part in ["virtual", "active", "You said: Say hello", "process task", "first token after"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
}

#[tokio::test]
async fn the_demo_is_the_same_whatever_its_reader_has_set_for_another_mcpd() {
    let mut demo = command(MCPRELAY);
    demo.arg("demo");
    for (name, value) in [
        ("MCPRELAY_MCPD_URL", "https://mcpd.example.com"),
        ("MCPRELAY_TOKEN", "theirs"),
        ("MCPRELAY_CA_FILE", "/nonexistent"),
        ("MCPRELAY_HOME", "/nonexistent"),
    ] {
        demo.env(name, value);
    }
    let output = ended(demo).await;
    assert!(output.status.success() && text(&output).contains("You said: Say hello"), "{}", text(&output));
}

#[tokio::test]
async fn the_demo_with_a_server_that_is_not_there_says_why_it_ends() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let url = format!("http://{}", free.local_addr().expect("it is bound"));
    drop(free);
    let mut demo = command(MCPRELAY);
    demo.args(["demo", "--model", "m", "--url", &url]);
    let output = ended(demo).await;
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let reason = format!("error: the demo cannot run: {url}/v1 does not answer: Connection refused");
    assert!(said.starts_with(&reason), "{said}");
}

#[tokio::test]
async fn an_agent_with_a_provider_host_stops_without_a_warning() {
    let mcpd = FakeMcpd::start().await.expect("a loopback port");
    let home = tempfile::tempdir().expect("a temporary folder");
    furnish(home.path(), &mcpd);
    let mut run = mcprelay(home.path(), &["run", "--provide"]);
    let agent = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program is built");
    soon("an active row", mcpd.wait_until(|state| state.is_active("echo"))).await;
    let mut kill = command("kill");
    kill.arg(agent.id().to_string());
    assert!(ended(kill).await.status.success(), "it runs");
    let output = tokio::task::spawn_blocking(move || agent.wait_with_output());
    let output = output.await.expect("it does not panic").expect("it is ours");
    let log = text(&output);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(!log.contains("WARN") && log.contains("the agent is going away"), "{log}");
}

#[tokio::test]
async fn the_guides_line_for_bash_switches_completion_on() {
    let guide = include_str!("../../docs/guides/operating.md");
    let lines = guide.lines().filter_map(|line| line.strip_prefix("$ echo '")?.split_once("' >> "));
    let (line, _) = lines.into_iter().find(|(_, file)| *file == "~/.bashrc").expect("the line for bash");
    let mut bash = command("bash");
    let folder = Path::new(MCPRELAY).parent().expect("a folder").display().to_string();
    bash.env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap_or_default()));
    let tab = "COMP_WORDS=(mcprelay pau) COMP_CWORD=1; _clap_complete_mcprelay mcprelay pau mcprelay";
    bash.args(["-c", &format!("{line}; {tab}; echo \"${{COMPREPLY[@]}}\"")]);
    let output = ended(bash).await;
    assert_eq!(text(&output).trim(), "pause");
}
