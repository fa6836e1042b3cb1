//! A proxy for CONNECT, as companies put them on the way out.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// The proxy. Whatever name it is asked for, it connects to one address.
pub struct ConnectProxy {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    accepting: AbortHandle,
}

impl ConnectProxy {
    /// A proxy that wants this `Proxy-Authorization`, if any, and answers 407 without it.
    pub async fn start(target: SocketAddr, authorization: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("it is bound");
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&heads);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tunnel(stream, target, authorization, Arc::clone(&seen)));
            }
        });
        Self { address, heads, accepting: accepting.abort_handle() }
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn tunnel(
    mut client: TcpStream,
    target: SocketAddr,
    authorization: Option<&str>,
    seen: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let is_ours = |(name, value): (&str, &str), wanted: &str| {
        name.eq_ignore_ascii_case("proxy-authorization") && value == wanted
    };
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let allowed = authorization.is_none_or(|wanted| fields.any(|field| is_ours(field, wanted)));
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(head);
    if !allowed {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
        return client.write_all(refusal).await;
    }
    let mut mcpd = TcpStream::connect(target).await?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut mcpd).await.map(drop)
}
