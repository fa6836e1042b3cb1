//! The pool against servers that are played stream by stream and byte by byte.

mod http1;
mod http2;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

/// A server's port, and the pool for it.
struct Played {
    listener: TcpListener,
    pool: Arc<ClientPool>,
    url: Url,
}

impl Played {
    async fn new(version: Version, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}/part", listener.local_addr().unwrap()).parse().unwrap();
        let pool = ClientPool::new(Trust::default(), url.clone(), most).unwrap();
        // As if an answer had said so: over TLS the first one does.
        pool.state().version = version;
        pool.clear();
        Self { listener, pool: Arc::new(pool), url }
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    async fn post(&self) -> Result<u16, Unanswered> {
        self.post_bytes(Bytes::from_static(b"a part")).await
    }

    async fn post_bytes(&self, body: Bytes) -> Result<u16, Unanswered> {
        let headers = HeaderMap::new();
        let post = Post { url: &self.url, headers: &headers, content: Content::Whole(&body, LIMIT) };
        let response = self.pool.post(post).await?;
        let status = response.status().as_u16();
        let _ = response.bytes().await;
        Ok(status)
    }

    fn idle(&self) -> Duration {
        self.pool.state().idle_limit()
    }
}
