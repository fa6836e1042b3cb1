//! Errors in OpenAI's shape: those that the agent builds, and those that providers send.

use std::fmt::Write as _;

use bytes::Bytes;

use super::{
    Malformed,
    scan::{self, Scanner, number},
    text,
};
use crate::domain::{Failure, FailureCode};

/// Longest message that is taken from a provider's error, in bytes. Its body goes to the caller whole.
const MAX_MESSAGE: usize = 2048;
/// Longest `type` or `code` that is looked at, in bytes.
const MAX_WORD: usize = 128;

/// The error body that a caller gets: the provider's own, byte for byte, if it is a JSON object; else
/// `{"error":{"message","type","code","retry_after"?}}`, `retry_after` in seconds, rounded up.
pub fn error_object(failure: &Failure) -> Bytes {
    if scan::check_object(&failure.body).is_ok() {
        return failure.body.clone();
    }
    let mut out = Vec::with_capacity(128 + text::escaped_len(failure.message.as_bytes()));
    out.extend_from_slice(b"{\"error\":{\"message\":");
    text::quote_into(&mut out, &failure.message);
    out.extend_from_slice(b",\"type\":");
    text::quote_into(&mut out, failure.code.error_type());
    out.extend_from_slice(b",\"code\":");
    text::quote_into(&mut out, failure.code.as_str());
    if let Some(seconds) = retry_after_seconds(failure) {
        out.extend_from_slice(format!(",\"retry_after\":{seconds}").as_bytes());
    }
    out.extend_from_slice(b"}}");
    out.into()
}

/// When to try again, in whole seconds, rounded up, at least 1; `None` if the failure does not say.
pub fn retry_after_seconds(failure: &Failure) -> Option<u64> {
    failure.retry_after.map(|wait| wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1))
}

/// What a provider's own error means. `status` is its HTTP status, if there was one; otherwise one is looked for in the body. The body is
/// kept byte for byte. If a provider refuses its owner's credentials (401, 403), that is not the caller's fault, so the status is not
/// passed on.
pub fn provider_failure(status: Option<u16>, body: &Bytes) -> Failure {
    let mut words = Words { status, ..Words::default() };
    // If the body is not a JSON object, only the status counts.
    let _ = scan::object(body, |scan, key| words.top(scan, scan.of(key)));
    let code = words.failure_code();
    let mut message = words.message;
    if message.is_empty() {
        message.push_str("the provider reported an error");
        if let Some(status) = words.status {
            let _ = write!(message, " (status {status})");
        }
    }
    Failure {
        retryable: matches!(
            code,
            FailureCode::RateLimited | FailureCode::Overloaded | FailureCode::Unavailable
        ),
        http_status: words.status.filter(|s| (400..600).contains(s) && !matches!(s, 401 | 403)),
        body: body.clone(),
        ..Failure::new(code, message)
    }
}

/// What is found in an error body.
#[derive(Default)]
struct Words {
    status: Option<u16>,
    message: String,
    /// `type` and `code`, in lower case.
    kind: String,
}

impl Words {
    fn top(&mut self, scan: &mut Scanner<'_>, key: &[u8]) -> Result<(), Malformed> {
        match (key, scan.peek()?) {
            (b"error", b'{') => scan.object(|scan, key| self.member(scan, scan.of(key))).map(drop),
            (b"error", b'"') => self.member(scan, b"message"),
            (b"error", _) => scan.skip().map(drop),
            _ => self.member(scan, key),
        }
    }

    fn member(&mut self, scan: &mut Scanner<'_>, key: &[u8]) -> Result<(), Malformed> {
        let string = scan.peek()? == b'"';
        let span = if string { scan.string()? } else { scan.skip()? };
        let value = scan.of(span);
        match key {
            b"message" | b"detail" if string && self.message.is_empty() => {
                self.message = text::unescape(value, MAX_MESSAGE).unwrap_or_default();
            }
            b"type" | b"code" if string => {
                self.kind.push_str(&text::unescape(value, MAX_WORD).unwrap_or_default().to_lowercase());
                self.kind.push(' ');
            }
            b"code" | b"status" | b"status_code" => {
                self.status = self.status.or_else(|| number(value)?.try_into().ok());
            }
            _ => {}
        }
        Ok(())
    }

    fn failure_code(&self) -> FailureCode {
        /// Words of OpenAI, Azure, Anthropic, vLLM, llama.cpp, Ollama and OpenRouter; the first that occurs decides.
        const KINDS: [(&str, FailureCode); 17] = [
            ("context_length", FailureCode::ContextLength),
            ("context_size", FailureCode::ContextLength),
            ("context_window", FailureCode::ContextLength),
            ("content_filter", FailureCode::ContentFiltered),
            ("content_policy", FailureCode::ContentFiltered),
            ("model_not_found", FailureCode::ModelNotFound),
            ("rate_limit", FailureCode::RateLimited),
            ("insufficient_quota", FailureCode::RateLimited),
            ("overloaded", FailureCode::Overloaded),
            ("invalid_api_key", FailureCode::ProviderAuth),
            ("authentication", FailureCode::ProviderAuth),
            ("permission", FailureCode::ProviderAuth),
            ("timeout", FailureCode::ProviderTimeout),
            ("unavailable", FailureCode::Unavailable),
            ("not_found", FailureCode::ModelNotFound),
            ("invalid_request", FailureCode::InvalidRequest),
            ("badrequest", FailureCode::InvalidRequest),
        ];
        let said = KINDS.iter().find(|(word, _)| self.kind.contains(word));
        said.map_or_else(|| self.code_of_status(), |(_, code)| *code)
    }

    fn code_of_status(&self) -> FailureCode {
        match self.status {
            Some(401 | 403) => FailureCode::ProviderAuth,
            Some(404) => FailureCode::ModelNotFound,
            Some(408 | 504) => FailureCode::ProviderTimeout,
            Some(413) => FailureCode::TooLarge,
            Some(429) => FailureCode::RateLimited,
            Some(503) => FailureCode::Unavailable,
            Some(529) => FailureCode::Overloaded,
            Some(400..=499) => FailureCode::InvalidRequest,
            _ => FailureCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_failure_of_ours_is_an_error_in_openai_s_shape() {
        let failure =
            Failure::retryable(FailureCode::Overloaded, "the \"queue\" is full", Duration::from_millis(1200));
        let expected = format!(
            r#"{{"error":{{"message":"the \"queue\" is full","type":"rate_limit_error","code":"{}","retry_after":2}}}}"#,
            FailureCode::Overloaded.as_str()
        );
        assert_eq!(error_object(&failure), expected);
        let plain = Failure::new(FailureCode::Internal, "it broke");
        assert_eq!(
            error_object(&plain),
            r#"{"error":{"message":"it broke","type":"server_error","code":"internal"}}"#
        );
    }

    #[test]
    fn waits_are_rounded_up_to_whole_seconds() {
        let after = |ms| {
            retry_after_seconds(&Failure::retryable(FailureCode::Overloaded, "", Duration::from_millis(ms)))
        };
        assert_eq!([after(0), after(1), after(1000), after(1001)], [Some(1), Some(1), Some(1), Some(2)]);
        assert_eq!(retry_after_seconds(&Failure::new(FailureCode::Overloaded, "")), None);
    }

    #[test]
    fn a_provider_s_own_body_is_passed_on_unless_it_is_no_object() {
        let with = |body: &'static [u8]| {
            error_object(&Failure { body: body.into(), ..Failure::new(FailureCode::Internal, "m") })
        };
        assert_eq!(with(b" {\"error\" : {\"x\":1}}\n"), b" {\"error\" : {\"x\":1}}\n".as_slice());
        for bad in [b"<html>".as_slice(), b"\"text\"", b"{\"error\":", b"\xff", b""] {
            assert!(with(bad).starts_with(b"{\"error\":{\"message\":\"m\""));
        }
    }

    #[test]
    fn errors_of_real_servers_keep_their_meaning() {
        for (status, body, code, shown) in [
            (
                None,
                r#"{"error":{"message":"m","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
                FailureCode::ContextLength,
                400,
            ),
            (None, r#"{"error":{"code":429,"message":"m","metadata":{}}}"#, FailureCode::RateLimited, 429),
            (
                Some(404),
                r#"{"error":{"message":"m","type":"not_found_error","param":null,"code":null}}"#,
                FailureCode::ModelNotFound,
                404,
            ),
            (
                None,
                r#"{"error":{"code":503,"message":"m","type":"unavailable_error"}}"#,
                FailureCode::Unavailable,
                503,
            ),
            (
                None,
                r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#,
                FailureCode::InvalidRequest,
                400,
            ),
            (
                None,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
                FailureCode::Overloaded,
                429,
            ),
            (Some(529), r#"{"error":"m"}"#, FailureCode::Overloaded, 529),
            (
                Some(400),
                r#"{"error":{"message":"m","code":"content_filter","status":400}}"#,
                FailureCode::ContentFiltered,
                400,
            ),
            (
                Some(401),
                r#"{"error":{"message":"m","code":"invalid_api_key"}}"#,
                FailureCode::ProviderAuth,
                502,
            ),
            (Some(500), r#"{"error":{"message":"m"}}"#, FailureCode::Internal, 500),
            (None, r#"{"error":{"message":"m","code":200}}"#, FailureCode::Internal, 502),
        ] {
            let failure = provider_failure(status, &body.into());
            assert_eq!(
                (failure.code, failure.status(), failure.message.as_str()),
                (code, shown, "m"),
                "{body}"
            );
            assert_eq!(failure.body, body);
        }
    }

    #[test]
    fn an_error_without_words_gets_some_and_a_long_one_is_cut() {
        assert_eq!(
            provider_failure(Some(500), &"oops".into()).message,
            "the provider reported an error (status 500)"
        );
        let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "é".repeat(5000));
        assert_eq!(provider_failure(None, &long.into()).message.len(), MAX_MESSAGE);
    }
}
