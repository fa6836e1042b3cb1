//! One system with everything around it, each a process of its own, over real loopback sockets.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    cells::Cell,
    http1::Conn,
    load::{LoadArgs, LoadReport},
    mcpd::{STATS_PATH, Stats},
    process::{Running, Usage, myself},
    rathole,
    sink::SPANS_PATH,
    system::{EXPORT_INTERVAL, McpdKind, Registrar, System},
};

/// What a caller of the provider itself POSTs to.
const DIRECT_PATH: &str = "/v1/chat/completions";
/// What a caller of mcpd POSTs to.
const INFER_PATH: &str = "/api/v1/llms/bench/infer";
/// Tasks that may be under way at once: never what limits a load.
const IN_FLIGHT: u32 = 20_000;
/// How long a relay may take to be online.
const ONLINE: Duration = Duration::from_secs(10);
/// How often mcpd's list is looked at until then. It is the error of a start's time.
const LOOK: Duration = Duration::from_micros(500);

/// A running system. Dropping it ends its processes.
#[derive(Debug)]
pub struct Rig {
    /// The relay itself; `None` without one.
    relay: Option<Running>,
    /// The relay's other half, where that is a process of its own.
    host: Option<Running>,
    mcpd: Option<(Running, String)>,
    /// The collector, where there is one.
    sink: Option<(Running, String)>,
    _mock: Running,
    address: String,
    path: &'static str,
    counts: bool,
    home: TempDir,
    /// Outside of the home, whose changes the agent follows.
    log: PathBuf,
    _logs: TempDir,
    /// From the relay's start until it was online.
    pub start: Duration,
}

impl Rig {
    /// Starts everything and waits until the system takes requests.
    pub async fn start(system: &System, mcpd: McpdKind) -> Result<Self, String> {
        let folder = || tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"));
        let (home, logs) = (folder()?, folder()?);
        let (mock, provider) = Running::listening(&mut myself(["mock"])?).await?;
        let mut rig = Self {
            relay: None,
            host: None,
            mcpd: None,
            sink: None,
            _mock: mock,
            address: provider.clone(),
            path: DIRECT_PATH,
            counts: mcpd == McpdKind::Lean,
            home,
            log: logs.path().join("log"),
            _logs: logs,
            start: Duration::ZERO,
        };
        match system {
            System::Direct => {}
            System::Tunnel => {
                let mut tunnel = myself(["tunnel", "--provider", &provider])?;
                let (relay, address) = Running::listening(&mut tunnel).await?;
                (rig.relay, rig.address) = (Some(relay), address);
            }
            System::Rathole(program) => {
                let (near, far, address) = rathole::start(program, rig.home.path(), &provider).await?;
                (rig.relay, rig.host, rig.address) = (Some(near), Some(far), address);
            }
            _ => rig.start_relay(system, mcpd, &provider).await?,
        }
        Ok(rig)
    }

    async fn start_relay(&mut self, system: &System, kind: McpdKind, provider: &str) -> Result<(), String> {
        let (mcpd, address) = Running::listening(&mut mcpd_command(kind)?).await?;
        self.mcpd = Some((mcpd, address.clone()));
        let mut command = self.relay_command(system, &address, provider)?;
        if let System::Traced(otlp, _) = system {
            let (sink, collector) = Running::listening(&mut myself(["sink"])?).await?;
            command.envs(otlp.variables(&collector));
            self.sink = Some((sink, collector));
        }
        let began = Instant::now();
        self.relay = Some(Running::start(&mut command)?);
        if let System::Apart(program) = system {
            let mut host = Command::new(program);
            host.args(["provide", "--home"])
                .arg(self.home.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            self.host = Some(Running::start(&mut host)?);
        }
        while !is_online(&address).await {
            if began.elapsed() > ONLINE {
                return Err(format!("{} is not online after 10 s: {}", system.name(), self.log()));
            }
            sleep(LOOK).await;
        }
        self.start = began.elapsed();
        (self.address, self.path) = (address, INFER_PATH);
        Ok(())
    }

    fn relay_command(&self, system: &System, mcpd: &str, provider: &str) -> Result<Command, String> {
        let home = self.home.path();
        let mut command = match system {
            System::Agent(_, program) | System::Traced(_, program) => {
                self.agent(program, &["run", "--provide"], mcpd, provider)?
            }
            System::Apart(program) => self.agent(program, &["run"], mcpd, provider)?,
            System::Node(registrar) => {
                let (script, mode) = match registrar {
                    Registrar::Whole => ("peers/registrar.mjs", "whole"),
                    Registrar::PerToken => ("peers/registrar.mjs", "token"),
                    Registrar::Fetch => ("peers/registrar-fetch.mjs", ""),
                };
                let mut command = Command::new("node");
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).args([mcpd, provider, mode]);
                command
            }
            _ => {
                let mut command = myself(["floor", "--mcpd", mcpd, "--provider", provider, "--socket"])?;
                command.arg(home.join("floor.sock"));
                command
            }
        };
        let log = fs::File::create(&self.log).map_err(|error| format!("no log: {error}"))?;
        command
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command)
    }

    /// An agent in a home that leads it to `mcpd` and `provider`.
    fn agent(
        &self,
        program: &Path,
        arguments: &[&str],
        mcpd: &str,
        provider: &str,
    ) -> Result<Command, String> {
        let home = self.home.path();
        write_home(home, mcpd, provider).map_err(|error| format!("the home cannot be written: {error}"))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--home").arg(home);
        Ok(command)
    }

    /// Lets the callers of `cell` loose, in a process of their own.
    pub async fn load(&self, cell: &Cell) -> Result<LoadReport, String> {
        self.load_with(cell.load(&self.address, self.path)).await
    }

    /// The same for a second or less, before anything is measured.
    pub async fn warm_up(&self, cell: &Cell) -> Result<(), String> {
        let load = LoadArgs { seconds: 0.5, ..cell.load(&self.address, self.path) };
        self.load_with(load).await.map(drop)
    }

    /// The same with the callers' first requests spread over `ramp`.
    pub async fn load_slowly(&self, cell: &Cell, ramp: Duration) -> Result<LoadReport, String> {
        let ramp_ms = u64::try_from(ramp.as_millis()).unwrap_or(u64::MAX);
        self.load_with(LoadArgs { ramp_ms, ..cell.load(&self.address, self.path) }).await
    }

    async fn load_with(&self, load: LoadArgs) -> Result<LoadReport, String> {
        let output = myself(load.to_arguments())?.kill_on_drop(true).output().await;
        let output = output.map_err(|error| format!("the callers cannot be started: {error}"))?;
        let report: LoadReport = serde_json::from_slice(&output.stdout)
            .map_err(|_| format!("the callers failed: {}", String::from_utf8_lossy(&output.stderr)))?;
        if report.errors > 0 {
            let why = report.messages.join("; ");
            return Err(format!("{} answers were wrong: {why} {}", report.errors, self.log()));
        }
        Ok(report)
    }

    /// What the relay has used; nothing where there is none.
    pub fn usage(&self) -> Result<Usage, String> {
        self.relay.as_ref().map_or(Ok(Usage::default()), Running::usage)
    }

    /// The same of the provider host, where it is a process of its own.
    pub fn host_usage(&self) -> Result<Usage, String> {
        self.host.as_ref().map_or(Ok(Usage::default()), Running::usage)
    }

    /// What mcpd has counted; `None` where it does not count.
    pub async fn stats(&self) -> Option<Stats> {
        let (_, address) = self.mcpd.as_ref().filter(|_| self.counts)?;
        serde_json::from_slice(&get(address, STATS_PATH).await.ok()?).ok()
    }

    /// Waits until what the relay has exported has arrived, and gives its number of spans; `None` where nothing is exported.
    pub async fn spans(&self) -> Option<u64> {
        let (_, collector) = self.sink.as_ref()?;
        sleep(2 * EXPORT_INTERVAL).await;
        let spans = get(collector, SPANS_PATH).await.ok()?;
        std::str::from_utf8(&spans).ok()?.parse().ok()
    }

    /// The last lines of what the relay said on standard error.
    fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(3).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

fn mcpd_command(kind: McpdKind) -> Result<Command, String> {
    match kind {
        McpdKind::Lean => myself(["mcpd"]),
        McpdKind::Fake => {
            let mut command = Command::new(beside("fake-mcpd")?);
            command.args(["--journal", "0"]);
            Ok(command)
        }
    }
}

/// Builds the programs under test, when cargo started this one: a stale build beside it would be measured without a word.
pub async fn build() -> Result<(), String> {
    if cfg!(debug_assertions) {
        return Err("a debug build says nothing about speed; add --release".to_owned());
    }
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    // All in one command, so that they share their dependencies' features with this program and nothing is built twice.
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--release",
        "--bins",
        "-p",
        "mcprelay-bench",
        "-p",
        "mcprelay",
        "-p",
        "fake-mcpd",
    ]);
    match command.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the programs under test could not be built".to_owned()),
        Err(error) => Err(format!("cargo cannot be started: {error}")),
    }
}

/// A program of the workspace that was built into the folder of this one.
pub fn beside(name: &str) -> Result<PathBuf, String> {
    let own =
        std::env::current_exe().map_err(|error| format!("cannot tell where this program is: {error}"))?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(format!("{} is not there; run cargo build --release --workspace first", path.display()))
}

/// The home of an agent whose one provider is the mock.
fn write_home(home: &Path, mcpd: &str, provider: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(home.join("credentials"))?;
    write!(file, r#"{{"mcpdUrl":"http://{mcpd}","token":"bench"}}"#)?;
    let provider = serde_json::json!({
        "name": "bench", "type": "openai", "model": "m", "url": format!("http://{provider}"),
        "publish": true, "maxInFlight": IN_FLIGHT,
    });
    fs::write(home.join("config.json"), serde_json::json!({ "llm": { "providers": [provider] } }).to_string())
}

async fn is_online(mcpd: &str) -> bool {
    let rows = get(mcpd, "/api/v1/llms").await.unwrap_or_default();
    memchr::memmem::find(&rows, br#""status":"active""#).is_some()
}

async fn get(address: &str, path: &str) -> std::io::Result<bytes::Bytes> {
    let mut conn = Conn::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer bench\r\n\r\n");
    conn.write(request.as_bytes()).await?;
    let response = conn.response().await?;
    conn.body(response.length).await
}
