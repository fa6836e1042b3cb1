//! The signals that ask a long-running command to end.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Stop;
use crate::platform;

/// SIGTERM, SIGINT, and SIGHUP from the terminal or connection that the command was started in.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if the command is to outlive its terminal, as under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    /// Takes the signals from now on.
    pub(super) fn new() -> Result<Self, Stop> {
        let on =
            |kind| signal(kind).map_err(|error| Stop::Failed(format!("cannot wait for signals: {error}")));
        // This must be read before a handler is installed.
        let hangup = (!platform::ignores_hangup()).then(|| on(SignalKind::hangup())).transpose()?;
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())?, hangup })
    }

    /// Waits until the command is asked to end.
    pub(super) async fn stop(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }

    /// Waits until it is asked again. A closing terminal sends its signal twice, once through its shell, which does not count as a second
    /// request.
    pub(super) async fn insist(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
