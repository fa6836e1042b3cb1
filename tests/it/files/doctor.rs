//! What `mcprelay doctor` finds, with advice that fits the finding.

use std::{fs, path::Path, process::Command};

use serde_json::json;

use super::{home_for, mcpd, running, write};
use crate::support::process::{MCPRELAY, Process, command, ended, mcprelay, output, text};

/// A finding as it is printed: what, and what to do.
fn finding<'a>(said: &'a str, subject: &str) -> (&'a str, &'a str) {
    let mut lines = said.lines().skip_while(|line| !line.contains(&format!(" {subject}: ")));
    (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_found_and_one_that_does_is_left_as_it_was() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let said = text(&output(home.path(), &["doctor"]).await);
    assert!(!said.contains("can be written"), "{said}");
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["credentials"]);
    let under = |script: &str| {
        let mut shell = command("sh");
        shell.args(["-c", script, MCPRELAY]).arg(home.path());
        shell
    };
    let full = under("trap '' XFSZ; ulimit -f 0; exec \"$0\" doctor --home \"$1\"");
    let mut read_only = command("unshare");
    let script =
        "mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\" && exec \"$0\" doctor --home \"$1\"";
    read_only.args(["-r", "-m", "sh", "-c", script, MCPRELAY]).arg(home.path());
    for (disk, why) in [(full, "File too large"), (read_only, "Read-only file system")] {
        let said = text(&ended(disk).await);
        assert!(said.contains("warning  home: nothing can be written to") && said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn a_refused_key_or_token_is_named_by_its_variable() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let keyed = json!({"name": "a", "type": "vllm", "model": "m", "url": mcpd.url(), "publish": true, "apiKeyEnv": "VK"});
    let echo = json!({"name": "echo", "type": "echo", "publish": true});
    write(&home.path().join("config.json"), &json!({"llm": {"providers": [keyed, echo]}}).to_string(), 0o600);
    let with_token = |arguments: &[&str]| -> Command {
        let mut command = mcprelay(home.path(), arguments);
        command.env("VK", "wrong").env("MCPRELAY_TOKEN", "wrong");
        command
    };
    let said = text(&ended(with_token(&["doctor"])).await);
    let (what, advice) = finding(&said, "provider a");
    assert!(
        what.ends_with("refuses the key in VK") && advice.ends_with("-> put a valid one there"),
        "{said}"
    );
    let (what, advice) = finding(&said, "token");
    assert!(what.contains("refuses the token in MCPRELAY_TOKEN (401)"), "{said}");
    assert!(advice.contains("correct that variable, or unset it"), "{said}");
    let agent = Process::start(with_token(&["run", "--provide"]));
    agent.says("check the token in MCPRELAY_TOKEN").await;
}

#[tokio::test]
async fn credentials_that_are_not_json_are_one_finding_also_beside_an_agent() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    write(&home.path().join("credentials"), "{", 0o600);
    let _agent = running(home.path()).await;
    let said = text(&output(home.path(), &["doctor"]).await);
    assert_eq!(said.matches("is not JSON").count(), 1, "{said}");
    assert!(said.contains("1 failure, 0 skipped") && !said.contains("there are no credentials"), "{said}");
}

#[tokio::test]
async fn a_home_that_is_not_there_is_to_be_made() {
    let said = text(&output(Path::new("/nonexistent/home"), &["doctor"]).await);
    let (what, advice) = finding(&said, "home");
    assert!(what.contains("does not exist"), "{said}");
    assert!(advice.contains("mkdir -m 700 /nonexistent/home"), "{said}");
}
