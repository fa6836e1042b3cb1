use std::{
    io::{BufRead as _, BufReader, PipeReader},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    thread::yield_now,
    time::Instant,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    super::super::{Settings, init},
    *,
};

/// Tells this test's own program that it is the process to look at: a hook and a log are for a whole process.
const ROLE: &str = "MCPRELAY_TEST_OF_THE_LOG";
/// How long the end waits for the thread at most, as the library has it.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The lines of a process that says so many at once: too many for the one write that follows silence.
const LINES: usize = 100;

/// What a process that only runs this test, in its role, writes on standard error.
fn said_by(test: &str) -> String {
    String::from_utf8(process_of(test).output().unwrap().stderr).unwrap()
}

fn process_of(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("telemetry::log::output::tests::{test}");
    command.args(["--exact", &name, "--nocapture"]).env(ROLE, "1");
    for variable in ["RUST_BACKTRACE", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command
}

/// What a long-running command begins with, and the first thing it says.
fn begin() -> LastLines {
    let (lines, guard) = to_stderr(LogFormat::Text).unwrap();
    install(lines, guard);
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

#[test]
fn without_a_reader_nobody_waits_and_what_is_lost_is_counted() {
    /// More than a pipe and the queue hold.
    const FLOOD: usize = 3 * MAX_WAITING_LINES;
    const SAID: &str = "nobody waited";
    if std::env::var_os(ROLE).is_some() {
        let settings = Settings { log_format: LogFormat::Json, metrics_listen: None };
        let (_telemetry, _last_lines) = (init(&settings).unwrap(), LastLines);
        (0..FLOOD).for_each(|n| tracing::info!(target: "mcprelay", n, padding = "x".repeat(100)));
        println!("{SAID}");
        // Comes back at once when its reader has read the flood, or has failed.
        std::io::stdin().read_line(&mut String::new()).unwrap();
        tracing::info!(target: "mcprelay", "the last");
        return;
    }
    let mut command = process_of("without_a_reader_nobody_waits_and_what_is_lost_is_counted");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(stdout.any(|line| line.contains(SAID)), "it says so with the log full");
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    let (mut read, mut lost) = (0, 0);
    while read + lost < FLOOD as u64 {
        let line = lines.next().expect("every line is read or counted");
        read += u64::from(line["n"].is_u64());
        lost += line["lost_lines"].as_u64().unwrap_or(0);
    }
    assert!(lost > 0, "{read} lines were read");
    drop(child.stdin.take());
    assert!(lines.any(|line| line["message"] == "the last"));
    assert!(child.wait().unwrap().success());
}

fn pipe() -> (BufReader<PipeReader>, File) {
    let (reader, writer) = io::pipe().unwrap();
    (BufReader::new(reader), File::from(OwnedFd::from(writer)))
}

#[test]
fn many_threads_lines_come_out_whole_and_each_threads_in_order() {
    let (reader, out) = pipe();
    let (lines, _guard) = queue(out, LogFormat::Json);
    let read = std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut lines = lines.clone();
            let say = move |n| lines.write_all(format!("{thread} {n} end\n").as_bytes()).unwrap();
            scope.spawn(move || (0..1_000).for_each(say));
        }
        reader.lines().take(4_000).map(Result::unwrap).collect::<Vec<_>>()
    });
    let mut due = [0; 4];
    for line in &read {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!((words.len(), words.last()), (3, Some(&"end")), "{line:?}");
        let due = &mut due[words[0].parse::<usize>().unwrap()];
        assert_eq!(words[1].parse(), Ok(*due), "{line:?}");
        *due += 1;
    }
    assert_eq!(due, [1_000; 4]);
}

#[test]
fn a_closed_pipe_and_a_full_disk_hold_up_nobody() {
    let (reader, closed) = pipe();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for out in [closed, full] {
        let (mut lines, guard) = queue(out, LogFormat::Json);
        (0..3).for_each(|_| lines.write_all(b"a line\n").unwrap());
        let begun = Instant::now();
        drop(guard);
        assert!(begun.elapsed() < LAST_LINES, "it waited for a thread that does not end");
    }
}

#[test]
fn a_line_that_could_not_be_written_is_counted_and_told_with_the_next_one() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut output = Output::new(full, LogFormat::Json);
    output.write_all(b"lost\n").unwrap();
    output.write_all(b"lost too\n").unwrap();
    output.flush().unwrap();
    assert_eq!((output.failed, output.told), (2, 0));
    let (reader, out) = pipe();
    let mut output = Output { failed: output.failed, ..Output::new(out, LogFormat::Json) };
    for line in ["one\n", "two\n"] {
        output.write_all(line.as_bytes()).unwrap();
        output.flush().unwrap();
    }
    drop(output);
    let lines: Vec<_> = reader.lines().map(Result::unwrap).collect();
    assert_eq!((lines.len(), &*lines[0], &*lines[2]), (3, "one", "two"));
    let told: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!((&told["lost_lines"], &told["level"]), (&2.into(), &"WARN".into()));
}

#[test]
fn lines_that_wait_at_one_moment_are_written_together_and_no_more_than_64_kib_are_held() {
    let (mut reader, out) = pipe();
    fcntl(reader.get_ref(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut output = Output::new(out, LogFormat::Json);
    output.write_all(b"one\n").unwrap();
    output.write_all(b"two\n").unwrap();
    assert_eq!(reader.fill_buf().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    output.flush().unwrap();
    assert_eq!(reader.fill_buf().unwrap(), b"one\ntwo\n");
    reader.consume(8);
    output.write_all(&[b'x'; TOGETHER]).unwrap();
    assert!(output.together.is_empty() && !reader.fill_buf().unwrap().is_empty());
}

#[test]
fn a_pipe_that_another_process_made_non_blocking_loses_nothing() {
    let (reader, out) = pipe();
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let (mut lines, _guard) = queue(out, LogFormat::Json);
    // More than the pipe holds, less than the queue does.
    let many = MAX_WAITING_LINES;
    let line = |n: usize| format!("{n} {}\n", "x".repeat(100));
    (0..many).for_each(|n| lines.write_all(line(n).as_bytes()).unwrap());
    yield_now();
    let read = reader.lines().take(many).map(|line| line.unwrap() + "\n");
    assert!(read.eq((0..many).map(line)));
}
