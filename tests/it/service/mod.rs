//! `mcprelay service` and `mcprelay deregister`, with a stand-in for systemctl that runs what the unit says.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use fake_mcpd::FakeMcpd;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    process::{MCPRELAY, Process, command, mcprelay, output, text},
    soon,
};

/// Somebody's home directory, with a service manager, an mcpd's credentials and an opted-in provider.
struct User {
    home: TempDir,
    mcpd: FakeMcpd,
}

impl User {
    async fn new() -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let mcpd = FakeMcpd::builder().start().await.expect("it starts");
        let user = Self { home, mcpd };
        fs::create_dir_all(user.files()).expect("writable");
        fs::create_dir(user.path("tools")).expect("writable");
        let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/service/systemctl");
        symlink(stand_in, user.path("tools/systemctl")).expect("writable");
        let credentials = json!({"mcpdUrl": user.mcpd.url(), "token": user.mcpd.token()});
        fs::write(user.path(".mcpctl/credentials"), credentials.to_string()).expect("writable");
        let config = json!({"llm": {"providers": [{"name": "echo", "type": "echo", "publish": true}]}});
        fs::write(user.path(".mcpctl/config.json"), config.to_string()).expect("writable");
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// mcpctl's folder, the agent's home.
    fn files(&self) -> PathBuf {
        self.path(".mcpctl")
    }

    fn unit(&self) -> PathBuf {
        self.path(".config/systemd/user/mcprelay.service")
    }

    async fn service(&self, arguments: &[&str]) -> Output {
        service(self.home.path(), arguments).await
    }

    fn left(&self) -> Vec<String> {
        left(&self.files())
    }
}

/// What `mcprelay service` comes to for the user with this home directory.
async fn service(home: &Path, arguments: &[&str]) -> Output {
    let mut service = command(MCPRELAY);
    let tools = home.join("tools").display().to_string();
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
    service.arg("service").args(arguments).env("HOME", home).env("PATH", path);
    service.env_remove("XDG_CONFIG_HOME");
    let done = tokio::task::spawn_blocking(move || service.output());
    done.await.expect("it does not panic").expect("the program is built")
}

fn left(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("it is there").flatten();
    let mut names: Vec<_> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_installed_service_publishes_and_its_uninstall_leaves_only_what_it_names() {
    let user = User::new().await;
    let installed = user.service(&["install", "--provide"]).await;
    assert!(installed.status.success(), "{}", text(&installed));
    soon("an active row", user.mcpd.wait_until(|state| state.is_active("echo"))).await;
    let status = text(&user.service(&["status"]).await);
    assert!(status.contains("active") && status.contains(env!("CARGO_PKG_VERSION")), "{status}");

    let removed = user.service(&["uninstall"]).await;
    let said = text(&removed);
    assert!(removed.status.success(), "{said}");
    assert!(said.contains("withdrew the LLMs of") && !user.mcpd.state().is_active("echo"), "{said}");
    assert_eq!(user.left(), ["config.json", "credentials"], "{said}");
    for name in user.left() {
        assert!(said.contains(&format!("kept {}", user.files().join(name).display())), "{said}");
    }
    assert!(!user.unit().exists());
    let calls = fs::read_to_string(user.path("calls")).unwrap();
    let calls: Vec<_> = calls.lines().collect();
    let expected =
        ["show-environment", "daemon-reload", "enable", "restart", "is-active", "disable", "daemon-reload"];
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn without_a_service_manager_nothing_is_written_and_the_way_out_is_said() {
    let user = User::new().await;
    fs::remove_file(user.path("tools/systemctl")).unwrap();
    symlink("/bin/false", user.path("tools/systemctl")).unwrap();
    let refused = user.service(&["install"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("there is no service manager for you here"), "{}", text(&refused));
    assert_eq!(user.left(), ["config.json", "credentials"]);
    assert!(!user.unit().exists());
}

#[tokio::test]
async fn a_unit_that_somebody_else_wrote_stays() {
    let user = User::new().await;
    fs::create_dir_all(user.unit().parent().unwrap()).unwrap();
    fs::write(user.unit(), "[Service]\nExecStart=/bin/true\n").unwrap();
    for action in ["install", "uninstall"] {
        let refused = user.service(&[action]).await;
        assert_eq!(refused.status.code(), Some(1), "{action}");
        assert!(text(&refused).contains("move it away first"), "{}", text(&refused));
    }
    assert_eq!(fs::read_to_string(user.unit()).unwrap(), "[Service]\nExecStart=/bin/true\n");
}

#[tokio::test]
async fn a_dead_mcpd_does_not_keep_the_program_here_and_the_session_stays_for_later() {
    let user = User::new().await;
    assert!(user.service(&["install", "--provide"]).await.status.success());
    soon("an active row", user.mcpd.wait_until(|state| state.is_active("echo"))).await;
    let User { home, mcpd } = user;
    drop(mcpd);
    let removed = service(home.path(), &["uninstall"]).await;
    assert_eq!(removed.status.code(), Some(1), "{}", text(&removed));
    assert!(text(&removed).contains("does not answer"), "{}", text(&removed));
    assert_eq!(left(&home.path().join(".mcpctl")), ["config.json", "credentials", "provider-session"]);
}

#[tokio::test]
async fn deregister_withdraws_a_stopped_agents_rows_and_refuses_while_it_runs() {
    let user = User::new().await;
    let home = user.files();
    let mut agent = Process::start(mcprelay(&home, &["run", "--provide"]));
    soon("an active row", user.mcpd.wait_until(|state| state.is_active("echo"))).await;
    let refused = output(&home, &["deregister"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("already runs in"), "{}", text(&refused));
    assert!(user.mcpd.state().is_active("echo"));
    agent.kill();
    let file = home.join("provider-session");
    let mut session: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    session["others"] = json!([{"providerSessionId": "s", "mcpdUrl": "https://former.example/"}]);
    fs::write(&file, session.to_string()).unwrap();
    let done = output(&home, &["deregister"]).await;
    assert!(done.status.success(), "{}", text(&done));
    assert!(text(&done).contains("forgot its sessions at https://former.example/"), "{}", text(&done));
    assert!(!user.mcpd.state().is_active("echo"), "the killed agent had not said goodbye");
    let again = output(&home, &["deregister"]).await;
    assert!(again.status.success() && text(&again).contains("nothing to withdraw"), "{}", text(&again));
}

/// What `systemd-analyze --user verify` has to say about a unit; nothing about a good one.
fn verified(unit: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcprelay.service");
    fs::write(&file, unit).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["--user", "verify", "--man=no", "--recursive-errors=no"]).arg(file);
    text(&verify.env("XDG_RUNTIME_DIR", folder.path()).output().expect("systemd-analyze is installed"))
}

#[tokio::test]
async fn the_printed_unit_is_clean_for_systemd_wherever_the_home_is() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("my 100% $HOME");
    fs::create_dir_all(home.join("bin")).unwrap();
    fs::copy("/bin/true", home.join("bin/mcprelay")).unwrap();
    let unit = output(&home, &["service", "print", "--for", "systemd", "--provide"]).await;
    assert_eq!(verified(&text(&unit)), "");
    fs::remove_file(home.join("bin/mcprelay")).unwrap();
    assert!(verified(&text(&unit)).contains("not executable"), "the verifier looks for the program");
}

#[tokio::test]
async fn launchds_agent_is_a_property_list_with_the_whole_command() {
    let home = Path::new("/Users/a & b/.mcpctl");
    let printed = output(home, &["service", "print", "--for", "launchd"]).await;
    let mut python = Command::new("python3");
    let read = "import json,plistlib,sys; print(json.dumps(plistlib.loads(sys.argv[1].encode())))";
    let parsed = python.args(["-c", read]).arg(String::from_utf8(printed.stdout).unwrap()).output().unwrap();
    let parsed: serde_json::Value = serde_json::from_slice(&parsed.stdout).expect("a property list");
    let program = "/Users/a & b/.mcpctl/bin/mcprelay";
    assert_eq!(parsed["ProgramArguments"], json!([program, "run", "--home", "/Users/a & b/.mcpctl"]));
    assert_eq!((&parsed["RunAtLoad"], &parsed["ExitTimeOut"]), (&json!(true), &json!(150)));
}
