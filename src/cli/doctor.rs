//! `mcprelay doctor`: looks at everything the agent needs, and says what to do. It changes nothing, and never touches the
//! running agent's session with mcpd.

mod files;
mod link;
mod providers;

use std::path::Path;

use clap::Args;
use serde_json::Value;

use super::{
    Stop,
    http::Mcpd,
    report::{Finding, Format, Report},
    socket, status, words,
};
use crate::{
    config::{HomeArgs, Lookup, McpdArgs, Places},
    credentials::{self, CONFIG_FILE},
    domain::Printable,
    pb::AgentState,
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

/// Looks at everything; a failure fails the command.
pub async fn run(args: DoctorArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let places = args.home.places(env)?;
    let mut report = Report::new(args.output);
    report.extend(files::home(&places.home))?;
    report.add(credentials(&args.mcpd, &places, env)?)?;
    report.extend(files::secret(&places.home.join(crate::config::SESSION_FILE), "provider-session"))?;
    let (config, finding) = files::config(&places.home.join(CONFIG_FILE));
    report.add(finding)?;
    report.extend(agent(&places.socket).await)?;
    match Mcpd::new(&args.mcpd, &args.home, env) {
        Ok(mcpd) => link::examine(&mcpd, &mut report).await?,
        Err(Stop::Usage(message)) => return Err(Stop::Usage(message)),
        Err(_) => report.add(Finding::skipped("mcpd", "there are no credentials to call it with"))?,
    }
    report.extend(published(&config, env).await)?;
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

/// The socket, and what its agent says of itself.
async fn agent(socket: &Path) -> Vec<Finding> {
    match socket::connect(socket).await {
        Err(socket::NoAgent::NoSocket(path)) => {
            vec![Finding::warning(
                "socket",
                format!("no agent runs: nothing at {path}"),
                "start it with `mcprelay run`",
            )]
        }
        Err(socket::NoAgent::Stale(path)) => vec![match files::is_socket(socket) {
            true => Finding::warning(
                "socket",
                format!("{path} was left behind by an agent that died"),
                "start it with `mcprelay run`, which replaces it",
            ),
            false => Finding::failure(
                "socket",
                format!("{path} is not a socket"),
                "move it away, or pass another --socket",
            ),
        }],
        Err(error) => vec![Finding::failed("socket", &error.to_string())],
        Ok(_) => {
            let mut findings = vec![files::socket(socket)];
            findings.push(link_of_agent(socket).await);
            findings
        }
    }
}

async fn link_of_agent(socket: &Path) -> Finding {
    let status = match status::once(socket).await {
        Ok(status) => status,
        Err(Stop::Failed(message)) => return Finding::failed("agent", &message),
        Err(_) => return Finding::failure("agent", "it does not tell its status", "see its log"),
    };
    let agent = status.agent.clone().unwrap_or_default();
    let detail =
        if agent.detail.is_empty() { String::new() } else { format!(" ({})", Printable(&agent.detail)) };
    let message = format!("version {}, {}{detail}", status.agent_version, words::agent_state(agent.state));
    match agent.state() {
        AgentState::Online | AgentState::Connecting => Finding::ok("agent", message),
        AgentState::Idle => {
            let (why, advice) = status::why_idle(&status);
            Finding::warning("agent", format!("version {}, idle: {why}", status.agent_version), advice)
        }
        AgentState::NoCredentials => {
            Finding::failure("agent", message, "log in with mcpctl; the agent notices by itself")
        }
        _ => Finding::failure("agent", message, "see the findings on mcpd below, and the agent's log"),
    }
}

/// The providers that config.json publishes.
async fn published(config: &Value, env: Lookup<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in providers::published(config) {
        findings.push(providers::examine(&entry, env).await);
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;
    use crate::cli::report::Level;

    #[tokio::test]
    async fn each_kind_of_thing_in_the_sockets_place_is_told_apart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        drop(UnixListener::bind(at("stale")).expect("binds"));
        fs::write(at("file"), "").expect("writes");
        let level = async |name| agent(&at(name)).await[0].result;
        assert_eq!(level("none").await, Level::Warning);
        assert_eq!(level("stale").await, Level::Warning);
        assert_eq!(level("file").await, Level::Failure);
    }
}
