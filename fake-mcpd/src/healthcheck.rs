//! `fake-mcpd healthcheck`: whether one serves, for the health check of a container that has no other program in it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;

/// Longest wait for each of connection and answer; container engines ask again by themselves.
const PATIENCE: Duration = Duration::from_secs(2);
/// Any call that needs no token would do.
const REQUEST: &[u8] = b"GET /_fake/verdict HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
const HEALTHY: &[u8] = b"HTTP/1.1 200";

/// Arguments of `healthcheck`.
#[derive(Debug, Args)]
pub(crate) struct HealthcheckArgs {
    /// Where the one to ask listens
    #[arg(long, env = "FAKE_MCPD_LISTEN", value_name = "ADDRESS", value_parser = super::address)]
    listen: SocketAddr,
}

/// Fails with what is wrong.
pub(crate) fn check(args: &HealthcheckArgs) -> Result<(), String> {
    let address = reachable(args.listen);
    match ask(address) {
        Ok(begin) if begin == HEALTHY => Ok(()),
        Ok(begin) => Err(format!("{address} answers {:?}", String::from_utf8_lossy(&begin))),
        Err(error) => Err(format!("{address} does not answer: {error}")),
    }
}

fn ask(address: SocketAddr) -> io::Result<[u8; HEALTHY.len()]> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut begin = [0; HEALTHY.len()];
    stream.read_exact(&mut begin)?;
    Ok(begin)
}

/// An address that means every interface is reached over loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
