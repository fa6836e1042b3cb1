//! A real process, for what only a process shows: its memory, its exit status, its log, what a kill leaves behind.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The program under test.
pub const MCPRELAY: &str = env!("CARGO_BIN_EXE_mcprelay");
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long a condition may take, in looks: half a minute on a machine with nothing else to do.
const LOOKS: u32 = 3000;

/// Linux's clock ticks a second in what it says of processes, on every architecture.
const TICKS: u64 = 100;

/// A program that runs until the test ends; then it is killed.
pub struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
}

/// A command without the settings of whoever runs the tests.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        if ["MCPRELAY_", "OTEL_", "RUST_LOG"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// `mcprelay` with these arguments in this home, not started yet.
pub fn mcprelay(home: &Path, arguments: &[&str]) -> Command {
    let mut command = command(MCPRELAY);
    command.args(arguments).arg("--home").arg(home);
    command
}

/// What a command of mcprelay prints, once it has ended.
pub async fn output(home: &Path, arguments: &[&str]) -> Output {
    ended(mcprelay(home, arguments)).await
}

/// What a command comes to, once it has ended.
pub async fn ended(mut command: Command) -> Output {
    let done = tokio::task::spawn_blocking(move || command.output());
    done.await.expect("it does not panic").expect("the program is built")
}

/// Everything in an output, for people.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..LOOKS {
        if is_so().await {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    panic!("waited in vain for {what}");
}

impl Process {
    /// Starts a command, whose standard error is its log.
    pub fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program is built");
        let log = Arc::<Mutex<String>>::default();
        let (lines, written) = (BufReader::new(child.stderr.take().expect("piped")), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = written.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log }
    }

    /// What it has logged so far.
    pub fn log(&self) -> MutexGuard<'_, String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a text in its log.
    pub async fn says(&self, text: &str) {
        for _ in 0..LOOKS {
            if self.log().contains(text) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("it never said {text:?}:\n{}", self.log());
    }

    /// The most memory it ever held, in bytes.
    pub fn peak(&self) -> usize {
        self.memory("VmHWM:")
    }

    /// The memory it holds now, in bytes.
    pub fn resident(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// The processor time it has used so far.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // The name in brackets may have blanks; user and system time are the 14th and 15th field.
        let fields: Vec<_> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1_000 / TICKS)
    }

    fn memory(&self, what: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("Linux says so");
        let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, and gives its exit code; `None` if a signal ended it.
    pub async fn stop(self) -> Option<i32> {
        let told = command("kill").arg(self.child.id().to_string()).status();
        assert!(told.is_ok_and(|status| status.success()), "it runs");
        self.ended().await
    }

    /// Waits until it has ended, and gives its exit code; `None` if a signal ended it.
    pub async fn ended(mut self) -> Option<i32> {
        for _ in 0..LOOKS {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status.code();
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("it did not stop:\n{}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
