//! The log lines' way out: a bounded buffer, and a thread that writes what is in it. Whoever logs never waits for whoever reads.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    mem,
    os::fd::AsFd as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime as _, SystemTime},
};

use super::LogFormat;
use crate::domain::counted;

/// Most bytes of lines that wait to be written; as many may be in the writing. It is what some 700 plain tasks
/// say at the debug level, and 4,000 at the default one: enough for a reader that is held up, and nothing beside the agent's memory.
pub(super) const MAX_WAITING_BYTES: usize = 1 << 20;
/// Written before the pause is over: half of the bound leaves room for what comes while it is written.
const SOON_BYTES: usize = MAX_WAITING_BYTES / 2;
/// The pause after a write. A line after silence goes out at once; of many lines twenty writes a second are made, not
/// one each with a switch of threads before it.
const PAUSE: Duration = Duration::from_millis(50);
/// Capacity that a buffer keeps for the next lines; what a flood has taken is given back.
const KEPT_BYTES: usize = 16 << 10;
/// The thread is busy and looks for itself: no number of bytes wakes it.
const AWAKE: usize = usize::MAX;

/// Lines on their way to a file.
pub(in crate::telemetry) struct Queue {
    state: Mutex<State>,
    /// The thread waits for it.
    work: Condvar,
    /// Whoever flushes waits for it.
    progress: Condvar,
}

struct State {
    waiting: Batch,
    /// Lines ever handed in, and how many of them have been written or lost.
    told: u64,
    settled: u64,
    /// So many waiting bytes wake the thread.
    wake_at: usize,
    /// Somebody waits for what is there: no pause.
    hurry: bool,
}

/// Lines in their order, and how many came after them for which there was no room.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: usize,
    refused: usize,
}

impl Batch {
    /// What the thread goes by: with a loss to tell of, as if it were full.
    fn weight(&self) -> usize {
        if self.refused > 0 { MAX_WAITING_BYTES } else { self.bytes.len() }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        (self.lines, self.refused) = (0, 0);
    }
}

impl Queue {
    /// Starts the thread, which lasts as long as the process.
    pub(super) fn start(out: File, format: LogFormat) -> io::Result<Arc<Self>> {
        let state = State { waiting: Batch::default(), told: 0, settled: 0, wake_at: AWAKE, hurry: false };
        let queue =
            Arc::new(Self { state: Mutex::new(state), work: Condvar::new(), progress: Condvar::new() });
        let mut outlet = Outlet { out, format, lost: 0, mid_line: false };
        let source = Arc::clone(&queue);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            let mut batch = Batch::default();
            loop {
                source.take(&mut batch);
                outlet.deliver(&batch);
                source.settle(&batch);
                batch.clear();
                source.pause();
            }
        })?;
        Ok(queue)
    }

    /// Hands in a line, its end included. From the first for which there is no room on all are refused until the thread takes
    /// what waits: so the loss is one gap, and the place where it is told is the place where it was.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        state.told += 1;
        let waiting = &mut state.waiting;
        if waiting.refused > 0 || waiting.bytes.len() + line.len() > MAX_WAITING_BYTES {
            waiting.refused += 1;
        } else {
            waiting.bytes.extend_from_slice(line);
            waiting.lines += 1;
        }
        if state.waiting.weight() >= state.wake_at {
            state.wake_at = AWAKE;
            drop(state);
            self.work.notify_one();
        }
    }

    /// Waits until everything handed in so far has been written or lost, for at most `bound`. Whether it has.
    pub(super) fn flush_within(&self, bound: Duration) -> bool {
        let mut state = self.lock();
        let told = state.told;
        state.hurry = state.settled < told;
        self.work.notify_one();
        let settled = self.progress.wait_timeout_while(state, bound, |state| state.settled < told);
        let (state, _) = settled.unwrap_or_else(PoisonError::into_inner);
        state.settled >= told
    }

    /// Waits for lines, without end, and takes them in the place of an empty batch.
    fn take(&self, batch: &mut Batch) {
        let mut state = self.lock();
        state.wake_at = 1;
        let nothing = |state: &mut State| state.waiting.weight() == 0;
        let mut state = self.work.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
        mem::swap(&mut state.waiting, batch);
        (state.wake_at, state.hurry) = (AWAKE, false);
    }

    fn settle(&self, batch: &Batch) {
        self.lock().settled += (batch.lines + batch.refused) as u64;
        self.progress.notify_all();
    }

    fn pause(&self) {
        let mut state = self.lock();
        state.wake_at = SOON_BYTES;
        let calm = |state: &mut State| !state.hurry && state.waiting.weight() < SOON_BYTES;
        let paused = self.work.wait_timeout_while(state, PAUSE, calm);
        paused.unwrap_or_else(PoisonError::into_inner).0.wake_at = AWAKE;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No half-done change is left by a panic: nothing that is done under the lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each line of the log comes in one call, as `tracing-subscriber` writes it.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file, and what it has not taken.
struct Outlet {
    out: File,
    format: LogFormat,
    /// Lines lost and not yet told of.
    lost: usize,
    /// The last write broke off within a line.
    mid_line: bool,
}

impl Outlet {
    /// Writes a batch, and tells of a loss where it was. An error (a closed pipe, a full disk) costs these lines and is
    /// nobody's business but the next reader's: there is no other place to tell it.
    fn deliver(&mut self, batch: &Batch) {
        let written = if self.tell_loss() { self.write(&batch.bytes) } else { 0 };
        self.lost += memchr::memchr_iter(b'\n', &batch.bytes[written..]).count() + batch.refused;
        if written == batch.bytes.len() {
            self.tell_loss();
        }
    }

    /// Whether no loss is left to tell of.
    fn tell_loss(&mut self) -> bool {
        if self.lost == 0 {
            return true;
        }
        let mut line = if self.mid_line { "\n".to_owned() } else { String::new() };
        line += &loss_line(self.format, self.lost);
        if self.write(line.as_bytes()) == line.len() {
            self.lost = 0;
        }
        self.lost == 0
    }

    /// How many of the bytes the file took, before an error if not all.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.out.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.takes_more() => {}
                Err(_) => break,
            }
        }
        if let Some(last) = bytes[..written].last() {
            self.mid_line = *last != b'\n';
        }
        written
    }

    /// Another process of the same terminal or pipe may have made it non-blocking: waits for room. Whether that could be done.
    fn takes_more(&self) -> bool {
        poll(&mut [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE).is_ok()
    }
}

/// The line that tells of lost lines, as the others look.
fn loss_line(format: LogFormat, lost: usize) -> String {
    let mut time = String::new();
    // A String takes everything; a time that is not known leaves its place empty.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let target = "mcprelay::log";
    let them = if lost == 1 { "it" } else { "them" };
    let message = format!("lost {}: standard error did not take {them}", counted(lost, "log line"));
    let mut line = String::new();
    let _ = match format {
        LogFormat::Text => writeln!(line, "{time}  WARN {target}: {message}"),
        LogFormat::Json => writeln!(
            line,
            "{}",
            json!({"timestamp": time, "level": "WARN", "message": message, "lost_lines": lost, "target": target})
        ),
    };
    line
}

#[cfg(test)]
mod tests;
