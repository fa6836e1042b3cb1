//! Parties that are up to no good: an mcpd, a local program, and what they say. Whatever they do, memory stays bounded, the log and
//! the terminal stay clean, and the others are served.

mod amplification;
mod local_programs;
mod mcpd;
mod providers;
mod shown;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use fake_mcpd::FakeMcpd;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    Client, chat, completion,
    process::{Process, mcprelay},
    provider, soon,
};

/// What no attack may make the agent hold, in bytes. At rest it holds some 20 MiB, and one event may have 32 MiB.
const MEMORY: usize = 128 << 20;
/// What would move a terminal's cursor, change its title or begin a line of its own.
const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nroot: logged in\u{9b}31m\u{202e}";
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// An agent of its own process, whose memory can be seen.
struct Real {
    mcpd: FakeMcpd,
    home: TempDir,
    agent: Process,
}

impl Real {
    async fn start(arguments: &[&str]) -> Self {
        let mcpd = FakeMcpd::start().await.expect("a loopback port");
        Self::with(mcpd, arguments).await
    }

    async fn with(mcpd: FakeMcpd, arguments: &[&str]) -> Self {
        let home = home_with(&mcpd.url(), &mcpd.token());
        let agent = Process::start(mcprelay(home.path(), &[&["run"], arguments].concat()));
        agent.says("runs").await;
        Self { mcpd, home, agent }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("mcprelay.sock")
    }

    async fn serving(&self, llm: &str) -> Client {
        let mut client = Client::connect(&self.socket(), "mcplocal").await;
        client.push(&[provider(llm, true)]).await;
        self.active(llm).await;
        client
    }

    async fn active(&self, llm: &str) {
        let online = |s: &fake_mcpd::Snapshot| s.is_active(llm) && s.sessions.iter().any(|s| s.connected);
        soon("an active row", self.mcpd.wait_until(online)).await;
    }

    /// One whole inference, after whatever happened.
    async fn still_serves(&self, llm: &str, client: &mut Client) {
        let question = chat("still there");
        let (reply, ()) = tokio::join!(self.mcpd.infer(llm, &question), async {
            loop {
                let offer = client.offer().await;
                client.finish_body(&offer, &completion("hello")).await;
                if String::from_utf8_lossy(&offer.request_json).contains("still there") {
                    return;
                }
            }
        });
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    fn assert_small(&self) {
        let peak = self.agent.peak();
        println!("peak {} MiB", peak >> 20);
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
    }
}

fn home_with(url: &str, token: &str) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    write_private(&home.path().join("credentials"), &json!({"mcpdUrl": url, "token": token}).to_string());
    home
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).expect("the folder is writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}
