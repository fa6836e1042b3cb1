//! The boundaries between the modules: which may use which, and that no files use each other in a circle. The dependencies stand in the
//! table of `src/lib.rs`; to change one, change it there and write a decision record.

mod imports;

use std::{collections::BTreeSet, fs, path::Path};

use imports::{Module, Tree};

/// Modules that know no other module of ours.
const KNOW_NONE: [&str; 5] = ["domain", "http", "json", "platform", "sse"];
/// Circles of files that are left to break, as the beginnings of their modules' paths.
const CIRCLES_LEFT: [&str; 3] = ["provide::", "telemetry", "upstream::"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The modules and what each may use, as the table in `src/lib.rs` says.
fn allowed() -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! |"));
    let mut edges = BTreeSet::new();
    for row in rows {
        let [module, _, uses] = row.trim_end_matches('|').split('|').collect::<Vec<_>>()[..] else {
            panic!("a row of three columns: {row}")
        };
        let name = module.trim().trim_matches(['[', ']', '`']);
        let uses = uses.split('`').skip(1).step_by(2);
        edges.extend(uses.map(|other| (name.to_owned(), other.to_owned())));
    }
    edges
}

#[test]
fn every_module_uses_what_the_table_of_lib_rs_says_and_nothing_else() {
    let tree = Tree::read(&root().join("src"));
    let top = |module: &Module| module.first().cloned().unwrap_or_default();
    let edges = tree.uses().map(|(from, to)| (top(from), top(&to)));
    let found: BTreeSet<_> =
        edges.filter(|(from, to)| from != to && !from.is_empty() && !to.is_empty()).collect();
    let allowed = allowed();
    let forbidden: Vec<_> = found.difference(&allowed).collect();
    assert!(forbidden.is_empty(), "not in the table of src/lib.rs: {forbidden:?}");
    let unused: Vec<_> = allowed.difference(&found).collect();
    assert!(unused.is_empty(), "in the table of src/lib.rs, and in no file: {unused:?}");
    let knowing = found.iter().find(|(from, _)| KNOW_NONE.contains(&from.as_str()));
    assert_eq!(knowing, None, "these modules know none of ours: {KNOW_NONE:?}");
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let circles = Tree::read(&root().join("src")).circles();
    let left = |m: &Module| CIRCLES_LEFT.iter().any(|place| m.join("::").starts_with(place));
    let new: Vec<_> = circles.iter().filter(|circle| !circle.iter().all(left)).collect();
    assert!(new.is_empty(), "files that use each other, parents and children aside: {new:#?}");
}

/// All source text below a path of `src/`, tests included.
fn source(place: &str) -> Vec<(String, String)> {
    let found = imports::rust_files(&root().join("src").join(place));
    assert!(!found.is_empty(), "there is no source at src/{place}");
    let text = |path: &std::path::PathBuf| fs::read_to_string(path).unwrap();
    found.iter().map(|path| (path.display().to_string(), text(path))).collect()
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
    for (path, text) in source("core").into_iter().filter(|(path, _)| !path.contains("/tests")) {
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!product.contains("Instant::now"), "{path} reads a clock");
    }
}

#[test]
fn mcpds_side_knows_no_grpc_and_the_bridge_no_http_client() {
    assert_knows_none_of("upstream", &["tonic"]);
    assert_knows_none_of("bridge", &["reqwest"]);
}

#[test]
fn the_openai_format_is_bytes_in_and_bytes_out() {
    assert_knows_none_of("openai", &["tokio", "reqwest", "tonic", "SystemTime"]);
}

#[test]
fn only_http_builds_clients() {
    for place in ["upstream", "provide", "cli"] {
        assert_knows_none_of(place, &["Client::builder", "ClientBuilder"]);
    }
}

#[test]
fn the_fake_mcpd_shares_nothing_with_the_agent() {
    let text = fs::read_to_string(root().join("fake-mcpd/Cargo.toml")).unwrap();
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
