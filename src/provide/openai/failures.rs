//! What a server's refusal means: its status, its body and its `Retry-After`, as one [`Failure`].

use std::{error::Error, time::Duration};

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use super::http::Key;
use crate::{
    domain::{Failure, FailureCode, Printable},
    http::{retry_after, root_cause},
};

/// The most that is read of an error's body, in bytes: no honest one is larger.
pub(in crate::provide) const MAX_ERROR_BODY_BYTES: usize = 256 * 1024;
/// The most of a server's message that goes into ours, in characters.
const MAX_QUOTED_CHARS: usize = 500;
/// How soon a caller may try again when the server does not say.
const RETRY: Duration = Duration::from_secs(1);

/// What servers write if the prompt does not fit, in lower case: vLLM and OpenAI, llama.cpp, LM Studio, Ollama.
const CONTEXT_WORDS: [&str; 6] = [
    "maximum context length",
    "context_length_exceeded",
    "exceed_context_size",
    "available context size",
    "context length",
    "context window",
];
/// What servers write if a filter stopped the answer, in lower case: OpenAI and Azure.
const FILTER_WORDS: [&str; 3] = ["content_filter", "content_policy_violation", "content management policy"];

/// An error body in OpenAI's shape, or in one of its relatives.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    error: Value,
    message: Value,
    detail: Value,
}

/// The failure that an error answer means. `server` is the server's base URL, for people.
pub(in crate::provide) fn from_answer(
    server: &str,
    status: u16,
    headers: &HeaderMap,
    body: Bytes,
    key: &Key,
) -> Failure {
    let said = Said::from(&body);
    let code = code_for(status, &said);
    if code == FailureCode::ProviderAuth {
        return refused_key(server, status, key);
    }
    let retry_after = retry_after(headers);
    let retryable = retryable(status, &said);
    // A body that quotes the owner's key is not passed on.
    let body = if said.is_json && !key.is_in(&body) { body } else { Bytes::new() };
    let quoted = if key.is_in(said.message.as_bytes()) { "" } else { &said.message };
    Failure {
        code,
        message: match quoted {
            "" => format!("{server} answered {status}"),
            quoted => format!("{server} answered {status}: {}", Printable(quoted)),
        },
        retryable,
        retry_after: retry_after.or(retryable.then_some(RETRY)),
        http_status: (400..600).contains(&status).then_some(status),
        body,
    }
}

/// The failure that an error in the middle of a stream, or under a good status, means.
pub(in crate::provide) fn from_error_chunk(server: &str, body: Bytes, key: &Key) -> Failure {
    let said = Said::from(&body);
    let status = said.status.filter(|status| (400..600).contains(status)).unwrap_or(502);
    from_answer(server, status, &HeaderMap::new(), body, key)
}

/// The failure if no connection could be made.
pub(in crate::provide) fn unconnected(server: &str, error: &dyn Error) -> Failure {
    let why = format!("cannot connect to {server}: {}; is it running?", root_cause(error));
    Failure::retryable(FailureCode::Unavailable, why, RETRY)
}

/// The failure if there was no answer.
pub(in crate::provide) fn from_transport(server: &str, error: &reqwest::Error) -> Failure {
    if error.is_connect() {
        return unconnected(server, error);
    }
    if error.is_timeout() {
        let why = format!("{server} took too long to answer");
        return Failure::retryable(FailureCode::ProviderTimeout, why, RETRY);
    }
    broken_off(server, error)
}

/// The failure if the connection ended within an answer.
pub(in crate::provide) fn broken_off(server: &str, error: &dyn Error) -> Failure {
    Failure::new(FailureCode::BadOutput, format!("the answer of {server} broke off: {}", root_cause(error)))
}

/// Our own sentence about an answer that is not valid.
pub(in crate::provide) fn bad_output(server: &str, what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::BadOutput, format!("{server} sent {what}"))
}

/// Whether an answer says that the model is still being loaded: the request is then worth waiting for.
pub(in crate::provide) fn is_loading(status: u16, body: &[u8]) -> bool {
    status == 503 && String::from_utf8_lossy(body).to_lowercase().contains("loading")
}

/// The owner's key is wrong or absent. Neither status nor body reaches the caller: it is not the caller's fault, and the
/// body may quote the key.
fn refused_key(server: &str, status: u16, key: &Key) -> Failure {
    let what = match key.variable() {
        Some(variable) => format!("check the key in the environment variable {variable}"),
        None => "it wants a key; name its environment variable as apiKeyEnv in config.json".to_owned(),
    };
    Failure::new(FailureCode::ProviderAuth, format!("{server} refused our credentials ({status}): {what}"))
}

fn code_for(status: u16, said: &Said) -> FailureCode {
    match status {
        400 | 413 | 422 | 500 if said.mentions(&CONTEXT_WORDS) => FailureCode::ContextLength,
        400 | 403 | 422 if said.mentions(&FILTER_WORDS) => FailureCode::ContentFiltered,
        401 | 403 => FailureCode::ProviderAuth,
        404 => FailureCode::ModelNotFound,
        408 | 504 => FailureCode::ProviderTimeout,
        413 => FailureCode::TooLarge,
        429 => FailureCode::RateLimited,
        // 529 is Anthropic's word for overload.
        529 => FailureCode::Overloaded,
        503 => FailureCode::Unavailable,
        400..500 => FailureCode::InvalidRequest,
        _ => FailureCode::Internal,
    }
}

fn retryable(status: u16, said: &Said) -> bool {
    // An exhausted quota is a 429 too, and waiting does not help.
    matches!(status, 408 | 425 | 429 | 503 | 504 | 529) && !said.mentions(&["insufficient_quota"])
}

/// What an error body says, in the shapes that servers use.
struct Said {
    /// For people, shortened.
    message: String,
    /// Message, type and code together in lower case, to be searched.
    words: String,
    /// The status that the body names.
    status: Option<u16>,
    is_json: bool,
}

impl Said {
    fn from(body: &[u8]) -> Self {
        let Ok(parsed) = serde_json::from_slice::<ErrorBody>(body) else {
            let text = String::from_utf8_lossy(body);
            return Self { message: quoted(&text), words: text.to_lowercase(), status: None, is_json: false };
        };
        let field = |name| parsed.error.get(name).and_then(Value::as_str);
        let message = field("message")
            .or_else(|| parsed.error.as_str())
            .or_else(|| parsed.message.as_str())
            .or_else(|| parsed.detail.as_str())
            .unwrap_or_default();
        let words = [Some(message), field("type"), field("code")];
        Self {
            message: quoted(message),
            words: words.into_iter().flatten().collect::<Vec<_>>().join(" ").to_lowercase(),
            status: parsed
                .error
                .get("code")
                .and_then(Value::as_u64)
                .and_then(|code| u16::try_from(code).ok()),
            is_json: true,
        }
    }

    fn mentions(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.words.contains(word))
    }
}

fn quoted(text: &str) -> String {
    text.trim().chars().take(MAX_QUOTED_CHARS).collect()
}

#[cfg(test)]
#[path = "failures_tests.rs"]
mod tests;
