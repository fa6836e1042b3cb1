//! Idle connections: which is used next, which never again, and for how long they are kept.

use tokio::time::advance;

use super::*;

#[tokio::test]
async fn a_connection_is_used_again_and_no_second_one_is_made() {
    let server = Played::new().await;
    let mut connection = server.used().await;
    for _ in 0..100 {
        connection = server.again(connection).await;
    }
    assert!(!server.has_new_connection().await);
    assert_eq!(server.client.pool.len(), 1);
}

#[tokio::test]
async fn the_connection_that_was_used_last_is_used_next() {
    let server = Played::new().await;
    let (first, second) = (server.post(), server.post());
    let serve = async { (server.accept().await, server.accept().await) };
    let both = async { tokio::join!(first, second) };
    let (answers, (one, other)) = tokio::join!(both, async {
        let (one, other) = serve.await;
        (answered(one, OK).await, answered(other, OK).await)
    });
    drain(answers.0.unwrap().into_body(), 10).await;
    drain(answers.1.unwrap().into_body(), 10).await;
    let other = server.again(other).await;
    let _other = server.again(other).await;
    assert_eq!(server.client.pool.len(), 2);
    drop(one);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_while_it_was_idle_is_never_used() {
    let server = Played::new().await;
    drop(server.used().await);
    noticed().await;
    drop(server.used().await);
}

#[tokio::test]
async fn a_connection_on_which_the_server_speaks_unasked_is_never_used() {
    let server = Played::new().await;
    let mut connection = server.used().await;
    connection.write_all(OK.as_bytes()).await.unwrap();
    noticed().await;
    server.used().await;
    closed(connection).await;
}

#[tokio::test]
async fn all_idle_connections_that_have_ended_are_passed_over() {
    let server = Played::new().await;
    let posts = async { tokio::join!(server.ask(), server.ask(), server.ask()) };
    let (_, connections) = tokio::join!(posts, async {
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(answered(server.accept().await, OK).await);
        }
        taken
    });
    assert_eq!(server.client.pool.len(), 3);
    drop(connections);
    noticed().await;
    server.used().await;
    assert_eq!(server.client.pool.len(), 1);
}

#[tokio::test]
async fn who_waits_for_a_connection_takes_one_that_comes_back() {
    let server = Played::new().await;
    let connection = server.used().await;
    let (link, _) = server.client.pool.take().unwrap();
    let (deaf, _full) = deaf().await;
    let mut client = server.client.clone();
    client.server = deaf.parse().unwrap();
    let mut asked = Box::pin(client.post("/".parse().unwrap(), HeaderMap::new(), BODY.into()));
    assert!((&mut asked).now_or_never().is_none());
    server.client.pool.put(link);
    let (answer, _connection) = tokio::join!(asked, answered(connection, OK));
    assert_eq!(answer.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_after_their_time_and_not_used_then() {
    let server = Played::new().await;
    let connection = server.used().await;
    advance(IDLE - Duration::from_millis(1)).await;
    let connection = server.again(connection).await;
    let begun = Instant::now();
    closed(connection).await;
    assert_eq!(begun.elapsed().as_millis(), IDLE.as_millis());
    assert_eq!(server.client.pool.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_the_server_closes_is_closed_here_within_seconds() {
    let server = Played::new().await;
    let mut connection = server.used().await;
    connection.shutdown().await.unwrap();
    let begun = Instant::now();
    closed(connection).await;
    assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn after_a_loss_idle_connections_are_trusted_for_less_and_for_more_again_with_time() {
    let server = Played::new().await;
    let connection = server.used().await;
    // A server that closes what has been idle for a second, and a request that goes out just then.
    advance(Duration::from_secs(1)).await;
    let (answer, ()) = tokio::join!(server.post(), async {
        let mut connection = connection;
        read_request(&mut connection).await;
    });
    answer.unwrap_err();
    assert_eq!(server.client.pool.trust(), Duration::from_millis(500));
    let kept = server.used().await;
    advance(Duration::from_secs(1)).await;
    let connection = server.used().await;
    closed(kept).await;
    drop(connection);
    for trust in [1, 2, 4, 4] {
        advance(Duration::from_secs(60)).await;
        server.used().await;
        assert_eq!(server.client.pool.trust(), Duration::from_secs(trust));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_after_every_answer_without_saying_so_soon_gets_a_connection_for_each_request() {
    let server = Played::new().await;
    let loses_one = async || {
        let mut connection = server.used().await;
        let (answer, ()) = tokio::join!(server.post(), async {
            read_request(&mut connection).await;
            drop(connection);
        });
        answer.unwrap_err();
    };
    loses_one().await;
    loses_one().await;
    for _ in 0..3 {
        closed(server.used().await).await;
        assert_eq!(server.client.pool.len(), 0);
    }
    // It is tried again each minute, which one request tells.
    advance(Duration::from_secs(60)).await;
    loses_one().await;
    server.used().await;
    assert_eq!(server.client.pool.len(), 0);
    // One that has answered twice shows that they are kept again.
    advance(Duration::from_secs(60)).await;
    let connection = server.used().await;
    drop(server.again(connection).await);
    noticed().await;
    loses_one().await;
    server.used().await;
    assert_eq!(server.client.pool.len(), 1);
}
