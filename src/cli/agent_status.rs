//! The running agent's status, as commands ask for it, and what it says about an idle agent.

use std::{path::Path, time::Duration};

use tonic::Streaming;

use super::{Stop, socket};
use crate::{
    domain::{Printable, Reason},
    pb::{AgentState, ProviderStatus, WatchStatusRequest, WatchStatusResponse},
};

/// How long the first status may take: the agent sends it at once.
const FIRST_STATUS: Duration = Duration::from_secs(5);

/// The status now.
pub async fn once(socket: &Path) -> Result<WatchStatusResponse, Stop> {
    let first = async { next(&mut open(socket).await?).await };
    tokio::time::timeout(FIRST_STATUS, first).await.unwrap_or_else(|_| {
        Err(Stop::Failed(format!(
            "whoever serves the socket at {} does not answer: see the agent's log, or pass its --socket or --home",
            socket.display()
        )))
    })
}

/// Opens the stream of statuses.
pub async fn open(socket: &Path) -> Result<Streaming<WatchStatusResponse>, Stop> {
    let mut agent = socket::connect(socket).await?;
    let stream = agent.watch_status(WatchStatusRequest {}).await;
    Ok(stream.map_err(|status| socket::call_failed(&status))?.into_inner())
}

/// The next status; the stream's end is a failure.
pub async fn next(stream: &mut Streaming<WatchStatusResponse>) -> Result<WatchStatusResponse, Stop> {
    stream.message().await.map_err(|status| socket::call_failed(&status))?.ok_or_else(socket::stopped)
}

/// Why the agent's link is in its state, and what helps; empty where there is nothing to say.
pub fn reason(status: &WatchStatusResponse) -> Reason {
    match &status.agent {
        Some(agent) if agent.state() == AgentState::Idle => why_idle(status),
        Some(agent) => {
            Reason::new(Printable(&agent.detail).to_string(), Printable(&agent.advice).to_string())
        }
        None => Reason::default(),
    }
}

/// Why an idle agent has nothing to publish.
fn why_idle(status: &WatchStatusResponse) -> Reason {
    let providers = &status.providers;
    if status.sessions.is_empty() {
        return Reason::new(
            "no mcplocal is connected, so nothing is opted in",
            "start one, or `mcprelay provide`",
        );
    }
    if providers.is_empty() {
        return Reason::new(
            "no provider has been pushed, so nothing is opted in",
            "give mcplocal one, or put one into config.json",
        );
    }
    if !providers.iter().any(opted_in) {
        return Reason::new(
            format!("no provider is opted in ({} pushed)", providers.len()),
            "set \"publish\": true on one in config.json",
        );
    }
    let coming = providers.iter().find(|provider| may_come(provider));
    if let Some(paused) = coming.filter(|found| found.paused) {
        let name = paused.provider.as_ref().map_or("", |pushed| &pushed.name);
        let why = Printable(&paused.detail);
        return Reason::new(
            format!("'{}' is {why}", Printable(name)),
            "it works again by itself, see `mcprelay status`",
        );
    }
    match coming.and_then(|found| found.provider.as_ref()) {
        None => {
            Reason::new("every opted-in provider is paused", "let them work again with `mcprelay resume`")
        }
        Some(away) => {
            let why = if away.state_detail.is_empty() { "no reason given" } else { &away.state_detail };
            Reason::new(
                format!("'{}' cannot work now ({})", Printable(&away.name), Printable(why)),
                "look at what serves its model",
            )
        }
    }
}

/// Whether its owner wants it published.
pub fn opted_in(status: &ProviderStatus) -> bool {
    status.provider.as_ref().is_some_and(|pushed| pushed.publish)
}

/// Whether a pause ends without anybody's doing: it has an end, or it is a rule's and not its owner's.
fn ends_by_itself(status: &ProviderStatus) -> bool {
    !status.paused_until.is_empty() || status.detail.starts_with("paused: ")
}

/// Whether it may come to be published without its owner's doing.
pub fn may_come(status: &ProviderStatus) -> bool {
    opted_in(status) && (!status.paused || ends_by_itself(status))
}
