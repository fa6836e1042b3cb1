//! `rathole`, a reverse tunnel that people use, if it is installed.

use std::{
    env, fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    process::Command,
    time::{Instant, sleep},
};

use crate::process::Running;

/// How long both ends may take to find each other.
const READY: Duration = Duration::from_secs(10);
/// How often the far end is looked at until then.
const LOOK: Duration = Duration::from_millis(5);

/// Where `rathole` is, if it is installed.
pub fn installed() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join("rathole")).find(|program| program.is_file())
}

/// The end beside the provider, the far end, and the address that callers connect to.
pub async fn start(
    program: &Path,
    home: &Path,
    provider: &str,
) -> Result<(Running, Running, String), String> {
    let no_port = |error: io::Error| format!("there is no free port: {error}");
    let (control, service) = (free_address().map_err(no_port)?, free_address().map_err(no_port)?);
    let config = home.join("rathole.toml");
    // `nodelay` is its default for both.
    let text = format!(
        r#"[server]
bind_addr = "{control}"
default_token = "bench"
[server.services.bench]
bind_addr = "{service}"
[client]
remote_addr = "{control}"
default_token = "bench"
[client.services.bench]
local_addr = "{provider}"
"#
    );
    fs::write(&config, text).map_err(|error| format!("{}: {error}", config.display()))?;
    let end = |role: &str| {
        let mut command = Command::new(program);
        Running::start(command.arg(role).arg(&config).stdout(Stdio::null()).stderr(Stdio::null()))
    };
    let far = end("--server")?;
    let near = end("--client")?;
    let began = Instant::now();
    // The far end listens for callers only once the near end is there.
    while TcpStream::connect(&service).await.is_err() {
        if began.elapsed() > READY {
            return Err("rathole's ends have not found each other after 10 s".to_owned());
        }
        sleep(LOOK).await;
    }
    Ok((near, far, service))
}

/// An address that is free now; rathole cannot be asked to choose one.
fn free_address() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
