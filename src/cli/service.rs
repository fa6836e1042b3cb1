//! What a service manager wants to hear, and what it may have opened for us. Without one nothing happens.

use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tracing::{info, warn};

/// The agent takes sessions.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The agent drains.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells the watchdog that the event loop turns, at half the interval it asks for.
pub(super) async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("the service manager does not listen: {error}");
    }
}

/// The socket that systemd opened for us (socket activation), if it did.
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
                "the service manager gave something that is no unix socket ({error}); opening one of our own"
            );
            None
        }
    }
}
