//! Failures of tasks and providers: the kinds, and the statuses and words a caller sees.

use std::time::Duration;

use bytes::Bytes;

use super::Printable;

/// Most of a failure's sentence that is told, in characters.
const MAX_REASON: usize = 300;

/// The kind of a failure; it fixes the HTTP status and the code that a caller sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCode {
    /// The request is wrong.
    InvalidRequest,
    /// The provider does not have this model.
    ModelNotFound,
    /// The provider refused the owner's credentials.
    ProviderAuth,
    /// The provider limits the rate.
    RateLimited,
    /// Too much work at once.
    Overloaded,
    /// The provider does not answer, or is not there.
    Unavailable,
    /// The provider itself took too long.
    ProviderTimeout,
    /// No slot became free in time.
    QueueTimeout,
    /// The first token did not come in time.
    FirstTokenTimeout,
    /// The next token did not come in time.
    IdleTokenTimeout,
    /// The whole task did not end in time.
    TaskTimeout,
    /// The prompt does not fit the model's context.
    ContextLength,
    /// A content filter stopped it.
    ContentFiltered,
    /// The name is taken by something else.
    Duplicate,
    /// The output was not taken fast enough.
    SlowConsumer,
    /// The answer or a part of it is too large for somebody on the way.
    TooLarge,
    /// The local program went away in the middle.
    ProviderLost,
    /// The provider's output broke off or is not what it should be.
    BadOutput,
    /// mcpd did not take a part, so the stream cannot go on.
    DeliveryFailed,
    /// The agent is stopping.
    ShuttingDown,
    /// mcpd's task event makes no sense.
    BadTask,
    /// Anything else.
    Internal,
}

impl FailureCode {
    /// Its word in error bodies, traces and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::ModelNotFound => "model_not_found",
            Self::ProviderAuth => "provider_auth",
            Self::RateLimited => "rate_limit_exceeded",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "provider_unavailable",
            Self::ProviderTimeout => "provider_timeout",
            Self::QueueTimeout => "queue_timeout",
            Self::FirstTokenTimeout => "first_token_timeout",
            Self::IdleTokenTimeout => "idle_token_timeout",
            Self::TaskTimeout => "task_timeout",
            Self::ContextLength => "context_length_exceeded",
            Self::ContentFiltered => "content_filter",
            Self::Duplicate => "duplicate",
            Self::SlowConsumer => "slow_consumer",
            Self::TooLarge => "too_large",
            Self::ProviderLost => "provider_lost",
            Self::BadOutput => "bad_provider_output",
            Self::DeliveryFailed => "delivery_failed",
            Self::ShuttingDown => "shutting_down",
            Self::BadTask => "bad_task",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that says the same.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLength | Self::ContentFiltered | Self::BadTask => 400,
            Self::ModelNotFound => 404,
            Self::Duplicate => 409,
            Self::TooLarge => 413,
            Self::RateLimited | Self::Overloaded => 429,
            Self::Unavailable | Self::ShuttingDown | Self::SlowConsumer => 503,
            Self::ProviderTimeout
            | Self::QueueTimeout
            | Self::FirstTokenTimeout
            | Self::IdleTokenTimeout
            | Self::TaskTimeout => 504,
            Self::ProviderAuth
            | Self::ProviderLost
            | Self::BadOutput
            | Self::DeliveryFailed
            | Self::Internal => 502,
        }
    }

    /// OpenAI's `type` for it.
    pub fn error_type(self) -> &'static str {
        match self.http_status() {
            400 | 404 | 409 | 413 => "invalid_request_error",
            429 => "rate_limit_error",
            _ => "server_error",
        }
    }
}

/// A failure of one task or one provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its kind.
    pub code: FailureCode,
    /// One sentence for the caller: what, and what to do. It may echo a prompt, so it counts as content.
    pub message: String,
    /// Whether trying again later may help.
    pub retryable: bool,
    /// When to try again, if known.
    pub retry_after: Option<Duration>,
    /// The provider's own HTTP status, if it has one.
    pub http_status: Option<u16>,
    /// The provider's own error body, byte for byte; empty if there is none.
    pub body: Bytes,
    /// What only the owner reads, in the log and in the status: where it happened and in which words. Empty if the message says it all.
    pub owner_detail: Box<str>,
}

impl Failure {
    /// A failure that trying again does not fix.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: false,
            retry_after: None,
            http_status: None,
            body: Bytes::new(),
            owner_detail: Box::default(),
        }
    }

    /// The same with what only the owner reads.
    #[must_use]
    pub fn with_owner_detail(self, detail: impl Into<Box<str>>) -> Self {
        Self { owner_detail: detail.into(), ..self }
    }

    /// What the owner reads: the detail where there is one, else the message.
    pub fn for_owner(&self) -> &str {
        if self.owner_detail.is_empty() { &self.message } else { &self.owner_detail }
    }

    /// A failure that may not recur after `retry_after`.
    pub fn retryable(code: FailureCode, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retryable: true, retry_after: Some(retry_after), ..Self::new(code, message) }
    }

    /// The HTTP status the caller gets: the provider's own if it is an error, else the code's.
    pub fn status(&self) -> u16 {
        self.http_status.filter(|s| (400..600).contains(s)).unwrap_or_else(|| self.code.http_status())
    }

    /// Why, for the owner: the sentence, cut and made printable. What refuses a request (400, 422) may quote the
    /// prompt, so of that only status, type and code are told, unless content may be.
    pub fn reason(&self, content: bool) -> String {
        let status = self.status();
        if matches!(status, 400 | 422) && !content {
            return format!("status {status}, {}, {}", self.code.error_type(), self.code.as_str());
        }
        let why = self.for_owner();
        let end = why.char_indices().nth(MAX_REASON).map_or(why.len(), |(at, _)| at);
        Printable(&why[..end]).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_one_short_printable_sentence() {
        let failure = Failure::new(FailureCode::ProviderLost, format!("lost\n{}", "é".repeat(400)));
        let reason = failure.reason(false);
        assert!(reason.starts_with("lost\\u{a}é") && reason.ends_with('é'), "{reason}");
        assert_eq!(reason.chars().filter(|c| *c == 'é').count(), MAX_REASON - 5);
    }

    #[test]
    fn a_refused_requests_words_are_told_only_where_content_may_be() {
        let refused = |status| Failure {
            http_status: Some(status),
            ..Failure::new(FailureCode::InvalidRequest, "cannot take 'my secret prompt'")
        };
        assert_eq!(refused(422).reason(false), "status 422, invalid_request_error, invalid_request");
        assert!(!refused(400).reason(false).contains("secret"));
        assert!(refused(400).reason(true).contains("secret"));
        assert!(refused(500).reason(false).contains("cannot take"));
    }
}
