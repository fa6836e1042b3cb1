//! What a server's refusal means: one [`Failure`], with a sentence for the caller and another one for the owner.
//!
//! What an error body means is [`provider_failure`]'s to say. Here it gets what only the host knows: where the server is, whose key it
//! was, and when to try again.

use std::{error::Error, fmt, time::Duration};

use bytes::Bytes;
use memchr::memmem;
use reqwest::header::{HeaderMap, LOCATION};

use super::http::{BaseUrl, Key};
use crate::{
    domain::{Failure, FailureCode, Printable, Reason},
    http::{retry_after, root_cause},
    openai::failure::provider_failure,
};

/// The most that is read of an error's body, in bytes: no honest one is larger.
pub(in crate::provide) const MAX_ERROR_BODY_BYTES: usize = 256 * 1024;
/// How soon a caller may try again when the server does not say.
const RETRY: Duration = Duration::from_secs(1);
/// What stands in a server's words where they named its address.
const HIDDEN: &[u8] = b"(hidden)";

/// The server that a failure is about.
#[derive(Debug)]
pub(in crate::provide) struct Origin {
    /// Its base URL without credentials, for the owner.
    name: String,
    /// Its host, unless everybody knows it: no caller reads it.
    host: Option<String>,
    key: Key,
}

impl Origin {
    /// `is_public` tells whether the server is everybody's, as an API on the internet is.
    pub(in crate::provide) fn new(base: &BaseUrl, is_public: bool, key: Key) -> Self {
        // A name without a dot may be any word; in an address it is hidden from callers anyway.
        let host = base.url().host_str().filter(|host| !is_public && host.contains('.')).map(str::to_owned);
        Self { name: base.to_string(), host, key }
    }

    /// The failure that an error answer means.
    pub(in crate::provide) fn refused(&self, status: u16, headers: &HeaderMap, body: &Bytes) -> Failure {
        if (300..400).contains(&status) {
            return self.redirected(status, headers);
        }
        let failure = self.about(provider_failure(Some(status), body));
        let retry_after = retry_after(headers);
        Failure { retry_after: retry_after.or(failure.retry_after), ..failure }
    }

    /// The failure that an error in the middle of a stream, or under a good status, means.
    pub(in crate::provide) fn reported(&self, body: &Bytes) -> Failure {
        self.about(provider_failure(None, body))
    }

    /// The failure if no connection could be made.
    pub(in crate::provide) fn unconnected(&self, error: &dyn Error) -> Failure {
        let detail = format!("cannot connect to {}: {}; is it running?", self.name, root_cause(error));
        Failure::retryable(FailureCode::Unavailable, "the provider's server cannot be reached", RETRY)
            .with_owner_detail(detail)
    }

    /// The failure if there was no answer.
    pub(in crate::provide) fn transport_failure(&self, error: &reqwest::Error) -> Failure {
        if error.is_connect() {
            return self.unconnected(error);
        }
        if error.is_timeout() {
            let what = "the provider's server took too long to answer";
            return Failure::retryable(FailureCode::ProviderTimeout, what, RETRY)
                .with_owner_detail(format!("{} took too long to answer", self.name));
        }
        self.broken_off(error)
    }

    /// The failure if the connection ended within an answer.
    pub(in crate::provide) fn broken_off(&self, error: &dyn Error) -> Failure {
        Failure::new(FailureCode::BadOutput, "the provider's answer broke off").with_owner_detail(format!(
            "the answer from {} broke off: {}",
            self.name,
            root_cause(error)
        ))
    }

    /// Our own sentence about an answer that is not valid.
    pub(in crate::provide) fn bad_output(&self, what: impl fmt::Display) -> Failure {
        Failure::new(FailureCode::BadOutput, format!("the provider sent {what}"))
            .with_owner_detail(format!("{} sent {what}", self.name))
    }

    fn redirected(&self, status: u16, headers: &HeaderMap) -> Failure {
        let target = headers.get(LOCATION).and_then(|target| target.to_str().ok()).unwrap_or("nowhere");
        Failure::new(FailureCode::Unavailable, format!("the provider's server answers {status}, a redirect"))
            .with_owner_detail(redirected(&self.name, target).to_string())
    }

    /// Keeps the key and the server's address from the caller, and the key from the log.
    fn about(&self, failure: Failure) -> Failure {
        let without_key =
            |text: String, other: &str| if self.key.is_in(text.as_bytes()) { other.to_owned() } else { text };
        let body = if self.key.is_in(&failure.body) { Bytes::new() } else { self.without_host(failure.body) };
        let message =
            self.without_host(without_key(failure.message, "the provider reported an error").into());
        let detail = without_key(failure.owner_detail.into(), "its words quote the key");
        let advice =
            if failure.code == FailureCode::ProviderAuth { self.key_advice(&detail) } else { String::new() };
        Failure {
            message: String::from_utf8_lossy(&message).into_owned(),
            owner_detail: format!("{}: {}{advice}", self.name, Printable(&detail)).into(),
            body,
            retry_after: failure.retry_after.or(failure.retryable.then_some(RETRY)),
            ..failure
        }
    }

    /// A 401 is about the key; a 403 may be about anything, which the server's own words say.
    fn key_advice(&self, detail: &str) -> String {
        match self.key.variable() {
            _ if !detail.starts_with("it answered 401") => String::new(),
            Some(variable) => format!("; check the key in the environment variable {variable}"),
            None => "; name the environment variable of its key as apiKeyEnv in config.json".to_owned(),
        }
    }

    fn without_host(&self, text: Bytes) -> Bytes {
        let Some(host) = self.host.as_ref().filter(|host| memmem::find(&text, host.as_bytes()).is_some())
        else {
            return text;
        };
        let mut out = Vec::with_capacity(text.len());
        let mut at = 0;
        for found in memmem::find_iter(&text, host.as_bytes()) {
            out.extend_from_slice(&text[at..found]);
            out.extend_from_slice(HIDDEN);
            at = found + host.len();
        }
        out.extend_from_slice(&text[at..]);
        out.into()
    }
}

/// What the owner of a server that redirects can do.
pub(in crate::provide) fn redirected(server: &str, target: &str) -> Reason {
    let what = format!("{server} redirects to {}", Printable(target));
    Reason::new(what, "name that address as its url in config.json")
}

#[cfg(test)]
#[path = "failures_tests.rs"]
mod tests;
