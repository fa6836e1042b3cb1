//! The running agent's status, as commands ask for it, and what it says about an idle agent.

use std::{path::Path, time::Duration};

use tonic::Streaming;

use super::{Stop, socket};
use crate::{
    domain::Printable,
    pb::{ProviderStatus, WatchStatusRequest, WatchStatusResponse},
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

/// Why an idle agent has nothing to publish; after the last semicolon, what to do.
pub fn why_idle(status: &WatchStatusResponse) -> String {
    let providers = &status.providers;
    if status.sessions.is_empty() {
        return "no mcplocal is connected, so nothing is opted in; start one, or `mcprelay provide`".into();
    }
    if providers.is_empty() {
        return "no provider has been pushed, so nothing is opted in; give mcplocal one, or put one into config.json".into();
    }
    if !providers.iter().any(opted_in) {
        return format!(
            "no provider is opted in ({} pushed); set \"publish\": true on one in config.json",
            providers.len()
        );
    }
    let coming = providers.iter().find(|provider| may_come(provider));
    if let Some(paused) = coming.filter(|found| found.paused) {
        let name = paused.provider.as_ref().map_or("", |pushed| &pushed.name);
        let why = Printable(&paused.detail);
        return format!("'{}' is {why}; it works again by itself, see `mcprelay status`", Printable(name));
    }
    match coming.and_then(|found| found.provider.as_ref()) {
        None => "every opted-in provider is paused; let them work again with `mcprelay resume`".into(),
        Some(away) => {
            let why = if away.state_detail.is_empty() { "no reason given" } else { &away.state_detail };
            format!(
                "'{}' cannot work now ({}); look at what serves its model",
                Printable(&away.name),
                Printable(why)
            )
        }
    }
}

/// Whether its owner wants it published.
fn opted_in(status: &ProviderStatus) -> bool {
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
