//! The client's side of the conversions: from the words everybody shares to the bridge's wire types.

use std::time::Duration;

use crate::{
    domain::{
        CompletionResult, Delta, Failure, FailureCode, Outcome, Provider, ProviderState, ToolCallDelta, Usage,
    },
    pb::{
        self, ErrorCode, session_request::Payload, task_chunk::Output as PbOutput,
        task_finished::Outcome as PbOutcome,
    },
};

/// Wraps a payload as the message that goes over the stream.
pub(super) fn request(payload: Payload) -> pb::SessionRequest {
    pb::SessionRequest { payload: Some(payload) }
}

/// One piece of a task's output; none is a sign of life.
pub(super) fn chunk(task_id: &str, output: Option<PbOutput>) -> pb::SessionRequest {
    request(Payload::TaskChunk(pb::TaskChunk { task_id: task_id.to_owned(), output }))
}

/// The one end of a task.
pub(super) fn finished(task_id: &str, outcome: Outcome, usage: Option<Usage>) -> pb::SessionRequest {
    request(Payload::TaskFinished(pb::TaskFinished {
        task_id: task_id.to_owned(),
        usage: usage.map(|u| pb::Usage { input_tokens: u.input_tokens, output_tokens: u.output_tokens }),
        outcome: match outcome {
            Outcome::Complete => None,
            Outcome::Body(body) => Some(PbOutcome::BodyJson(body)),
            Outcome::Result(result) => Some(PbOutcome::Result(completion(result))),
            Outcome::Failed(failure) => Some(PbOutcome::Error(error(failure))),
            Outcome::Cancelled => Some(PbOutcome::Cancelled(pb::Cancelled {})),
        },
    }))
}

/// The set of providers, as `generation`.
pub(super) fn snapshot<'a>(
    generation: u32,
    providers: impl Iterator<Item = &'a Provider>,
) -> pb::SessionRequest {
    let providers = providers.map(provider).collect();
    request(Payload::ProviderSnapshot(pb::ProviderSnapshot { generation, providers }))
}

/// A plain piece of an answer.
pub(super) fn delta(delta: Delta) -> pb::Delta {
    pb::Delta {
        content: delta.content,
        reasoning: delta.reasoning,
        tool_calls: delta.tool_calls.into_iter().map(tool_call_delta).collect(),
        finish_reason: delta.finish_reason,
    }
}

/// Milliseconds as the wire counts them; what does not fit is the most it can say.
pub(super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn provider(provider: &Provider) -> pb::Provider {
    let state = match provider.state {
        ProviderState::Ready => pb::ProviderState::Ready,
        ProviderState::Loading => pb::ProviderState::Loading,
        ProviderState::Unavailable => pb::ProviderState::Unavailable,
    };
    pb::Provider {
        name: provider.name.as_str().to_owned(),
        r#type: provider.kind.clone(),
        model: provider.model.clone(),
        tier: provider.tier.clone(),
        description: provider.description.clone(),
        publish: provider.publish,
        max_in_flight: provider.max_in_flight,
        state: state.into(),
        state_detail: provider.state_detail.clone(),
        features: provider.features.clone(),
        context_tokens: provider.context_tokens,
        max_output_tokens: provider.max_output_tokens,
    }
}

fn completion(result: CompletionResult) -> pb::CompletionResult {
    pb::CompletionResult {
        content: result.content,
        reasoning: result.reasoning,
        tool_calls: result
            .tool_calls
            .into_iter()
            .map(|call| pb::ToolCall { id: call.id, name: call.name, arguments: call.arguments })
            .collect(),
        finish_reason: result.finish_reason,
    }
}

fn tool_call_delta(call: ToolCallDelta) -> pb::ToolCallDelta {
    pb::ToolCallDelta { index: call.index, id: call.id, name: call.name, arguments: call.arguments }
}

fn error(failure: Failure) -> pb::Error {
    pb::Error {
        code: error_code(failure.code).into(),
        message: failure.message,
        retryable: failure.retryable,
        retry_after_ms: failure.retry_after.map(millis),
        http_status: failure.http_status.map(u32::from),
        body_json: failure.body,
    }
}

/// The wire has fewer kinds: what only the agent itself can find out is `Internal` here.
fn error_code(code: FailureCode) -> ErrorCode {
    match code {
        FailureCode::InvalidRequest | FailureCode::TooLarge | FailureCode::BadTask => {
            ErrorCode::InvalidRequest
        }
        FailureCode::ModelNotFound => ErrorCode::ModelNotFound,
        FailureCode::ProviderAuth => ErrorCode::ProviderAuth,
        FailureCode::RateLimited => ErrorCode::RateLimited,
        FailureCode::Overloaded => ErrorCode::Overloaded,
        FailureCode::Unavailable | FailureCode::ShuttingDown => ErrorCode::ProviderUnavailable,
        FailureCode::ProviderTimeout
        | FailureCode::QueueTimeout
        | FailureCode::FirstTokenTimeout
        | FailureCode::IdleTokenTimeout
        | FailureCode::TaskTimeout => ErrorCode::Timeout,
        FailureCode::ContextLength => ErrorCode::ContextLength,
        FailureCode::ContentFiltered => ErrorCode::ContentFiltered,
        FailureCode::Duplicate => ErrorCode::Duplicate,
        FailureCode::SlowConsumer => ErrorCode::SlowConsumer,
        FailureCode::ProviderLost
        | FailureCode::BadOutput
        | FailureCode::DeliveryFailed
        | FailureCode::Restarted
        | FailureCode::Internal => ErrorCode::Internal,
    }
}
