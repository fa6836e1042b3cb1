//! The names against a stored list of the registries' own.

use std::collections::BTreeSet;

/// The names of one kind ("attribute", "metric") in the stored list.
fn registered(kind: &str) -> BTreeSet<&'static str> {
    let lines = include_str!("registry.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.strip_prefix(kind)?.split_whitespace().next()).collect()
}

/// The constants of one inner module of `names.rs`.
fn ours(module: &str) -> BTreeSet<&'static str> {
    let source = include_str!("../names.rs");
    let (_, rest) = source.split_once(&format!("pub mod {module} {{")).expect("the module is there");
    let body = rest.split("\n}").next().unwrap_or_default();
    body.split('"').skip(1).step_by(2).filter(|name| name.contains('.')).collect()
}

#[test]
fn every_name_that_is_not_our_own_is_the_registrys() {
    for (module, kind) in [("key", "attribute"), ("metric", "metric")] {
        let (ours, registered) = (ours(module), registered(kind));
        assert!(ours.len() > 10, "{ours:?}");
        let strange: Vec<_> =
            ours.iter().filter(|n| !n.starts_with("mcprelay.") && !registered.contains(*n)).collect();
        assert!(strange.is_empty(), "{strange:?} is in no release of the conventions");
    }
}

#[test]
fn the_values_are_the_registrys_own_words() {
    use super::{key, value};
    let has = |key: &str, value: &str| {
        include_str!("registry.txt").lines().any(|line| line == format!("value {key} {value}"))
    };
    assert!(has(key::OPERATION_NAME, value::CHAT));
    assert!(has(key::OUTPUT_TYPE, value::JSON) && has(key::OUTPUT_TYPE, value::TEXT));
    assert!(has(key::PROVIDER_NAME, value::GEMINI));
    assert!(has(key::TOKEN_MODALITY, value::UNKNOWN_MODALITY));
}
