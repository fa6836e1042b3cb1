//! `mcprelay status`: the running agent, seen through its socket.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use super::{
    Stop,
    agent_status::{may_come, next, once, open, opted_in, reason},
    output::{self, Look},
    socket,
    status_json::StatusJson,
    version, view, watch, words,
};
use crate::{
    config::{self, HomeArgs, Lookup},
    credentials::CONFIG_FILE,
    pb::{AgentState, WatchStatusResponse},
};

/// Pause between two looks for a socket that does not exist yet: a start takes about as long.
const SOCKET_POLL: Duration = Duration::from_millis(50);
/// How long an agent without any provider is assumed to have an mcplocal that is about to connect.
const NOBODY_YET: Duration = Duration::from_secs(2);
/// How long after a change of config.json what it opts in may still be on its way to the agent.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
    /// Keep showing it, until q or Ctrl-C
    #[arg(short, long, conflicts_with_all = ["output", "wait"])]
    pub watch: bool,
    /// Wait until the agent is in this state, for scripts: exits 3 when --timeout is over, 1 at once where waiting cannot help
    #[arg(long, value_name = "STATE")]
    pub wait: Option<Target>,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = config::duration, requires = "wait")]
    pub timeout: Duration,
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// How the status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people
    Table,
    /// A document for scripts; durations are in milliseconds
    Json,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Registered, and the channel is open
    Online,
}

/// Shows the status once or continuously, or waits.
pub async fn run(args: StatusArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let config::Places { home, socket } = args.home.places(env)?;
    if args.watch {
        return watch::run(&socket).await;
    }
    let status = match args.wait {
        Some(Target::Online) => {
            wait_online(&socket, changed_at(&home.join(CONFIG_FILE)), args.timeout).await?
        }
        None => once(&socket).await?,
    };
    match args.output {
        Format::Json => output::print_json(&StatusJson::from(&status))?,
        Format::Table => output::print(&view::text(&status, SystemTime::now(), Look::of_stdout()))?,
    }
    if let Some((why, what)) = version::outdated(&status, &home) {
        output::note(&format!("warning: {why}: {what}"));
    }
    Ok(())
}

/// Waits for the agent to be there and online. An agent that is just starting has no socket yet, and its mcplocal comes later.
/// What `changed` config.json last may not have reached the agent yet.
async fn wait_online(
    socket: &Path,
    changed: Option<SystemTime>,
    timeout: Duration,
) -> Result<WatchStatusResponse, Stop> {
    let deadline = Instant::now() + timeout;
    let mut last = socket::NoAgent::NoSocket(socket.display().to_string()).to_string();
    let waiting = async {
        let mut stream = loop {
            match socket::connect(socket).await {
                Ok(_) => break open(socket).await?,
                Err(error @ (socket::NoAgent::NoSocket(_) | socket::NoAgent::Stale(_))) => {
                    last = error.to_string();
                    sleep(SOCKET_POLL).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        until_online(&mut stream, changed, &mut last).await
    };
    match timeout_at(deadline, waiting).await {
        Ok(ended) => ended,
        Err(_) => {
            let timeout = humantime::format_duration(timeout);
            Err(Stop::NotOnline(format!("not online within {timeout}: {last}")))
        }
    }
}

fn changed_at(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

async fn until_online(
    stream: &mut Streaming<WatchStatusResponse>,
    changed: Option<SystemTime>,
    last: &mut String,
) -> Result<WatchStatusResponse, Stop> {
    let began = Instant::now();
    let since_change = changed.and_then(|changed| changed.elapsed().ok());
    let on_its_way = began + ON_ITS_WAY.saturating_sub(since_change.unwrap_or(ON_ITS_WAY));
    let mut until = None;
    loop {
        let status = match until {
            None => next(stream).await?,
            Some(until) => timeout_at(until, next(stream)).await.map_err(|_| in_vain(last))??,
        };
        *last = why(&status);
        until = match progress(&status) {
            Progress::Online => return Ok(status),
            Progress::Useless => return Err(in_vain(last)),
            Progress::Waiting => None,
            Progress::NobodyYet => Some((began + NOBODY_YET).max(on_its_way)),
            Progress::NotOptedIn if on_its_way > Instant::now() => Some(on_its_way),
            Progress::NotOptedIn => return Err(in_vain(last)),
        };
    }
}

fn in_vain(reason: &str) -> Stop {
    Stop::Failed(format!("it will not get online by itself: {reason}"))
}

/// How near an agent is to being online.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Online,
    Waiting,
    /// Nothing is opted in, because nothing has been pushed.
    NobodyYet,
    /// Nothing of what has been pushed is opted in.
    NotOptedIn,
    /// What is opted in is paused, or the agent is stopping.
    Useless,
}

fn progress(status: &WatchStatusResponse) -> Progress {
    match state(status) {
        AgentState::Online => Progress::Online,
        AgentState::Draining => Progress::Useless,
        AgentState::Idle if status.providers.is_empty() => Progress::NobodyYet,
        // A model server that is unavailable may come back by itself.
        AgentState::Idle if status.providers.iter().any(may_come) => Progress::Waiting,
        AgentState::Idle if status.providers.iter().any(opted_in) => Progress::Useless,
        AgentState::Idle => Progress::NotOptedIn,
        _ => Progress::Waiting,
    }
}

fn state(status: &WatchStatusResponse) -> AgentState {
    status.agent.as_ref().map_or(AgentState::Unspecified, |agent| agent.state())
}

/// Why the agent is not online, as a part of a sentence.
fn why(status: &WatchStatusResponse) -> String {
    let reason = reason(status);
    match state(status) {
        AgentState::Idle => reason.to_string(),
        state if reason.is_empty() => format!("the agent's state is {}", words::agent_state(state.into())),
        state => format!("the agent's state is {} ({reason})", words::agent_state(state.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{stub::Agent, view::tests::example},
        pb::{AgentStatus, ProviderState, ProviderStatus},
    };

    fn at(state: AgentState) -> WatchStatusResponse {
        let agent = AgentStatus { state: state.into(), detail: "why".into(), ..AgentStatus::default() };
        WatchStatusResponse { agent: Some(agent), ..example() }
    }

    /// An idle agent; `change` is made to its two providers.
    fn idle(change: impl Fn(&mut ProviderStatus)) -> WatchStatusResponse {
        let mut status = at(AgentState::Idle);
        status.providers.iter_mut().for_each(change);
        status
    }

    fn withheld(status: &mut ProviderStatus) {
        status.provider.get_or_insert_default().publish = false;
    }

    fn away(status: &mut ProviderStatus) {
        let pushed = status.provider.get_or_insert_default();
        pushed.set_state(ProviderState::Unavailable);
        pushed.state_detail = "it does not answer".into();
    }

    fn on_battery(status: &mut ProviderStatus) {
        status.paused = true;
        status.detail = "paused: on battery".into();
    }

    #[test]
    fn waiting_is_in_vain_only_where_what_was_pushed_is_not_opted_in_or_paused_or_the_agent_stops() {
        assert_eq!(progress(&at(AgentState::Online)), Progress::Online);
        assert_eq!(progress(&idle(withheld)), Progress::NotOptedIn);
        assert_eq!(progress(&idle(|provider| provider.paused = true)), Progress::Useless);
        assert_eq!(progress(&idle(away)), Progress::Waiting);
        assert_eq!(progress(&idle(on_battery)), Progress::Waiting, "the rule ends by itself");
        assert_eq!(progress(&at(AgentState::Draining)), Progress::Useless);
        assert_eq!(progress(&at(AgentState::NoCredentials)), Progress::Waiting);
        let empty = WatchStatusResponse { providers: Vec::new(), ..at(AgentState::Idle) };
        assert_eq!(progress(&empty), Progress::NobodyYet);
    }

    #[test]
    fn the_reason_says_what_to_do() {
        assert!(why(&idle(withheld)).starts_with("no provider is opted in (2 pushed); set"));
        assert!(why(&idle(|provider| provider.paused = true)).ends_with("`mcprelay resume`"));
        assert!(why(&idle(on_battery)).starts_with("'qwen3' is paused: on battery; it works again"));
        assert_eq!(
            why(&idle(away)),
            "'qwen3' cannot work now (it does not answer); look at what serves its model"
        );
        assert_eq!(why(&at(AgentState::Refused)), "the agent's state is refused (why)");
        let alone = WatchStatusResponse { sessions: Vec::new(), ..at(AgentState::Idle) };
        assert!(why(&alone).starts_with("no mcplocal is connected"));
    }

    #[tokio::test]
    async fn an_agent_on_its_socket_tells_its_status() {
        let agent = Agent::serve(example());
        assert_eq!(once(&agent.socket()).await, Ok(example()));
    }

    #[tokio::test]
    async fn waiting_ends_when_the_agent_is_online_and_at_once_when_nothing_is_opted_in() {
        let long = Duration::from_secs(5);
        let online = Agent::serve(at(AgentState::Online));
        assert_eq!(wait_online(&online.socket(), None, long).await, Ok(at(AgentState::Online)));
        let idle = Agent::serve(idle(withheld));
        let ended = wait_online(&idle.socket(), None, long).await.err();
        assert!(
            matches!(&ended, Some(Stop::Failed(why)) if why.contains("no provider is opted in")),
            "{ended:?}"
        );
    }

    #[tokio::test]
    async fn an_agent_that_is_not_online_in_time_is_told_apart_by_its_reason() {
        let agent = Agent::serve(at(AgentState::Backoff));
        let ended = wait_online(&agent.socket(), None, Duration::from_millis(300)).await.err();
        assert_eq!(
            ended,
            Some(Stop::NotOnline("not online within 300ms: the agent's state is backoff (why)".into()))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_never_comes_is_not_online_in_time() {
        let ended = wait_online(Path::new("/nonexistent/socket"), None, Duration::from_secs(10)).await.err();
        let Some(Stop::NotOnline(message)) = ended else { panic!("{ended:?}") };
        assert!(
            message.starts_with("not online within 10s: mcprelay is not running: no socket at"),
            "{message}"
        );
    }
}
