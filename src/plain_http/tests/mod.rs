//! The client against servers that are played byte by byte.

mod connect;
mod early;
mod idle;

use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use super::*;

const IDLE: Duration = Duration::from_secs(4);
const TIMES: Times = Times { connect: Duration::from_secs(10), idle: IDLE };
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BODY: &[u8] = b"the body";

/// A server that a test plays, and the client for it.
struct Played {
    listener: TcpListener,
    client: PlainClient,
}

impl Played {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        Self { listener, client: client(&url.parse().unwrap(), TIMES).unwrap() }
    }

    fn post(&self) -> impl Future<Output = Result<Response<Body>, Error>> + use<> {
        let client = self.client.clone();
        async move { client.post("/a?b=c".parse().unwrap(), HeaderMap::new(), BODY.into()).await }
    }

    /// A request whose answer is read to its end.
    async fn ask(&self) -> Result<Bytes, String> {
        let body = self.post().await.map_err(|error| error.to_string())?.into_body();
        body.collect().await.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())
    }

    async fn accept(&self) -> TcpStream {
        timeout(IDLE, self.listener.accept()).await.expect("a connection").unwrap().0
    }

    /// Whether the client has made a connection that nobody has taken yet.
    async fn has_new_connection(&self) -> bool {
        noticed().await;
        self.listener.accept().now_or_never().is_some()
    }

    /// One exchange on a new connection, which is idle then.
    async fn used(&self) -> TcpStream {
        let (asked, mut connection) =
            tokio::join!(self.ask(), async { answered(self.accept().await, OK).await });
        assert_eq!(asked.unwrap(), "ok");
        assert!(is_silent(&mut connection), "nothing more is said on it");
        connection
    }

    /// An exchange on `connection`.
    async fn again(&self, connection: TcpStream) -> TcpStream {
        let (asked, connection) = tokio::join!(self.ask(), answered(connection, OK));
        assert_eq!(asked.unwrap(), "ok");
        connection
    }
}

/// Reads one request and answers it.
async fn answered(mut connection: TcpStream, answer: &str) -> TcpStream {
    read_request(&mut connection).await;
    connection.write_all(answer.as_bytes()).await.unwrap();
    connection
}

async fn read_request(connection: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(BODY) {
        assert!(connection.read_buf(&mut read).await.unwrap() > 0, "a whole request");
    }
    String::from_utf8(read).unwrap()
}

fn is_silent(connection: &mut TcpStream) -> bool {
    connection.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Until the client has closed its end.
async fn closed(mut connection: TcpStream) {
    let mut rest = Vec::new();
    let read = timeout(2 * IDLE, connection.read_to_end(&mut rest));
    let _ = read.await.expect("it is closed");
}

/// The URL of a server that takes no further connection, since nobody has accepted the first ones.
async fn deaf() -> (String, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    (format!("http://{address}/"), (listener, held))
}

/// Until the runtime knows what came on the client's idle connections: what comes over loopback is there when it has been sent.
async fn noticed() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_has_the_form_of_its_origin_and_the_host_once() {
    let server = Played::new().await;
    let (answer, request) = tokio::join!(server.ask(), async {
        let mut connection = server.accept().await;
        let request = read_request(&mut connection).await;
        connection.write_all(OK.as_bytes()).await.unwrap();
        request
    });
    assert_eq!(answer.unwrap(), "ok");
    assert!(request.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{request}");
    let host = format!("host: {}\r\n", server.listener.local_addr().unwrap());
    assert_eq!(request.matches("host:").count(), 1, "{request}");
    assert!(request.contains(&host), "{request}");
}

#[test]
fn the_host_has_a_port_where_it_is_not_https_own() {
    for (url, host) in [
        ("http://localhost:80/x", "localhost"),
        ("http://localhost:8080/x", "localhost:8080"),
        ("http://[::1]:8080/", "[::1]:8080"),
    ] {
        assert_eq!(client(&url.parse().unwrap(), TIMES).unwrap().host, host, "{url}");
    }
    assert_eq!(target("http://localhost/a/b?c").unwrap(), "/a/b?c");
    assert_eq!(target("http://localhost").unwrap(), "/");
}

#[tokio::test]
async fn a_close_in_the_middle_of_a_request_is_said_and_the_request_is_not_repeated() {
    let server = Played::new().await;
    let connection = server.used().await;
    let (answer, ()) = tokio::join!(server.post(), async {
        let mut connection = connection;
        read_request(&mut connection).await;
    });
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::Lost { kept: true, .. }), "{error:?}");
    assert!(!error.is_unsent());
    assert!(!server.has_new_connection().await);

    let (answer, ()) = tokio::join!(server.post(), async {
        read_request(&mut server.accept().await).await;
    });
    assert!(matches!(answer.unwrap_err(), Error::Lost { kept: false, .. }));
}

#[tokio::test]
async fn a_request_comes_back_from_a_connection_that_ends_before_it() {
    let server = Played::new().await;
    for said in ["", "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"] {
        let address = server.listener.local_addr().unwrap();
        let (made, mut connection) = tokio::join!(TcpStream::connect(address), server.accept());
        connection.write_all(said.as_bytes()).await.unwrap();
        drop(connection);
        noticed().await;
        let link = Link::new(made.unwrap()).await.unwrap();
        let mut error = exchange(link, Request::new(BODY.into()), &server.client.pool).await.unwrap_err();
        assert!(error.take_message().is_some(), "{said}: {error:?}");
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_said_as_such() {
    let server = Played::new().await;
    let client = server.client.clone();
    drop(server);
    let error = client.post("/".parse().unwrap(), HeaderMap::new(), Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::Connect(_)) && error.is_unsent(), "{error:?}");
    assert_eq!(error.to_string(), "client error (Connect)");
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let server = Played::new().await;
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let (asked, connection) = tokio::join!(server.ask(), async {
        answered(server.accept().await, &format!("{interim}{OK}")).await
    });
    assert_eq!(asked.unwrap(), "ok");
    server.again(connection).await;
}

#[tokio::test]
async fn what_says_that_it_closes_is_read_and_not_kept() {
    for answer in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let server = Played::new().await;
        let (asked, connection) =
            tokio::join!(server.ask(), async { answered(server.accept().await, answer).await });
        assert_eq!(asked.unwrap(), "ok", "{answer}");
        assert_eq!(server.client.pool.len(), 0, "{answer}");
        closed(connection).await;
    }
}

#[tokio::test]
async fn an_old_server_that_keeps_its_connection_keeps_it() {
    let server = Played::new().await;
    let answer = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok";
    let (asked, connection) =
        tokio::join!(server.ask(), async { answered(server.accept().await, answer).await });
    assert_eq!(asked.unwrap(), "ok");
    server.again(connection).await;
}

#[tokio::test]
async fn a_chunked_body_gives_its_connection_back_and_its_trailers_too() {
    let server = Played::new().await;
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n";
    let (asked, connection) = tokio::join!(server.ask(), async {
        let mut connection = answered(server.accept().await, head).await;
        noticed().await;
        connection.write_all(b"1\r\nk\r\n0\r\nx-end: 1\r\n\r\n").await.unwrap();
        connection
    });
    assert_eq!(asked.unwrap(), "ok");
    server.again(connection).await;
}

#[tokio::test]
async fn a_body_without_length_ends_with_its_connection_and_one_with_it_does_not() {
    let server = Played::new().await;
    let (asked, ()) = tokio::join!(server.ask(), async {
        answered(server.accept().await, "HTTP/1.1 200 OK\r\n\r\nok").await;
    });
    assert_eq!(asked.unwrap(), "ok");
    assert_eq!(server.client.pool.len(), 0);
    for broken in ["content-length: 3\r\n\r\nok", "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n"] {
        let (asked, ()) = tokio::join!(server.ask(), async {
            answered(server.accept().await, &format!("HTTP/1.1 200 OK\r\n{broken}")).await;
        });
        assert!(asked.is_err(), "{broken}: {asked:?}");
        assert_eq!(server.client.pool.len(), 0, "{broken}");
    }
}

#[tokio::test]
async fn a_body_that_is_dropped_unread_closes_its_connection_and_so_does_one_over_the_limit() {
    let server = Played::new().await;
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(50_000));
    for limit in [None, Some(10)] {
        let (answer, connection) =
            tokio::join!(server.post(), async { answered(server.accept().await, &long).await });
        let body = answer.unwrap().into_body();
        match limit {
            None => drop(body),
            Some(limit) => drain(body, limit).await,
        }
        closed(connection).await;
        assert_eq!(server.client.pool.len(), 0);
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_closes_its_connection() {
    let server = Played::new().await;
    let connection = server.used().await;
    let mut asked = Box::pin(server.post());
    assert!((&mut asked).now_or_never().is_none());
    drop(asked);
    closed(connection).await;
    assert!(!server.has_new_connection().await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_takes_no_longer_than_it_may() {
    let (url, _full) = deaf().await;
    let client = client(&url.parse().unwrap(), TIMES).unwrap();
    let begun = Instant::now();
    let error = client.post("/".parse().unwrap(), HeaderMap::new(), BODY.into()).await.unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    assert_eq!(begun.elapsed().as_secs(), TIMES.connect.as_secs());
}
