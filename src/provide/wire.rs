//! The client's side of the conversions: from the domain's types to the bridge's wire types. Conversions that both sides need are in
//! [`convert`].

use crate::{
    bridge::convert,
    domain::{CompletionResult, Delta, Outcome, Provider, ToolCallDelta, Usage},
    pb::{
        self, session_request::Payload, task_chunk::Output as PbOutput, task_finished::Outcome as PbOutcome,
    },
};

/// Wraps a payload as the message that goes over the stream.
pub(super) fn request(payload: Payload) -> pb::SessionRequest {
    pb::SessionRequest { payload: Some(payload) }
}

/// One piece of a task's output; without output it is a sign of life.
pub(super) fn chunk(task_id: &str, output: Option<PbOutput>) -> pb::SessionRequest {
    request(Payload::TaskChunk(pb::TaskChunk { task_id: task_id.to_owned(), output, more: Vec::new() }))
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
            Outcome::Failed(failure) => Some(PbOutcome::Error(convert::error(&failure))),
            Outcome::Cancelled => Some(PbOutcome::Cancelled(pb::Cancelled {})),
        },
    }))
}

/// The set of providers, as `generation`.
pub(super) fn snapshot<'a>(
    generation: u32,
    providers: impl Iterator<Item = &'a Provider>,
) -> pb::SessionRequest {
    let providers = providers.map(convert::provider_to_pb).collect();
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
