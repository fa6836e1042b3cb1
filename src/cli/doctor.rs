//! `mcprelay doctor`: checks everything that the agent needs, and says what to do. It changes nothing, and never touches the running
//! agent's session with mcpd.

mod files;
mod link;
mod providers;

use clap::Args;

use super::{
    Stop, agent_status, environment,
    http::Mcpd,
    report::{Finding, Format, Level, Report},
    socket, version, words,
};
use crate::{
    config::{HomeArgs, Lookup, McpdArgs, Places},
    credentials::{self, CONFIG_FILE},
    domain::Printable,
    pb::{self, AgentState, ProviderStatus, Verdict, WatchStatusResponse},
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
    let unread = environment::unread().into_iter();
    report.extend(unread.map(|found| Finding::warning("environment", found.what, found.advice)))?;
    report.extend(files::home(&places.home))?;
    let credentials = credentials(&args.mcpd, &places, env)?;
    let has_credentials = credentials.result != Level::Failure;
    report.add(credentials)?;
    report.extend(files::secret(&places.home.join(crate::config::SESSION_FILE), "provider-session"))?;
    let (config, findings) = files::config(&places.home.join(CONFIG_FILE));
    report.extend(findings)?;
    report.extend(agent(&places, has_credentials).await)?;
    match Mcpd::new(&args.mcpd, &places.home, env) {
        Ok(mcpd) => link::examine(&mcpd, &mut report).await?,
        // The CA file is unusable, but the rest can be checked nevertheless.
        Err(Stop::Usage(message)) => report.add(Finding::failed("mcpd", &message))?,
        // The finding on the credentials says it all.
        Err(_) => {}
    }
    report.extend(providers::examine(&config, args.mcpd.ca_file.as_deref(), env).await)?;
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

/// The socket, and what its agent says about itself. Where there are no credentials, that has been said already.
async fn agent(places: &Places, has_credentials: bool) -> Vec<Finding> {
    let socket = &places.socket;
    match socket::connect(socket).await {
        Err(socket::NoAgent::NoSocket(path)) => {
            vec![Finding::warning(
                "socket",
                format!("no agent is running: there is nothing at {path}"),
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
                let lacks_credentials =
                    status.agent.as_ref().map(|agent| agent.state()) == Some(AgentState::NoCredentials);
                let link = (has_credentials || !lacks_credentials).then(|| link_of_agent(&status));
                let own = [files::socket(socket)].into_iter().chain(link);
                let outdated = version::outdated(&status, &places.home);
                let outdated = outdated.map(|(why, what)| Finding::warning("version", why, what));
                let refused = status.providers.iter().filter_map(refused);
                let paused = status.providers.iter().filter_map(paused);
                own.chain(outdated).chain(refused).chain(paused).collect()
            }
            Err(Stop::Failed(message)) => vec![Finding::failed("socket", &message)],
            Err(_) => vec![Finding::failure("socket", "its agent gives no status", "see its log")],
        },
    }
}

fn link_of_agent(status: &WatchStatusResponse) -> Finding {
    const SUBJECT: &str = "agent";
    let state = status.agent.as_ref().map(pb::AgentStatus::state).unwrap_or_default();
    let reason = agent_status::reason(status);
    let mut message =
        format!("version {}, {}", Printable(&status.agent_version), words::agent_state(state.into()));
    if !reason.is_empty() {
        message += &format!(" ({})", reason.what);
    }
    let advice = |otherwise: &str| reason.clone().or_advice(otherwise).advice;
    match state {
        AgentState::Online | AgentState::Connecting if reason.is_empty() => Finding::ok(SUBJECT, message),
        AgentState::Online | AgentState::Connecting | AgentState::Idle => {
            Finding::warning(SUBJECT, message, advice("see `mcprelay status`"))
        }
        _ => {
            Finding::failure(SUBJECT, message, advice("see the findings on mcpd below, and the agent's log"))
        }
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
        let level = async |name| agent(&places(name), true).await[0].result;
        assert_eq!(level("none").await, Level::Warning);
        assert_eq!(level("stale").await, Level::Warning);
        assert_eq!(level("file").await, Level::Failure);
    }
}
