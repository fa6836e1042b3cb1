//! `mcprelay doctor`: checks everything that the agent needs, and says what to do. It changes nothing, and never touches the running
//! agent's session with mcpd.

mod files;
mod link;
mod providers;

use clap::Args;

use super::{
    Stop, agent_status,
    http::Mcpd,
    report::{Finding, Format, Report},
    socket, version, words,
};
use crate::{
    config::{HomeArgs, Lookup, McpdArgs, Places},
    credentials::{self, CONFIG_FILE},
    domain::Printable,
    pb::{AgentState, ProviderStatus, Verdict, WatchStatusResponse},
};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Format,
    /// How mcpd is reached.
    #[command(flatten)]
    pub mcpd: McpdArgs,
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// Checks everything; a failed check fails the command.
pub async fn run(args: DoctorArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let places = args.home.places(env)?;
    let mut report = Report::new(args.output);
    report.extend(files::home(&places.home))?;
    report.add(credentials(&args.mcpd, &places, env)?)?;
    report.extend(files::secret(&places.home.join(crate::config::SESSION_FILE), "provider-session"))?;
    let (config, findings) = files::config(&places.home.join(CONFIG_FILE));
    report.extend(findings)?;
    report.extend(agent(&places).await)?;
    match Mcpd::new(&args.mcpd, &places.home, env) {
        Ok(mcpd) => link::examine(&mcpd, &mut report).await?,
        // The CA file is unusable, but the rest can be checked nevertheless.
        Err(Stop::Usage(message)) => report.add(Finding::failed("mcpd", &message))?,
        Err(_) => report.add(Finding::skipped("mcpd", "there are no credentials to call it with"))?,
    }
    report.extend(providers::examine(&config, env).await)?;
    report.end()
}

fn credentials(mcpd: &McpdArgs, places: &Places, env: Lookup<'_>) -> Result<Finding, Stop> {
    let sources = mcpd.sources(&places.home, env)?;
    Ok(match credentials::load(&sources) {
        Err(problem) => Finding::failed("credentials", &problem.to_string()),
        Ok(found) => match found.wide_mode {
            Some(wide) => Finding::warning(
                "credentials",
                format!("{} has mode {:04o}, so others may read the token", wide.path.display(), wide.mode),
                format!("chmod 600 {}", wide.path.display()),
            ),
            None => Finding::ok("credentials", format!("there is a token for mcpd at {}", found.url)),
        },
    })
}

/// The socket, and what its agent says about itself.
async fn agent(places: &Places) -> Vec<Finding> {
    let socket = &places.socket;
    match socket::connect(socket).await {
        Err(socket::NoAgent::NoSocket(path)) => {
            vec![Finding::warning(
                "socket",
                format!("no agent runs: nothing at {path}"),
                "start it with `mcprelay run`",
            )]
        }
        Err(socket::NoAgent::Stale(path)) => vec![Finding::warning(
            "socket",
            format!("{path} was left behind by an agent that died"),
            "start it with `mcprelay run`, which replaces it",
        )],
        Err(error) => vec![Finding::failed("socket", &error.to_string())],
        Ok(_) => match agent_status::once(socket).await {
            Ok(status) => {
                let own = [files::socket(socket), link_of_agent(&status)];
                let outdated = version::outdated(&status, &places.home);
                let outdated = outdated.map(|(why, what)| Finding::warning("version", why, what));
                let refused = status.providers.iter().filter_map(refused);
                let paused = status.providers.iter().filter_map(paused);
                own.into_iter().chain(outdated).chain(refused).chain(paused).collect()
            }
            Err(Stop::Failed(message)) => vec![Finding::failed("socket", &message)],
            Err(_) => vec![Finding::failure("socket", "its agent does not tell its status", "see its log")],
        },
    }
}

fn link_of_agent(status: &WatchStatusResponse) -> Finding {
    let agent = status.agent.clone().unwrap_or_default();
    let version = format!("version {}", Printable(&status.agent_version));
    let detail = Printable(&agent.detail).to_string();
    let message = match &*detail {
        "" => format!("{version}, {}", words::agent_state(agent.state)),
        detail => format!("{version}, {} ({detail})", words::agent_state(agent.state)),
    };
    match agent.state() {
        AgentState::Online | AgentState::Connecting if detail.is_empty() => Finding::ok("agent", message),
        AgentState::Online | AgentState::Connecting => {
            let (why, advice) = detail.rsplit_once("; ").unwrap_or((&detail, "see `mcprelay status`"));
            let state = words::agent_state(agent.state);
            Finding::warning("agent", format!("{version}, {state} ({why})"), advice)
        }
        AgentState::Idle => {
            let why = agent_status::why_idle(status);
            let (why, advice) = why.rsplit_once("; ").unwrap_or((&why, "see `mcprelay status`"));
            Finding::warning("agent", format!("{version}, idle: {why}"), advice)
        }
        AgentState::NoCredentials => {
            let (why, advice) = detail.rsplit_once(": ").unwrap_or((&detail, "log in with mcpctl"));
            Finding::failure("agent", format!("{version}, no_credentials: {why}"), advice)
        }
        _ => match detail.rsplit_once("; ") {
            Some((why, advice)) => {
                let state = words::agent_state(agent.state);
                Finding::failure("agent", format!("{version}, {state} ({why})"), advice)
            }
            None => Finding::failure("agent", message, "see the findings on mcpd below, and the agent's log"),
        },
    }
}

/// A provider that the agent or mcpd refuses.
fn refused(provider: &ProviderStatus) -> Option<Finding> {
    let name = Printable(&provider.provider.as_ref()?.name).to_string();
    let why = Printable(&provider.detail).to_string();
    let (why, advice) = why.rsplit_once("; ").unwrap_or((&why, "see `mcprelay status`"));
    (provider.verdict() == Verdict::Refused)
        .then(|| Finding::warning("agent", format!("{name} is not published: {why}"), advice))
}

/// A provider that is paused, by its owner or by a rule, also one whose source cannot be read.
fn paused(provider: &ProviderStatus) -> Option<Finding> {
    let name = Printable(&provider.provider.as_ref()?.name).to_string();
    let message = format!("{name} is {}", Printable(&provider.detail));
    let advice = match provider.detail.starts_with("paused: ") {
        true => {
            "it works again when its sharing rules in config.json are fulfilled; the agent's log says what cannot be read"
        }
        false => "let it work again with `mcprelay resume`",
    };
    provider.paused.then(|| Finding::warning("agent", message, advice))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;
    use crate::cli::report::Level;

    #[test]
    fn what_pauses_a_provider_is_told() {
        let pushed = crate::pb::Provider { name: "a".into(), ..Default::default() };
        let status = |paused_: bool| ProviderStatus {
            provider: Some(pushed.clone()),
            paused: paused_,
            detail: "paused: on battery".into(),
            ..ProviderStatus::default()
        };
        assert_eq!(paused(&status(false)), None);
        let found = paused(&status(true)).expect("it is paused");
        assert_eq!((found.result, &*found.message), (Level::Warning, "a is paused: on battery"));
    }

    #[tokio::test]
    async fn each_kind_of_thing_in_the_sockets_place_is_told_apart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        drop(UnixListener::bind(at("stale")).expect("binds"));
        fs::write(at("file"), "").expect("writes");
        let places = |name| Places { home: folder.path().to_owned(), socket: at(name) };
        let level = async |name| agent(&places(name)).await[0].result;
        assert_eq!(level("none").await, Level::Warning);
        assert_eq!(level("stale").await, Level::Warning);
        assert_eq!(level("file").await, Level::Failure);
    }
}
