//! Where the URL and the token come from, and what every problem says.

use std::{fs, os::unix::fs::PermissionsExt as _};

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
    let given = Sources { mcpd_url: Some(url("https://flag")), token: Some("t2".into()), ..sources(&home) };
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
    assert!(wide.to_string().ends_with("has mode 0640, so others may read the token: run chmod 600 on it"));
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
fn loopback_is_known_by_name_and_by_number() {
    for local in [
        "http://127.0.0.1:1/x",
        "http://localhost",
        "http://[::1]:8080",
        "https://127.8.8.8",
        "http://a.localhost",
    ] {
        assert!(url(local).is_loopback(), "{local}");
    }
    for far in ["http://10.0.0.1", "https://localhost.example.com"] {
        assert!(!url(far).is_loopback(), "{far}");
    }
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
