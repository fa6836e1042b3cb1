//! HTTP/2: what a server says that it has not processed, and requests that wait for others.

use axum::http;
use h2::{Reason, RecvStream, server};
use tokio::time::Instant;

use super::*;

type Connection = server::Connection<TcpStream, Bytes>;
type Respond = server::SendResponse<Bytes>;

async fn handshake(stream: TcpStream, streams: u32) -> Connection {
    server::Builder::new().max_concurrent_streams(streams).handshake(stream).await.unwrap()
}

async fn read_to_its_end(mut body: RecvStream) {
    while body.data().await.is_some() {}
}

fn answer(respond: &mut Respond, status: u16) {
    let response = http::Response::builder().status(status).body(()).unwrap();
    respond.send_response(response, true).unwrap();
}

/// Answers every request on the connection.
async fn serve(mut connection: Connection, status: u16) {
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        answer(&mut respond, status);
    }
}

/// Takes one request whole, and goes away in the face of all others.
async fn goes_away_after_one(stream: TcpStream, reason: Reason) {
    let mut connection = handshake(stream, 1).await;
    let (request, _respond) = connection.accept().await.unwrap().unwrap();
    tokio::select! {
        () = read_to_its_end(request.into_body()) => {}
        _ = connection.accept() => panic!("one stream at a time"),
    }
    connection.abrupt_shutdown(reason);
    let _ = std::future::poll_fn(|cx| connection.poll_closed(cx)).await;
}

#[tokio::test]
async fn a_post_that_never_had_its_turn_goes_to_another_connection_and_the_one_before_it_may_be_processed() {
    for reason in [Reason::NO_ERROR, Reason::ENHANCE_YOUR_CALM, Reason::INTERNAL_ERROR] {
        let server = Played::new(Version::Http2, 1).await;
        let posts = async { tokio::join!(server.post(), server.post()) };
        let served = async {
            goes_away_after_one(server.accept().await, reason).await;
            let connection = handshake(server.accept().await, 1).await;
            tokio::spawn(serve(connection, 200));
        };
        let ((taken, waiting), ()) = tokio::join!(posts, served);
        assert!(taken.unwrap_err().maybe_processed, "{reason}");
        assert_eq!(waiting.unwrap(), 200, "{reason}");
    }
}

#[tokio::test]
async fn a_post_that_the_server_refuses_again_and_again_did_nothing() {
    let server = Played::new(Version::Http2, 8).await;
    let refusing = async {
        let mut connection = handshake(server.accept().await, 8).await;
        let mut refused = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(Reason::REFUSED_STREAM);
            refused += 1;
        }
        refused
    };
    let unanswered = async {
        let unanswered = server.post().await.unwrap_err();
        server.pool.clear();
        unanswered
    };
    let (unanswered, refused) = tokio::join!(unanswered, refusing);
    assert!(!unanswered.maybe_processed, "{unanswered:?}");
    assert_eq!(refused, 1 + REPEATS);
}

#[tokio::test]
async fn a_post_that_the_server_resets_may_be_processed() {
    let server = Played::new(Version::Http2, 8).await;
    let (unanswered, ()) = tokio::join!(server.post(), async {
        let mut connection = handshake(server.accept().await, 8).await;
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        tokio::select! {
            () = read_to_its_end(request.into_body()) => respond.send_reset(Reason::CANCEL),
            _ = connection.accept() => panic!("one post"),
        }
        tokio::spawn(serve(connection, 200));
    });
    assert!(unanswered.unwrap_err().maybe_processed);
}

#[tokio::test(start_paused = true)]
async fn a_post_that_finds_no_room_beside_slow_ones_is_answered_on_another_connection_soon() {
    let server = Played::new(Version::Http2, 8).await;
    let begun = Instant::now();
    let slow = server.post();
    let served = async {
        let mut full = handshake(server.accept().await, 1).await;
        let (request, held) = full.accept().await.unwrap().unwrap();
        tokio::spawn(async move { full.accept().await.is_none() });
        read_to_its_end(request.into_body()).await;
        let innocent = async {
            assert_eq!(server.post().await.unwrap(), 200);
            begun.elapsed()
        };
        let other = async {
            let connection = handshake(server.accept().await, 1).await;
            tokio::spawn(serve(connection, 200));
        };
        let (took, ()) = tokio::join!(innocent, other);
        assert!(took < Duration::from_millis(100), "{took:?}");
        // What was learnt saves the wait.
        let begun = Instant::now();
        assert_eq!(server.post().await.unwrap(), 200);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let mut held = held;
        answer(&mut held, 200);
    };
    assert_eq!(tokio::join!(slow, served).0.unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_takes_no_more_bytes_is_given_up_and_what_it_did_not_take_whole_was_not_processed()
{
    let server = Played::new(Version::Http2, 8).await;
    let wedged = async {
        let mut connection = handshake(server.accept().await, 8).await;
        // Its window is never returned, and pings are answered.
        let (_request, _respond) = connection.accept().await.unwrap().unwrap();
        connection.accept().await;
    };
    let large = server.post_bytes(Bytes::from(vec![b'x'; 1 << 20]));
    let unanswered = tokio::select! {
        answer = large => answer.unwrap_err(),
        () = wedged => panic!("the connection was closed first"),
    };
    assert!(matches!(unanswered.why, NoAnswer::Late(_)) && !unanswered.maybe_processed, "{unanswered:?}");
    assert!(server.pool.state().members.is_empty());
}

#[tokio::test]
async fn many_posts_at_once_make_one_connection() {
    let server = Played::new(Version::Http2, 8).await;
    let posts = futures_util::future::join_all((0..64).map(|_| server.post()));
    let served = async {
        let connection = handshake(server.accept().await, 128).await;
        tokio::spawn(serve(connection, 200));
    };
    let (answers, ()) = tokio::join!(posts, served);
    assert!(answers.into_iter().all(|answer| answer.is_ok_and(|status| status == 200)));
    let further = tokio::time::timeout(Duration::from_millis(10), server.accept()).await;
    assert!(further.is_err(), "no second connection");
}

#[tokio::test]
async fn what_belongs_elsewhere_is_tried_on_two_other_connections() {
    let server = Played::new(Version::Http2, 1).await;
    let served = async {
        for _ in 0..3 {
            let connection = handshake(server.accept().await, 8).await;
            tokio::spawn(serve(connection, 421));
        }
    };
    let (status, ()) = tokio::join!(server.post(), served);
    assert_eq!(status.unwrap(), 421, "the third is told");
}

#[tokio::test]
async fn a_server_that_no_longer_speaks_http2_is_asked_again_what_it_speaks() {
    let server = Played::new(Version::Http2, 8).await;
    let served = async {
        let mut old = server.accept().await;
        old.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let _ = old.read(&mut [0; 1024]).await;
        drop(old);
        let mut connection = server.accept().await;
        let _ = connection.read(&mut [0; 1024]).await;
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        connection
    };
    let asked = async {
        let first = server.post().await;
        if first.is_ok() { first } else { server.post().await }
    };
    let (status, _connection) = tokio::join!(asked, served);
    assert_eq!(status.unwrap(), 200);
}
