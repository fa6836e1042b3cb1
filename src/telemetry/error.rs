//! Why telemetry cannot start.

use std::{io, net::SocketAddr};

/// Why telemetry cannot start. Anything wrong with a collector is a warning instead: the relay works without.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The metrics page has no credentials, so it is for this machine alone.
    #[error("--metrics-listen {0} is not a loopback address; use one such as 127.0.0.1:9464")]
    NotLoopback(SocketAddr),
    /// The address is taken or not ours.
    #[error("cannot serve metrics on {0}: {1}; give --metrics-listen another address")]
    Listen(SocketAddr, io::Error),
    /// There is no thread left for it.
    #[error("cannot start the telemetry thread: {0}")]
    Thread(io::Error),
    /// There is no descriptor left for it.
    #[error("cannot start the log: {0}")]
    Log(io::Error),
    /// The metrics page has no reader.
    #[error("cannot set up the metrics page: {0}")]
    Page(String),
    /// Somebody set up the log before.
    #[error("the log is already set up in this process")]
    AlreadySet,
}
