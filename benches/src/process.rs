//! The processes of a run, and what the kernel says about them.

use std::{ffi::OsStr, io, process::Stdio, time::Duration};

use procfs::{ProcResult, process::Process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// How long a program may take to say where it listens.
const START: Duration = Duration::from_secs(10);

/// A program that runs until this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: i32,
}

/// What one process has used up and holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all threads since its start, in seconds.
    pub cpu: f64,
    /// Resident memory now, in KiB.
    pub rss: u64,
    /// The most it ever was, in KiB.
    pub peak_rss: u64,
    /// Times a thread of it went to sleep by itself.
    pub sleeps: u64,
}

impl Running {
    /// Starts `command`, whose output goes nowhere unless it is piped.
    pub fn start(command: &mut Command) -> Result<Self, String> {
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let child = child.map_err(|error| format!("{program} cannot be started: {error}"))?;
        let pid = child.id().ok_or_else(|| format!("{program} ended at once"))?;
        Ok(Self { child, pid: pid.cast_signed() })
    }

    /// Starts a server whose first line on standard output ends with where it listens, and gives that "127.0.0.1:PORT".
    pub async fn listening(command: &mut Command) -> Result<(Self, String), String> {
        let mut running = Self::start(command.stdout(Stdio::piped()))?;
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let line = first_line(running.child.stdout.take()).await;
        let line = line.map_err(|error| format!("{program} did not say where it listens: {error}"))?;
        let address = line.trim().rsplit('/').next().unwrap_or_default().to_owned();
        Ok((running, address))
    }

    /// What it has used.
    pub fn usage(&self) -> Result<Usage, String> {
        usage(self.pid).map_err(|error| format!("process {} cannot be looked at: {error}", self.pid))
    }
}

async fn first_line(output: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut line = String::new();
    let output = output.ok_or(io::ErrorKind::BrokenPipe)?;
    timeout(START, BufReader::new(output).read_line(&mut line)).await??;
    Ok(line)
}

fn usage(pid: i32) -> ProcResult<Usage> {
    let process = Process::new(pid)?;
    let (stat, status) = (process.stat()?, process.status()?);
    // A thread that has just ended has no file any more.
    let threads = process.tasks()?.flatten().filter_map(|thread| thread.status().ok());
    Ok(Usage {
        cpu: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
        rss: status.vmrss.unwrap_or_default(),
        peak_rss: status.vmhwm.unwrap_or_default(),
        sleeps: threads.filter_map(|thread| thread.voluntary_ctxt_switches).sum(),
    })
}

/// A command that is this very program with other arguments.
pub fn myself<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<Command, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("cannot tell which program this is: {error}"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_looked_at() {
        let usage = usage(std::process::id().cast_signed()).unwrap();
        assert!(usage.rss > 0 && usage.peak_rss >= usage.rss, "{usage:?}");
    }
}
