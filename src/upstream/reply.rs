//! Reading mcpd's replies within bounds, and putting them into words.

use std::time::Duration;

use reqwest::{Response, StatusCode, header::HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::timeout;

use super::{connect::UNKNOWN_ISSUER, pool::NoAnswer};
use crate::{
    domain::Printable,
    http::{is_html, read, root_cause},
};

/// Most bytes read of a reply whose content does not matter.
pub(super) const REPLY_LIMIT: usize = 64 << 10;
/// How long mcpd's own words may take: what matters has come with the head.
const WORDS_TIMEOUT: Duration = Duration::from_secs(5);
/// Most characters of mcpd's own words in a message for people.
const QUOTE: usize = 200;

/// Checked once instead of for every request.
pub(super) static JSON: HeaderValue = HeaderValue::from_static("application/json");

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
    let body = timeout(WORDS_TIMEOUT, read(response, REPLY_LIMIT)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
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

pub(super) fn looks_like_html(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

/// Why a call to the mcpd at `url` got no answer, and what helps, if that is known.
pub(super) fn no_answer(url: &str, why: &NoAnswer) -> String {
    let why = match why {
        NoAnswer::Failed(error) => root_cause(error),
        other => other.to_string(),
    };
    match why.contains(UNKNOWN_ISSUER) {
        true => format!(
            "nobody here knows the authority of the certificate at {url} ({why}); pass its PEM file as --ca-file"
        ),
        false => format!("mcpd at {url} does not answer ({why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_that_a_server_repeats_is_cut_out_of_its_words() {
        let reply = axum::http::Response::new("Bearer s3cret-token is not known");
        let token = SecretString::from("s3cret-token");
        let text = describe("register", StatusCode::UNAUTHORIZED, reply.into(), &token).await;
        assert!(text.ends_with(": Bearer [token] is not known"), "{text}");
    }
}
