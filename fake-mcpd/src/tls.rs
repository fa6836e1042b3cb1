//! TLS with a throw-away authority: made at the start, written to a file that agents are given, gone with the server.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
use tempfile::NamedTempFile;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto::ring};
use tokio_rustls::server::TlsStream;

/// The ALPN name of HTTP/2.
const HTTP_2: &[u8] = b"h2";
/// The ALPN name of HTTP/1.1.
const HTTP_1: &[u8] = b"http/1.1";

/// How TLS is served: over HTTP/2 and HTTP/1.1, with the authority in a temporary file, unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    http1: bool,
    http2: bool,
    ca_file: Option<PathBuf>,
    name: Option<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { http1: true, http2: true, ca_file: None, name: None }
    }
}

impl Tls {
    /// Offers no HTTP/2.
    #[must_use]
    pub fn without_http2(self) -> Self {
        Self { http2: false, ..self }
    }

    /// Offers no HTTP/1.1, and refuses the handshake of whoever speaks nothing else.
    #[must_use]
    pub fn without_http1(self) -> Self {
        Self { http1: false, ..self }
    }

    /// Writes the authority here, as PEM, in place of what is there.
    #[must_use]
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        Self { ca_file: Some(path.into()), ..self }
    }

    /// Has a certificate for this name too, beside `localhost` and the address.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    fn protocols(&self) -> Vec<Vec<u8>> {
        let offered = [(self.http2, HTTP_2), (self.http1, HTTP_1)];
        offered.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_vec()).collect()
    }

    /// Makes the authority and a certificate of it for `address`.
    pub(crate) fn start(&self, address: SocketAddr) -> io::Result<(TlsAcceptor, Authority)> {
        let (authority, chain, key) =
            certificate(address.ip(), self.name.as_deref()).map_err(io::Error::other)?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(io::Error::other)?;
        config.alpn_protocols = self.protocols();
        Ok((Arc::new(config).into(), self.write(&authority)?))
    }

    fn write(&self, authority: &str) -> io::Result<Authority> {
        let file = match &self.ca_file {
            Some(path) => Authority::Named(path.clone()),
            None => Authority::Temporary(Box::new(
                tempfile::Builder::new().prefix("fake-mcpd-ca-").suffix(".pem").tempfile()?,
            )),
        };
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{} cannot be written: {error}", file.path().display()))
        };
        fs::write(file.path(), authority).map_err(named)?;
        Ok(file)
    }
}

/// The file of the authority; a temporary one goes with this.
#[derive(Debug)]
pub(crate) enum Authority {
    Named(PathBuf),
    Temporary(Box<NamedTempFile>),
}

impl Authority {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Temporary(file) => file.path(),
        }
    }
}

/// Whether a connection's handshake agreed on HTTP/2.
pub(crate) fn is_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP_2)
}

type Chain = Vec<tokio_rustls::rustls::pki_types::CertificateDer<'static>>;

/// An authority's PEM, and a certificate of it for this machine with its key. Every part has a fixed length (Ed25519 signs with 64
/// bytes, serial numbers begin with a 1), so that a schedule which cuts a connection after k bytes replays exactly.
fn certificate(
    ip: IpAddr,
    name: Option<&str>,
) -> Result<(String, Chain, PrivateKeyDer<'static>), rcgen::Error> {
    let mut authority = params("fake-mcpd's throw-away authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate_for(&PKCS_ED25519)?)?;
    let mut leaf = params("fake-mcpd");
    let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST), ip];
    leaf.subject_alt_names = own.into_iter().map(SanType::IpAddress).collect();
    for name in ["localhost"].into_iter().chain(name) {
        leaf.subject_alt_names.push(SanType::DnsName(name.try_into()?));
    }
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let leaf = leaf.signed_by(&key, &authority)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Ok((authority.pem(), vec![leaf.der().clone()], key))
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let [a, b, c, d] = fastrand::u32(..).to_be_bytes();
    params.serial_number = Some(SerialNumber::from_slice(&[1, a, b, c, d]));
    params.use_authority_key_identifier_extension = true;
    params
}
