use std::process::Command;

use super::*;

/// Tells this test's own program that it is the process to look at: a hook and a log are for a whole process.
const ROLE: &str = "MCPRELAY_TEST_OF_THE_LOG";
/// The lines of a process that says so many at once: too many for the one write that follows silence.
const LINES: usize = 100;

/// What a process that only runs this test, in its role, writes on standard error.
fn said_by(test: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let name = format!("telemetry::log::process::tests::{test}");
    let mut command = Command::new(this);
    command.args(["--exact", &name, "--nocapture"]).env(ROLE, "1").env_remove("RUST_BACKTRACE");
    String::from_utf8(command.output().unwrap().stderr).unwrap()
}

/// What a long-running command begins with, and the first thing it says.
fn begin() -> LastLines {
    install(to_stderr(LogFormat::Text).unwrap());
    for n in 0..LINES {
        assert!(say(&format!("before {n}")));
    }
    LastLines
}

#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let place = |part: &&str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"));
    assert!(parts.iter().map(place).is_sorted(), "{text}");
}

#[test]
fn what_is_said_right_before_the_end_comes_out() {
    if std::env::var_os(ROLE).is_some() {
        let _last_lines = begin();
        say("error: the last");
        return;
    }
    let text = said_by("what_is_said_right_before_the_end_comes_out");
    assert_in_order(&text, &["before 0\n", "before 99\n", "error: the last\n"]);
}

#[test]
fn a_panics_message_stands_between_the_lines_around_it() {
    if std::env::var_os(ROLE).is_some() {
        let _last_lines = begin();
        let task = std::thread::Builder::new().name("task".into()).spawn(|| panic!("a task's"));
        task.unwrap().join().unwrap_err();
        say("between");
        panic!("the last");
    }
    let text = said_by("a_panics_message_stands_between_the_lines_around_it");
    let parts = [
        "before 99\n",
        "thread 'task'",
        "panicked at src/telemetry",
        "a task's\n",
        "between\n",
        "the last\n",
    ];
    assert_in_order(&text, &parts);
}
