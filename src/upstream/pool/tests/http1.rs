//! HTTP/1.1: connections that the server closes, and refusals of what it has not read.

use std::{io::Write as _, net, thread};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
const REFUSAL: &[u8] =
    b"HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 8\r\n\r\ntoo much";

async fn read_request(connection: &mut TcpStream) {
    let mut read = Vec::new();
    while !read.ends_with(b"a part") {
        assert!(connection.read_buf(&mut read).await.unwrap() > 0, "a whole request");
    }
}

async fn answer(mut connection: TcpStream) -> TcpStream {
    read_request(&mut connection).await;
    connection.write_all(OK).await.unwrap();
    connection
}

/// One request that is lost on the connection which the one before it left behind, or on a new one.
async fn loses_one(server: &Played, connection: Option<TcpStream>) {
    let (lost, ()) = tokio::join!(server.post(), async {
        let mut connection = match connection {
            Some(connection) => connection,
            None => server.accept().await,
        };
        read_request(&mut connection).await;
    });
    assert!(lost.unwrap_err().maybe_processed);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_again_until_a_loss_teaches_that_the_server_closes_soon() {
    let server = Played::new(Version::Negotiated, 8).await;
    let (status, connection) = tokio::join!(server.post(), async { answer(server.accept().await).await });
    assert_eq!(status.unwrap(), 200);
    let (status, connection) = tokio::join!(server.post(), answer(connection));
    assert_eq!(status.unwrap(), 200);
    assert_eq!(server.idle(), IDLE_HTTP1);
    loses_one(&server, Some(connection)).await;
    assert_eq!(server.idle(), Duration::from_millis(250));
    loses_one(&server, None).await;
    assert_eq!(server.idle(), Duration::ZERO, "it closes behind each answer");
    let both = async { (answer(server.accept().await).await, answer(server.accept().await).await) };
    let posts = async { (server.post().await.unwrap(), server.post().await.unwrap()) };
    assert_eq!(tokio::join!(posts, both).0, (200, 200), "each has a connection of its own");
}

#[tokio::test(start_paused = true)]
async fn a_loss_long_after_the_request_is_no_closing_of_an_idle_connection() {
    let server = Played::new(Version::Negotiated, 8).await;
    let (lost, ()) = tokio::join!(server.post(), async {
        let mut connection = server.accept().await;
        read_request(&mut connection).await;
        tokio::time::sleep(2 * SOON).await;
    });
    assert!(lost.unwrap_err().maybe_processed);
    assert_eq!(server.idle(), IDLE_HTTP1);
}

#[tokio::test]
async fn nobody_at_the_address_is_said_once_and_nothing_was_processed() {
    let mut server = Played::new(Version::Negotiated, 8).await;
    // The port is taken by a socket that does not listen.
    server.listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unanswered = server.post().await.unwrap_err();
    assert!(!unanswered.maybe_processed);
    let why = unanswered.why.to_string();
    assert!(why.contains("refused") && !why.contains("127.0.0.1"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_in_time_takes_its_client_with_it() {
    let server = Played::new(Version::Negotiated, 8).await;
    let (late, _silent) = tokio::join!(server.post(), server.accept());
    let late = late.unwrap_err();
    assert!(late.maybe_processed && matches!(late.why, NoAnswer::Late(_)), "{late:?}");
    assert!(server.pool.state().members.is_empty());
}

/// Reads the first bytes of a request, refuses it, and closes with the rest unread, which resets the connection.
fn refuse_and_reset(listener: &net::TcpListener) -> std::io::Result<()> {
    let (mut connection, _) = listener.accept()?;
    std::io::Read::read(&mut connection, &mut [0; 64])?;
    connection.write_all(REFUSAL)
}

#[tokio::test]
async fn a_refusal_is_heard_where_the_rest_of_a_large_request_can_no_longer_be_written() {
    let server = Played::new(Version::Negotiated, 8).await;
    let (rounds, listener) = (16, server.listener.into_std().unwrap());
    listener.set_nonblocking(false).unwrap();
    // A thread, because only beside the client can a server refuse between two of its writes.
    thread::spawn(move || while refuse_and_reset(&listener).is_ok() {});
    let (headers, body) = (HeaderMap::new(), Bytes::from(vec![b'x'; 16 << 20]));
    for _ in 0..rounds {
        let post = Post { url: &server.url, headers: &headers, content: Content::Whole(&body, LIMIT) };
        let refused = server.pool.post(post).await.unwrap();
        assert_eq!(refused.status(), 413);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_idle_for_longer_than_servers_keep_it_is_not_used_again() {
    let server = Played::new(Version::Negotiated, 8).await;
    let (status, first) = tokio::join!(server.post(), async { answer(server.accept().await).await });
    assert_eq!(status.unwrap(), 200);
    tokio::time::sleep(IDLE_HTTP1 - Duration::from_millis(500)).await;
    let (status, _first) = tokio::join!(server.post(), answer(first));
    assert_eq!(status.unwrap(), 200, "on the same connection");
    tokio::time::sleep(IDLE_HTTP1 + Duration::from_secs(1)).await;
    let (status, _second) = tokio::join!(server.post(), async { answer(server.accept().await).await });
    assert_eq!(status.unwrap(), 200);
}
