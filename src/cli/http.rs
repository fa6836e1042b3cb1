//! How commands call mcpd: one client, and one sentence for each way a call can fail.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Stop;
use crate::{
    config::{Lookup, McpdArgs, TOKEN_VARIABLE},
    credentials::{self, Credentials, McpdUrl},
    domain::Reason,
    http::{self, ClientOptions, ReadError, Trust, Version, page_title, read_at_most},
    upstream::{contract, explain::Way},
};

/// How long a connection may take, TLS included: an mcpd across the world answers within a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept: some commands call several times.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);
/// How long a short call may take as a whole.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How many characters of an error's body are shown: more would be a page, not a sentence.
const MAX_ERROR_CHARS: usize = 500;
/// The most that is read of one reply, in bytes: a list with tens of thousands of rows.
const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// An mcpd, with the token for it.
#[derive(Clone, Debug)]
pub struct Mcpd {
    client: Client,
    credentials: Credentials,
    ca_file: Option<PathBuf>,
}

/// Why a call to mcpd gave no usable result. Never contains the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No answer at all.
    #[error("{}: {}", .0.what, .0.advice)]
    NoAnswer(Reason),
    /// The token is not accepted.
    #[error("mcpd at {url} refuses the token{} ({status}): {}", source_of(*.from_environment), renew(*.from_environment))]
    Refused {
        /// Where it is.
        url: McpdUrl,
        /// 401 or 403.
        status: u16,
        /// Whether the token is from the environment.
        from_environment: bool,
    },
    /// It redirects, and a token is never sent along.
    #[error("mcpd at {url} redirects to {to}: pass the final address as --mcpd-url")]
    Redirect {
        /// Where it is.
        url: McpdUrl,
        /// Where it redirects to.
        to: String,
    },
    /// It answers with an error.
    #[error("mcpd at {url} answers {status} to {path}{}: {}", shown(.message), advice(*.status))]
    Status {
        /// Where it is.
        url: McpdUrl,
        /// The call's path.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What the reply says; may be empty.
        message: String,
    },
    /// It answers with something unexpected.
    #[error("what answers at {url} is not an mcpd ({why}): check --mcpd-url")]
    NotMcpd {
        /// Where it is.
        url: McpdUrl,
        /// What is wrong with the answer.
        why: String,
    },
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Failed(error.to_string())
    }
}

fn source_of(from_environment: bool) -> String {
    if from_environment { format!(" in {TOKEN_VARIABLE}") } else { String::new() }
}

fn renew(from_environment: bool) -> String {
    match from_environment {
        true => "correct that variable, or unset it and log in with mcpctl".to_owned(),
        false => format!("log in again with mcpctl, or set {TOKEN_VARIABLE}"),
    }
}

fn shown(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

fn advice(status: u16) -> &'static str {
    match status {
        404 | 405 => "check --mcpd-url, which has no such call",
        429 | 503 => "try again later",
        500.. => "see its log",
        _ => "check the request",
    }
}

impl Mcpd {
    /// Finds credentials and makes a client; calls nothing.
    pub fn new(mcpd: &McpdArgs, home: &Path, env: Lookup<'_>) -> Result<Self, Stop> {
        let sources = mcpd.sources(home, env)?;
        let credentials = credentials::load(&sources).map_err(|problem| Stop::Failed(problem.to_string()))?;
        let client = client(&credentials.url, mcpd.ca_file.as_deref())?;
        Ok(Self { client, credentials, ca_file: mcpd.ca_file.clone() })
    }

    /// Where it is.
    pub fn url(&self) -> &McpdUrl {
        &self.credentials.url
    }

    /// A `GET` with the token.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.with_token(self.client.get(contract::endpoint(self.url().as_str(), path)))
    }

    /// A `GET` without the token, to see it refused.
    pub fn get_without_token(&self, path: &str) -> RequestBuilder {
        self.client.get(contract::endpoint(self.url().as_str(), path))
    }

    /// A `POST` with the token.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.with_token(self.client.post(contract::endpoint(self.url().as_str(), path)))
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(self.credentials.token.expose_secret())
    }

    /// Sends a call; anything but a success is an error.
    pub async fn send(&self, request: RequestBuilder, path: &str) -> Result<Response, CallError> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(CallError::NoAnswer(self.way().ask(&error).await.explain(&error))),
        };
        self.accept(response, path).await
    }

    /// Turns anything but a success into an error.
    pub async fn accept(&self, response: Response, path: &str) -> Result<Response, CallError> {
        let (url, status) = (self.url().clone(), response.status());
        match status {
            _ if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let from_environment = self.credentials.from_environment;
                Err(CallError::Refused { url, status: status.as_u16(), from_environment })
            }
            _ if status.is_redirection() => Err(CallError::Redirect { url, to: location(&response) }),
            _ => {
                let message = error_message(response).await;
                Err(CallError::Status { url, path: path.to_owned(), status: status.as_u16(), message })
            }
        }
    }

    /// Reads a reply's JSON.
    pub async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, CallError> {
        let body = http::read(response, MAX_REPLY_BYTES).await.map_err(|error| match error {
            ReadError::Broken(error) => self.no_answer(&error),
            ReadError::TooLong(_) => self.not_mcpd("its reply does not end"),
        })?;
        serde_json::from_slice(&body)
            .map_err(|_| self.not_mcpd("its reply is not the JSON that was asked for"))
    }

    /// The error for a call that got no answer.
    pub fn no_answer(&self, error: &reqwest::Error) -> CallError {
        CallError::NoAnswer(self.way().explain(error))
    }

    fn way(&self) -> Way<'_> {
        Way::to(self.url().as_str(), self.ca_file.as_deref())
    }

    /// The error for an answer that cannot be an mcpd's.
    pub fn not_mcpd(&self, why: &str) -> CallError {
        CallError::NotMcpd { url: self.url().clone(), why: why.to_owned() }
    }
}

/// A client that sends the token nowhere else.
fn client(url: &McpdUrl, ca_file: Option<&Path>) -> Result<Client, Stop> {
    let trust = &Trust::load(url.as_url(), ca_file).map_err(|bad| {
        let (path, reason) = (bad.path.display(), bad.reason);
        Stop::Usage(format!(
            "--ca-file (MCPRELAY_CA_FILE) {path} cannot be used ({reason}): pass a readable PEM file"
        ))
    })?;
    let (connect_timeout, idle, version) = (CONNECT_TIMEOUT, IDLE_CONNECTION, Version::Negotiated);
    let options = ClientOptions { connect_timeout, idle, version, trust };
    http::client(url.as_url(), options).map_err(|error| Stop::Failed(error.to_string()))
}

fn location(response: &Response) -> String {
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    location.unwrap_or("somewhere else").to_owned()
}

/// What an error reply says, in one of the usual shapes, cut to the length of a sentence; empty if it says nothing readable.
pub async fn error_message(mut response: Response) -> String {
    let body = read_at_most(&mut response, MAX_ERROR_CHARS * 16).await.unwrap_or_default();
    match serde_json::from_slice(&body) {
        Ok(json) => message_in(&json),
        Err(_) => page_title(&String::from_utf8_lossy(&body)).unwrap_or_default().to_owned(),
    }
}

/// The message in `{"error": {"message"}}`, `{"error": "..."}`, `{"message": "..."}` or FastAPI's `{"detail": ...}`, which is a text or a list
/// of `{"loc", "msg"}`; empty if there is none.
pub fn message_in(json: &Value) -> String {
    let error = json.get("error");
    let nested = error.and_then(|error| error.get("message"));
    let texts = [nested, error, json.get("message"), json.get("detail")];
    let message = texts.into_iter().flatten().find_map(Value::as_str).map(str::to_owned);
    message.unwrap_or_else(|| details(json)).chars().take(MAX_ERROR_CHARS).collect()
}

/// FastAPI's list of what is wrong where.
fn details(json: &Value) -> String {
    let one = |detail: &Value| {
        let place = detail["loc"].as_array().into_iter().flatten();
        let place: Vec<_> =
            place.map(|step| step.as_str().map_or_else(|| step.to_string(), str::to_owned)).collect();
        Some(format!("{}: {}", place.join("."), detail["msg"].as_str()?))
    };
    let list = json.get("detail").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_body_is_read_in_each_of_the_usual_shapes() {
        assert_eq!(message_in(&json!({"error": {"message": "a", "type": "t"}})), "a");
        assert_eq!(message_in(&json!({"error": "b", "message": "c"})), "b");
        assert_eq!(message_in(&json!({"message": "c"})), "c");
        assert_eq!(message_in(&json!({"detail": "d"})), "d");
        let list =
            json!({"detail": [{"loc": ["body", "messages", 0], "msg": "Field required", "type": "missing"}]});
        assert_eq!(message_in(&list), "body.messages.0: Field required");
        assert_eq!(message_in(&json!(["d"])), "");
        assert_eq!(message_in(&json!({"error": "x".repeat(9_000)})).len(), MAX_ERROR_CHARS);
    }

    #[test]
    fn a_status_error_says_what_to_do() {
        let url = McpdUrl::parse("https://h").expect("a URL");
        let error = CallError::Status { url, path: "/x".into(), status: 503, message: "busy".into() };
        assert_eq!(error.to_string(), "mcpd at https://h answers 503 to /x (busy): try again later");
    }
}
