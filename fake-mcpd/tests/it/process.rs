//! The binary, as other teams' CI runs it.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::agent::{Agent, soon};

/// A running binary and the rest of its output.
struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
    url: String,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fake-mcpd"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Process {
    /// Starts it and reads its first line.
    async fn start(arguments: &[&str]) -> Self {
        Self::serving("http://127.0.0.1:", arguments).await
    }

    /// The same, where its URL begins otherwise.
    async fn serving(url_begins: &str, arguments: &[&str]) -> Self {
        let mut child = command(arguments).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        soon(out.read_line(&mut line)).await.unwrap();
        let url = line.strip_prefix("fake-mcpd listening on ").expect("the ready line").trim_end().to_owned();
        assert!(url.starts_with(url_begins), "{url}");
        Self { child, out, url }
    }

    /// Sends a signal; gives the exit status and the rest of the output.
    async fn stop(mut self, signal: &str) -> (ExitStatus, String) {
        let pid = self.child.id().expect("it runs");
        let kill = format!("kill -{signal} {pid}");
        assert!(Command::new("sh").args(["-c", &kill]).status().await.unwrap().success());
        let mut rest = String::new();
        soon(self.out.read_to_string(&mut rest)).await.unwrap();
        (soon(self.child.wait()).await.unwrap(), rest)
    }
}

#[tokio::test]
async fn it_says_where_it_listens_serves_and_quits_on_either_signal() {
    for signal in ["TERM", "INT"] {
        let process = Process::start(&[]).await;
        let mut agent = Agent::at(&process.url, "any token will do");
        assert_eq!(agent.register(&["llama"]).await, 200);
        let _channel = agent.channel().await;
        let (status, rest) = process.stop(signal).await;
        assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
    }
}

#[tokio::test]
async fn its_flags_reach_the_server() {
    let flags = [
        "--token",
        "right",
        "--ping-interval",
        "20ms",
        "--session-ttl",
        "300ms",
        "--no-idempotent-results",
        "--no-result-stream",
    ];
    let process = Process::start(&flags).await;
    assert_eq!(Agent::at(&process.url, "wrong").heartbeat().await, 401);
    let mut agent = Agent::at(&process.url, "right");
    let reply = agent.register_call(&["llama"]).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(reply["features"], serde_json::json!([]));
    agent.session = reply["providerSessionId"].as_str().unwrap().to_owned();
    let mut channel = agent.channel().await;
    // Each keep-alive is a moment to look; the session has to expire within its bound.
    let expired = async {
        loop {
            assert_eq!(channel.event().await.expect("a ping").0, "ping");
            let llms = agent.call("GET", "/api/v1/llms").send().await.unwrap().json::<Value>().await.unwrap();
            if llms[0]["status"] == "inactive" {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), expired).await.expect("the session expires");
}

#[tokio::test]
async fn with_tls_its_authority_is_written_where_it_is_wanted() {
    let file = scratch("authority.pem");
    let process = Process::serving("https://127.0.0.1:", &["--tls", "--no-http2", "--ca-file", &file]).await;
    let agent = Agent::trusting(Path::new(&file), &process.url, "t");
    let reply = agent.call("GET", "/api/v1/llms").send().await.unwrap();
    assert_eq!((reply.status().as_u16(), reply.version()), (200, reqwest::Version::HTTP_11));
    assert!(Path::new(&file).exists(), "a file that was named stays");
}

#[tokio::test]
async fn with_tls_and_no_word_about_the_file_it_says_where_the_authority_is() {
    let mut process = Process::serving("https://127.0.0.1:", &["--tls"]).await;
    let mut said = String::new();
    let mut errors = BufReader::new(process.child.stderr.take().unwrap());
    soon(errors.read_line(&mut said)).await.unwrap();
    let file = said.trim_end().strip_prefix("fake-mcpd: its authority is in ").expect("the file").to_owned();
    assert_eq!(Agent::trusting(Path::new(&file), &process.url, "t").heartbeat().await, 404);
    process.stop("TERM").await;
    assert!(!Path::new(&file).exists(), "a temporary file goes with it");
}

#[tokio::test]
async fn the_verdict_is_written_and_decides_the_exit_code() {
    let honest = Process::start(&["--verdict"]).await;
    let (status, verdict) = honest.stop("TERM").await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(serde_json::from_str::<Value>(&verdict).unwrap()["ok"], true);

    let file = scratch("verdict.json");
    let wrong = Process::start(&["--verdict", &file]).await;
    Agent::at(&wrong.url, "t").heartbeat().await;
    let (status, rest) = wrong.stop("TERM").await;
    assert_eq!((status.code(), rest.as_str()), (Some(1), ""));
    let verdict: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(verdict["violations"][0]["rule"], "heartbeat-before-register");

    let unasked = Process::start(&[]).await;
    Agent::at(&unasked.url, "t").heartbeat().await;
    assert_eq!(unasked.stop("TERM").await.0.code(), Some(0));
}

#[tokio::test]
async fn a_verdict_that_cannot_be_written_is_said_at_the_start() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fake-mcpd"));
    let said = command.args(["--verdict", "/nonexistent/v.json"]).output().await.unwrap();
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("there is no folder /nonexistent for the verdict"), "{said}");
}

#[tokio::test]
async fn it_listens_on_a_bare_port_and_on_localhost() {
    for listen in ["0", "localhost:0"] {
        let process = Process::start(&["--listen", listen]).await;
        assert_eq!(Agent::at(&process.url, "t").heartbeat().await, 404, "{listen}");
    }
}

#[tokio::test]
async fn faults_and_scenarios_come_from_the_command_line() {
    let file = scratch("scenario.json");
    std::fs::write(&file, r#"[{"atMs": 0, "fault": "answer,call=list,status=418"}]"#).unwrap();
    let process = Process::start(&["--fault", "answer,call=heartbeat,status=503", "--scenario", &file]).await;
    let agent = Agent::at(&process.url, "t");
    assert_eq!(agent.heartbeat().await, 503);
    assert_eq!(agent.call("GET", "/api/v1/llms").send().await.unwrap().status(), 418);
}

#[tokio::test]
async fn wrong_usage_exits_with_2_and_a_taken_port_with_1() {
    let file = scratch("broken.json");
    std::fs::write(&file, "[{}]").unwrap();
    let cases: [&[&str]; 7] = [
        &["--fault", "explode"],
        &["--scenario", "/nowhere/at/all.json"],
        &["--scenario", &file],
        &["--listen", "nonsense"],
        &["--ping-interval", "often"],
        &["--no-http2"],
        &["--tls", "--no-http1", "--no-http2"],
    ];
    for arguments in cases {
        let output = soon(command(arguments).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("error: ") && !error.contains("Error {"), "{error}");
    }
    let first = Process::start(&[]).await;
    let address = first.url.strip_prefix("http://").unwrap();
    let output = soon(command(&["--listen", address]).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(address) && error.contains("--listen"), "{error}");
}

#[tokio::test]
async fn help_has_the_whole_grammar() {
    let output = soon(command(&["--help"]).output()).await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for fault in ["drop", "silent", "refuse", "delay", "answer", "lose-reply", "twice", "restart", "at-task="]
    {
        assert!(help.contains(fault), "{fault}");
    }
}

/// A file of this test run's own.
fn scratch(name: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    path.to_str().expect("a UTF-8 path").to_owned()
}

#[tokio::test]
async fn a_health_check_says_whether_one_serves() {
    let process = Process::serving("http://0.0.0.0:", &["--listen", "0.0.0.0:0"]).await;
    let port = process.url.rsplit_once(':').expect("a port").1.to_owned();
    let check = |listen: String| async move {
        let output = command(&["healthcheck", "--listen", &listen]).output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(format!("0.0.0.0:{port}")).await, (Some(0), String::new()));
    process.stop("TERM").await;
    let (code, said) = check(format!("localhost:{port}")).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("does not answer"), "{said}");
}
