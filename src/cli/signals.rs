//! The signals that ask a long-running command to end.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Stop;

/// SIGHUP's bit in the mask of ignored signals.
const HANGUP: u64 = 1;

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
        let hangup = (!ignores_hangup()).then(|| on(SignalKind::hangup())).transpose()?;
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

/// Linux tells this in `/proc`; the system call for it would be unsafe Rust.
fn ignores_hangup() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| mask_has_hangup(&status))
}

fn mask_has_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & HANGUP != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_seen_in_the_mask() {
        assert!(mask_has_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        for other in ["SigIgn:\t0000000000001000\n", "SigCgt:\t0000000000000001\n", "SigIgn:\tx\n", ""] {
            assert!(!mask_has_hangup(other), "{other}");
        }
    }
}
