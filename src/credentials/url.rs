//! The base URL of an mcpd.

use std::fmt;

use reqwest::Url;

use crate::http::is_loopback;

/// The base URL of an mcpd: http or https, with a host, without credentials, query or fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct McpdUrl(Url);

/// Why a text is not an [`McpdUrl`]. Does not contain the text, which may have a password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Not a URL with a host at all.
    #[error("is not a URL")]
    NotAUrl,
    /// Another scheme.
    #[error("is neither http nor https")]
    Scheme,
    /// It holds a user name or a password, which would show up in logs.
    #[error("has a user name or password in it")]
    UserInfo,
    /// It has a query or a fragment, to which no path can be appended.
    #[error("has a query or a fragment")]
    Query,
}

impl McpdUrl {
    /// Parses the base URL of an mcpd, which may have a path.
    ///
    /// # Errors
    /// If it is not a URL with a host, is neither http nor https, or has credentials, a query or a fragment.
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let url = Url::parse(text.trim()).map_err(|_| BadUrl::NotAUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BadUrl::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadUrl::UserInfo);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(BadUrl::Query);
        }
        Ok(Self(url))
    }

    /// The URL without a slash at its end.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    /// The URL as such.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// Whether it leads to this machine, by its name.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.0)
    }

    /// Whether a token that is sent there can be read on the way.
    pub fn is_insecure(&self) -> bool {
        self.0.scheme() == "http" && !self.is_loopback()
    }
}

impl fmt::Display for McpdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for McpdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
