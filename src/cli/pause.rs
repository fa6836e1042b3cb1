//! `mcprelay pause` and `mcprelay resume`: the owner needs the GPU, or gives it back.

use std::path::Path;

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{Stop, completions, output, socket};
use crate::{
    config::{HomeArgs, Lookup},
    domain::Printable,
    pb::SetPausedRequest,
};

/// Arguments of `pause` and `resume`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The provider; all of them, also those that come later, where it is missing
    #[arg(add = ArgValueCandidates::new(completions::providers))]
    pub name: Option<String>,
    /// Where the files are.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// Pauses or resumes, and says what changed.
pub async fn run(args: PauseArgs, paused: bool, env: Lookup<'_>) -> Result<(), Stop> {
    let changed = set_paused(&args.home.places(env)?.socket, args.name.as_deref(), paused).await?;
    Ok(output::print(&said(&changed, args.name.as_deref(), paused))?)
}

/// Asks the agent; returns the providers that changed.
async fn set_paused(socket: &Path, name: Option<&str>, paused: bool) -> Result<Vec<String>, Stop> {
    let mut agent = socket::connect(socket).await?;
    let provider_name = name.unwrap_or_default().to_owned();
    let reply = agent.set_paused(SetPausedRequest { provider_name, paused }).await;
    Ok(reply.map_err(|status| refused(&status, name))?.into_inner().changed)
}

fn refused(status: &tonic::Status, name: Option<&str>) -> Stop {
    match (status.code(), name) {
        (tonic::Code::NotFound, Some(name)) => Stop::Failed(format!(
            "the agent has no provider \"{}\": `mcprelay status` lists those that exist",
            Printable(name)
        )),
        _ => socket::call_failed(status),
    }
}

fn said(changed: &[String], asked: Option<&str>, paused: bool) -> String {
    let word = if paused { "paused" } else { "resumed" };
    match (changed, asked) {
        ([], Some(name)) => format!("{} is already {word}\n", Printable(name)),
        ([], None) => format!("no provider changed; any that connects later will be {word} too\n"),
        (names, _) => names.iter().map(|name| format!("{} {word}\n", Printable(name))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::stub::Agent, pb::WatchStatusResponse};

    #[test]
    fn it_says_what_changed() {
        let names = ["a".to_owned(), "b\n".to_owned()];
        assert_eq!(said(&names, None, true), "a paused\nb\\u{a} paused\n");
        assert_eq!(said(&[], Some("a"), false), "a is already resumed\n");
        assert_eq!(
            said(&[], None, true),
            "no provider changed; any that connects later will be paused too\n"
        );
    }

    #[tokio::test]
    async fn the_agent_is_asked_and_an_unknown_provider_is_named() {
        let agent = Agent::serve(WatchStatusResponse::default());
        assert_eq!(set_paused(&agent.socket(), Some("a"), true).await, Ok(vec!["a".into()]));
        assert_eq!(set_paused(&agent.socket(), None, false).await, Ok(vec!["a".into()]));
        let Err(Stop::Failed(message)) = set_paused(&agent.socket(), Some("b"), true).await else {
            panic!("fails")
        };
        assert!(message.starts_with("the agent has no provider \"b\""), "{message}");
    }
}
