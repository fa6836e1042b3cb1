//! An mcpd that is up to no good: a server that answers every request as the test says, byte for byte.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A server on a loopback port until it is dropped.
pub struct Hostile {
    pub url: String,
    /// The heads of all requests so far.
    pub asked: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Hostile {
    /// Sends `head` as the begin of every answer, and then `more` again and again for as long as somebody reads, with `pause` between.
    pub async fn start(head: &'static str, more: &'static [u8], pause: std::time::Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heads = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, head, more, pause, Arc::clone(&heads)));
            }
        });
        Self { url, asked, serving }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(
    mut stream: TcpStream,
    head: &str,
    more: &[u8],
    pause: std::time::Duration,
    heads: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    heads.lock().expect("nobody panics here").push(String::from_utf8_lossy(&request).into_owned());
    if request.starts_with(b"GET /v1/models ") {
        // As a provider it seems well, so that it is asked for more.
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    }
    stream.write_all(head.as_bytes()).await?;
    loop {
        tokio::time::sleep(pause).await;
        stream.write_all(more).await?;
    }
}
