use std::{
    io::{BufRead as _, BufReader, PipeReader, Read as _},
    os::fd::OwnedFd,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::*;

/// Longer than any of it takes on the busiest machine; what fails waits as long.
const LONG: Duration = Duration::from_secs(30);
/// More than a pipe and both buffers hold.
const FLOOD: usize = 40_000;

fn pipe() -> (BufReader<PipeReader>, File) {
    let (reader, writer) = io::pipe().unwrap();
    (BufReader::new(reader), File::from(OwnedFd::from(writer)))
}

/// Of different lengths: a short one would still fit where a long one did not.
fn line(number: usize) -> String {
    format!("{number} {}\n", "x".repeat(number % 5 * 40))
}

fn next(reader: &mut impl io::BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

fn number(line: &str) -> usize {
    line.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{line:?}"))
}

/// How many lines a line of the log says were lost.
fn lost(line: &str) -> Option<usize> {
    line.split_once("mcprelay::log: lost ").map(|(_, rest)| number(rest))
}

fn outlet(out: File) -> Outlet {
    Outlet { out, format: LogFormat::Text, lost: 0, mid_line: false }
}

fn batch(lines: std::ops::Range<usize>) -> Batch {
    let bytes = lines.clone().map(line).collect::<String>().into_bytes();
    Batch { bytes, lines: lines.len(), refused: 0 }
}

#[test]
fn many_threads_lines_come_out_whole_and_each_threads_in_order() {
    let (reader, out) = pipe();
    let queue = Queue::start(out, LogFormat::Text).unwrap();
    let lines = std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut queue = &*queue;
            scope.spawn(move || {
                (0..2_000).for_each(|n| queue.write_all(format!("{thread} {n} end\n").as_bytes()).unwrap());
            });
        }
        reader.lines().take(8_000).map(Result::unwrap).collect::<Vec<_>>()
    });
    let mut due = [0; 4];
    for line in &lines {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!((words.len(), words.last()), (3, Some(&"end")), "{line:?}");
        let due = &mut due[number(words[0])];
        assert_eq!(number(words[1]), *due, "{line:?}");
        *due += 1;
    }
    assert_eq!(due, [2_000; 4]);
}

#[test]
fn without_a_reader_nobody_waits_and_what_is_lost_is_counted_where_it_was_lost() {
    let (mut reader, out) = pipe();
    let queue = Queue::start(out, LogFormat::Text).unwrap();
    (0..FLOOD).for_each(|n| queue.push(line(n).as_bytes()));
    assert!(!queue.flush_within(PAUSE), "nobody reads");
    let (mut due, mut gaps) = (0, 0);
    // The first loss is told before there is room for another line.
    while due < FLOOD {
        let read = next(&mut reader);
        match lost(&read) {
            Some(lost) => (due, gaps) = (due + lost, gaps + 1),
            None => {
                assert_eq!(number(&read), due);
                due += 1;
            }
        }
    }
    assert!(due == FLOOD && gaps > 0, "{due} lines are accounted for, with {gaps} gaps");
    queue.push(b"again\n");
    assert_eq!(next(&mut reader), "again\n");
    assert!(queue.flush_within(LONG));
}

#[test]
fn a_line_that_fits_nowhere_is_lost_alone() {
    let (mut reader, out) = pipe();
    let queue = Queue::start(out, LogFormat::Text).unwrap();
    queue.push(&vec![b'x'; MAX_WAITING_BYTES + 1]);
    assert_eq!(lost(&next(&mut reader)), Some(1));
    queue.push(b"next\n");
    assert_eq!(next(&mut reader), "next\n");
}

#[test]
fn a_line_after_silence_comes_out_by_itself() {
    let (mut reader, out) = pipe();
    let queue = Queue::start(out, LogFormat::Text).unwrap();
    for n in 0..3 {
        while queue.lock().wake_at != 1 {
            std::thread::yield_now();
        }
        queue.push(line(n).as_bytes());
        assert_eq!(number(&next(&mut reader)), n);
    }
}

#[test]
fn a_flush_has_written_what_was_handed_in_before_it() {
    let (mut reader, out) = pipe();
    let queue = Queue::start(out, LogFormat::Text).unwrap();
    for n in 0..20 {
        queue.push(line(n).as_bytes());
        assert!(queue.flush_within(LONG));
        // Without one the line might still be on its way: a read that may not wait tells.
        fcntl(reader.get_ref(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        assert_eq!(number(&next(&mut reader)), n);
    }
}

#[test]
fn a_closed_pipe_and_a_full_disk_cost_lines_and_hold_up_nobody() {
    let (reader, closed) = pipe();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for out in [closed, full] {
        let queue = Queue::start(out, LogFormat::Text).unwrap();
        for n in 0..3 {
            queue.push(line(n).as_bytes());
            assert!(queue.flush_within(LONG));
        }
    }
}

#[test]
fn what_an_error_cost_is_told_once_the_file_takes_lines_again() {
    let mut outlet = outlet(File::options().write(true).open("/dev/full").unwrap());
    outlet.deliver(&batch(0..3));
    outlet.deliver(&Batch { refused: 2, ..batch(3..5) });
    let (mut reader, out) = pipe();
    (outlet.out, outlet.mid_line) = (out, true);
    outlet.deliver(&batch(7..8));
    outlet.deliver(&batch(8..9));
    drop(outlet);
    assert_eq!(next(&mut reader), "\n", "the end of the line that broke off");
    assert_eq!(lost(&next(&mut reader)), Some(7));
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, line(7) + &line(8));
}

#[test]
fn a_pipe_that_another_process_made_non_blocking_loses_nothing() {
    let (reader, out) = pipe();
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let queue = Queue::start(out, LogFormat::Text).unwrap();
    // More than the pipe holds, less than the queue does.
    let lines = 5_000;
    (0..lines).for_each(|n| queue.push(line(n).as_bytes()));
    assert!(!queue.flush_within(PAUSE), "nobody reads");
    let read = reader.lines().take(lines).map(|line| number(&line.unwrap()));
    assert!(read.eq(0..lines));
}

#[test]
fn a_loss_looks_like_the_other_lines_of_its_format() {
    let text = loss_line(LogFormat::Text, 1);
    assert!(
        text.ends_with("Z  WARN mcprelay::log: lost 1 log line: standard error did not take it\n"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&loss_line(LogFormat::Json, 12)).unwrap();
    assert_eq!((&json["level"], &json["lost_lines"]), (&"WARN".into(), &12.into()));
    assert!(json["timestamp"].as_str().unwrap().ends_with('Z'), "{json}");
}
