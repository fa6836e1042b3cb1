//! config.json, credentials and variables as people leave them.

use std::{fs, os::unix::fs::symlink};

use super::{home_for, mcpd, write};
use crate::support::{
    process::{MCPRELAY, Process, command, ended, mcprelay, output, text},
    soon,
};

const ECHO: &str = r#"{"llm":{"providers":[{"name":"echo","type":"echo","publish":true}]}}"#;

#[tokio::test]
async fn a_byte_order_mark_before_the_files_is_skipped() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    write(&home.path().join("config.json"), &format!("\u{feff}{ECHO}"), 0o600);
    let credentials = fs::read_to_string(home.path().join("credentials")).expect("it is there");
    write(&home.path().join("credentials"), &format!("\u{feff}{credentials}"), 0o600);
    let said = text(&output(home.path(), &["doctor"]).await);
    assert!(said.contains("1 provider, 1 opted in") && said.contains("there is a token"), "{said}");
    let _agent = Process::start(mcprelay(home.path(), &["run", "--provide"]));
    soon("an active row", mcpd.wait_until(|state| state.is_active("echo"))).await;
}

#[tokio::test]
async fn what_is_no_file_or_too_large_is_named_and_holds_nobody_up() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let config = home.path().join("config.json");
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let no_file = "cannot be read (it is not a regular file)";
    let said = text(&output(home.path(), &["doctor"]).await);
    assert!(said.contains(no_file), "{said}");
    let agent = Process::start(mcprelay(home.path(), &["run", "--provide"]));
    agent.says("it is not a regular file; offering nothing").await;
    assert_eq!(agent.stop().await, Some(0));
    fs::remove_file(&config).expect("it is there");
    write(&config, &format!("{}{ECHO}", " ".repeat(4 << 20)), 0o600);
    let said = text(&output(home.path(), &["doctor"]).await);
    assert!(said.contains("cannot be read (it is larger than 4 MiB)"), "{said}");
    fs::remove_file(home.path().join("credentials")).expect("it is there");
    symlink("/dev/zero", home.path().join("credentials")).expect("a link");
    let said = text(&output(home.path(), &["doctor"]).await);
    assert!(said.contains(&format!("credentials {no_file}")), "{said}");
}

#[tokio::test]
async fn a_slip_in_a_key_or_a_variable_is_a_warning_that_names_the_right_one() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let config = ECHO.replace("\"publish\"", "\"maxInFlite\":2,\"publish\"");
    write(&home.path().join("config.json"), &config, 0o600);
    let with_slip = |arguments: &[&str]| {
        let mut command = mcprelay(home.path(), arguments);
        command.env("MCPRELAY_MAX_IN_FLIHGT", "2");
        command
    };
    let said = text(&ended(with_slip(&["doctor"])).await);
    for part in [
        "environment: the environment variable MCPRELAY_MAX_IN_FLIHGT is not read",
        "-> MCPRELAY_MAX_IN_FLIGHT may be meant",
        "llm.providers[0].maxInFlite: is not read; \"maxInFlight\" may be meant",
    ] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    let agent = Process::start(with_slip(&["run", "--provide"]));
    agent.says("MCPRELAY_MAX_IN_FLIHGT is not read; MCPRELAY_MAX_IN_FLIGHT may be meant").await;
    agent.says("maxInFlite: is not read").await;
}

#[tokio::test]
async fn a_blank_or_a_carriage_return_after_a_variables_value_is_no_part_of_it() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    write(&home.path().join("config.json"), ECHO, 0o600);
    let mut run = command(MCPRELAY);
    run.arg("run");
    for (name, value) in [
        ("MCPRELAY_HOME", &*home.path().to_string_lossy()),
        ("MCPRELAY_MAX_IN_FLIGHT", "2"),
        ("MCPRELAY_DRAIN_TIMEOUT", "1s"),
        ("MCPRELAY_EVENT_LIMIT", "1MiB"),
        ("MCPRELAY_LOG_FORMAT", "json"),
        ("MCPRELAY_PROVIDE", "true"),
        ("MCPRELAY_SOCKET_MODE", "0600"),
        ("MCPRELAY_ALLOW_UID", "1,2"),
    ] {
        run.env(name, format!("{value} \r"));
    }
    let _agent = Process::start(run);
    soon("an active row", mcpd.wait_until(|state| state.is_active("echo"))).await;
}
