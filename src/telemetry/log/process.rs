//! The process's one log on standard error, and what else is said there while it is in use.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fs::File,
    io,
    os::fd::AsFd as _,
    panic::PanicHookInfo,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{LogFormat, queue::Queue};

/// How long the last lines may take when the process ends: nobody may be reading.
const LAST_LINES_BOUND: Duration = Duration::from_secs(1);
/// How long a panic's message may hold up its thread, which mostly is the agent's own and goes on.
const PANIC_BOUND: Duration = Duration::from_millis(100);

/// The log of this process, once a long-running command has set it up.
static LOG: OnceLock<Arc<Queue>> = OnceLock::new();

/// A queue to standard error. The descriptor is one of our own: while the standard library's is written to, it is locked, and
/// everybody else who says something would wait for a reader too.
pub(in crate::telemetry) fn to_stderr(format: LogFormat) -> io::Result<Arc<Queue>> {
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    Queue::start(File::from(stderr), format)
}

/// From now on everything that this process says goes through `log`, a panic's message included: in order, and without waiting.
pub(in crate::telemetry) fn install(log: Arc<Queue>) {
    if LOG.set(Arc::clone(&log)).is_ok() {
        std::panic::set_hook(Box::new(move |panic| {
            log.push(panic_text(panic).as_bytes());
            // The process may abort right after it.
            log.flush_within(PANIC_BOUND);
        }));
    }
}

/// What the standard library's own hook prints.
fn panic_text(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let mut text = format!("\nthread '{}' {panic}\n", thread.name().unwrap_or("<unnamed>"));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        text += &format!("stack backtrace:\n{trace}");
    }
    text
}

/// Says a line on standard error behind the log's lines, if there is a log; whether there is. [`LastLines`] waits for it.
pub fn say(line: &str) -> bool {
    let log = LOG.get();
    if let Some(log) = log {
        log.push(format!("{line}\n").as_bytes());
    }
    log.is_some()
}

/// Dropped at the very end of the process, also by a panic, it waits a second at most for the log's last lines to be written.
#[derive(Debug)]
pub struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        if let Some(log) = LOG.get() {
            log.flush_within(LAST_LINES_BOUND);
        }
    }
}

#[cfg(test)]
mod tests;
