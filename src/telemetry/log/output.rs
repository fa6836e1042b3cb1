//! The process's one log on standard error, and what else is said there while it is in use. A line waits in a
//! bounded queue for the thread that writes it, so that whoever logs never waits for whoever reads.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fs::File,
    io::{self, Write},
    os::fd::AsFd as _,
    panic::PanicHookInfo,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::Dispatch;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt as _;

use super::{LogFormat, OF_A_SERVICE, layer};

/// Most lines that wait to be written: what 4,000 tasks say at the default level, or 700 at the debug level. At some
/// 250 bytes each that is 1 MiB: enough for a reader that is held up, and nothing beside the agent's memory.
pub(super) const MAX_WAITING_LINES: usize = 4096;

/// Most bytes that are written together.
const TOGETHER: usize = 64 << 10;
/// How long the thread rests after it has written: what is said meanwhile wakes nobody, and goes out together. With a
/// wake and a write for each, 3,200 tasks cost 1,600 yields of the processor and 3,200 writes, now 242.
const REST: Duration = Duration::from_millis(5);

/// The log of this process, once a long-running command has set it up.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    lines: NonBlocking,
    /// Writes the last lines when it is dropped.
    last_lines: Mutex<Option<WorkerGuard>>,
}

/// A queue of lines to standard error, and what writes the last of them when it is dropped. The descriptor is one of
/// our own: while the standard library's is written to, it is locked, and everybody else who says something would
/// wait for a reader too.
pub(in crate::telemetry) fn to_stderr(format: LogFormat) -> io::Result<(NonBlocking, WorkerGuard)> {
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    Ok(queue(File::from(stderr), format))
}

fn queue(file: File, format: LogFormat) -> (NonBlocking, WorkerGuard) {
    let output = Output::new(file, format);
    let lost = output.lost.clone();
    let builder = NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES).lossy(true);
    let (lines, guard) = builder.thread_name("log").finish(output);
    // It was empty until now.
    let _ = lost.set(lines.error_counter());
    (lines, guard)
}

/// Writes lines, those that wait at one moment together, and says behind the next ones that are written when some were
/// lost: then there is a reader again.
struct Output {
    file: Arc<File>,
    /// Lines that are not written yet.
    together: Vec<u8>,
    /// How many they are.
    lines: usize,
    /// Writes to the file without the queue, which may be full again.
    direct: Dispatch,
    /// What the queue had no room for.
    lost: Arc<OnceLock<ErrorCounter>>,
    /// Lines that could not be written, as on a full disk.
    failed: usize,
    told: usize,
}

impl Output {
    fn new(file: File, format: LogFormat) -> Self {
        let file = Arc::new(file);
        let (lines, _) = layer(format, OF_A_SERVICE, None, Arc::clone(&file));
        let direct = tracing_subscriber::registry().with(lines).into();
        Self { file, together: Vec::new(), lines: 0, direct, lost: Arc::default(), failed: 0, told: 0 }
    }

    fn tell_losses(&mut self) {
        let lost = self.failed + self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        let untold = lost - self.told;
        if untold > 0 {
            self.told = lost;
            tracing::dispatcher::with_default(&self.direct, || {
                tracing::warn!(lost_lines = untold, "Lines of the log were lost: nobody read them in time.");
            });
        }
    }

    fn write_out(&mut self) {
        match self.write_all_of(&self.together) {
            Ok(()) => self.tell_losses(),
            Err(_) => self.failed += self.lines,
        }
        self.together.clear();
        self.lines = 0;
    }

    fn write_all_of(&self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match (&*self.file).write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Another process may have made the file non-blocking.
    fn wait(&self) {
        let mut file = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        // What is wrong with the file is seen by the next write.
        let _ = poll(&mut file, PollTimeout::NONE);
    }
}

impl Write for Output {
    /// Takes one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.together.extend_from_slice(line);
        self.lines += 1;
        if self.together.len() >= TOGETHER {
            self.write_out();
        }
        Ok(line.len())
    }

    /// Called where no further line waits. It never fails: the thread would take a failure for the answer to its last
    /// order, which may be to end.
    fn flush(&mut self) -> io::Result<()> {
        if self.lines > 0 {
            self.write_out();
            thread::park_timeout(REST);
        }
        Ok(())
    }
}

/// From now on everything that this process says goes through `lines`, a panic's message included: in order, and
/// without waiting.
pub(in crate::telemetry) fn install(lines: NonBlocking, last_lines: WorkerGuard) {
    let log = Log { lines, last_lines: Mutex::new(Some(last_lines)) };
    if LOG.set(log).is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            say(&panic_text(panic));
        }));
    }
}

/// What the standard library's own hook prints.
fn panic_text(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let mut text = format!("\nthread '{}' {panic}", thread.name().unwrap_or("<unnamed>"));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        text += &format!("\nstack backtrace:\n{trace}");
    }
    text
}

/// Says a line on standard error behind the log's lines, if there is a log; whether there is. [`LastLines`] waits for it.
pub fn say(line: &str) -> bool {
    let Some(log) = LOG.get() else { return false };
    // A queue takes it or counts it as lost.
    let _ = log.lines.clone().write_all(format!("{line}\n").as_bytes());
    true
}

/// Dropped at the very end of the process, also by a panic, it waits a second at most for the log's last lines to be written.
#[derive(Debug)]
pub struct LastLines;

impl Drop for LastLines {
    fn drop(&mut self) {
        if let Some(log) = LOG.get() {
            drop(log.last_lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

#[cfg(test)]
mod tests;
