//! The HTTP clients for mcpd: for the control channel, for the calls and for the results.

use std::{path::PathBuf, time::Duration};

use reqwest::{Client, Url};

use crate::http::{self, ClientError, ClientOptions, Version};

/// What rustls says about a certificate that no trusted authority has signed.
pub const UNKNOWN_ISSUER: &str = "UnknownIssuer";
/// For TCP and TLS together: a peer that needs longer is considered unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the HTTP clients are built with.
#[derive(Clone, Debug, Default)]
pub struct HttpSettings {
    /// A PEM file with CAs to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// Why no HTTP client could be built.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The CA file cannot be used.
    #[error("cannot use the CA file {} ({reason}): pass a readable PEM file as --ca-file and start again", .path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token cannot be a header.
    #[error("the token has characters that no HTTP header can carry")]
    Token,
    /// The URL is none.
    #[error("{0:?} is not a URL")]
    Url(String),
    /// TLS or the client itself cannot be set up.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
}

impl From<ClientError> for HttpError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Certificates(bad) => Self::CaFile { path: bad.path, reason: bad.reason },
            ClientError::Client(why) => Self::Client(why),
        }
    }
}

impl HttpSettings {
    /// A Client for requests to the mcpd at `url`, which keeps idle connections for `idle`.
    pub(super) fn client(&self, url: &Url, idle: Duration, version: Version) -> Result<Client, HttpError> {
        let ca_file = self.ca_file.as_deref();
        let options = ClientOptions { connect_timeout: CONNECT_TIMEOUT, idle, version, ca_file };
        Ok(http::client(url, options)?)
    }

    /// The Client for the control channel, which makes a connection for each.
    pub(super) fn channel(&self, url: &Url) -> Result<Client, HttpError> {
        self.client(url, Duration::ZERO, Version::Negotiated)
    }
}
