//! What a failed connection to mcpd means for people: one sentence, and what helps.

use std::{error::Error, io, path::Path};

use reqwest::Url;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::http::{ProxySetting, proxy, root_cause};

/// A failure in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Explained {
    /// What is so: "the certificate at https://mcpd has expired".
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) advice: String,
}

/// What is known of the way to mcpd.
pub(crate) struct Way<'a> {
    /// mcpd's URL, without credentials.
    pub(crate) url: &'a str,
    /// The file with authorities that was named, if any.
    pub(crate) ca_file: Option<&'a Path>,
    /// The proxy that leads there.
    pub(crate) proxy: ProxySetting,
}

impl<'a> Way<'a> {
    /// The way to the mcpd at `url`, as the environment has it.
    pub(crate) fn to(url: &'a str, ca_file: Option<&'a Path>) -> Self {
        let proxy = url.parse::<Url>().map_or(ProxySetting::None, |url| proxy(&url));
        Self { url, ca_file, proxy }
    }

    /// Why there is no answer, and what helps.
    pub(crate) fn explain(&self, error: &(dyn Error + 'static)) -> Explained {
        let why = plain(&root_cause(error));
        let known = causes(error).find_map(|cause| match tls_error(cause) {
            Some(tls) => self.tls(tls, &why),
            None => self.tunnel(&cause.to_string(), &why),
        });
        known.unwrap_or_else(|| self.silent(&why))
    }

    /// No answer, for a reason that has no sentence of its own.
    pub(crate) fn silent(&self, why: &str) -> Explained {
        let url = self.url;
        match &self.proxy {
            ProxySetting::None => explained(
                format!("mcpd at {url} does not answer ({why})"),
                "check that it runs, and --mcpd-url",
            ),
            ProxySetting::Through(proxy) => explained(
                format!("mcpd at {url} does not answer through the proxy {proxy} ({why})"),
                "check that both run, --mcpd-url, and NO_PROXY, which names hosts that need no proxy",
            ),
            ProxySetting::Nonsense(variable) => explained(
                format!(
                    "mcpd at {url} does not answer ({why}), and no proxy is used because {variable} is not a URL"
                ),
                format!("write {variable} as http://host:port"),
            ),
        }
    }

    fn tls(&self, error: &TlsError, why: &str) -> Option<Explained> {
        Some(match error {
            TlsError::InvalidCertificate(certificate) => self.certificate(certificate, why),
            TlsError::AlertReceived(alert) => return self.alert(*alert),
            TlsError::PeerIncompatible(_) => self.no_common_version(),
            TlsError::InvalidMessage(_) => explained(
                format!("what answers at {} does not speak TLS ({why})", self.url),
                "check the port in --mcpd-url, and whether it is http:// there",
            ),
            _ => return None,
        })
    }

    fn certificate(&self, error: &CertificateError, why: &str) -> Explained {
        let at = format!("the certificate at {}", self.url);
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => explained(
                format!("{at} has expired"),
                "have it renewed, or set this machine's clock if it is wrong",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => explained(
                format!("{at} is not valid yet"),
                "set this machine's clock, or wait until the certificate is valid",
            ),
            CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => explained(
                format!("{at} is for another name ({})", names(presented)),
                "pass a URL with a name of the certificate's as --mcpd-url",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => explained(
                format!("{at} is for another name"),
                "pass a URL with a name of the certificate's as --mcpd-url",
            ),
            // A bad signature is the work of another authority of the same name, such as the one before a renewal.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => self.unknown_issuer(why),
            _ => explained(
                format!("{at} cannot be trusted ({why})"),
                "have it signed by an authority, and pass the authority's PEM file as --ca-file",
            ),
        }
    }

    fn unknown_issuer(&self, why: &str) -> Explained {
        let url = self.url;
        match self.ca_file {
            None => explained(
                format!("this machine does not know the authority of the certificate at {url} ({why})"),
                "pass its PEM file as --ca-file",
            ),
            Some(file) => explained(
                format!(
                    "neither {} nor the system knows the authority of the certificate at {url} ({why})",
                    file.display()
                ),
                "put the authority that signed it into that file",
            ),
        }
    }

    fn alert(&self, alert: AlertDescription) -> Option<Explained> {
        let url = self.url;
        Some(match alert {
            AlertDescription::ProtocolVersion => self.no_common_version(),
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => explained(
                format!("{url} and this machine have no TLS cipher in common"),
                "allow the ciphers of TLS 1.3, or ECDHE with AES-GCM or ChaCha20, in the server or ingress there",
            ),
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate => explained(
                format!("{url} wants a client certificate, and mcprelay has none"),
                "turn the check of client certificates off for mcpd's path there",
            ),
            AlertDescription::UnrecognisedName => explained(
                format!("the server at {url} knows no host of this name"),
                "check the host in --mcpd-url",
            ),
            _ => return None,
        })
    }

    fn no_common_version(&self) -> Explained {
        explained(
            format!("{} speaks neither TLS 1.2 nor 1.3", self.url),
            "turn one of them on in the server or ingress there",
        )
    }

    /// What hyper-util says of a proxy; its type is not open to others.
    fn tunnel(&self, cause: &str, why: &str) -> Option<Explained> {
        let said = cause.strip_prefix("tunnel error: ")?;
        let (url, proxy) = (self.url, self.proxy_name());
        Some(match said {
            "failed to create underlying connection" => explained(
                format!("the proxy {proxy} on the way to {url} cannot be reached ({why})"),
                "check HTTPS_PROXY, or name mcpd's host in NO_PROXY",
            ),
            "proxy authorization required" => explained(
                format!("the proxy {proxy} on the way to {url} wants a user and a password (407)"),
                "set HTTPS_PROXY to http://user:password@host:port",
            ),
            "unsuccessful" => explained(
                format!(
                    "the proxy {proxy} makes no connection to {url}: it forbids it (403) or fails to (502)"
                ),
                "ask whoever runs the proxy, or name mcpd's host in NO_PROXY",
            ),
            _ => explained(
                format!("the proxy {proxy} on the way to {url} broke off ({why})"),
                "check HTTPS_PROXY, or name mcpd's host in NO_PROXY",
            ),
        })
    }

    fn proxy_name(&self) -> &str {
        match &self.proxy {
            ProxySetting::Through(proxy) => proxy,
            ProxySetting::None | ProxySetting::Nonsense(_) => "in between",
        }
    }
}

impl Explained {
    /// As one sentence, for a status or a log: "what; advice".
    pub(crate) fn sentence(&self) -> String {
        format!("{}; {}", self.what, self.advice)
    }
}

fn explained(what: String, advice: impl Into<String>) -> Explained {
    Explained { what, advice: advice.into() }
}

/// A library's words, in which nothing looks like the end of a sentence of ours, behind which the advice stands.
pub(crate) fn plain(words: &str) -> String {
    words.replace("; ", ", ")
}

/// "a.example, b.example" of what rustls shows as `DnsName("a.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
    presented.iter().take(3).map(bare).collect::<Vec<_>>().join(", ")
}

/// The error and everything behind it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause| (*cause).source())
}

/// An I/O error hides what it was made of from `source`.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    if let Some(io) = error.downcast_ref::<io::Error>() {
        return tls_error(io.get_ref()?);
    }
    error.downcast_ref()
}

#[cfg(test)]
mod tests;
