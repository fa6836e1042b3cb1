//! A proxy for CONNECT, as companies put them on the way out.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

type Heads = Arc<Mutex<Vec<String>>>;

/// The proxy. Whatever name it is asked for, it connects to one address.
pub struct ConnectProxy {
    pub address: SocketAddr,
    heads: Heads,
    accepting: AbortHandle,
}

impl ConnectProxy {
    /// A proxy that wants this `Proxy-Authorization`, if any, and answers 407 without it.
    pub async fn start(target: SocketAddr, authorization: Option<&'static str>) -> Self {
        Self::accepting(move |stream, seen| tunnel(stream, target, authorization, seen)).await
    }

    /// A proxy that answers everything with this status.
    pub async fn refusing(status: u16) -> Self {
        Self::accepting(move |stream, seen| refuse(stream, status, seen)).await
    }

    async fn accepting<W>(serve: impl Fn(TcpStream, Heads) -> W + Send + 'static) -> Self
    where
        W: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("it is bound");
        let heads = Heads::default();
        let seen = Arc::clone(&heads);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen)));
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

async fn head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn refuse(mut client: TcpStream, status: u16, seen: Heads) -> io::Result<()> {
    let head = head(&mut client).await?;
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(head);
    client.write_all(format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").as_bytes()).await
}

async fn tunnel(
    mut client: TcpStream,
    target: SocketAddr,
    authorization: Option<&str>,
    seen: Heads,
) -> io::Result<()> {
    let head = head(&mut client).await?;
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
