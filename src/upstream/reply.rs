//! Reading mcpd's replies within bounds, and putting them into words.

use std::{
    error::Error as StdError,
    time::{Duration, SystemTime},
};

use reqwest::{
    Response, StatusCode,
    header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER},
};
use secrecy::{ExposeSecret as _, SecretString};

use super::connect::UNKNOWN_ISSUER;
use crate::domain::{Printable, root_cause};

/// Most bytes read of a reply whose content does not matter.
pub(super) const REPLY_LIMIT: usize = 64 << 10;
/// Most characters of mcpd's own words in a message for people.
const QUOTE: usize = 200;

/// The media type of a page that comes from something in between.
const HTML: &[u8] = b"text/html";

/// The whole body, if it is within the limit.
pub(super) async fn read(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| say(&e))? {
        if body.len() + piece.len() > limit {
            return Err(format!("the reply is longer than {limit} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Reads a reply whose content does not matter to its end, so that its connection can be used again.
pub(super) async fn drain(mut response: Response) {
    let mut seen = 0;
    while let Ok(Some(piece)) = response.chunk().await {
        seen += piece.len();
        if seen > REPLY_LIMIT {
            // Dropping the rest closes the connection.
            return;
        }
    }
}

/// One sentence about a reply, with the beginning of what mcpd said, fit for a terminal.
pub(super) async fn describe(
    what: &str,
    status: StatusCode,
    response: Response,
    token: &SecretString,
) -> String {
    let mut url = response.url().clone();
    // A password in the URL is not shown.
    let _ = url.set_password(None).and_then(|()| url.set_username(""));
    let location = format!("{}{}", url.origin().ascii_serialization(), url.path());
    let html = is_html(response.headers());
    let body = read(response, REPLY_LIMIT).await.unwrap_or_default();
    // Some servers and proxies repeat what they refuse; this text goes to logs and the status.
    let said = String::from_utf8_lossy(&body).replace(token.expose_secret(), "[token]");
    let said: String = said.trim().chars().take(QUOTE).collect();
    match said.as_str() {
        "" => format!("{what}: mcpd answered {status} at {location}"),
        _ if html => {
            format!("{what}: {status} with an HTML page at {location}; is something between here and mcpd?")
        }
        said => format!("{what}: mcpd answered {status} at {location}: {}", Printable(said)),
    }
}

pub(super) fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().get(..HTML.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(HTML))
}

pub(super) fn looks_like_html(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// `Retry-After` in seconds, or as the date that proxies give. A date is measured from the reply's own `Date`, so that the two clocks
/// need not agree; only a reply without one is measured from ours.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let asked = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match asked.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than the number holds is still a wish to wait long.
        true if !asked.is_empty() => asked.parse().unwrap_or(u64::MAX),
        _ => {
            let from = date(headers, DATE).unwrap_or_else(SystemTime::now);
            date(headers, RETRY_AFTER)?.duration_since(from).ok()?.as_secs()
        }
    };
    Some(Duration::from_secs(seconds.min(u32::MAX.into())))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok()
}

/// `Keep-Alive: timeout=N`, if N is in a range of which half makes sense as an idle time.
pub(super) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("keep-alive")?.to_str().ok()?;
    let seconds: u64 = text.split(',').find_map(|item| item.trim().strip_prefix("timeout="))?.parse().ok()?;
    (1..=600).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// Whether the request certainly had no effect at the server although there was a connection: it was not sent, or not completely, or the
/// server said so. reqwest repeats most of these by itself, but not all, and not without limit.
pub(super) fn never_applied(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|cause| unsent(cause) || unprocessed(cause))
}

/// hyper never gave it to a connection, or only its headers: with HTTP/2 a request waits for the server to allow one more stream, and if
/// the connection ends meanwhile, the request is dropped without a reason.
fn unsent(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref().is_some_and(|e: &hyper::Error| e.is_canceled() || e.is_user())
}

/// An HTTP/2 server refused it, or went away before its turn (RFC 9113, 8.7).
fn unprocessed(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref().is_some_and(|e: &h2::Error| {
        let refused = e.is_reset() && e.reason() == Some(h2::Reason::REFUSED_STREAM);
        let left_out = e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR);
        e.is_remote() && (refused || left_out)
    })
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

/// Why a call to the mcpd at `url` got no answer, and what helps, if that is known.
pub(super) fn no_answer(url: &str, error: &reqwest::Error) -> String {
    let why = root_cause(error);
    match why.contains(UNKNOWN_ISSUER) {
        true => format!(
            "nobody here knows the authority of the certificate at {url} ({why}); pass its PEM file as --ca-file"
        ),
        false => format!("mcpd at {url} does not answer ({why})"),
    }
}

/// What went wrong with a call, down to its cause. The URL in the text has no credentials, because the agent never puts any there.
pub(super) fn say(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use h2::{Reason, RecvStream, server};
    use reqwest::{Client, header::HeaderValue};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn waits(replied: &[(HeaderName, &str)]) -> Option<Duration> {
        let replied =
            replied.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        retry_after(&HeaderMap::from_iter(replied))
    }

    #[test]
    fn when_to_try_again_is_read_as_seconds_and_as_a_date_by_the_clock_of_the_reply() {
        let seconds = |value| waits(&[(RETRY_AFTER, value)]).map(|wait| wait.as_secs());
        assert_eq!((seconds("7"), seconds(" 0 ")), (Some(7), Some(0)));
        assert_eq!(
            seconds("99999999999999999999"),
            Some(u32::MAX.into()),
            "long, and no instant is beyond it"
        );
        let (at, date) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:48:20 GMT");
        assert_eq!(waits(&[(RETRY_AFTER, at), (DATE, date)]), Some(Duration::from_secs(77)));
        assert_eq!(waits(&[(RETRY_AFTER, date), (DATE, at)]), None, "is over");
        let coming = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        assert!(
            (3500..=3600).contains(&seconds(&coming).unwrap()),
            "by our own clock, where there is no Date"
        );
        for odd in ["", "-1", "soon", "1.5"] {
            assert_eq!(seconds(odd), None, "{odd}");
        }
    }

    type Served = server::Connection<TcpStream, bytes::Bytes>;

    /// An HTTP/2 server's address, and its one connection that takes one stream at a time.
    async fn one_stream_at_a_time() -> (String, impl Future<Output = Served>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connection = async move {
            let (stream, _) = listener.accept().await.unwrap();
            server::Builder::new().max_concurrent_streams(1).handshake(stream).await.unwrap()
        };
        (url, connection)
    }

    async fn read_to_its_end(mut body: RecvStream) {
        while body.data().await.is_some() {}
    }

    /// Answers the first request; a second one is taken whole, and then the connection ends in its face.
    async fn goes_away_in_the_second(connection: impl Future<Output = Served>) {
        let mut served = connection.await;
        let (_, mut respond) = served.accept().await.unwrap().unwrap();
        respond.send_response(axum::http::Response::new(()), true).unwrap();
        let (request, _respond) = served.accept().await.unwrap().unwrap();
        tokio::select! {
            () = read_to_its_end(request.into_body()) => {}
            _ = served.accept() => panic!("one stream at a time"),
        }
        served.abrupt_shutdown(Reason::NO_ERROR);
        let _ = poll_fn(|cx| served.poll_closed(cx)).await;
    }

    #[tokio::test]
    async fn a_post_that_never_had_its_turn_did_nothing_and_the_one_before_it_may_have() {
        let (url, connection) = one_stream_at_a_time().await;
        let server = tokio::spawn(goes_away_in_the_second(connection));
        let client = Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
        let post = || client.post(&url).body("a part").send();
        post().await.expect("the first is answered");
        let (taken, waiting) = tokio::join!(post(), post());
        server.await.unwrap();
        let (taken, waiting) = (taken.unwrap_err(), waiting.unwrap_err());
        assert!(never_applied(&waiting), "{}", say(&waiting));
        assert!(!never_applied(&taken), "{}", say(&taken));
    }

    #[tokio::test]
    async fn a_post_that_the_server_refuses_again_and_again_did_nothing() {
        let (url, connection) = one_stream_at_a_time().await;
        let _server = tokio::spawn(async move {
            let mut served = connection.await;
            while let Some(Ok((_, mut respond))) = served.accept().await {
                respond.send_reset(Reason::REFUSED_STREAM);
            }
        });
        let client = Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
        let refused = client.post(&url).body("a part").send().await.unwrap_err();
        assert!(never_applied(&refused), "{}", say(&refused));
    }

    #[tokio::test]
    async fn a_token_that_a_server_repeats_is_cut_out_of_its_words() {
        let reply = axum::http::Response::new("Bearer s3cret-token is not known");
        let token = SecretString::from("s3cret-token");
        let text = describe("register", StatusCode::UNAUTHORIZED, reply.into(), &token).await;
        assert!(text.ends_with(": Bearer [token] is not known"), "{text}");
    }

    #[test]
    fn a_servers_keep_alive_is_read_and_nonsense_is_not() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", HeaderValue::from_static(text));
            keep_alive(&headers)
        };
        assert_eq!(read("timeout=5"), Some(Duration::from_secs(5)));
        assert_eq!(read("max=100, timeout=72"), Some(Duration::from_secs(72)));
        assert_eq!(read("timeout=0"), None);
        assert_eq!(read("timeout=99999999"), None);
    }
}
