//! An unmodified reqwest-eventsource over a raw TCP server: the patch is in place, and its limit has a way in.

use eventsource_stream::{DEFAULT_EVENT_LIMIT, ENDLESS_FACTOR, Refused, Signal, limit_events, too_large};
use futures_util::{Stream, StreamExt};
use reqwest_eventsource::{Error, Event, EventSource, retry};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A bound on the whole test, far above what a loopback connection needs.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// What the server announces. No length: the body lasts as long as the connection.
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// Serves `pieces` to one client, and closes the connection when the sender is gone.
async fn serve(pieces: Vec<Vec<u8>>) -> (EventSource, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (hold, released) = oneshot::channel();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(socket.read_u8().await.expect("a request"));
        }
        socket.write_all(HEAD).await.expect("the client reads");
        for piece in pieces {
            // A client that met its limit has hung up.
            if socket.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = released.await;
    });
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let mut source = EventSource::new(client.get(format!("http://{address}/"))).expect("no body to clone");
    source.set_retry_policy(Box::new(retry::Never));
    (source, hold)
}

/// The stream's next item, within the bound.
async fn next<S: Stream + Unpin>(events: &mut S) -> Option<S::Item> {
    tokio::time::timeout(GIVE_UP_AFTER, events.next()).await.expect("an item in time")
}

/// The data of the next message.
async fn next_data(events: &mut (impl Stream<Item = Result<Event, Error>> + Unpin)) -> String {
    loop {
        match next(events).await.expect("the stream is open").expect("no error") {
            Event::Open => {}
            Event::Message(message) if Signal::of(&message).is_some() => {}
            Event::Message(message) => return message.data,
        }
    }
}

/// What is kept of the next event over the limit; what comes before it is passed over.
async fn next_refused(events: &mut (impl Stream<Item = Result<Event, Error>> + Unpin)) -> Refused {
    loop {
        let event = next(events).await.expect("the stream is open").expect("no error");
        if let Event::Message(message) = event
            && let Some(Signal::Oversized(refused)) = Signal::of(&message)
        {
            return refused;
        }
    }
}

/// Reads to the end, and gives the sentence of the limit's error that came before it.
async fn refusal(events: &mut (impl Stream<Item = Result<Event, Error>> + Unpin)) -> String {
    loop {
        match next(events).await.expect("an error before the end") {
            Ok(_) => {}
            Err(Error::Parser(error)) => {
                assert!(next(events).await.is_none(), "the stream ends after its error");
                return too_large(&error).expect("the limit's error").to_owned();
            }
            Err(other) => panic!("not the limit's error: {other}"),
        }
    }
}

#[tokio::test]
async fn hostile_bytes_reach_the_caller_as_events_while_the_connection_stays_open() {
    let bytes = b"\xEF\xBB\xBFdata:bom\n\ndata:bad\xFFbyte\n\ndata:cr only\r\r".to_vec();
    let (mut source, hold) = serve(bytes.chunks(1).map(<[u8]>::to_vec).collect()).await;
    assert_eq!(next_data(&mut source).await, "bom");
    assert_eq!(next_data(&mut source).await, "bad\u{FFFD}byte");
    assert_eq!(next_data(&mut source).await, "cr only");
    drop(hold);
    assert!(matches!(next(&mut source).await, Some(Err(Error::StreamEnded))));
}

#[tokio::test]
async fn a_limit_given_from_outside_drops_the_event_and_the_stream_goes_on() {
    let large = format!("event: large\ndata: {}\n\ndata: next\n\n", "x".repeat(2000));
    let (source, hold) = serve(vec![b"data:small\n\n".to_vec(), large.into_bytes()]).await;
    let mut limited = limit_events(source, 1000);
    assert_eq!(next_data(&mut limited).await, "small");
    let refused = next_refused(&mut limited).await;
    assert_eq!((refused.event.as_str(), refused.bytes), ("large", "data: ".len() + 2000));
    assert_eq!(refused.why.to_string(), "an event of the stream is over the limit of 1000 bytes");
    assert_eq!(next_data(&mut limited).await, "next");
    drop(hold);
    assert!(matches!(next(&mut limited).await, Some(Err(Error::StreamEnded))));
}

#[tokio::test]
async fn an_event_without_end_ends_the_stream_and_what_is_kept_of_it_can_be_had() {
    let endless = vec![b"event: task\ndata: begin".to_vec(), vec![b'x'; 1000 * ENDLESS_FACTOR]];
    let (source, _hold) = serve(endless).await;
    let mut limited = limit_events(source, 1000);
    let why = "an event of the stream is over the limit of 1000 bytes and has no end after 64 times as many";
    let refused = next_refused(&mut limited).await;
    assert_eq!(refusal(&mut limited).await, why);
    assert!(refused.event == "task" && refused.beginning.starts_with("beginx"), "{refused:?}");
    assert_eq!(refused.ending, "");
}

#[tokio::test]
async fn without_a_limit_given_the_default_holds() {
    let piece = vec![b'x'; 1024 * 1024];
    let (mut source, _hold) = serve(vec![piece; DEFAULT_EVENT_LIMIT / (1024 * 1024) + 1]).await;
    assert_eq!(refusal(&mut source).await, "an event of the stream is over the limit of 33554432 bytes");
}

#[tokio::test]
async fn two_limits_in_one_process_do_not_meet() {
    let event = format!("data:{}\n\ndata:next\n\n", "x".repeat(2000)).into_bytes();
    let (first, _hold_first) = serve(vec![event.clone()]).await;
    let (second, _hold_second) = serve(vec![event]).await;
    let (mut narrow, mut wide) = (limit_events(first, 1000), limit_events(second, 3000));
    assert_eq!(next_data(&mut narrow).await, "next");
    assert_eq!(next_data(&mut wide).await.len(), 2000);
}
