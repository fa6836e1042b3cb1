//! One task: what mcpd hands over, what the local side answers, and how it ends.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Failure, FailureCode, TaskId};

/// Longest `tracestate` that is passed on, in bytes. The standard requires at least 512; several vendors together need more, and one that
/// is longer than this is a peer's mistake that every hop would pay for.
pub const MAX_TRACESTATE_BYTES: usize = 4096;

/// One task as mcpd handed it over.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// mcpd's id.
    pub id: TaskId,
    /// The virtual LLM that is asked for, as mcpd wrote it: it need not be a valid or known name.
    pub llm: String,
    /// Whether the caller wants a stream.
    pub streaming: bool,
    /// The OpenAI chat body, byte for byte.
    pub request: Bytes,
    /// What it asks for, where anybody needs to know.
    pub asked: RequestFacts,
    /// Time left for the whole task, from its arrival, if mcpd set one.
    pub deadline: Option<Duration>,
    /// `traceparent` and `tracestate`, where mcpd sent them.
    pub trace_context: BTreeMap<String, String>,
    /// A display name of who called, where mcpd sent it.
    pub caller: Option<Arc<str>>,
}

/// What an OpenAI chat body asks for. A member that is missing or has an unexpected type is `None`: judging it is left to the provider.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestFacts {
    /// `stream`.
    pub stream: Option<bool>,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `max_completion_tokens`, or the older `max_tokens`.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Top-k sampling, which OpenAI does not have but most servers do.
    pub top_k: Option<i64>,
    /// Frequency penalty.
    pub frequency_penalty: Option<f64>,
    /// Presence penalty.
    pub presence_penalty: Option<f64>,
    /// The seed.
    pub seed: Option<i64>,
    /// How many choices.
    pub n: Option<u32>,
    /// `stop`: what the answer is to end before; the first 16.
    pub stop: Vec<String>,
    /// `reasoning_effort`: how much the model is to reason.
    pub reasoning_effort: Option<String>,
    /// `response_format.type`: what kind of text the answer is to be.
    pub response_format: Option<String>,
}

/// What an inference used, as its provider counted; never estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input_tokens: Option<u32>,
    /// Tokens of the answer.
    pub output_tokens: Option<u32>,
    /// Of the prompt's tokens, those that came from the provider's cache.
    pub cached_input_tokens: Option<u32>,
    /// Of the answer's tokens, those of the reasoning.
    pub reasoning_output_tokens: Option<u32>,
}

impl Usage {
    /// The counts that every provider knows.
    pub const fn new(input_tokens: Option<u32>, output_tokens: Option<u32>) -> Self {
        Self { input_tokens, output_tokens, cached_input_tokens: None, reasoning_output_tokens: None }
    }

    /// The counts of `self`, and those of `other` where `self` has none.
    pub fn or(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.or(other.input_tokens),
            output_tokens: self.output_tokens.or(other.output_tokens),
            cached_input_tokens: self.cached_input_tokens.or(other.cached_input_tokens),
            reasoning_output_tokens: self.reasoning_output_tokens.or(other.reasoning_output_tokens),
        }
    }
}

/// A piece of a task's output.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// One OpenAI chunk, byte for byte.
    Raw(Bytes),
    /// A plain piece.
    Delta(Delta),
    /// No output, but the provider is alive.
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

impl CompletionResult {
    fn held_bytes(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| size_of_val(call) + call.arguments.len());
        self.content.len() + self.reasoning.len() + calls.sum::<usize>()
    }
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

impl Outcome {
    /// How many bytes an answer that came whole holds.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Body(body) => body.len(),
            Self::Result(result) => result.held_bytes(),
            Self::Complete | Self::Failed(_) | Self::Cancelled => 0,
        }
    }
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
    /// The same without its content.
    pub fn kind(&self) -> EndKind {
        match self {
            Self::Answer(_) => EndKind::Answered,
            Self::Failed(failure) => EndKind::Failed(failure.code),
            Self::Nobody => EndKind::Nobody,
        }
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Answer(_) | Self::Nobody => None,
        }
    }
}

/// How a task ended upstream. Its words are the only ones for it: in the status, the log, traces and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndKind {
    /// With its answer.
    Answered,
    /// With an error of this kind.
    Failed(FailureCode),
    /// With nothing: nobody waited.
    Nobody,
}

impl EndKind {
    /// Its word: "ok", "cancelled", or the failure's code.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "ok",
            Self::Failed(code) => code.as_str(),
            Self::Nobody => "cancelled",
        }
    }

    /// The same word on failures only: what traces and metrics call the error's type.
    pub fn error_type(self) -> Option<&'static str> {
        match self {
            Self::Failed(code) => Some(code.as_str()),
            Self::Answered | Self::Nobody => None,
        }
    }
}

/// What a task's output has shown so far. It is read when a deadline is due, never per token.
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

/// Where a task's output goes: the bridge writes, the delivery to mcpd reads. No call blocks.
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
