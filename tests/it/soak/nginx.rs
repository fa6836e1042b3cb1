//! A real nginx on the way to mcpd, with TLS and HTTP/2 and as the guide sets it up.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::support::process::{Process, command, until};

/// The guide whose blocks it runs with.
const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/behind-an-ingress.md");

/// nginx in front of a server.
pub struct Nginx {
    process: Process,
    folder: TempDir,
    port: u16,
}

impl Nginx {
    /// Starts it in front of `backend`.
    pub async fn start(backend: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a loopback port");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        // The certificate is its own authority.
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("writable");
        write("cert.pem", certified.cert.pem());
        write("key.pem", certified.signing_key.serialize_pem());
        write("config", configuration(folder.path(), port, backend));
        let mut nginx = command("nginx");
        nginx.args(["-e", "stderr", "-c"]).arg(folder.path().join("config"));
        let process = Process::start(nginx);
        until("nginx to listen", async || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok())
            .await;
        Self { process, folder, port }
    }

    /// Where the agent finds mcpd.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The authority of its certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// `nginx -s reload`.
    pub fn reload(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let told = command("kill").arg(signal).arg(self.process.pid().to_string()).status();
        assert!(told.is_ok_and(|status| status.success()), "nginx runs:\n{}", self.process.log());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Killed at once, it would leave its workers behind.
        self.signal("-TERM");
        while self.process.is_alive() {
            std::thread::yield_now();
        }
    }
}

/// The guide's two blocks, and around them where this machine keeps things.
fn configuration(folder: &Path, port: u16, backend: SocketAddr) -> String {
    let guide = fs::read_to_string(GUIDE).expect("the guide is there");
    let blocks: Vec<_> =
        guide.split("```nginx\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [main, http] = blocks[..] else { panic!("the guide shows two blocks for nginx") };
    let here = folder.display();
    let http = http
        .replace("listen 443", &format!("listen 127.0.0.1:{port}"))
        .replace("127.0.0.1:8080", &backend.to_string())
        .replace("/etc/ssl/mcpd", &here.to_string())
        .replace("mcpd.example.com", "localhost");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {here}/{kind};\n"))
        .concat();
    format!(
        "user root;\ndaemon off;\npid {here}/pid;\nevents {{}}\n{main}http {{\naccess_log off;\n{temporary}{http}}}\n"
    )
}
