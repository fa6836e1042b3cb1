//! Reaching a server: its base URL, the owner's key, and the HTTP clients that all providers share.

use std::{
    collections::BTreeMap,
    env, fmt,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use memchr::memmem;
use reqwest::{
    Client, Url,
    header::{AUTHORIZATION, HeaderValue},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::http::{
    ClientError, ClientOptions, Trust, TrustFiles, Version, client, is_loopback, is_this_machine,
};

/// How long it may take to make a connection. The answer as a whole has no limit here: the agent decides on that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept: reqwest's own default.
const IDLE_CONNECTION: Duration = Duration::from_secs(90);

/// The HTTP clients of one host, one for each kind of server: on this machine or remote, with or without TLS. Only remote servers are
/// reached through proxies, and only clients with TLS read the root certificates (some megabytes).
#[derive(Debug, Default)]
pub struct Clients {
    ca_file: Option<PathBuf>,
    made: Mutex<BTreeMap<(bool, bool), Client>>,
    /// For which server the authorities were read last, and how their files were then.
    read: Mutex<Option<(Url, TrustFiles)>>,
}

impl Clients {
    /// Clients that trust the authorities in this PEM file besides the system's.
    pub fn trusting(ca_file: Option<PathBuf>) -> Self {
        Self { ca_file, ..Self::default() }
    }

    /// Follows the files with the authorities; whether there are others now, which clients trust that are made from here on. With a file
    /// that cannot be used everything stays as it is.
    pub(in crate::provide) fn follow_authorities(&self) -> bool {
        let mut read = lock(&self.read);
        let Some((url, before)) = &mut *read else { return false };
        let now = TrustFiles::look(url, self.ca_file.as_deref());
        if now == *before {
            return false;
        }
        *before = now;
        match Trust::load(url, self.ca_file.as_deref()) {
            Ok(_) => lock(&self.made).clear(),
            Err(bad) => {
                tracing::warn!("{bad}; until that is mended, the authorities that were read before are used");
                return false;
            }
        }
        tracing::info!("the certificate authorities have changed, and are used from now on");
        true
    }

    /// The client for a server; made at its first use. Its pool keeps every connection that is given back, so that in a steady state no
    /// request opens one.
    ///
    /// # Errors
    /// If the certificates cannot be used.
    pub(in crate::provide) fn for_url(&self, url: &Url) -> Result<Client, ClientError> {
        let kind @ (_, tls) = (is_this_machine(url), url.scheme() == "https");
        let mut made = lock(&self.made);
        if let Some(client) = made.get(&kind) {
            return Ok(client.clone());
        }
        let ca_file = self.ca_file.as_deref().filter(|_| tls);
        if tls {
            *lock(&self.read) = Some((url.clone(), TrustFiles::look(url, ca_file)));
        }
        let trust = &Trust::load(url, ca_file)?;
        let (connect_timeout, idle, version) = (CONNECT_TIMEOUT, IDLE_CONNECTION, Version::Negotiated);
        let options = ClientOptions { connect_timeout, idle, version, trust };
        let client = client(url, options)?;
        made.insert(kind, client.clone());
        Ok(client)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server's OpenAI paths, "http://127.0.0.1:11434/v1": never with a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::provide) struct BaseUrl {
    /// With the query that the owner wrote, which goes with every request: Azure names its version there.
    url: Url,
}

impl BaseUrl {
    /// Accepts what people write: with or without `/v1`, with or without a trailing slash. An address that is written out to
    /// `/chat/completions` is used as it is.
    ///
    /// # Errors
    /// A sentence for people, without credentials that the URL may contain.
    pub(in crate::provide) fn parse(text: &str) -> Result<Self, String> {
        let mut url = Url::parse(text.trim()).map_err(|error| format!("is not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("is not an http:// or https:// URL".to_owned());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let base = match path.strip_suffix("/chat/completions") {
            Some(written_out) => written_out.to_owned(),
            None if path.split('/').any(is_version) => path,
            None => format!("{path}/v1"),
        };
        url.set_path(&base);
        url.set_fragment(None);
        Ok(Self { url })
    }

    /// Where chats go.
    pub(in crate::provide) fn chat(&self) -> Url {
        self.join("chat/completions")
    }

    /// A path under the base: `join("models")`.
    pub(in crate::provide) fn join(&self, path: &str) -> Url {
        self.with_path(&format!("{}/{path}", self.url.path().trim_end_matches('/')))
    }

    /// A path of the server itself: `root("health")`.
    pub(in crate::provide) fn root(&self, path: &str) -> Url {
        self.with_path(&format!("{}/{path}", self.url.path().trim_end_matches('/').trim_end_matches("/v1")))
    }

    /// Whether it leads to this machine.
    pub(in crate::provide) fn is_loopback(&self) -> bool {
        is_loopback(&self.url)
    }

    /// The URL as such.
    pub(in crate::provide) fn url(&self) -> &Url {
        &self.url
    }

    fn with_path(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }
}

impl fmt::Display for BaseUrl {
    /// Without the credentials and the query that it may contain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url } = self;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = url.path().trim_end_matches('/');
        write!(f, "{}://{}{port}{path}", url.scheme(), url.host_str().unwrap_or_default())
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
    fn an_address_that_is_written_out_is_used_as_it_is_with_its_query() {
        for (written, chat, models) in [
            (
                "https://models.example/inference/chat/completions",
                "https://models.example/inference/chat/completions",
                "https://models.example/inference/models",
            ),
            (
                "https://x.example/openai/deployments/d/chat/completions?api-version=2024-10-21",
                "https://x.example/openai/deployments/d/chat/completions?api-version=2024-10-21",
                "https://x.example/openai/deployments/d/models?api-version=2024-10-21",
            ),
            ("http://h/chat/completions/", "http://h/chat/completions", "http://h/models"),
            ("http://h?key=1", "http://h/v1/chat/completions?key=1", "http://h/v1/models?key=1"),
        ] {
            let base = BaseUrl::parse(written).unwrap();
            assert_eq!((base.chat().as_str(), base.join("models").as_str()), (chat, models));
            assert!(!base.to_string().contains('?'), "{base}");
        }
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

#[cfg(test)]
mod authorities {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_of_authorities_is_followed_and_a_broken_one_leaves_the_clients_as_they_are() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| fs::write(file.path(), text).unwrap();
        let pem = || rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap().cert.pem();
        let url: Url = "https://h".parse().unwrap();
        let clients = Clients::trusting(Some(file.path().to_owned()));
        write("no authority");
        assert!(!clients.follow_authorities(), "nothing has been read yet");
        assert!(clients.for_url(&url).is_err());
        write(&pem());
        assert!(clients.follow_authorities() && clients.for_url(&url).is_ok());
        write("broken");
        assert!(!clients.follow_authorities() && clients.for_url(&url).is_ok());
        assert!(!clients.follow_authorities(), "said once");
        write(&pem());
        assert!(clients.follow_authorities() && !clients.follow_authorities());
    }
}
