//! Which authorities are trusted, and whether the files that they come from have changed.

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use reqwest::{Certificate, Url};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::with_causes;

/// The variables by which the system's store is moved, as rustls-native-certs reads them.
const STORE_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Why authorities cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the CA file {} ({reason})", .path.display())]
pub(crate) struct CertificatesError {
    /// The file that is bad.
    pub(crate) path: PathBuf,
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// The authorities that sign the certificates of servers, read once for all Clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    pub(super) authorities: Vec<Certificate>,
}

/// What the files with authorities were like: it differs as soon as one of them has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TrustFiles {
    /// The content of the file that was named.
    named: Option<Result<Vec<u8>, io::ErrorKind>>,
    /// The parts of the system's store, with inode, size and time of the last change.
    system: Vec<(PathBuf, u64, u64, i64)>,
}

impl Trust {
    /// What is needed for the server at `url`: nothing without TLS, else the system's authorities and those in the PEM file `ca_file`.
    pub(crate) fn load(url: &Url, ca_file: Option<&Path>) -> Result<Self, CertificatesError> {
        // A file that cannot be used is an error even where it is not needed: somebody meant something by it.
        let mut authorities = ca_file.map(named).transpose()?.unwrap_or_default();
        if url.scheme() == "https" {
            let system = rustls_native_certs::load_native_certs().certs;
            authorities.extend(system.iter().filter_map(|der| Certificate::from_der(der).ok()));
        }
        Ok(Self { authorities })
    }
}

impl TrustFiles {
    /// As the files are now.
    pub(crate) fn look(url: &Url, ca_file: Option<&Path>) -> Self {
        let named = ca_file.map(|path| fs::read(path).map_err(|error| error.kind()));
        let places = system_places().filter(|_| url.scheme() == "https");
        Self { named, system: places.filter_map(stamp).collect() }
    }
}

fn named(path: &Path) -> Result<Vec<Certificate>, CertificatesError> {
    let bad = |reason: String| CertificatesError { path: path.to_owned(), reason };
    let pem = fs::read(path).map_err(|error| bad(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| bad(with_causes(&error)))?;
    if found.is_empty() {
        return Err(bad("it has no PEM certificate".to_owned()));
    }
    // A Client that is built with it would say that it is bad, and not which file it is from.
    let checked = |der: CertificateDer<'static>| {
        RootCertStore::empty().add(der.clone())?;
        Ok(Certificate::from_der(&der))
    };
    let read = |der| checked(der).map_err(|error: rustls::Error| bad(error.to_string()));
    found.into_iter().map(|der| read(der)?.map_err(|error| bad(with_causes(&error)))).collect()
}

/// Where the system's store is: the variables decide alone where one is set.
fn system_places() -> impl Iterator<Item = PathBuf> {
    let mut places: Vec<PathBuf> =
        STORE_VARIABLES.iter().filter_map(env::var_os).map(PathBuf::from).collect();
    if places.is_empty() {
        let found = openssl_probe::probe();
        places = found.cert_file.into_iter().chain(found.cert_dir).collect();
    }
    places.into_iter()
}

fn stamp(path: PathBuf) -> Option<(PathBuf, u64, u64, i64)> {
    let found = fs::metadata(&path).ok()?;
    Some((path, found.ino(), found.len(), found.mtime_nsec() ^ found.mtime()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_rewritten_with_as_many_bytes_has_changed_and_a_broken_one_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let url: Url = "https://h".parse().unwrap();
        let look = || TrustFiles::look(&url, Some(file.path()));
        fs::write(file.path(), "one").unwrap();
        let before = look();
        assert_eq!(before, look());
        fs::write(file.path(), "two").unwrap();
        assert_ne!(before, look());
        let error = Trust::load(&url, Some(file.path())).unwrap_err().to_string();
        let path = file.path().display();
        assert_eq!(error, format!("cannot use the CA file {path} (it has no PEM certificate)"));
    }
}
