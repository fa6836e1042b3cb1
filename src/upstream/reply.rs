//! Reading mcpd's replies within bounds, and putting them into words.

use std::time::Duration;

use reqwest::{
    Response, StatusCode,
    header::{HeaderValue, LOCATION},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::timeout;

use super::{explain::Way, pool::NoAnswer};
use crate::{
    domain::{Printable, Reason},
    http::{is_html, page_title, read},
};

/// Most bytes read of a reply whose content does not matter.
pub(super) const REPLY_LIMIT: usize = 64 << 10;
/// How long mcpd's own words may take: what matters has come with the head.
const WORDS_TIMEOUT: Duration = Duration::from_secs(5);
/// Most characters of mcpd's own words in a message for people.
const QUOTE: usize = 200;

/// Checked once instead of for every request.
pub(super) static JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Who reads about a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// The agent's owner, in the status and the log.
    Owner,
    /// A caller, too, who is told no address of mcpd's.
    Caller,
}

/// One sentence about a reply, with the beginning of what mcpd said, fit for a terminal.
pub(super) async fn describe(
    what: &str,
    reader: Reader,
    status: StatusCode,
    response: Response,
    token: &SecretString,
) -> Reason {
    let html = is_html(response.headers());
    let place = match reader {
        Reader::Owner => {
            format!(" at {}{}", response.url().origin().ascii_serialization(), response.url().path())
        }
        Reader::Caller => String::new(),
    };
    if let Some(to) = redirected(&response) {
        return Reason::new(
            format!("{what}: mcpd answered {status}{place} and leads to {to}"),
            "pass the final address as --mcpd-url",
        );
    }
    let body = timeout(WORDS_TIMEOUT, read(response, REPLY_LIMIT)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    // Some servers and proxies repeat what they refuse; this text goes to logs and the status.
    let said = String::from_utf8_lossy(&body).replace(token.expose_secret(), "[token]");
    let quoted = |said: &str| said.trim().chars().take(QUOTE).collect::<String>();
    match said.trim() {
        "" => format!("{what}: mcpd answered {status}{place}").into(),
        page if html => {
            let title = page_title(page).map(|title| format!(" ({})", Printable(&quoted(title))));
            let title = title.unwrap_or_default();
            Reason::new(
                format!("{what}: {status} with an HTML page{title}{place}"),
                "look for something between here and mcpd that answers in its place",
            )
        }
        said => format!("{what}: mcpd answered {status}{place}: {}", Printable(&quoted(said))).into(),
    }
}

/// Where a redirect leads: its origin alone, which is what has to be configured.
fn redirected(response: &Response) -> Option<String> {
    let location = response.headers().get(LOCATION).filter(|_| response.status().is_redirection())?;
    let to = response.url().join(location.to_str().ok()?).ok()?;
    Some(to.origin().ascii_serialization())
}

pub(super) fn looks_like_html(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// Why a call to mcpd got no answer, and what helps.
pub(super) async fn no_answer(way: Way<'_>, why: &NoAnswer) -> Reason {
    match why {
        NoAnswer::Failed(error) => way.ask(error).await.explain(error),
        other => way.silent(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_that_a_server_repeats_is_cut_out_of_its_words() {
        let reply = axum::http::Response::new("Bearer s3cret-token is not known");
        let token = SecretString::from("s3cret-token");
        let text = describe("register", Reader::Caller, StatusCode::UNAUTHORIZED, reply.into(), &token)
            .await
            .to_string();
        assert!(text.ends_with(": Bearer [token] is not known"), "{text}");
    }

    #[tokio::test]
    async fn a_redirect_names_its_target_and_a_page_of_an_ingress_its_title() {
        let token = SecretString::from("s3cret-token");
        let reply =
            axum::http::Response::builder().status(307).header("location", "https://mcpd.example/x?y");
        let reply = reply.body("").unwrap();
        let text = describe("register", Reader::Caller, StatusCode::TEMPORARY_REDIRECT, reply.into(), &token)
            .await
            .to_string();
        assert!(text.contains("leads to https://mcpd.example; pass the final address"), "{text}");
        let page = "<html><head><title>400 No required SSL certificate was sent</title></head>";
        let reply = axum::http::Response::builder().status(400).header("content-type", "text/html");
        let reply = reply.body(page).unwrap();
        let text = describe("register", Reader::Caller, StatusCode::BAD_REQUEST, reply.into(), &token)
            .await
            .to_string();
        assert!(text.contains("(400 No required SSL certificate was sent)"), "{text}");
    }
}
