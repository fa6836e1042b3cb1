//! The dialogue with a service manager: readiness, status, the watchdog, and the socket that it may have opened. Without one, nothing
//! happens.

use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::{net::UnixListener, sync::watch};
use tracing::{info, warn};

use crate::{
    agent::HealthSummary,
    domain::{Printable, counted},
};

/// Says that the agent accepts sessions.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that the agent is stopping.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells the watchdog that the event loop is running, at half the interval that it asks for.
pub(super) async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// Reports how the agent is doing whenever that changes; `systemctl status` shows it.
pub(super) async fn status(mut health: watch::Receiver<HealthSummary>) {
    while health.changed().await.is_ok() {
        let text = sentence(&health.borrow_and_update());
        notify(&[NotifyState::Status(&text)]);
    }
}

fn sentence(health: &HealthSummary) -> String {
    let HealthSummary { link, detail, providers } = health;
    let (state, providers) = (link.map_or("starting", |link| link.as_str()), counted(*providers, "provider"));
    match detail.is_empty() {
        true => format!("{state}, {providers}"),
        // A line break would begin another message to the service manager.
        false => format!("{state}, {providers}: {}", Printable(detail)),
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("the service manager does not listen: {error}");
    }
}

/// The socket that systemd opened for the agent (socket activation), if it did.
pub(super) fn inherited_socket() -> Option<UnixListener> {
    let mut inherited = ListenFd::from_env();
    if inherited.len() == 0 {
        return None;
    }
    let listener = inherited.take_unix_listener(0).and_then(|socket| {
        let Some(socket) = socket else { return Ok(None) };
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket).map(Some)
    });
    match listener {
        Ok(Some(listener)) => {
            info!("serving the socket that the service manager opened");
            Some(listener)
        }
        Ok(None) => None,
        Err(error) => {
            warn!(
                "the service manager gave something that is not a unix socket ({error}); opening one of our own"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::LinkState;

    #[test]
    fn the_status_says_the_link_the_providers_and_why_in_one_line() {
        let online = HealthSummary { link: Some(LinkState::Online), detail: String::new(), providers: 1 };
        assert_eq!(sentence(&online), "online, 1 provider");
        let detail = "no answer\nREADY=1".to_owned();
        let backoff = HealthSummary { link: Some(LinkState::Backoff), detail, providers: 2 };
        assert!(sentence(&backoff).starts_with("backoff, 2 providers: no answer"));
        assert_eq!(sentence(&backoff).lines().count(), 1);
    }
}
