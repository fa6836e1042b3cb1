//! The host and its config.json: what a change of the file changes.

use std::{fs, path::Path};

use mcprelay::pb::Provider;

use crate::{agent::Agent, server::host};

fn file(entries: &str) -> String {
    format!(r#"{{"llm":{{"providers":[{entries}]}}}}"#)
}

fn echo(name: &str, publish: bool) -> String {
    format!(r#"{{"name":"{name}","type":"echo","publish":{publish}}}"#)
}

/// Replaces a file as editors do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn is(providers: &[Provider], expected: &[(&str, bool)]) -> bool {
    let found: Vec<(&str, bool)> = providers.iter().map(|p| (p.name.as_str(), p.publish)).collect();
    found == expected
}

#[tokio::test]
async fn every_change_of_the_file_is_followed_and_a_broken_one_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.json");
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, None);

    // Missing: an empty set.
    let mut session = agent.session().await;
    assert!(is(&session.snapshot().await, &[]));

    fs::write(&config, file(&echo("a", false))).unwrap();
    session.snapshot_where(|p| is(p, &[("a", false)])).await;

    replace(&config, &file(&echo("a", true)));
    session.snapshot_where(|p| is(p, &[("a", true)])).await;

    // Half written, then whole: the snapshot after the broken file is the next good one.
    let whole = file(&format!("{},{}", echo("a", true), echo("b", true)));
    fs::write(&config, &whole[..whole.len() / 2]).unwrap();
    session.offer("t", "a", r#"{"messages":[{"content":"still here"}]}"#).await;
    let body = session.answer("t").await;
    assert!(String::from_utf8_lossy(body.body()).contains("still here"));
    fs::write(&config, &whole).unwrap();
    assert!(is(&session.snapshot().await, &[("a", true), ("b", true)]));

    fs::remove_file(&config).unwrap();
    assert!(is(&session.snapshot().await, &[]));
}

#[tokio::test]
async fn a_home_that_does_not_exist_yet_is_waited_for() {
    let above = tempfile::tempdir().unwrap();
    let mut agent = Agent::listen(&above.path().join("s"));
    let home = above.path().join("not/yet");
    let config = mcprelay::provide::HostConfig::new(&home, above.path().join("s"));
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(mcprelay::provide::Host::new(config).run(stop.clone()));
    let mut session = agent.session().await;
    assert!(is(&session.snapshot().await, &[]));
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("config.json"), file(&echo("a", true))).unwrap();
    session.snapshot_where(|p| is(p, &[("a", true)])).await;
    stop.cancel();
}

#[tokio::test]
async fn a_link_is_followed_to_the_file_it_leads_to() {
    let (home, dotfiles) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let real = dotfiles.path().join("mcpctl.json");
    fs::write(&real, file(&echo("a", false))).unwrap();
    std::os::unix::fs::symlink(&real, home.path().join("config.json")).unwrap();
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, None);
    let mut session = agent.session().await;
    assert!(is(&session.snapshot().await, &[("a", false)]));
    replace(&real, &file(&echo("a", true)));
    session.snapshot_where(|p| is(p, &[("a", true)])).await;
}

#[tokio::test]
async fn a_home_that_another_one_replaces_is_followed_in_its_new_place() {
    let above = tempfile::tempdir().unwrap();
    let mut agent = Agent::listen(&above.path().join("s"));
    let (home, next) = (above.path().join("home"), above.path().join("next"));
    for (folder, published) in [(&home, false), (&next, true)] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("config.json"), file(&echo("a", published))).unwrap();
    }
    let config = mcprelay::provide::HostConfig::new(&home, above.path().join("s"));
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(mcprelay::provide::Host::new(config).run(stop.clone()));
    let mut session = agent.session().await;
    assert!(is(&session.snapshot().await, &[("a", false)]));
    fs::rename(&home, above.path().join("former")).unwrap();
    fs::rename(&next, &home).unwrap();
    session.snapshot_where(|p| is(p, &[("a", true)])).await;
    fs::write(home.join("config.json"), file(&echo("b", true))).unwrap();
    session.snapshot_where(|p| is(p, &[("b", true)])).await;
    stop.cancel();
}

#[tokio::test]
async fn a_link_that_leads_to_another_file_of_its_folder_is_followed_there() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for (name, published) in [("work.json", false), ("play.json", true)] {
        fs::write(at(name), file(&echo("a", published))).unwrap();
    }
    let link = |to: &str| {
        std::os::unix::fs::symlink(to, at("new")).unwrap();
        fs::rename(at("new"), at("config.json")).unwrap();
    };
    link("work.json");
    let mut agent = Agent::listen(&at("s"));
    let _host = host(&home, None);
    let mut session = agent.session().await;
    assert!(is(&session.snapshot().await, &[("a", false)]));
    link("play.json");
    session.snapshot_where(|p| is(p, &[("a", true)])).await;
    fs::write(at("play.json"), file(&echo("b", true))).unwrap();
    session.snapshot_where(|p| is(p, &[("b", true)])).await;
}

#[tokio::test]
async fn a_link_in_the_middle_of_the_way_is_followed_wherever_it_turns() {
    let (home, releases) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| releases.path().join(name);
    for (release, published) in [("1", false), ("2", true)] {
        fs::create_dir(at(release)).unwrap();
        fs::write(at(release).join("config.json"), file(&echo("a", published))).unwrap();
    }
    let turn = |to: &str| {
        std::os::unix::fs::symlink(to, at("new")).unwrap();
        fs::rename(at("new"), at("current")).unwrap();
    };
    turn("1");
    // Through "..", so that two paths lead to one folder.
    let target = at("1/../current/config.json");
    std::os::unix::fs::symlink(target, home.path().join("config.json")).unwrap();
    let mut agent = Agent::listen(&home.path().join("s"));
    let _host = host(&home, None);
    let mut session = agent.session().await;
    assert!(is(&session.snapshot().await, &[("a", false)]));
    turn("2");
    session.snapshot_where(|p| is(p, &[("a", true)])).await;
    fs::write(at("2/config.json"), file(&echo("b", true))).unwrap();
    session.snapshot_where(|p| is(p, &[("b", true)])).await;
    turn("./1");
    session.snapshot_where(|p| is(p, &[("a", false)])).await;
}
