//! Where mcpd is and what opens it: `<home>/credentials`, with the flag and the environment before it and config.json after it.
//!
//! Read again whenever a [`Fingerprint`] changes, so nothing here is a failure to start: every problem is a value that says
//! what is wrong, where, and what to do, and that never holds what stood in the file.

use std::{
    fmt,
    fs::{self, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use reqwest::Url;
use secrecy::SecretString;
use serde_json::Value;

/// The file with the token, in the home.
pub const CREDENTIALS_FILE: &str = "credentials";
/// The provider host's file, in the home. The agent takes one key of it, `mcpdUrl`, as the last place to learn where mcpd
/// is; its providers are the provider host's business alone.
pub const CONFIG_FILE: &str = "config.json";

/// The most that is read of either file: far more than any real one, and little enough to be read on a whim.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// The mode bits a file with a secret should not have: anything for others than its owner.
const WIDE_MODE: u32 = 0o077;

/// Where to look, in the order of the fields; `home` is the last resort for both.
#[derive(Clone, Debug)]
pub struct Sources {
    /// From the flag or the environment.
    pub mcpd_url: Option<McpdUrl>,
    /// From the environment; there is no flag because process lists show flags.
    pub token: Option<SecretString>,
    /// The folder with the files.
    pub home: PathBuf,
    /// Whether the token may travel readable over a network.
    pub allow_insecure_http: bool,
}

/// Where mcpd is and what opens it.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Where mcpd is.
    pub url: McpdUrl,
    /// The bearer token: printable ASCII, so that it always fits a header.
    pub token: SecretString,
    /// Others than the owner may touch the file that the token came from.
    pub wide_mode: Option<WideMode>,
}

/// A file with a secret that others than its owner may touch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} has mode {mode:04o}, so others may read the token: run chmod 600 on it", path = .path.display())]
pub struct WideMode {
    /// The file.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
}

/// Why there are no usable credentials. Never holds a part of a file.
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
        /// The system's word for it.
        why: String,
    },
    /// It is not JSON.
    #[error("{path} is not JSON at line {line}, column {column}: mend it there or log in with mcpctl again", path = .path.display())]
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
    /// The token cannot travel in a header.
    #[error("the token in {0} has characters that no token has: log in with mcpctl again")]
    BadToken(String),
    /// Nobody says where mcpd is.
    #[error("nothing says where mcpd is: pass --mcpd-url, or put \"mcpdUrl\" into {path}", path = .0.display())]
    NoUrl(PathBuf),
    /// The URL is none of an mcpd.
    #[error("\"mcpdUrl\" in {path} {why}: write it like https://mcpd.example.com", path = .path.display())]
    BadUrl {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadUrl,
    },
    /// The token would travel readable over a network.
    #[error(
        "{0} would get the token over plain http: use https, or pass --allow-insecure-http if the network is yours"
    )]
    InsecureHttp(McpdUrl),
}

/// The base URL of an mcpd: http or https, with a host, without credentials, query and fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct McpdUrl(Url);

/// Why a text is not an [`McpdUrl`]. Does not hold the text: it may have a password in it.
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
    /// A query or a fragment cannot stand before a path.
    #[error("has a query or a fragment")]
    Query,
}

impl McpdUrl {
    /// Takes the base URL of an mcpd, which may live below a path.
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

    /// Whether its host is this machine by its very name: no proxy belongs in between, and nobody listens.
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            None => false,
        }
    }

    /// Whether a token sent there can be read on the way.
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

/// Finds the URL and the token: flag or environment, else the credentials file; the URL at last in config.json. Files that
/// have nothing to add are not read.
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
    Ok(Credentials { url, token, wide_mode })
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

/// A token that fits a header, without the line end that shells and editors leave behind it; `None` for any other text.
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

/// A file of the mcpctl system, parsed.
struct JsonFile {
    path: PathBuf,
    mode: u32,
    content: Value,
}

impl JsonFile {
    /// Reads it; `None` where there is none.
    fn read(path: &Path) -> Result<Option<Self>, CredentialsProblem> {
        let unreadable = |why: String| CredentialsProblem::Unreadable { path: path.to_owned(), why };
        let (metadata, bytes) = match read_regular(path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        // The parser's own message may quote the file, so only the place goes on.
        let content = serde_json::from_slice(&bytes).map_err(|error| CredentialsProblem::NotJson {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
        })?;
        Ok(Some(Self { path: path.to_owned(), mode: metadata.mode() & 0o7777, content }))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.content.get(key)?.as_str().filter(|text| !text.trim().is_empty())
    }

    fn url(&self) -> Result<Option<McpdUrl>, CredentialsProblem> {
        let bad = |why| CredentialsProblem::BadUrl { path: self.path.clone(), why };
        self.text("mcpdUrl").map(|text| McpdUrl::parse(text).map_err(bad)).transpose()
    }

    fn wide_mode(&self) -> Option<WideMode> {
        let (path, mode) = (self.path.clone(), self.mode);
        (mode & WIDE_MODE != 0).then_some(WideMode { path, mode })
    }
}

/// Reads a small regular file. Anything else is refused before it is opened: opening a pipe would wait for a writer.
fn read_regular(path: &Path) -> io::Result<(Metadata, Vec<u8>)> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 4 MiB"));
    }
    Ok((metadata, bytes))
}

/// What tells, at the price of two `stat` calls, whether the files may say something else than before. Any write, rename,
/// change of mode or removal changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint([Option<FileIdentity>; 2]);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// A change of mode moves only this time.
    changed: (i64, i64),
}

impl Fingerprint {
    /// The present one of the files that [`load`] reads in this home.
    pub fn of(home: &Path) -> Self {
        Self([CREDENTIALS_FILE, CONFIG_FILE].map(|name| FileIdentity::of(&home.join(name))))
    }
}

impl FileIdentity {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;
    use tempfile::TempDir;

    use super::*;

    fn home() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn write(home: &TempDir, name: &str, text: &str, mode: u32) {
        let path = home.path().join(name);
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    }

    fn sources(home: &TempDir) -> Sources {
        Sources { mcpd_url: None, token: None, home: home.path().into(), allow_insecure_http: false }
    }

    fn url(text: &str) -> McpdUrl {
        McpdUrl::parse(text).expect("a good URL")
    }

    fn loaded(sources: &Sources) -> (String, String) {
        let credentials = load(sources).expect("good credentials");
        (credentials.url.to_string(), credentials.token.expose_secret().to_owned())
    }

    #[test]
    fn flag_and_environment_come_before_the_file_and_the_file_before_config_json() {
        let home = home();
        write(&home, CONFIG_FILE, r#"{"mcpdUrl": "https://config"}"#, 0o600);
        write(&home, CREDENTIALS_FILE, r#"{"token": "t1\n"}"#, 0o600);
        assert_eq!(loaded(&sources(&home)), ("https://config".into(), "t1".into()));
        write(&home, CREDENTIALS_FILE, r#"{"mcpdUrl": "https://file/", "token": "t1"}"#, 0o600);
        assert_eq!(loaded(&sources(&home)), ("https://file".into(), "t1".into()));
        let given =
            Sources { mcpd_url: Some(url("https://flag")), token: Some("t2".into()), ..sources(&home) };
        assert_eq!(loaded(&given), ("https://flag".into(), "t2".into()));
    }

    #[test]
    fn files_are_not_read_when_flag_and_environment_say_all() {
        let home = home();
        write(&home, CREDENTIALS_FILE, "not json", 0o644);
        let given =
            Sources { mcpd_url: Some(url("http://127.0.0.1:1")), token: Some("t".into()), ..sources(&home) };
        assert_eq!(load(&given).expect("no file needed").wide_mode, None);
    }

    #[test]
    fn every_problem_says_what_is_wrong_and_never_what_stands_in_the_file() {
        let home = home();
        let path = home.path().join(CREDENTIALS_FILE);
        assert_eq!(load(&sources(&home)).unwrap_err(), CredentialsProblem::Missing(path.clone()));
        let problem_of = |text: &str| {
            write(&home, CREDENTIALS_FILE, text, 0o600);
            let problem = load(&sources(&home)).unwrap_err();
            assert!(!format!("{problem} {problem:?}").contains("s3cret"), "{problem}");
            problem
        };
        let not_json = CredentialsProblem::NotJson { path: path.clone(), line: 2, column: 1 };
        assert_eq!(problem_of("{\"token\":\ns3cret}"), not_json);
        assert_eq!(problem_of("\"s3cret\""), CredentialsProblem::NoToken(path.clone()));
        assert_eq!(problem_of(r#"{"token": 5}"#), CredentialsProblem::NoToken(path.clone()));
        assert!(matches!(problem_of(r#"{"token": "s3cret\r\nx"}"#), CredentialsProblem::BadToken(_)));
        assert_eq!(problem_of(r#"{"token": "s3cret"}"#), CredentialsProblem::NoUrl(path.clone()));
        let bad = CredentialsProblem::BadUrl { path, why: BadUrl::UserInfo };
        assert_eq!(problem_of(r#"{"token": "s3cret", "mcpdUrl": "https://a:s3cret@h"}"#), bad);
    }

    #[test]
    fn a_folder_in_the_files_place_is_unreadable_and_does_not_hang() {
        let home = home();
        fs::create_dir(home.path().join(CREDENTIALS_FILE)).expect("creates");
        assert!(matches!(load(&sources(&home)), Err(CredentialsProblem::Unreadable { .. })));
    }

    #[test]
    fn a_wide_mode_is_a_warning_only() {
        let home = home();
        write(&home, CREDENTIALS_FILE, r#"{"token": "t", "mcpdUrl": "https://h"}"#, 0o640);
        let wide = load(&sources(&home)).expect("still usable").wide_mode.expect("warns");
        assert!(
            wide.to_string().ends_with("has mode 0640, so others may read the token: run chmod 600 on it")
        );
    }

    #[test]
    fn a_token_goes_over_plain_http_only_to_this_machine_or_when_allowed() {
        let home = home();
        write(&home, CREDENTIALS_FILE, r#"{"token": "t"}"#, 0o600);
        let to = |text| Sources { mcpd_url: Some(url(text)), ..sources(&home) };
        for local in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:2", "https://far.example"] {
            assert!(load(&to(local)).is_ok(), "{local}");
        }
        for far in ["http://far.example", "http://localhost.far.example", "http://192.0.2.1"] {
            assert_eq!(load(&to(far)).unwrap_err(), CredentialsProblem::InsecureHttp(url(far)));
        }
        assert!(load(&Sources { allow_insecure_http: true, ..to("http://far.example") }).is_ok());
    }

    #[test]
    fn only_a_plain_base_url_is_one_of_an_mcpd() {
        assert_eq!(url("https://h/mcpd/").as_str(), "https://h/mcpd");
        for (text, why) in [
            ("", BadUrl::NotAUrl),
            ("mcpd.example", BadUrl::NotAUrl),
            ("unix:///run/x", BadUrl::Scheme),
            ("https://user@h", BadUrl::UserInfo),
            ("https://h?x=1", BadUrl::Query),
        ] {
            assert_eq!(McpdUrl::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn the_fingerprint_changes_with_content_mode_appearance_and_removal() {
        let home = home();
        let mut seen = vec![Fingerprint::of(home.path())];
        let mut look = || {
            let now = Fingerprint::of(home.path());
            assert_ne!(Some(&now), seen.last());
            seen.push(now);
        };
        write(&home, CREDENTIALS_FILE, "{}", 0o600);
        look();
        write(&home, CREDENTIALS_FILE, "{ }", 0o600);
        look();
        write(&home, CONFIG_FILE, "{}", 0o600);
        look();
        fs::remove_file(home.path().join(CONFIG_FILE)).expect("removes");
        look();
    }
}
