//! Each failure of TLS and of proxies has a sentence and an advice of its own.

use std::sync::Arc;

use super::*;

const URL: &str = "https://mcpd.example";
const PROXY: &str = "http://proxy.example:3128";

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(&'static str, #[source] Option<io::Error>);

fn through_io(error: TlsError) -> Said {
    Said("client error (Connect)", Some(io::Error::other(error)))
}

fn invalid(error: CertificateError) -> Said {
    through_io(TlsError::InvalidCertificate(error))
}

fn alert(alert: AlertDescription) -> Said {
    through_io(TlsError::AlertReceived(alert))
}

fn way(ca_file: Option<&'static str>, proxy: ProxySetting) -> Way<'static> {
    Way { url: URL, ca_file: ca_file.map(Path::new), proxy, refusal: None }
}

fn direct() -> Way<'static> {
    way(None, ProxySetting::None)
}

fn refusing(status: u16) -> Way<'static> {
    Way { refusal: Some(status), ..proxied() }
}

fn proxied() -> Way<'static> {
    way(None, ProxySetting::Through(PROXY.to_owned()))
}

#[test]
fn every_failure_of_tls_and_of_proxies_has_its_sentence_and_its_advice() {
    let refused = || Some(io::Error::other("Connection refused"));
    let wrong_name = CertificateError::NotValidForNameContext {
        expected: "mcpd.example".try_into().expect("a name"),
        presented: vec!["DnsName(\"other.example\")".to_owned()],
    };
    let nonsense = way(None, ProxySetting::Nonsense("HTTPS_PROXY"));
    let own = way(Some("/ca.pem"), ProxySetting::None);
    let other = CertificateError::Other(rustls::OtherError(Arc::new(Said("CaUsedAsEndEntity", None))));
    for (way, error, what, advice) in [
        (direct(), invalid(CertificateError::Expired), "has expired", "renewed"),
        (direct(), invalid(CertificateError::NotValidYet), "is not valid yet", "clock"),
        (direct(), invalid(wrong_name), "is for another name (other.example)", "--mcpd-url"),
        (direct(), invalid(CertificateError::NotValidForName), "is for another name", "--mcpd-url"),
        (
            direct(),
            invalid(CertificateError::BadSignature),
            "this machine does not know the authority",
            "as --ca-file",
        ),
        (
            direct(),
            invalid(CertificateError::UnknownIssuer),
            "this machine does not know the authority",
            "as --ca-file",
        ),
        (
            own,
            invalid(CertificateError::UnknownIssuer),
            "neither /ca.pem nor the system knows",
            "into that file",
        ),
        (direct(), invalid(other), "cannot be trusted", "signed by an authority"),
        (
            direct(),
            alert(AlertDescription::ProtocolVersion),
            "neither TLS 1.2 nor 1.3",
            "turn one of them on",
        ),
        (direct(), alert(AlertDescription::HandshakeFailure), "no TLS cipher in common", "allow the ciphers"),
        (direct(), alert(AlertDescription::CertificateRequired), "wants a client certificate", "off"),
        (direct(), alert(AlertDescription::UnrecognisedName), "knows no host of this name", "--mcpd-url"),
        (
            direct(),
            through_io(TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType)),
            "does not speak TLS",
            "port",
        ),
        (
            proxied(),
            Said("tunnel error: failed to create underlying connection", refused()),
            "the proxy http://proxy.example:3128 on the way to https://mcpd.example cannot be reached (Connection refused)",
            "NO_PROXY",
        ),
        (
            proxied(),
            Said("tunnel error: proxy authorization required", None),
            "wants a user and a password (407)",
            "user:password@",
        ),
        (
            proxied(),
            Said("tunnel error: unsuccessful", None),
            "makes no connection to https://mcpd.example",
            "whoever runs the proxy",
        ),
        (
            refusing(403),
            Said("tunnel error: unsuccessful", None),
            "forbids connections to https://mcpd.example (403)",
            "allowed there",
        ),
        (
            refusing(502),
            Said("tunnel error: unsuccessful", None),
            "gets no connection to https://mcpd.example (502)",
            "check that mcpd runs",
        ),
        (proxied(), Said("tunnel error: unexpected end of file", None), "broke off", "HTTPS_PROXY"),
        (
            proxied(),
            Said("connection closed", None),
            "does not answer through the proxy http://proxy.example:3128",
            "both run",
        ),
        (
            nonsense,
            Said("Connection refused", None),
            "no proxy is used because HTTPS_PROXY is not a URL",
            "http://host:port",
        ),
        (
            direct(),
            Said("Connection refused", None),
            "mcpd at https://mcpd.example does not answer (Connection refused)",
            "check that it runs",
        ),
    ] {
        let found = way.explain(&error);
        assert!(found.what.contains(what) && found.advice.contains(advice), "{error:?}: {found:?}");
    }
}

#[test]
fn what_a_library_says_never_passes_for_advice() {
    let error = Said("certificate not valid for name; certificate is only valid for other", None);
    let found = direct().explain(&error);
    assert!(found.what.ends_with("is only valid for other)"), "{found:?}");
    assert_eq!(found.advice, "check that it runs, and --mcpd-url");
}
