//! What a failed connection to mcpd means for people: one sentence, and what helps.

use std::{error::Error, io, path::Path};

use reqwest::Url;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::{
    domain::Reason,
    http::{ProxySetting, proxy, refusal, root_cause},
};

/// What hyper-util's errors of a CONNECT begin with.
const TUNNEL: &str = "tunnel error: ";
/// What follows where the proxy answered anything but 200 and 407.
const REFUSED: &str = "unsuccessful";

/// What is known of the way to mcpd.
pub(crate) struct Way<'a> {
    /// mcpd's URL, without credentials.
    pub(crate) url: &'a str,
    /// The file with authorities that was named, if any.
    pub(crate) ca_file: Option<&'a Path>,
    /// The proxy that leads there.
    pub(crate) proxy: ProxySetting,
    /// With which status that proxy refuses, where it was asked.
    pub(crate) refusal: Option<u16>,
}

impl<'a> Way<'a> {
    /// The way to the mcpd at `url`, as the environment has it.
    pub(crate) fn to(url: &'a str, ca_file: Option<&'a Path>) -> Self {
        let proxy = url.parse::<Url>().map_or(ProxySetting::None, |url| proxy(&url));
        Self { url, ca_file, proxy, refusal: None }
    }

    /// Asks the proxy with which status it refuses, if that is the error.
    pub(crate) async fn ask(mut self, error: &reqwest::Error) -> Self {
        let is_refused = causes(error).any(|cause| cause.to_string() == TUNNEL.to_owned() + REFUSED);
        if is_refused && let Ok(url) = self.url.parse() {
            self.refusal = refusal(&url).await;
        }
        self
    }

    /// Why there is no answer, and what helps.
    pub(crate) fn explain(&self, error: &(dyn Error + 'static)) -> Reason {
        let why = root_cause(error);
        let known = causes(error).find_map(|cause| match tls_error(cause) {
            Some(tls) => self.tls(tls, &why),
            None => self.tunnel(&cause.to_string(), &why),
        });
        known.unwrap_or_else(|| self.silent(&why))
    }

    /// No answer, for a reason that has no sentence of its own.
    pub(crate) fn silent(&self, why: &str) -> Reason {
        let url = self.url;
        match &self.proxy {
            ProxySetting::None => Reason::new(
                format!("mcpd at {url} does not answer ({why})"),
                "check that it runs, and --mcpd-url",
            ),
            ProxySetting::Through(proxy) => Reason::new(
                format!("mcpd at {url} does not answer through the proxy {proxy} ({why})"),
                "check that both run, --mcpd-url, and NO_PROXY, which names hosts that need no proxy",
            ),
            ProxySetting::Nonsense(variable) => Reason::new(
                format!(
                    "mcpd at {url} does not answer ({why}), and no proxy is used because {variable} is not a URL"
                ),
                format!("write {variable} as http://host:port"),
            ),
        }
    }

    fn tls(&self, error: &TlsError, why: &str) -> Option<Reason> {
        Some(match error {
            TlsError::InvalidCertificate(certificate) => self.certificate(certificate, why),
            TlsError::AlertReceived(alert) => return self.alert(*alert),
            TlsError::PeerIncompatible(_) => self.no_common_version(),
            TlsError::InvalidMessage(_) => Reason::new(
                format!("what answers at {} does not speak TLS ({why})", self.url),
                "check the port in --mcpd-url, and whether it is http:// there",
            ),
            _ => return None,
        })
    }

    fn certificate(&self, error: &CertificateError, why: &str) -> Reason {
        let at = format!("the certificate at {}", self.url);
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::new(
                format!("{at} has expired"),
                "have it renewed, or set this machine's clock if it is wrong",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Reason::new(
                format!("{at} is not valid yet"),
                "set this machine's clock, or wait until the certificate is valid",
            ),
            CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                Reason::new(
                    format!("{at} is for another name ({})", names(presented)),
                    "pass a URL with a name of the certificate's as --mcpd-url",
                )
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Reason::new(
                    format!("{at} is for another name"),
                    "pass a URL with a name of the certificate's as --mcpd-url",
                )
            }
            // A bad signature is the work of another authority of the same name, such as the one before a renewal.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => self.unknown_issuer(why),
            _ => Reason::new(
                format!("{at} cannot be trusted ({why})"),
                "have it signed by an authority, and pass the authority's PEM file as --ca-file",
            ),
        }
    }

    fn unknown_issuer(&self, why: &str) -> Reason {
        let url = self.url;
        match self.ca_file {
            None => Reason::new(
                format!("this machine does not know the authority of the certificate at {url} ({why})"),
                "pass its PEM file as --ca-file",
            ),
            Some(file) => Reason::new(
                format!(
                    "neither {} nor the system knows the authority of the certificate at {url} ({why})",
                    file.display()
                ),
                "put the authority that signed it into that file",
            ),
        }
    }

    fn alert(&self, alert: AlertDescription) -> Option<Reason> {
        let url = self.url;
        Some(match alert {
            AlertDescription::ProtocolVersion => self.no_common_version(),
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => Reason::new(
                format!("{url} and this machine have no TLS cipher in common"),
                "allow the ciphers of TLS 1.3, or ECDHE with AES-GCM or ChaCha20, in the server or ingress there",
            ),
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate => Reason::new(
                format!("{url} wants a client certificate, and mcprelay has none"),
                "turn the check of client certificates off for mcpd's path there",
            ),
            AlertDescription::UnrecognisedName => Reason::new(
                format!("the server at {url} knows no host of this name"),
                "check the host in --mcpd-url",
            ),
            _ => return None,
        })
    }

    fn no_common_version(&self) -> Reason {
        Reason::new(
            format!("{} speaks neither TLS 1.2 nor 1.3", self.url),
            "turn one of them on in the server or ingress there",
        )
    }

    /// What hyper-util says of a proxy; its type is not open to others.
    fn tunnel(&self, cause: &str, why: &str) -> Option<Reason> {
        let said = cause.strip_prefix(TUNNEL)?;
        let (url, proxy) = (self.url, self.proxy_name());
        Some(match said {
            "failed to create underlying connection" => Reason::new(
                format!("the proxy {proxy} on the way to {url} cannot be reached ({why})"),
                "check HTTPS_PROXY, or name mcpd's host in NO_PROXY",
            ),
            "proxy authorization required" => Reason::new(
                format!("the proxy {proxy} on the way to {url} wants a user and a password (407)"),
                "set HTTPS_PROXY to http://user:password@host:port",
            ),
            REFUSED => self.refused(proxy),
            _ => Reason::new(
                format!("the proxy {proxy} on the way to {url} broke off ({why})"),
                "check HTTPS_PROXY, or name mcpd's host in NO_PROXY",
            ),
        })
    }

    fn refused(&self, proxy: &str) -> Reason {
        let url = self.url;
        match self.refusal {
            Some(status @ (401 | 403)) => Reason::new(
                format!("the proxy {proxy} forbids connections to {url} ({status})"),
                "have mcpd's host and port allowed there, or name the host in NO_PROXY",
            ),
            Some(status @ (502..=504)) => Reason::new(
                format!("the proxy {proxy} gets no connection to {url} ({status})"),
                "check that mcpd runs and that the proxy knows its host, or name the host in NO_PROXY",
            ),
            other => {
                let status = other.map(|status| format!(" ({status})")).unwrap_or_default();
                Reason::new(
                    format!("the proxy {proxy} makes no connection to {url}{status}"),
                    "ask whoever runs the proxy, or name mcpd's host in NO_PROXY",
                )
            }
        }
    }

    fn proxy_name(&self) -> &str {
        match &self.proxy {
            ProxySetting::Through(proxy) => proxy,
            ProxySetting::None | ProxySetting::Nonsense(_) => "in between",
        }
    }
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
