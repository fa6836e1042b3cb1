//! Servers that answer a request which they have not read, or not to its end.

use std::{io::Write as _, net, thread};

use super::*;

const REFUSAL: &str =
    "HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 8\r\n\r\ntoo much";

/// Reads the first bytes of a request, refuses it, and closes with the rest unread, which resets the connection.
fn refuse_and_reset(listener: &net::TcpListener) {
    let (mut connection, _) = listener.accept().unwrap();
    std::io::Read::read(&mut connection, &mut [0; 64]).unwrap();
    connection.write_all(REFUSAL.as_bytes()).unwrap();
}

fn reset(connection: TcpStream) {
    connection.set_zero_linger().unwrap();
}

#[tokio::test]
async fn a_refusal_is_heard_where_the_rest_of_a_large_request_can_no_longer_be_written() {
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = client(&url.parse().unwrap(), TIMES).unwrap();
    let rounds = 16;
    // A thread, because only beside the client can a server refuse between two of its writes.
    let server = thread::spawn(move || (0..rounds).for_each(|_| refuse_and_reset(&listener)));
    for _ in 0..rounds {
        let body = Bytes::from(vec![b'x'; 16 << 20]);
        let answer = client.post("/".parse().unwrap(), HeaderMap::new(), body).await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "too much");
        assert_eq!(client.pool.len(), 0);
    }
    server.join().unwrap();
}

#[tokio::test]
async fn what_a_server_said_before_it_reset_the_connection_is_heard() {
    let server = Played::new().await;
    let connection = server.used().await;
    // Nothing is awaited in between, so the client learns of it by writing.
    assert_eq!(connection.try_write(REFUSAL.as_bytes()).unwrap(), REFUSAL.len());
    reset(connection);
    assert_eq!(server.ask().await.unwrap(), "too much");
    assert_eq!(server.client.pool.len(), 0);
}

#[tokio::test]
async fn a_connection_that_is_reset_without_a_word_is_lost() {
    let server = Played::new().await;
    reset(server.used().await);
    let error = server.post().await.unwrap_err();
    assert!(matches!(error, Error::Lost { kept: true, .. }), "{error:?}");
}
