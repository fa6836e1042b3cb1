//! Reaching a server: its base URL, the owner's key, and the HTTP clients that all providers share.

use std::{
    collections::BTreeMap,
    env, fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use memchr::memmem;
use reqwest::{
    Client, Url,
    header::{AUTHORIZATION, HeaderValue},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::http::{ClientError, ClientOptions, Trust, Version, client, is_loopback};

/// How long it may take to make a connection. The answer as a whole has no limit here: the agent decides on that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept: reqwest's own default.
const IDLE_CONNECTION: Duration = Duration::from_secs(90);

/// The HTTP clients of one host, one for each kind of server: on this machine or remote, with or without TLS. Only remote servers are
/// reached through proxies, and only clients with TLS read the root certificates (some megabytes).
#[derive(Debug, Default)]
pub struct Clients {
    made: Mutex<BTreeMap<(bool, bool), Client>>,
}

impl Clients {
    /// The client for a server; made at its first use. Its pool keeps every connection that is given back, so that in a steady state no
    /// request opens one.
    ///
    /// # Errors
    /// If the system's root certificates cannot be used.
    pub(in crate::provide) fn for_url(&self, url: &Url) -> Result<Client, ClientError> {
        let kind = (is_loopback(url), url.scheme() == "https");
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&kind) {
            return Ok(client.clone());
        }
        // Without a file of our own there is nothing that can be wrong with it.
        let trust = &Trust::load(url, None).unwrap_or_default();
        let (connect_timeout, idle, version) = (CONNECT_TIMEOUT, IDLE_CONNECTION, Version::Negotiated);
        let options = ClientOptions { connect_timeout, idle, version, trust };
        let client = client(url, options)?;
        made.insert(kind, client.clone());
        Ok(client)
    }
}

/// The base of a server's OpenAI paths, "http://127.0.0.1:11434/v1": never with a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::provide) struct BaseUrl(Url);

impl BaseUrl {
    /// Accepts what people write: with or without `/v1`, with or without a trailing slash, even with `/chat/completions`.
    ///
    /// # Errors
    /// A sentence for people, without credentials that the URL may contain.
    pub(in crate::provide) fn parse(text: &str) -> Result<Self, String> {
        let mut url = Url::parse(text.trim()).map_err(|error| format!("is not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("is not an http:// or https:// URL".to_owned());
        }
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/chat/completions").unwrap_or(path).trim_end_matches('/').to_owned();
        let versioned = path.split('/').any(is_version);
        url.set_path(&if versioned { path } else { format!("{path}/v1") });
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// A path under the base: `join("models")`.
    pub(in crate::provide) fn join(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/{path}", self.0.path()));
        url
    }

    /// A path of the server itself: `root("health")`.
    pub(in crate::provide) fn root(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/{path}", self.0.path().trim_end_matches("/v1")));
        url
    }

    /// Whether it leads to this machine.
    pub(in crate::provide) fn is_loopback(&self) -> bool {
        is_loopback(&self.0)
    }

    /// The URL as such.
    pub(in crate::provide) fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for BaseUrl {
    /// Without the credentials that it may contain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.0.port().map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{}://{}{port}{}", self.0.scheme(), self.0.host_str().unwrap_or_default(), self.0.path())
    }
}

/// "v1", "v1beta", "v4".
fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The owner's key for a server, if it needs one.
#[derive(Clone, Debug, Default)]
pub(in crate::provide) struct Key {
    variable: Option<String>,
    secret: Option<SecretString>,
}

impl Key {
    /// Reads the key from the environment variable that the entry names.
    ///
    /// # Errors
    /// A sentence for people, if the variable is named but not there.
    pub(in crate::provide) fn from_env(variable: Option<&str>) -> Result<Self, String> {
        let Some(variable) = variable else { return Ok(Self::default()) };
        match env::var(variable) {
            Ok(secret) if !secret.trim().is_empty() => {
                Ok(Self { variable: Some(variable.to_owned()), secret: Some(secret.trim().into()) })
            }
            _ => Err(format!("the environment variable {variable} (apiKeyEnv) is not set")),
        }
    }

    /// The name of the variable it came from.
    pub(in crate::provide) fn variable(&self) -> Option<&str> {
        self.variable.as_deref()
    }

    /// The key itself, for a header.
    pub(in crate::provide) fn header(&self) -> Option<HeaderValue> {
        self.sensitive(|key| key.to_owned())
    }

    /// The key as the `Authorization` of a request.
    pub(in crate::provide) fn bearer(&self) -> Option<HeaderValue> {
        self.sensitive(|key| format!("Bearer {key}"))
    }

    /// Puts the key into a request.
    pub(in crate::provide) fn authorize(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self.bearer() {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }

    /// Whether `text` quotes the key.
    pub(in crate::provide) fn is_in(&self, text: &[u8]) -> bool {
        let key = self.secret.as_ref().map(|secret| secret.expose_secret().as_bytes());
        key.is_some_and(|key| memmem::find(text, key).is_some())
    }

    fn sensitive(&self, text: impl FnOnce(&str) -> String) -> Option<HeaderValue> {
        let secret = self.secret.as_ref()?;
        let mut value = HeaderValue::from_str(&text(secret.expose_secret())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> String {
        BaseUrl::parse(text).unwrap().to_string()
    }

    #[test]
    fn a_url_works_with_and_without_its_version() {
        for text in [
            "http://localhost:11434",
            "http://localhost:11434/",
            "http://localhost:11434/v1",
            "http://localhost:11434/v1/",
            " http://localhost:11434/v1/chat/completions ",
            "http://user:secret@localhost:11434/v1?x=1#y",
        ] {
            assert_eq!(base(text), "http://localhost:11434/v1", "{text}");
        }
        assert_eq!(base("https://example.com/v1beta/openai/"), "https://example.com/v1beta/openai");
        assert_eq!(base("http://[::1]/llm"), "http://[::1]/llm/v1");
    }

    #[test]
    fn what_is_no_http_url_is_refused() {
        for text in ["", "localhost:11434", "ftp://x", "/v1", "http://"] {
            assert!(BaseUrl::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_are_joined_under_the_version_or_under_the_server() {
        let url = BaseUrl::parse("http://127.0.0.1:8080/llama").unwrap();
        assert_eq!(url.join("models").as_str(), "http://127.0.0.1:8080/llama/v1/models");
        assert_eq!(url.root("health").as_str(), "http://127.0.0.1:8080/llama/health");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, loopback) in [
            ("http://localhost:1", true),
            ("http://127.0.0.9:1", true),
            ("http://[::1]:1", true),
            ("http://gpu.localhost:1", true),
            ("http://10.0.0.1:1", false),
            ("http://localhost.example.com", false),
        ] {
            assert_eq!(BaseUrl::parse(text).unwrap().is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn a_key_that_is_named_but_absent_is_an_error_that_names_the_variable() {
        let missing = Key::from_env(Some("MCPRELAY_TEST_NO_SUCH_VARIABLE")).unwrap_err();
        assert!(missing.contains("MCPRELAY_TEST_NO_SUCH_VARIABLE"), "{missing}");
        assert!(Key::from_env(None).unwrap().header().is_none());
    }
}
