//! Where mcpd is, and the token for it: from the flag or the environment, else from `<home>/credentials`, else from config.json.
//!
//! The files are read again whenever a [`Fingerprint`] changes, so no problem here keeps the agent from starting: each is a value that
//! says what is wrong, where, and what to do, and that never contains a part of a file.

mod file;
#[cfg(test)]
mod tests;
mod url;

use std::path::{Path, PathBuf};

use secrecy::SecretString;

pub use file::{Fingerprint, OTHERS, OTHERS_WRITE, read_small};
pub use url::{BadUrl, McpdUrl};

use file::JsonFile;

/// The file with the token, in the home.
pub const CREDENTIALS_FILE: &str = "credentials";
/// The provider host's file, in the home. The agent itself reads only `mcpdUrl` from it, if nothing else says where mcpd is; the providers
/// in it concern the provider host alone.
pub const CONFIG_FILE: &str = "config.json";

/// Where to look, in the order of the fields; `home` is the last resort for both.
#[derive(Clone, Debug)]
pub struct Sources {
    /// From the flag or the environment.
    pub mcpd_url: Option<McpdUrl>,
    /// From the environment; there is no flag because process lists show flags.
    pub token: Option<SecretString>,
    /// The folder with the files.
    pub home: PathBuf,
    /// Whether the token may be sent unencrypted over a network.
    pub allow_insecure_http: bool,
}

/// Where mcpd is, and the token for it.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Where mcpd is.
    pub url: McpdUrl,
    /// The bearer token: printable ASCII, so that it always fits a header.
    pub token: SecretString,
    /// Whether the token is from the environment rather than from a file.
    pub from_environment: bool,
    /// The file that the token came from, if others than its owner may use it.
    pub wide_mode: Option<WideMode>,
}

/// A file with a secret that others than its owner may use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} has mode {mode:04o}, so others may read the token: run chmod 600 on it", path = .path.display())]
pub struct WideMode {
    /// The file.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
}

/// Why there are no usable credentials. Never contains a part of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsProblem {
    /// There is no file.
    #[error("there are no credentials at {path}: log in with mcpctl, or set MCPRELAY_MCPD_URL and MCPRELAY_TOKEN", path = .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("{path} cannot be read ({why}): make it a file that you may read", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// It is not JSON.
    #[error("{path} is not JSON at line {line}, column {column}: correct it there, or log in with mcpctl again", path = .path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1; 0 at the very start of a line.
        column: usize,
    },
    /// It has no token.
    #[error("{path} has no \"token\": log in with mcpctl, or set MCPRELAY_TOKEN", path = .0.display())]
    NoToken(PathBuf),
    /// The token cannot be sent in a header.
    #[error(
        "the token in {0} contains a space or another character that no token can have: log in with mcpctl again"
    )]
    BadToken(String),
    /// Nothing says where mcpd is.
    #[error("mcpd's address is not set: pass --mcpd-url, or put \"mcpdUrl\" into {path}", path = .0.display())]
    NoUrl(PathBuf),
    /// The URL cannot be that of an mcpd.
    #[error("\"mcpdUrl\" in {path} {why}: write it like https://mcpd.example.com", path = .path.display())]
    BadUrl {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadUrl,
    },
    /// The token would be sent unencrypted over a network.
    #[error(
        "the token would go to {0} over plain http: use https, or pass --allow-insecure-http if the network is yours"
    )]
    InsecureHttp(McpdUrl),
}

/// Finds the URL and the token: in the flag or the environment, else in the credentials file, and the URL else in config.json. Files that
/// are not needed are not read.
///
/// # Errors
/// Why there are none that can be used.
pub fn load(sources: &Sources) -> Result<Credentials, CredentialsProblem> {
    let path = sources.home.join(CREDENTIALS_FILE);
    let file = match (&sources.mcpd_url, &sources.token) {
        (Some(_), Some(_)) => None,
        _ => JsonFile::read(&path)?,
    };
    let (token, wide_mode) = token(sources, file.as_ref(), &path)?;
    let url = match (&sources.mcpd_url, file.as_ref().map(|file| file.url()).transpose()?.flatten()) {
        (Some(url), _) => url.clone(),
        (None, Some(url)) => url,
        (None, None) => url_of_config(sources)?.ok_or(CredentialsProblem::NoUrl(path))?,
    };
    if url.is_insecure() && !sources.allow_insecure_http {
        return Err(CredentialsProblem::InsecureHttp(url));
    }
    Ok(Credentials { url, token, from_environment: sources.token.is_some(), wide_mode })
}

fn token(
    sources: &Sources,
    file: Option<&JsonFile>,
    path: &Path,
) -> Result<(SecretString, Option<WideMode>), CredentialsProblem> {
    if let Some(token) = &sources.token {
        return Ok((token.clone(), None));
    }
    let file = file.ok_or_else(|| CredentialsProblem::Missing(path.to_owned()))?;
    let text = file.text("token").ok_or_else(|| CredentialsProblem::NoToken(path.to_owned()))?;
    let token = usable_token(text).ok_or_else(|| CredentialsProblem::BadToken(path.display().to_string()))?;
    Ok((token, file.wide_mode()))
}

/// The token without the line end that shells and editors append; `None` for a text that does not fit a header.
pub fn usable_token(text: &str) -> Option<SecretString> {
    let text = text.trim();
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| SecretString::from(text))
}

fn url_of_config(sources: &Sources) -> Result<Option<McpdUrl>, CredentialsProblem> {
    match JsonFile::read(&sources.home.join(CONFIG_FILE))? {
        Some(file) => file.url(),
        None => Ok(None),
    }
}
