use std::{
    fs, io,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::*;

/// Far above the second that the slower way takes.
const BOUND: Duration = Duration::from_secs(10);

/// Waits until `watch` has seen what `change` does.
async fn sees(watch: &mut FileWatch, change: impl FnOnce() -> io::Result<()>) {
    watch.renew().await.unwrap();
    change().unwrap();
    timeout(BOUND, watch.changed()).await.expect("the change is seen").unwrap();
}

fn replace(file: &Path, content: &str) -> io::Result<()> {
    let draft = file.with_extension("draft");
    fs::write(&draft, content)?;
    fs::rename(draft, file)
}

#[tokio::test]
async fn a_file_that_comes_is_replaced_and_goes_is_seen_each_time() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("later/config.json");
    let mut watch = FileWatch::new(&file);
    sees(&mut watch, || fs::create_dir(file.parent().unwrap()).and_then(|()| fs::write(&file, "{}"))).await;
    sees(&mut watch, || replace(&file, "{ }")).await;
    sees(&mut watch, || fs::remove_file(&file)).await;
}

#[tokio::test]
async fn a_change_behind_a_link_is_seen() {
    let home = tempfile::tempdir().unwrap();
    let (link, target) = (home.path().join("config.json"), home.path().join("elsewhere/real.json"));
    fs::create_dir(target.parent().unwrap()).unwrap();
    fs::write(&target, "{}").unwrap();
    symlink(&target, &link).unwrap();
    sees(&mut FileWatch::new(&link), || replace(&target, "{ }")).await;
}

#[tokio::test]
async fn ticks_keep_their_distance() {
    let period = Duration::from_millis(200);
    let mut ticks = Ticks::every(period).unwrap();
    ticks.tick().await;
    let began = Instant::now();
    ticks.tick().await;
    ticks.tick().await;
    assert!(began.elapsed() >= period, "{:?}", began.elapsed());
}

#[test]
fn the_longest_socket_path_can_be_bound_and_one_byte_more_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let bind = |bytes: usize| {
        let name = bytes - folder.path().as_os_str().len() - 1;
        std::os::unix::net::UnixListener::bind(folder.path().join("s".repeat(name))).is_ok()
    };
    assert!(bind(MAX_SOCKET_PATH_BYTES));
    assert!(!bind(MAX_SOCKET_PATH_BYTES + 1));
}

/// Runs one test of this file again in a process that `starter` starts.
fn holds_under(starter: &[&str], test: &str) -> bool {
    let mut again = Command::new(starter[0]);
    again.args(&starter[1..]).arg(std::env::current_exe().unwrap()).args(["--exact", "--ignored", test]);
    let said = again.output().unwrap();
    said.status.success() && String::from_utf8_lossy(&said.stdout).contains("1 passed")
}

#[test]
fn a_hangup_that_is_ignored_is_seen() {
    assert!(holds_under(&["nohup"], "platform::tests::hangup_is_ignored_here"));
}

// macOS's env has no such flag.
#[cfg(target_os = "linux")]
#[test]
fn a_hangup_that_is_not_ignored_is_told_apart() {
    let starter = ["env", "--default-signal=HUP"];
    assert!(!holds_under(&starter, "platform::tests::hangup_is_ignored_here"));
    assert!(holds_under(&starter, "platform::tests::hangup_is_not_ignored_here"));
}

#[test]
#[ignore = "a test above runs it under nohup"]
fn hangup_is_ignored_here() {
    assert!(ignores_hangup());
}

#[test]
#[ignore = "a test above runs it with the signal's default"]
fn hangup_is_not_ignored_here() {
    assert!(!ignores_hangup());
}
