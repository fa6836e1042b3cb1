//! How commands reach the running agent.

use std::{fs, io, os::unix::fs::FileTypeExt as _, path::Path};

use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::Stop;
use crate::{bridge::STOPPING, http::root_cause, pb::bridge_service_client::BridgeServiceClient};

/// Largest status that is accepted, in bytes: thousands of providers, each with all its texts.
const MAX_STATUS_BYTES: usize = 64 * 1024 * 1024;

/// Why the agent cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAgent {
    /// There is no socket.
    #[error("mcprelay is not running: no socket at {0}; start it with `mcprelay run`")]
    NoSocket(String),
    /// There is a socket that nobody serves.
    #[error("mcprelay is not running: nobody serves the socket at {0}; start it with `mcprelay run`")]
    Stale(String),
    /// The socket is not for this user.
    #[error(
        "you may not use the socket at {0}: use the agent's own user, or start the agent with --allow-uid, --socket-mode and a --socket in a folder that you may enter"
    )]
    Forbidden(String),
    /// Something else is there.
    #[error("{0} is not a socket that can be used ({1}): pass the agent's --socket or --home")]
    Unusable(String, String),
    /// Something answers that is not an agent.
    #[error(
        "whoever serves the socket at {0} does not answer as mcprelay does ({1}): pass the agent's --socket or --home"
    )]
    NotTheAgent(String, String),
}

impl From<NoAgent> for Stop {
    fn from(error: NoAgent) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Connects to the agent at `socket`.
pub async fn connect(socket: &Path) -> Result<BridgeServiceClient<Channel>, NoAgent> {
    let shown = socket.display().to_string();
    // gRPC's own error does not tell a missing socket from a dead one; a plain connection does.
    UnixStream::connect(socket).await.map_err(|error| why(&error, socket))?;
    let Some(path) = socket.to_str() else {
        return Err(NoAgent::Unusable(shown, "its path is not UTF-8".into()));
    };
    let endpoint = Endpoint::try_from(format!("unix:{path}"))
        .map_err(|error| NoAgent::Unusable(shown.clone(), error.to_string()))?;
    let channel =
        endpoint.connect().await.map_err(|error| NoAgent::NotTheAgent(shown, root_cause(&error)))?;
    Ok(BridgeServiceClient::new(channel).max_decoding_message_size(MAX_STATUS_BYTES))
}

fn why(error: &io::Error, socket: &Path) -> NoAgent {
    let shown = socket.display().to_string();
    match error.kind() {
        io::ErrorKind::NotFound => NoAgent::NoSocket(shown),
        // The system says the same about a plain file, which `mcprelay run` would leave alone.
        io::ErrorKind::ConnectionRefused if !is_socket(socket) => {
            NoAgent::Unusable(shown, "a file of another kind lies there".into())
        }
        io::ErrorKind::ConnectionRefused => NoAgent::Stale(shown),
        io::ErrorKind::PermissionDenied => NoAgent::Forbidden(shown),
        _ => NoAgent::Unusable(shown, error.to_string()),
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// The agent has said goodbye.
pub fn stopped() -> Stop {
    Stop::Failed("the agent has stopped: start it with `mcprelay run`".into())
}

/// A failed call as one sentence.
pub fn call_failed(status: &tonic::Status) -> Stop {
    if status.code() == tonic::Code::Unavailable && status.message() == STOPPING {
        return stopped();
    }
    Stop::Failed(match status.code() {
        tonic::Code::PermissionDenied => {
            format!("the agent does not serve you ({}): start it with --allow-uid", status.message())
        }
        tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown => {
            "the agent has gone away: see its log, or start it with `mcprelay run`".to_owned()
        }
        _ => format!("the agent refuses: {}", status.message()),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;

    #[tokio::test]
    async fn each_reason_has_its_own_sentence() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        let missing = connect(&at("none")).await.expect_err("no socket");
        assert_eq!(
            missing.to_string(),
            format!(
                "mcprelay is not running: no socket at {}; start it with `mcprelay run`",
                at("none").display()
            )
        );
        drop(UnixListener::bind(at("stale")).expect("binds"));
        assert!(matches!(connect(&at("stale")).await, Err(NoAgent::Stale(_))));
        fs::write(at("file"), "").expect("writes");
        assert!(matches!(connect(&at("file")).await, Err(NoAgent::Stale(_) | NoAgent::Unusable(..))));
    }
}
