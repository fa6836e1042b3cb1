//! One system with everything around it, each a process of its own, over real loopback sockets.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    cells::Cell,
    http::get,
    load::{LoadArgs, LoadReport},
    mcpd::{ROWS_PATH, STATS_PATH, Stats},
    mock::CONNECTIONS_PATH,
    process::{Running, Usage, myself},
    run::package,
    sink::SPANS_PATH,
    system::{EXPORT_INTERVAL, Kind, Registrar, Scheme, System},
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
    relay: Option<Relay>,
    mock: (Running, String),
    home: TempDir,
    /// Outside of the home, whose changes the agent follows.
    logs: TempDir,
    /// From the relay's start until it was online; zero without one.
    pub start: Duration,
}

/// What stands between the callers and the provider.
#[derive(Debug)]
struct Relay {
    /// The process that is measured.
    process: Running,
    /// The agent, where a program that uses it is what is measured.
    beside: Option<Running>,
    mcpd: (Running, String),
    /// What keeps mcpd at a distance, where something does.
    _distance: Option<(Running, String)>,
    /// The collector, where there is one.
    sink: Option<(Running, String)>,
}

/// What everybody has counted since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// What the measured process has used.
    pub relay: Usage,
    /// The same of the agent beside it.
    pub beside: Option<Usage>,
    /// The same of the stand-in for mcpd.
    pub mcpd: Usage,
    /// Result POSTs that mcpd took.
    pub posts: u64,
    /// Those that it refused, for their task was over.
    pub late_posts: u64,
    /// Connections that result POSTs came over.
    pub to_mcpd: u64,
    /// Connections that inferences came to the provider over.
    pub to_provider: u64,
    /// Spans at the collector.
    pub spans: Option<u64>,
}

/// Where a relay finds everybody.
struct Around<'a> {
    mcpd: String,
    ca_file: Option<PathBuf>,
    provider: &'a str,
    home: &'a Path,
    log: PathBuf,
}

impl Rig {
    /// Starts everything, with mcpd a round trip away, and waits until the system takes requests.
    pub async fn start(system: &System, scheme: Scheme, rtt_ms: u64) -> Result<Self, String> {
        let folder = || tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"));
        let mock = Running::listening(&mut myself(["mock"])?).await?;
        let mut rig = Self { relay: None, mock, home: folder()?, logs: folder()?, start: Duration::ZERO };
        if system.kind != Kind::Direct {
            rig.start_relay(system, scheme, rtt_ms).await?;
        }
        Ok(rig)
    }

    async fn start_relay(&mut self, system: &System, scheme: Scheme, rtt_ms: u64) -> Result<(), String> {
        let ca_file = scheme.alpn().map(|_| self.logs.path().join("ca.pem"));
        let mut command = myself(["mcpd", "--scheme", scheme.flag()])?;
        command.args(ca_file.iter().flat_map(|path| [Path::new("--ca-file"), path]));
        if matches!(system.kind, Kind::Posts(_)) {
            command.arg("--no-result-stream");
        }
        let mcpd = Running::listening(&mut command).await?;
        let distance = match rtt_ms {
            0 => None,
            rtt => {
                let mut delay = myself(["delay", "--to", &mcpd.1, "--rtt-ms", &rtt.to_string()])?;
                Some(Running::listening(&mut delay).await?)
            }
        };
        let around = Around {
            mcpd: scheme.url(distance.as_ref().map_or(&mcpd.1, |(_, address)| address)),
            ca_file,
            provider: &self.mock.1,
            home: self.home.path(),
            log: self.logs.path().join("log"),
        };
        let sink = match system.kind {
            Kind::Agent(_, Some(_)) => Some(Running::listening(&mut myself(["sink"])?).await?),
            _ => None,
        };
        let began = Instant::now();
        let (process, beside) = around.start(&system.kind, sink.as_ref().map(|(_, address)| &**address))?;
        while !is_online(&mcpd.1).await {
            if began.elapsed() > ONLINE {
                return Err(format!("it is not online after 10 s: {}", self.log()));
            }
            sleep(LOOK).await;
        }
        self.start = began.elapsed();
        self.relay = Some(Relay { process, beside, mcpd, _distance: distance, sink });
        Ok(())
    }

    /// Lets the callers of `cell` loose, in a process of their own.
    pub async fn load(&self, cell: &Cell) -> Result<LoadReport, String> {
        let (address, path) = self.target();
        self.load_with(cell.load(address, path)).await
    }

    /// The same for a second or less, before anything is measured.
    pub async fn warm_up(&self, cell: &Cell) -> Result<(), String> {
        let (address, path) = self.target();
        self.load_with(cell.warm_up(address, path)).await.map(drop)
    }

    /// Whom the callers ask.
    fn target(&self) -> (&str, &'static str) {
        self.relay.as_ref().map_or((&self.mock.1, DIRECT_PATH), |relay| (&relay.mcpd.1, INFER_PATH))
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

    /// What has been counted, after what the relay has exported has arrived; nothing without a relay.
    pub async fn counts(&self) -> Result<Counts, String> {
        let Some(relay) = &self.relay else { return Ok(Counts::default()) };
        let (process, beside) = (relay.process.usage()?, relay.beside.as_ref().map(Running::usage));
        let spans = match &relay.sink {
            Some((_, collector)) => {
                sleep(2 * EXPORT_INTERVAL).await;
                Some(number(collector, SPANS_PATH).await?)
            }
            None => None,
        };
        let failed = |error| format!("mcpd does not say what it has counted: {error}");
        let stats = get(&relay.mcpd.1, STATS_PATH).await.map_err(|error| failed(error.to_string()))?;
        let stats: Stats = serde_json::from_slice(&stats).map_err(|error| failed(error.to_string()))?;
        Ok(Counts {
            // Exporting is part of the cost.
            relay: if spans.is_some() { relay.process.usage()? } else { process },
            beside: beside.transpose()?,
            mcpd: relay.mcpd.0.usage()?,
            posts: stats.posts,
            late_posts: stats.late_posts,
            to_mcpd: stats.connections,
            to_provider: number(&self.mock.1, CONNECTIONS_PATH).await?,
            spans,
        })
    }

    /// The last lines of what the relay said on standard error.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.logs.path().join("log")).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(3).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Around<'_> {
    /// Starts what is measured and what stands beside it.
    fn start(&self, kind: &Kind, collector: Option<&str>) -> Result<(Running, Option<Running>), String> {
        let command = match kind {
            Kind::Agent(program, otlp) => {
                let mut command = self.agent(program, &["run", "--provide"])?;
                let variables = otlp.zip(collector).map(|(otlp, collector)| otlp.variables(collector));
                command.envs(variables.into_iter().flatten());
                command
            }
            Kind::Posts(program) => self.agent(program, &["run", "--provide"])?,
            Kind::Package(folder) => {
                let agent = self.agent(&beside("mcprelay")?, &["run"])?;
                let agent = self.running(agent)?;
                return Ok((self.running(self.package(folder))?, Some(agent)));
            }
            Kind::Registrar(registrar) => self.registrar(*registrar),
            Kind::Direct | Kind::Floor => self.floor()?,
        };
        Ok((self.running(command)?, None))
    }

    /// The process behind `command`, with its words in the log.
    fn running(&self, mut command: Command) -> Result<Running, String> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| format!("no log: {error}"))?;
        Running::start(command.env_remove("RUST_LOG").stdout(Stdio::null()).stderr(log))
    }

    fn floor(&self) -> Result<Command, String> {
        let mut command = myself(["floor", "--mcpd", &self.mcpd, "--provider", self.provider])?;
        command.arg("--socket").arg(self.home.join("floor.sock"));
        command.args(self.ca_file.iter().flat_map(|path| [Path::new("--ca-file"), path]));
        Ok(command)
    }

    fn registrar(&self, registrar: Registrar) -> Command {
        let mut command = peer("registrar.mjs");
        command.args([&self.mcpd, self.provider]);
        command.arg(match registrar {
            Registrar::Whole => "whole",
            Registrar::PerToken => "token",
        });
        command.args(&self.ca_file);
        command
    }

    fn package(&self, folder: &Path) -> Command {
        let mut command = peer("agent-node.mjs");
        command.arg(folder).arg(self.home.join("mcprelay.sock")).arg(self.provider);
        command
    }

    /// An agent in a home that leads it to mcpd and the provider.
    fn agent(&self, program: &Path, arguments: &[&str]) -> Result<Command, String> {
        self.write_home().map_err(|error| format!("the home cannot be written: {error}"))?;
        let mut command = Command::new(program);
        command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT").args(arguments).arg("--home").arg(self.home);
        command.args(self.ca_file.iter().flat_map(|path| [Path::new("--ca-file"), path]));
        Ok(command)
    }

    fn write_home(&self) -> std::io::Result<()> {
        let mut credentials = fs::OpenOptions::new();
        let file = credentials.write(true).create(true).truncate(true).mode(0o600);
        let text = serde_json::json!({ "mcpdUrl": self.mcpd, "token": "bench" });
        serde_json::to_writer(file.open(self.home.join("credentials"))?, &text)?;
        let provider = serde_json::json!({
            "name": "bench", "type": "openai", "model": "m", "url": format!("http://{}", self.provider),
            "publish": true, "maxInFlight": IN_FLIGHT,
        });
        let config = serde_json::json!({ "llm": { "providers": [provider] } });
        fs::write(self.home.join("config.json"), config.to_string())
    }
}

/// A program in Node.js, from the folder of them.
fn peer(script: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script));
    command
}

/// Builds the programs under test, when cargo started this one: a stale build beside it would be measured without a word.
pub async fn build() -> Result<(), String> {
    if cfg!(debug_assertions) {
        return Err("a debug build says nothing about speed; add --release".to_owned());
    }
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    // All in one command, so that they share their dependencies' features with this program and nothing is built twice.
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--bins", "-p", "mcprelay-bench", "-p", "mcprelay"]);
    succeed(command).await
}

/// Builds this tree's Node package.
pub async fn build_package() -> Result<(), String> {
    let npm = |arguments: &[&str]| {
        let mut command = Command::new("npm");
        command.args(arguments).current_dir(package()).stdout(Stdio::null());
        command
    };
    if !package().join("node_modules").is_dir() {
        succeed(npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])).await?;
    }
    succeed(npm(&["run", "build"])).await
}

async fn succeed(mut command: Command) -> Result<(), String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    match command.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("{program} could not build what is measured")),
        Err(error) => Err(format!("{program} cannot be started: {error}")),
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

async fn is_online(mcpd: &str) -> bool {
    let rows = get(mcpd, ROWS_PATH).await.unwrap_or_default();
    memchr::memmem::find(&rows, br#""status":"active""#).is_some()
}

/// The number that a server has at `path`.
async fn number<N: FromStr>(address: &str, path: &str) -> Result<N, String> {
    let text = get(address, path).await.map_err(|error| format!("{path}: {error}"))?;
    String::from_utf8_lossy(&text).parse().map_err(|_| format!("{path} has no number"))
}
