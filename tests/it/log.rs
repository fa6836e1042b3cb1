//! Standard error under real conditions: read by nobody, closed, full; and what must be there when the process has ended.

use std::{
    fs::File,
    io::{self, PipeReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fake_mcpd::FakeMcpd;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    chat,
    process::{command, mcprelay},
    soon,
};

/// Wait between two looks at something that has to happen.
const LOOK: Duration = Duration::from_millis(10);
/// Tasks at the debug level, of 1.4 KB of lines each, that fill the pipe twice over.
const FILL: usize = 100;

/// An agent with its own provider, whose standard error is ours.
struct Loud {
    mcpd: FakeMcpd,
    home: TempDir,
    child: Child,
}

impl Loud {
    async fn start(level: &str, stderr: impl Into<Stdio>) -> Self {
        let mcpd = FakeMcpd::start().await.expect("a loopback port");
        let home = home(&mcpd.url(), &mcpd.token());
        let child = spawn(run(home.path(), level), stderr);
        let loud = Self { mcpd, home, child };
        soon("an active row", loud.mcpd.wait_until(|state| state.is_active("echo"))).await;
        loud
    }

    async fn works(&self, tasks: usize) {
        // Four at once are what a provider takes without a queue.
        let replies = futures_util::stream::iter(0..tasks)
            .map(|_| async { soon("the answer", self.mcpd.infer("echo", &chat("hi"))).await.status })
            .buffer_unordered(4);
        assert!(replies.all(|status| async move { status == 200 }).await);
    }

    fn signal(&self) {
        let told = command("kill").arg(self.child.id().to_string()).status();
        assert!(told.is_ok_and(|status| status.success()), "it runs");
    }

    /// Its exit code, once it has ended.
    async fn stopped(mut self) -> Option<i32> {
        self.signal();
        ended(&mut self.child).await
    }
}

impl Drop for Loud {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A home with credentials for an mcpd, and an echo provider.
fn home(url: &str, token: &str) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, value: Value| {
        std::fs::write(home.path().join(name), value.to_string()).expect("the home is writable");
    };
    write("credentials", json!({"mcpdUrl": url, "token": token}));
    write("config.json", json!({"llm": {"providers": [{"name": "echo", "type": "echo", "publish": true}]}}));
    home
}

fn run(home: &Path, level: &str) -> Command {
    let mut run = mcprelay(home, &["run", "--provide"]);
    run.env("RUST_LOG", level);
    run
}

fn spawn(mut command: Command, stderr: impl Into<Stdio>) -> Child {
    command.stdout(Stdio::null()).stderr(stderr).spawn().expect("the program is built")
}

async fn ended(child: &mut Child) -> Option<i32> {
    let end = async {
        loop {
            if let Some(status) = child.try_wait().expect("it is ours") {
                return status.code();
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    soon("its end", end).await
}

fn pipe() -> (PipeReader, io::PipeWriter) {
    io::pipe().expect("a pipe")
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_no_task_and_is_whole_when_it_is_read_later() {
    let (mut log, stderr) = pipe();
    let loud = Loud::start("debug", stderr).await;
    loud.works(FILL).await;
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).expect("text");
        text
    });
    assert_eq!(loud.stopped().await, Some(0));
    let text = soon("the log's end", read).await.expect("it does not panic");
    assert_eq!(
        text.matches("\"target\":\"mcprelay::task\"").count(),
        FILL,
        "nothing is lost that there is room for"
    );
    assert!(text.contains("the agent is going away"), "the last line");
}

#[tokio::test]
async fn an_agent_whose_log_nobody_reads_stops_when_it_is_told_to_and_when_it_fails() {
    let (_log, stderr) = pipe();
    let loud = Loud::start("debug", stderr.try_clone().expect("a descriptor")).await;
    loud.works(FILL).await;
    // The pipe is full, and the second agent has one sentence for it: the first has the home.
    let mut second = spawn(run(loud.home.path(), "debug"), stderr);
    assert_eq!(ended(&mut second).await, Some(1));
    assert_eq!(loud.stopped().await, Some(0));
}

#[tokio::test]
async fn a_closed_or_full_standard_error_stops_nothing() {
    let (reader, closed) = pipe();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    for stderr in [Stdio::from(closed), Stdio::from(full)] {
        let loud = Loud::start("debug", stderr).await;
        loud.works(3).await;
        assert_eq!(loud.stopped().await, Some(0));
    }
}

#[tokio::test]
async fn the_last_lines_before_a_stop_are_written() {
    let (mut log, stderr) = pipe();
    let loud = Loud::start("info", stderr).await;
    loud.works(3).await;
    assert_eq!(loud.stopped().await, Some(0));
    let mut text = String::new();
    log.read_to_string(&mut text).expect("text");
    assert_eq!(text.matches("\"task ended\"").count(), 3, "{text}");
    assert!(text.contains("the agent is going away"), "{text}");
    let broken = text.lines().find(|line| serde_json::from_str::<Value>(line).is_err());
    assert_eq!(broken, None, "each line is whole");
}

#[tokio::test]
async fn an_error_at_the_start_is_the_last_line_behind_what_was_logged_before_it() {
    let home = home("http://127.0.0.1:9", "token");
    let mut start = run(home.path(), "loud=louder");
    // A file that is no socket is not touched.
    start.arg("--socket").arg(home.path().join("config.json"));
    let output = tokio::task::spawn_blocking(move || start.output()).await.expect("it does not panic");
    let output = output.expect("the program is built");
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() > 1 && lines[0].contains("RUST_LOG is not a list"), "{text}");
    assert!(lines.last().is_some_and(|line| line.starts_with("error: ")), "{text}");
}
