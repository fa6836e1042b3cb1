//! Making connections: how often, how long, and how many at once.

use std::{io, net};

use tokio::runtime::Handle;
use tower::service_fn;

use super::{super::pool::SPARE, *};

/// A server whose connections are taken at once and without the client's runtime learning of it.
struct Abrupt {
    listener: net::TcpListener,
    client: PlainClient,
}

impl Abrupt {
    fn new() -> Self {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self { listener, client: client(&url.parse().unwrap(), TIMES).unwrap() }
    }

    fn accept(&self) -> TcpStream {
        let (connection, _) = self.listener.accept().unwrap();
        connection.set_nonblocking(true).unwrap();
        TcpStream::from_std(connection).unwrap()
    }
}

#[tokio::test]
async fn a_request_goes_over_one_more_new_connection_and_no_further() {
    for closed in [1, 2] {
        let server = Abrupt::new();
        let mut asked = Box::pin(server.client.post("/".parse().unwrap(), HeaderMap::new(), BODY.into()));
        for _ in 0..closed {
            // It connects. The system has taken the connection by then, and ends it before the client knows that it is made.
            assert!((&mut asked).now_or_never().is_none());
            drop(server.accept());
            noticed().await;
        }
        let answer = (&mut asked).now_or_never();
        if closed == 2 {
            let error = answer.unwrap().unwrap_err();
            assert!(matches!(error, Error::Unsent(_)) && error.is_unsent(), "{error:?}");
            continue;
        }
        assert!(answer.is_none());
        let (answer, _connection) = tokio::join!(asked, answered(server.accept(), OK));
        assert_eq!(answer.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn connections_that_nobody_waits_for_any_more_are_few() {
    let server = Played::new().await;
    let mut connection = server.used().await;
    let (deaf, _full) = deaf().await;
    let mut client = server.client.clone();
    client.server = deaf.parse().unwrap();
    let before = Handle::current().metrics().num_alive_tasks();
    for _ in 0..2 * SPARE {
        let (link, _) = client.pool.take().unwrap();
        let mut asked = Box::pin(client.post("/".parse().unwrap(), HeaderMap::new(), BODY.into()));
        assert!((&mut asked).now_or_never().is_none());
        client.pool.put(link);
        let answer;
        (answer, connection) = tokio::join!(asked, answered(connection, OK));
        drain(answer.unwrap().into_body(), 10).await;
    }
    assert_eq!(Handle::current().metrics().num_alive_tasks() - before, SPARE);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_connection_waits_for_it_takes_no_longer_than_it_may() {
    // So does one whose name nobody resolves.
    let never = service_fn(|_: Uri| std::future::pending::<Result<TokioIo<TcpStream>, io::Error>>());
    let begun = Instant::now();
    let made = connect(never, Uri::from_static("http://unknown.example"), TIMES.connect);
    let error = timeout(2 * TIMES.connect, made).await.unwrap().err().unwrap();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    assert_eq!(begun.elapsed(), TIMES.connect);
}
