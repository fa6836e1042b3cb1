//! The walls between the modules: which may depend on which. To move a wall, change it here and write a decision record.

use std::{fs, path::Path};

/// All source text below a path of `src/`, tests included.
fn source(place: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(place);
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(!found.is_empty(), "there is no source at src/{place}");
    found
}

#[track_caller]
fn assert_knows_none_of(place: &str, strangers: &[&str]) {
    for (path, text) in source(place) {
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            let stranger = strangers.iter().find(|stranger| code.contains(*stranger));
            assert!(stranger.is_none(), "{path}:{number} knows {}: {line}", stranger.unwrap());
        }
    }
}

#[test]
fn the_core_has_no_io_and_no_clock() {
    let io = ["tokio", "tonic", "reqwest", "std::fs", "std::net", "std::io", "SystemTime"];
    assert_knows_none_of("core", &io);
    let upwards = ["crate::agent", "crate::bridge", "crate::upstream", "crate::cli", "crate::provide"];
    assert_knows_none_of("core", &upwards);
    for (path, text) in source("core").into_iter().filter(|(path, _)| !path.contains("/tests")) {
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!product.contains("Instant::now"), "{path} reads a clock");
    }
}

#[test]
fn mcpds_side_and_the_bridge_never_see_each_other() {
    assert_knows_none_of(
        "upstream",
        &["crate::bridge", "crate::pb", "crate::agent", "crate::core", "crate::cli", "tonic"],
    );
    assert_knows_none_of(
        "bridge",
        &["crate::upstream", "crate::agent", "crate::core", "crate::cli", "reqwest"],
    );
}

#[test]
fn the_openai_format_is_bytes_in_and_bytes_out() {
    assert_knows_none_of(
        "openai",
        &["tokio", "reqwest", "tonic", "SystemTime", "crate::core", "crate::upstream"],
    );
}

#[test]
fn http_knows_no_other_module() {
    for (path, text) in source("http") {
        let stranger = text.lines().find(|line| line.contains("crate::") && !line.contains("crate::http"));
        assert!(stranger.is_none(), "{path}: {stranger:?}");
    }
}

#[test]
fn only_http_builds_clients() {
    for place in ["upstream", "provide", "cli"] {
        assert_knows_none_of(place, &["Client::builder", "ClientBuilder"]);
    }
}

#[test]
fn the_fake_mcpd_shares_nothing_with_the_agent() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("fake-mcpd/Cargo.toml");
    let text = fs::read_to_string(manifest).unwrap();
    assert!(!text.lines().any(|line| line.starts_with("mcprelay")), "fake-mcpd depends on the agent");
}

#[test]
fn one_module_knows_the_operating_system() {
    let words = ["inotify", "timerfd", "/proc", "CLOCK_BOOTTIME", "target_os"];
    for (path, text) in source("").into_iter().filter(|(path, _)| !path.contains("/src/platform/")) {
        let known = words.iter().find(|word| text.contains(*word));
        assert!(known.is_none(), "{path} knows {}, which belongs into src/platform", known.unwrap());
    }
}
