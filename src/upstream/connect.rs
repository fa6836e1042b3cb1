//! The HTTP clients for mcpd: for the control channel, for the calls and for the results.

use std::{path::PathBuf, time::Duration};

use reqwest::{Client, Url};

use crate::{
    domain::Reason,
    http::{self, CertificatesError, ClientError, ClientOptions, Trust, TrustFiles, Version},
};

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
    #[error("cannot use the CA file {} ({reason}): put a readable PEM file there, or pass another one as --ca-file", .path.display())]
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
    #[error("{0}")]
    Client(String),
}

impl HttpError {
    /// What is wrong, and what helps.
    pub fn reason(&self) -> Reason {
        match self {
            Self::CaFile { .. } => Reason::of_sentence(&self.to_string()),
            Self::Token => Reason::new(self.to_string(), "log in again with mcpctl"),
            Self::Url(_) | Self::Client(_) => self.to_string().into(),
        }
    }
}

impl From<ClientError> for HttpError {
    fn from(error: ClientError) -> Self {
        Self::Client(error.to_string())
    }
}

impl From<CertificatesError> for HttpError {
    fn from(bad: CertificatesError) -> Self {
        Self::CaFile { path: bad.path, reason: bad.reason }
    }
}

impl HttpSettings {
    /// The authorities for the mcpd at `url`, as the files are now, and how those were.
    pub(super) fn trust(&self, url: &Url) -> (Result<Trust, HttpError>, TrustFiles) {
        let files = self.trust_files(url);
        (Trust::load(url, self.ca_file.as_deref()).map_err(HttpError::from), files)
    }

    /// How the files with the authorities are now.
    pub(super) fn trust_files(&self, url: &Url) -> TrustFiles {
        TrustFiles::look(url, self.ca_file.as_deref())
    }
}

/// A Client for requests to the mcpd at `url`, which keeps idle connections for `idle`.
pub(super) fn client(
    url: &Url,
    trust: &Trust,
    idle: Duration,
    version: Version,
) -> Result<Client, HttpError> {
    let options = ClientOptions { connect_timeout: CONNECT_TIMEOUT, idle, version, trust };
    Ok(http::client(url, options)?)
}

/// The Client for the control channel, which makes a connection for each.
pub(super) fn channel_client(url: &Url, trust: &Trust) -> Result<Client, HttpError> {
    client(url, trust, Duration::ZERO, Version::Negotiated)
}
