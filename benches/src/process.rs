//! The processes of a run, and what the kernel says about them.

use std::{ffi::OsStr, fs, io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// How long a program may take to say where it listens.
const START: Duration = Duration::from_secs(10);
/// Ticks per second in /proc: 100 on every architecture that this runs on, whatever the kernel's own clock does.
const TICKS: f64 = 100.0;

/// A program that runs until this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: u32,
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
        Ok(Self { child, pid })
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

fn usage(pid: u32) -> io::Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage {
        cpu: cpu_seconds(&fs::read_to_string(format!("/proc/{pid}/stat"))?),
        rss: field(&status, "VmRSS:"),
        peak_rss: field(&status, "VmHWM:"),
        sleeps: sleeps(pid)?,
    })
}

/// User and system time, fields 14 and 15 of proc(5)'s `stat`; the name before them may hold spaces.
fn cpu_seconds(stat: &str) -> f64 {
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS
}

/// Voluntary context switches of all threads.
fn sleeps(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has just ended has no file any more.
        let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        sum += field(&status, "voluntary_ctxt_switches:");
    }
    Ok(sum)
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
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
    fn the_name_of_a_process_does_not_confuse_its_times() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 1";
        assert_eq!(cpu_seconds(stat), 3.0);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss > 0 && usage.peak_rss >= usage.rss, "{usage:?}");
    }
}
