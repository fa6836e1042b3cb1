//! Clients against peers that went dead.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::Instant,
};

use super::*;

/// An HTTP/2 server's empty SETTINGS, and its acknowledgement of the client's.
const GREETING: [u8; 18] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
/// The head of an answer with status 200 on the first stream, whose body is to come.
const HEAD: [u8; 10] = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];

/// Says `words` on one connection and is deaf from then on, as a peer behind a cable that was pulled.
async fn deaf_after(words: Vec<u8>) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(&words).await?;
        while stream.read(&mut [0; 1024]).await? > 0 {}
        std::io::Result::Ok(())
    });
    url
}

fn http2(url: &Url, idle: Duration) -> Client {
    let connect_timeout = Duration::from_secs(10);
    let (version, trust) = (Version::Http2, &Trust::default());
    client(url, ClientOptions { connect_timeout, idle, version, trust }).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_dead_http2_connection_is_given_up_however_busy_it_is() {
    let url = deaf_after(GREETING.to_vec()).await;
    let begun = Instant::now();
    let patient = http2(&url, Duration::from_secs(4)).post(url).timeout(Duration::from_secs(600));
    patient.send().await.expect_err("nobody answers");
    let took = begun.elapsed();
    assert!(took <= HTTP2_PING + HTTP2_PING_TIMEOUT + Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_http2_connection_with_one_silent_stream_is_given_up_although_its_client_keeps_none() {
    let url = deaf_after([&GREETING[..], &HEAD].concat()).await;
    let mut answer = http2(&url, Duration::ZERO).get(url).send().await.expect("a head");
    let begun = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(600), answer.chunk()).await.expect("it is noticed");
    ended.expect_err("the body never ended");
    let took = begun.elapsed();
    assert!(took <= HTTP2_PING + HTTP2_PING_TIMEOUT + Duration::from_secs(1), "{took:?}");
}
