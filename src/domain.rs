//! The words everybody shares: names, providers, tasks, failures. Values only; no I/O, no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

/// Longest name of a provider, in bytes: it becomes a row, a path segment and a table cell.
pub const MAX_NAME_BYTES: usize = 253;
/// Longest task id the agent takes, in bytes: it becomes a path segment, a header and a line in a file.
pub const MAX_TASK_ID_BYTES: usize = 512;

/// mcpd's id of one task. Cheap to clone; any text up to [`MAX_TASK_ID_BYTES`], so whoever puts it into a path, a header, a
/// file or a terminal encodes it there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

/// The unique name of a provider, and so of the virtual LLM. Not empty, no control characters, at most
/// [`MAX_NAME_BYTES`] long.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProviderName(Arc<str>);

/// Why a text is not a [`TaskId`] or a [`ProviderName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// There is nothing in it.
    #[error("is empty")]
    Empty,
    /// It is longer than the limit in bytes.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// It could move a terminal's cursor or break a line.
    #[error("has control characters")]
    Control,
}

impl TaskId {
    /// Takes any non-empty text of at most [`MAX_TASK_ID_BYTES`].
    pub fn new(text: &str) -> Result<Self, BadName> {
        match text.len() {
            0 => Err(BadName::Empty),
            n if n > MAX_TASK_ID_BYTES => Err(BadName::TooLong(MAX_TASK_ID_BYTES)),
            _ => Ok(Self(text.into())),
        }
    }

    /// The id as mcpd wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ProviderName {
    /// Takes any non-empty text of at most [`MAX_NAME_BYTES`] without control characters.
    pub fn new(text: &str) -> Result<Self, BadName> {
        match text.len() {
            0 => Err(BadName::Empty),
            n if n > MAX_NAME_BYTES => Err(BadName::TooLong(MAX_NAME_BYTES)),
            _ if text.chars().any(char::is_control) => Err(BadName::Control),
            _ => Ok(Self(text.into())),
        }
    }

    /// The name as it was pushed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            /// Control characters are escaped: the text may come from a hostile peer and go to a terminal.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_printable(f, &self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
shown_as_text!(TaskId, ProviderName);

/// A text of any origin, shown with its control characters escaped.
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_printable(f, self.0)
    }
}

fn write_printable(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    use fmt::Write as _;
    text.chars().try_for_each(|c| {
        if c.is_control() || turns_text_around(c) {
            write!(f, "{}", c.escape_unicode())
        } else {
            f.write_char(c)
        }
    })
}

/// Whether a character changes the direction or the lines of the text around it: with one of these a name can look like another.
fn turns_text_around(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One connected local program, for as long as its stream lives. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// One task, for as long as it is under way. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey(pub u64);

/// What a session said in its Hello.
#[derive(Clone, Debug)]
pub struct SessionHello {
    /// Stable per installation.
    pub client_id: String,
    /// For people.
    pub client_version: String,
    /// The largest message the client accepts, in bytes.
    pub max_message_bytes: usize,
    /// Whether it is the agent's own provider host, which any session from outside outranks.
    pub builtin: bool,
}

/// One entry of a snapshot: a provider, or the name as pushed and why it is refused.
pub type Pushed = Result<Provider, (String, Failure)>;

/// What became of the providers of one snapshot, in its order.
pub type Verdicts = Vec<(String, Verdict)>;

/// One LLM as its owner pushed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Its name, unique among what is published.
    pub name: ProviderName,
    /// The kind of server behind it: "ollama", "vllm", ...
    pub kind: String,
    /// The model it serves.
    pub model: String,
    /// The owner's word for its class; may be empty.
    pub tier: String,
    /// For people; may be empty.
    pub description: String,
    /// The owner's consent to publish it upstream.
    pub publish: bool,
    /// How many inferences may run at once; `None` is the agent's setting, 0 is none now.
    pub max_in_flight: Option<u32>,
    /// Whether it can work now.
    pub state: ProviderState,
    /// Why, for people; may be empty.
    pub state_detail: String,
    /// What it can do: "tools", "vision", ...
    pub features: Vec<String>,
    /// Its context window in tokens, where known.
    pub context_tokens: Option<u32>,
    /// The most tokens it gives in one answer, where known.
    pub max_output_tokens: Option<u32>,
}

/// Whether a provider can work now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderState {
    /// Takes work.
    Ready,
    /// Will take work soon: stays published, its tasks wait.
    Loading,
    /// Takes no work: withdrawn from mcpd.
    Unavailable,
}

/// What became of one provider of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serves under its name.
    Published,
    /// Pushed without consent: shown, not published.
    NotOptedIn,
    /// Another session serves under this name.
    StandingBy,
    /// Not taken.
    Refused(Failure),
}

/// One task as mcpd handed it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// mcpd's id.
    pub id: TaskId,
    /// The virtual LLM that is asked for, as mcpd wrote it: it need not be a valid or known name.
    pub llm: String,
    /// Whether the caller wants a stream.
    pub streaming: bool,
    /// The OpenAI chat body, byte for byte.
    pub request: Bytes,
    /// Time left for the whole task, from its arrival, if mcpd set one.
    pub deadline: Option<Duration>,
    /// `traceparent` and `tracestate`, where mcpd sent them.
    pub trace_context: BTreeMap<String, String>,
    /// A display name of who called, where mcpd sent it.
    pub caller: Option<String>,
}

/// What an inference used, as its provider counted; never estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input_tokens: Option<u32>,
    /// Tokens of the answer.
    pub output_tokens: Option<u32>,
}

/// A piece of a task's output.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// One OpenAI chunk, byte for byte.
    Raw(Bytes),
    /// A plain piece.
    Delta(Delta),
    /// No output, but the provider lives.
    Alive,
}

/// A plain piece of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Text of the answer.
    pub content: String,
    /// Text of the model's reasoning.
    pub reasoning: String,
    /// Pieces of tool calls.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Why the answer ends here, in OpenAI's words; empty before the last piece.
    pub finish_reason: String,
}

/// A piece of one tool call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCallDelta {
    /// Which of the answer's calls, from 0.
    pub index: u32,
    /// The call's id; with its first piece only.
    pub id: String,
    /// The function's name; with its first piece only.
    pub name: String,
    /// A piece of the arguments' JSON text.
    pub arguments: String,
}

/// A whole answer in plain form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompletionResult {
    /// Text of the answer.
    pub content: String,
    /// Text of the model's reasoning.
    pub reasoning: String,
    /// The tools the model wants called: id, function name, arguments as JSON text.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Why it ended, in OpenAI's words; empty is "stop", or "tool_calls" where there are any.
    pub finish_reason: String,
}

/// How the local side ended a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All output has been sent as chunks.
    Complete,
    /// The whole OpenAI body, byte for byte.
    Body(Bytes),
    /// The whole answer, plain.
    Result(CompletionResult),
    /// It failed.
    Failed(Failure),
    /// It stopped because it was asked to.
    Cancelled,
}

/// How a task ends upstream.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// With its answer: complete, a body or a plain result.
    Answer(Outcome),
    /// With an error.
    Failed(Failure),
    /// With nothing: nobody waits.
    Nobody,
}

impl End {
    /// Its word in the status, in logs, traces and metrics: "ok", "cancelled", or the failure's code.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Answer(_) => "ok",
            Self::Failed(failure) => failure.code.as_str(),
            Self::Nobody => "cancelled",
        }
    }
}

/// What a task's output has shown so far; read when a deadline is due, never per token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Whether any output was taken for delivery.
    pub any_output: bool,
    /// Whether the first non-empty delta came.
    pub first_token: bool,
    /// The last output or sign of life.
    pub last_sign: Option<Instant>,
}

/// Why the local side is asked to stop a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// Nobody waits any more.
    CallerGone,
    /// A deadline has passed.
    Deadline,
    /// The answer cannot be delivered.
    UpstreamLost,
    /// The agent is stopping.
    Shutdown,
}

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
    /// The agent was restarted while the task ran.
    Restarted,
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
            Self::Restarted => "agent_restarted",
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
            Self::Unavailable | Self::ShuttingDown | Self::SlowConsumer | Self::Restarted => 503,
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
    /// One sentence: what, where, what to do. It may echo a prompt, so it counts as content.
    pub message: String,
    /// Whether trying again later may help.
    pub retryable: bool,
    /// When to try again, where known.
    pub retry_after: Option<Duration>,
    /// The provider's own HTTP status, where it has one.
    pub http_status: Option<u16>,
    /// The provider's own error body, byte for byte; empty where there is none.
    pub body: Bytes,
}

impl Failure {
    /// A failure that trying again does not mend.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: false,
            retry_after: None,
            http_status: None,
            body: Bytes::new(),
        }
    }

    /// A failure that may be gone after `retry_after`.
    pub fn retryable(code: FailureCode, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retryable: true, retry_after: Some(retry_after), ..Self::new(code, message) }
    }

    /// The HTTP status the caller gets: the provider's own if it is an error, else the code's.
    pub fn status(&self) -> u16 {
        self.http_status.filter(|s| (400..600).contains(s)).unwrap_or_else(|| self.code.http_status())
    }
}

/// The link to mcpd, as everybody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// What it is doing.
    pub state: LinkState,
    /// Why, for people; may be empty. Never a secret.
    pub detail: String,
    /// How long until the next attempt, where it waits.
    pub next_attempt: Option<Duration>,
}

/// What the link to mcpd is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There are no usable credentials.
    NoCredentials,
    /// Nothing is opted in, so nothing is called.
    Idle,
    /// Registering or opening the channel.
    Connecting,
    /// Registered, and the channel is open.
    Online,
    /// Waiting for the next attempt.
    Backoff,
    /// mcpd refuses; somebody should look.
    Refused,
    /// Stopping.
    Draining,
}

impl LinkState {
    /// Its word in the status, in logs and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Online => "online",
            Self::Backoff => "backoff",
            Self::Refused => "refused",
            Self::Draining => "draining",
        }
    }
}

/// Why a call or the channel failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// 401 or 403; whether the credentials have changed since the call.
    Unauthorized {
        /// What mcpd said, for people; never a secret.
        detail: String,
        /// Whether other credentials are there now.
        changed: bool,
    },
    /// 404 or 410: mcpd does not know the session, or on register has no provider API.
    Unknown(String),
    /// 409 with the names that mcpd gives to somebody else.
    Conflict(BTreeSet<ProviderName>),
    /// Passing trouble; with what `Retry-After` asked for.
    Passing(String, Option<Duration>),
}

impl CallFailure {
    /// Its word in traces: one of a fixed set.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unauthorized { .. } => "unauthorized",
            Self::Unknown(_) => "unknown_session",
            Self::Conflict(_) => "conflict",
            Self::Passing(..) => "unavailable",
        }
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthorized { detail, .. } | Self::Unknown(detail) | Self::Passing(detail, _) => {
                f.write_str(detail)
            }
            Self::Conflict(names) => write!(f, "mcpd gives {} names to somebody else", names.len()),
        }
    }
}

/// Where a task's output goes: the bridge writes, the delivery to mcpd reads. Nothing here waits or blocks.
pub trait TaskSink: Send + Sync {
    /// Takes one piece. [`Taken::Closed`] means that the task has ended and further pieces are useless.
    fn output(&self, output: Output) -> Taken;
}

/// What became of a piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It will be delivered.
    Accepted,
    /// The task has ended; the piece is dropped and counted.
    Closed,
    /// The piece ends the task: it is malformed, an error of the provider, or more than the buffer holds.
    Broken(Failure),
}
