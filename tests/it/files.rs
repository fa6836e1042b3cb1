//! The socket and the files of a home: what exists before the agent, what others may do with it, and disks that cannot be written.

mod doctor;
mod owner;

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _, symlink},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use fake_mcpd::FakeMcpd;
use mcprelay::bridge::listener::{BindError, BoundSocket};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    Client, chat, completion,
    process::{MCPRELAY, Process, command, mcprelay, output, text},
    provider, soon,
};

/// A home as mcpctl leaves it, with credentials for `mcpd`.
fn home_for(mcpd: &FakeMcpd) -> TempDir {
    let home = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    let credentials = json!({"mcpdUrl": mcpd.url(), "token": mcpd.token()}).to_string();
    write(&home.path().join("credentials"), &credentials, 0o600);
    home
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("the folder is writable");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the file is ours");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o7777
}

async fn mcpd() -> FakeMcpd {
    FakeMcpd::start().await.expect("a loopback port")
}

/// An agent that has its socket.
async fn running(home: &Path) -> Process {
    let agent = Process::start(mcprelay(home, &["run"]));
    agent.says("runs").await;
    agent
}

/// Runs a provider through the agent at `socket` until mcpd lists it, and one inference on it.
async fn serves(mcpd: &FakeMcpd, socket: &Path) -> Client {
    let mut client = Client::connect(socket, "mcplocal").await;
    client.push(&[provider("llama", true)]).await;
    let online = |s: &fake_mcpd::Snapshot| s.is_active("llama") && s.sessions.iter().any(|s| s.connected);
    soon("an active row", mcpd.wait_until(online)).await;
    let question = chat("hi");
    let asked = mcpd.infer("llama", &question);
    let answered = async {
        let offer = client.offer().await;
        client.finish_body(&offer, &completion("hello")).await;
    };
    let (reply, ()) = tokio::join!(asked, answered);
    assert_eq!(reply.status, 200, "{reply:?}");
    client
}

// ---- the socket -----------------------------------------------------------------------------------------------------

/// Binds a socket that is free. A program that another test has just begun to start has its lock, too, until it is that program.
fn bind(socket: &Path) -> BoundSocket {
    loop {
        match BoundSocket::bind(socket, 0o600) {
            Err(BindError::Running { pid, .. }) => {
                assert_eq!(pid, Some(std::process::id()), "the lock is ours")
            }
            bound => return bound.expect("it is free"),
        }
    }
}

/// Ends the looking, also where the test fails: it would wait for it for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn the_socket_is_never_for_a_moment_wider_than_0600() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let (over, widest) = (AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let seen = fs::symlink_metadata(&socket).map_or(0, |m| m.permissions().mode() & 0o7777);
                widest.fetch_or(seen, Ordering::Relaxed);
            }
        });
        let _over = Over(&over);
        (0..300).for_each(|_| drop(bind(&socket)));
        // On a busy machine the other thread may not have looked once in so many: the last one stays until it has.
        let _bound = bind(&socket);
        while widest.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
    });
    assert_eq!(widest.into_inner(), 0o600, "seen at least once, and never wider");
}

#[tokio::test]
async fn a_wider_mode_is_set_only_when_asked_for_and_a_new_folder_is_the_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("new/s.sock");
    let _bound = BoundSocket::bind(&socket, 0o660).unwrap();
    assert_eq!(mode(&socket), 0o660);
    assert_eq!(
        (mode(socket.parent().unwrap()), mode(&folder.path().join("new/s.sock.lock"))),
        (0o700, 0o600)
    );
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let socket = home.path().join("mcprelay.sock");
    // A listener that goes leaves its file, as a killed agent does.
    drop(UnixListener::bind(&socket).unwrap());
    let _agent = running(home.path()).await;
    serves(&mcpd, &socket).await;
}

#[tokio::test]
async fn a_socket_that_somebody_else_serves_is_refused() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let socket = home.path().join("mcprelay.sock");
    let theirs = UnixListener::bind(&socket).unwrap();
    let refused = output(home.path(), &["run"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("something else already listens on"), "{}", text(&refused));
    UnixStream::connect(&socket).expect("theirs still listens");
    drop(theirs);
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone_and_the_error_says_what_to_do() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let socket = home.path().join("mcprelay.sock");
    let victim = home.path().join("victim");
    write(&victim, "precious", 0o600);
    let as_file = |path: &Path| write(path, "precious", 0o644);
    let as_link = |path: &Path| symlink(&victim, path).unwrap();
    let as_dangling_link = |path: &Path| symlink(home.path().join("nowhere"), path).unwrap();
    let places: [&dyn Fn(&Path); 3] = [&as_file, &as_link, &as_dangling_link];
    for put in places {
        put(&socket);
        let before = fs::symlink_metadata(&socket).unwrap();
        let refused = output(home.path(), &["run"]).await;
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused);
        assert!(said.contains("is not a socket; it is left alone"), "{said}");
        let after = fs::symlink_metadata(&socket).unwrap();
        assert_eq!((after.file_type(), after.len()), (before.file_type(), before.len()));
        fs::remove_file(&socket).unwrap();
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(!home.path().join("nowhere").exists());
}

#[tokio::test]
async fn a_link_in_the_locks_or_a_files_place_is_never_written_through() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let victim = home.path().join("victim");
    write(&victim, "precious", 0o600);
    symlink(&victim, home.path().join("mcprelay.sock.lock")).unwrap();
    let refused = output(home.path(), &["run"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    fs::remove_file(home.path().join("mcprelay.sock.lock")).unwrap();
    for name in ["provider-session", "mcprelay.tasks"] {
        symlink(&victim, home.path().join(name)).unwrap();
    }
    let _agent = running(home.path()).await;
    serves(&mcpd, &home.path().join("mcprelay.sock")).await;
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[tokio::test]
async fn a_second_agent_is_told_the_first_ones_pid_and_the_first_goes_on() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let first = running(home.path()).await;
    let refused = output(home.path(), &["run"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused);
    assert!(said.contains(&format!("another mcprelay (pid {}) already serves", first.pid())), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    serves(&mcpd, &home.path().join("mcprelay.sock")).await;
}

#[tokio::test]
async fn a_second_agent_in_one_home_is_refused_on_another_socket_too() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let first = running(home.path()).await;
    let other = home.path().join("other.sock");
    let refused = output(home.path(), &["run", "--socket", &other.to_string_lossy()]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused);
    assert!(said.contains(&format!("another mcprelay (pid {}) already runs in", first.pid())), "{said}");
    assert!(fs::symlink_metadata(&other).is_err(), "its socket is gone again");
    serves(&mcpd, &home.path().join("mcprelay.sock")).await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_as_soon_as_its_socket_is_there_ends_well() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let socket = home.path().join("mcprelay.sock");
    for _ in 0..10 {
        let agent = Process::start(mcprelay(home.path(), &["run"]));
        let there = tokio::task::spawn_blocking({
            let socket = socket.clone();
            move || while fs::symlink_metadata(&socket).is_err() {}
        });
        soon("the socket", there).await.expect("it looks");
        assert_eq!(agent.stop().await, Some(0));
        assert!(fs::symlink_metadata(&socket).is_err());
    }
}

#[tokio::test]
async fn a_killed_agents_successor_takes_its_place_and_an_ended_one_leaves_no_socket() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let socket = home.path().join("mcprelay.sock");
    let mut first = running(home.path()).await;
    first.kill();
    assert!(fs::symlink_metadata(&socket).is_ok_and(|m| m.file_type().is_socket()), "left behind");
    let second = running(home.path()).await;
    serves(&mcpd, &socket).await;
    assert_eq!(second.stop().await, Some(0));
    assert!(fs::symlink_metadata(&socket).is_err());
}

// ---- modes ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn wide_modes_are_warned_about_and_nobodys_mode_is_changed() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let (credentials, session) = (home.path().join("credentials"), home.path().join("provider-session"));
    write(&session, "ps-1", 0o644);
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let agent = running(home.path()).await;
    for (path, advice) in
        [(&*credentials, "run chmod 600"), (&*session, "run chmod 600"), (home.path(), "run chmod 700")]
    {
        agent.says(&format!("{} has mode {:04o}", path.display(), mode(path))).await;
        assert!(agent.log().contains(advice));
    }
    assert_eq!((mode(home.path()), mode(&credentials)), (0o777, 0o644));
    let _client = serves(&mcpd, &home.path().join("mcprelay.sock")).await;
    assert_eq!(mode(&session), 0o600, "the agent's own file is written anew");
    let session: serde_json::Value = serde_json::from_slice(&fs::read(&session).unwrap()).unwrap();
    assert_eq!(session["mcpdUrl"], mcpd.url(), "with the mcpd that the id belongs to");
}

#[tokio::test]
async fn a_home_in_order_gives_no_warning() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let agent = running(home.path()).await;
    let _client = serves(&mcpd, &home.path().join("mcprelay.sock")).await;
    for name in ["mcprelay.sock", "mcprelay.sock.lock", "mcprelay.pid", "mcprelay.tasks", "provider-session"]
    {
        assert_eq!(mode(&home.path().join(name)), 0o600, "{name}");
    }
    assert!(!agent.log().contains("WARN"), "{}", agent.log());
}

// ---- disks that take nothing ----------------------------------------------------------------------------------------

/// An agent of which no file may grow beyond `blocks` of 512 bytes, as on a disk that is full: its writes fail in the middle.
fn on_a_full_disk(home: &Path, blocks: u32) -> Process {
    let mut shell = command("sh");
    shell.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" run --home \"$1\""));
    shell.arg(MCPRELAY).arg(home);
    Process::start(shell)
}

#[tokio::test]
async fn on_a_full_disk_the_agent_works_and_says_what_it_could_not_write() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let agent = on_a_full_disk(home.path(), 0);
    agent.says("runs").await;
    let _client = serves(&mcpd, &home.path().join("mcprelay.sock")).await;
    agent.says("after a restart the LLMs get new rows").await;
    agent.says("tasks under way would not be ended after a crash").await;
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".mcprelay-")), "{left:?}");
}

#[tokio::test]
async fn a_full_disk_does_not_cost_the_session_id_that_is_there() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let (socket, session) = (home.path().join("mcprelay.sock"), home.path().join("provider-session"));
    let first = running(home.path()).await;
    drop(serves(&mcpd, &socket).await);
    assert_eq!(first.stop().await, Some(0));
    let before = fs::read(&session).unwrap();
    let second = on_a_full_disk(home.path(), 0);
    second.says("runs").await;
    let _client = serves(&mcpd, &socket).await;
    assert_eq!(fs::read(&session).unwrap(), before);
    assert_eq!(mcpd.state().sessions.len(), 1, "the same session");
}

#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_of_a_line_costs_the_successor_nothing() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let socket = home.path().join("mcprelay.sock");
    let mut first = on_a_full_disk(home.path(), 1);
    first.says("runs").await;
    let client = serves(&mcpd, &socket).await;
    // Ids that fill the one block that a file may have.
    let asked: Vec<_> = (0..40).map(|_| mcpd.infer_stream("llama", &chat("hi")).expect("accepted")).collect();
    first.says("tasks under way would not be ended after a crash").await;
    first.kill();
    drop(client);
    assert_eq!(fs::metadata(home.path().join("mcprelay.tasks")).unwrap().len(), 512, "cut in a line");
    let _second = running(home.path()).await;
    serves(&mcpd, &socket).await;
    drop(asked);
}

/// An agent whose home cannot be written, whoever runs the tests: root is held back by the mount alone.
fn in_a_read_only_home(home: &Path, socket: &Path) -> Process {
    let mut shell = command("unshare");
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\" && exec \"$0\" run --home \"$1\" --socket \"$2\"";
    shell.args(["-r", "-m", "sh", "-c", script, MCPRELAY]).arg(home).arg(socket);
    Process::start(shell)
}

#[tokio::test]
async fn in_a_read_only_home_the_agent_works_and_says_what_it_could_not_write() {
    let mcpd = mcpd().await;
    let (home, elsewhere) = (home_for(&mcpd), tempfile::tempdir().unwrap());
    let socket = elsewhere.path().join("s.sock");
    let agent = in_a_read_only_home(home.path(), &socket);
    agent.says("runs").await;
    let _client = serves(&mcpd, &socket).await;
    agent.says("provider-session: Read-only file system").await;
    agent.says("mcprelay.tasks: Read-only file system").await;
}

#[tokio::test]
async fn a_socket_that_cannot_be_made_is_an_error_of_one_sentence() {
    let mcpd = mcpd().await;
    let home = home_for(&mcpd);
    let mut agent = in_a_read_only_home(home.path(), &home.path().join("mcprelay.sock"));
    agent.says("cannot open the lock").await;
    soon("its end", async {
        while agent.is_alive() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(agent.log().trim_end().lines().count(), 1, "{}", agent.log());
}
