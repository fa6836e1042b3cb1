//! The socket: one agent per home, a mode that is right from the first moment, and no removal of files that are not the agent's.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::stat::{Mode, umask};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, codegen::http, service::InterceptorLayer, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::util::MapRequestLayer;
use tracing::warn;

use super::{
    Event,
    connections::connections,
    large::Turns,
    service::{Service, StatusFeed, UidGuard},
};
use crate::pb::{FILE_DESCRIPTOR_SET, bridge_service_server::BridgeServiceServer};

/// HTTP/2 keep-alive: it detects a blocked Node event loop, which the state of the socket does not show.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the answer to a keep-alive may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Flow-control window of one stream, in bytes: a session is one stream, and a burst of its chunks must not stall.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow-control window of one connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// The lock of a home. No socket's lock can have this name.
pub const HOME_LOCK: &str = "mcprelay.pid";
/// Most streams on one connection: a session, a few watchers and calls.
const MAX_STREAMS: u32 = 64;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent has this home.
    #[error("another mcprelay{} already serves {}; stop it first, or use another --home or --socket", pid_text(.pid), .socket.display())]
    Running {
        /// The other one's process id, if it can be read.
        pid: Option<u32>,
        /// The socket it serves.
        socket: PathBuf,
    },
    /// Another agent has this home, on another socket.
    #[error("another mcprelay{} already runs in {}; stop it first, or use another --home", pid_text(.pid), .home.display())]
    HomeTaken {
        /// The other one's process id, where it can be read.
        pid: Option<u32>,
        /// The home of both.
        home: PathBuf,
    },
    /// Something listens on the socket without holding the lock.
    #[error("something else already listens on {}; use another --socket", .0.display())]
    Live(PathBuf),
    /// There is something that is not a socket.
    #[error("{} is not a socket; it is left alone: move it away or use another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The file system says no.
    #[error("cannot {what} {}: {error}; see who may write there, or use another --socket", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

fn pid_text(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// A bound socket with the lock that makes it the only one; both go when it is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
    _lock: File,
}

impl BoundSocket {
    /// Binds `path` with exactly `mode` under the lock beside it. A stale socket is replaced; anything else there is an error.
    ///
    /// # Errors
    /// If the folder, the lock or the socket cannot be made, another agent serves the path, or something else is there.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        let lock = take_lock(path)?;
        clear_stale(path)?;
        let io_error = |what| move |error| BindError::Io { what, path: path.to_owned(), error };
        let former = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(former);
        let listener = bound.map_err(io_error("bind"))?;
        if mode != 0o600 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .map_err(io_error("set the mode of"))?;
        }
        Ok(Self { listener: Some(listener), path: path.to_owned(), _lock: lock })
    }

    /// Serves a listener that somebody else bound (systemd's socket activation); its file is left to its owner.
    ///
    /// # Errors
    /// If the lock beside `path` cannot be made, or another agent holds it.
    pub fn inherited(listener: UnixListener, path: &Path) -> Result<Self, BindError> {
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        Ok(Self { listener: Some(listener), path: PathBuf::new(), _lock: take_lock(path)? })
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // It does not matter if it is gone already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), BindError> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| BindError::Io { what: "create the folder", path: folder.to_owned(), error })
}

/// Takes the lock of a home, whose sticky session and tasks file are for one agent, whatever its socket. A home that is not writable has
/// neither and needs no lock.
///
/// # Errors
/// If another agent holds the lock.
pub fn lock_home(home: &Path) -> Result<Option<File>, BindError> {
    match lock_file(&home.join(HOME_LOCK)) {
        Ok(lock) => Ok(Some(lock)),
        Err(NoLock::Held(pid)) => Err(BindError::HomeTaken { pid, home: home.to_owned() }),
        Err(NoLock::Io(what, error)) => {
            warn!(
                "cannot {what} {}: {error}; a second agent in this home is not noticed",
                home.join(HOME_LOCK).display()
            );
            Ok(None)
        }
    }
}

/// Takes the lock `<socket>.lock`.
fn take_lock(socket: &Path) -> Result<File, BindError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    lock_file(&path).map_err(|why| match why {
        NoLock::Held(pid) => BindError::Running { pid, socket: socket.to_owned() },
        NoLock::Io(what, error) => BindError::Io { what, path, error },
    })
}

/// Why a lock was not taken.
enum NoLock {
    /// Another process has it; its process id, if that can be read.
    Held(Option<u32>),
    /// What was tried, and what the system said.
    Io(&'static str, io::Error),
}

/// Takes a lock and writes the process id of its holder into the file.
fn lock_file(path: &Path) -> Result<File, NoLock> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path);
    let mut file = open.map_err(|error| NoLock::Io("open the lock", error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(NoLock::Held(pid));
        }
        Err(fs::TryLockError::Error(error)) => return Err(NoLock::Io("lock", error)),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        // A full disk must not keep the agent from starting: without the id, only the message of a second agent is less helpful.
        warn!(%error, "cannot write the process id into {}", path.display());
    }
    Ok(file)
}

/// Removes a socket on which nobody listens. Only called under the lock.
fn clear_stale(path: &Path) -> Result<(), BindError> {
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::Io { what: "look at", path: path.to_owned(), error }),
        Ok(meta) => meta.file_type(),
    };
    if !kind.is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(BindError::Live(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| BindError::Io { what: "remove the stale socket", path: path.to_owned(), error }),
        Err(error) => Err(BindError::Io { what: "probe the socket", path: path.to_owned(), error }),
    }
}

/// What the server needs besides its socket.
#[derive(Debug)]
pub struct Serve {
    /// Where events are sent.
    pub events: mpsc::Sender<Event>,
    /// The status as the agent publishes it.
    pub status: StatusFeed,
    /// Uids that may connect besides the agent's own and root's.
    pub allow_uid: Vec<u32>,
    /// The largest message taken, in bytes.
    pub max_message_bytes: usize,
    /// Told `false` when a drain begins: the health service says NOT_SERVING from then on.
    pub serving: tokio::sync::watch::Receiver<bool>,
}

/// Largest message of the services that only answer questions, in bytes: a name.
const MAX_QUESTION_BYTES: usize = 4 << 10;

/// Why reflection can always be built.
const COMPILED_IN: &str = "the descriptors were compiled with this program";

/// Serves the bridge until `shutdown`, which also ends every open stream, so that this returns in bounded time.
///
/// # Errors
/// If the server fails.
pub async fn serve(
    mut socket: BoundSocket,
    serve: Serve,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let Some(listener) = socket.listener.take() else { return Ok(()) };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<BridgeServiceServer<Service>>().await;
    let follow = tokio::spawn(follow_serving(health, serve.serving));
    let service = Service::new(serve.events, serve.status, shutdown.clone());
    let bridge = BridgeServiceServer::new(service)
        .max_decoding_message_size(serve.max_message_bytes)
        .max_encoding_message_size(usize::MAX);
    let guard = UidGuard::new(&serve.allow_uid);
    let (turns, connections) = (Turns::default(), connections(listener, guard.clone()));
    let in_turn = move |request: http::Request<Body>| request.map(|body| Body::new(turns.take(body)));
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .layer(InterceptorLayer::new(guard))
        .layer(MapRequestLayer::new(in_turn))
        .add_service(health_service.max_decoding_message_size(MAX_QUESTION_BYTES))
        .add_service(
            reflection().build_v1().expect(COMPILED_IN).max_decoding_message_size(MAX_QUESTION_BYTES),
        )
        // grpcurl 1.8, which package managers still ship, knows only this version.
        .add_service(
            reflection().build_v1alpha().expect(COMPILED_IN).max_decoding_message_size(MAX_QUESTION_BYTES),
        )
        .add_service(bridge)
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await;
    follow.abort();
    served
}

/// Reflection of everything that is served, so that grpcurl and its like need no proto files.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn follow_serving(health: HealthReporter, mut serving: tokio::sync::watch::Receiver<bool>) {
    while serving.changed().await.is_ok() {
        let status =
            if *serving.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status("", status).await;
        health.set_service_status("mcprelay.bridge.v1.BridgeService", status).await;
    }
}
