//! Conversions between the bridge's wire types and the domain's types.

use std::time::Duration;

use crate::{
    domain::{
        BadName, CancelReason, CompletionResult, Delta, Failure, FailureCode, LinkState, LinkStatus,
        MAX_NAME_BYTES, Outcome, Output, Provider, ProviderName, ProviderState, Pushed, Rule, ServerAddress,
        ToolCallDelta, Usage, Verdict, Verdicts, Window,
    },
    pb,
};

/// Longest descriptive text of a provider that is kept, in bytes: type, model, tier, description, state detail, a feature.
const MAX_TEXT: usize = 1024;
/// Most bytes of a plain piece or answer once it is JSON, in which a control character has six: as many as a gathered plain answer may
/// have. The agent builds this JSON, and from it the body that is sent to mcpd.
const MAX_PLAIN_JSON: usize = 32 << 20;
/// How many more bytes a control character has as JSON: `\u0001`.
const ESCAPE: usize = 5;
/// Longest message of an error that is passed on, in bytes: it is one sentence for people.
const MAX_MESSAGE: usize = 4 << 10;
/// Most features of a provider that are kept.
const MAX_FEATURES: usize = 64;

/// Most rules and windows of hours of a provider: more than one for every hour of a week is a mistake.
const MAX_RULES: usize = 200;

/// A duration in whole milliseconds; what does not fit becomes the largest number.
pub fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A provider of a snapshot, or its name as pushed and why it is refused.
///
/// # Errors
/// The name as it was pushed, and why the provider is refused.
pub fn provider(p: pb::Provider) -> Pushed {
    let name = match ProviderName::new(&p.name) {
        Ok(name) => name,
        Err(why) => {
            let failure = bad_name(&p.name, &why);
            // The verdict repeats the name, cut to the length of a valid one.
            return Err((cut(p.name, MAX_NAME_BYTES), failure));
        }
    };
    let texts = [&p.r#type, &p.model, &p.tier, &p.description, &p.state_detail];
    let too_long = texts.into_iter().chain(&p.features).any(|text| text.len() > MAX_TEXT);
    if too_long || p.features.len() > MAX_FEATURES {
        let message = format!(
            "a text of provider '{name}' is longer than {MAX_TEXT} bytes, or it has more than {MAX_FEATURES} features"
        );
        return Err((p.name, Failure::new(FailureCode::InvalidRequest, message)));
    }
    let sharing = match rules(&p.sharing) {
        Ok(sharing) => sharing,
        Err(why) => {
            return Err((p.name, Failure::new(FailureCode::InvalidRequest, format!("sharing: {why}"))));
        }
    };
    let host = Some(&p.server_address).filter(|host| !host.is_empty() && host.len() <= MAX_TEXT);
    let port = p.server_port.and_then(|port| u16::try_from(port).ok());
    Ok(Provider {
        name,
        state: provider_state(p.state()),
        server: host.zip(port).map(|(host, port)| ServerAddress { host: host.as_str().into(), port }),
        kind: p.r#type.into(),
        model: p.model.into(),
        tier: p.tier,
        description: p.description,
        publish: p.publish,
        sharing,
        max_in_flight: p.max_in_flight,
        state_detail: p.state_detail,
        features: p.features,
        context_tokens: p.context_tokens,
        max_output_tokens: p.max_output_tokens,
    })
}

/// The rules of some `sharing` objects, all of which have to be fulfilled.
///
/// # Errors
/// What is not understood in them.
pub fn rules(sharing: &[pb::Sharing]) -> Result<Vec<Rule>, String> {
    if sharing.iter().map(|one| 1 + one.hours.len()).sum::<usize>() > MAX_RULES {
        return Err(format!("has more than {MAX_RULES} rules"));
    }
    let mut rules = Vec::new();
    for one in sharing {
        if !one.hours.is_empty() {
            let windows = one.hours.iter().map(|text| Window::parse(text));
            rules.push(Rule::Hours(windows.collect::<Result<_, _>>()?));
        }
        rules.extend((one.on_battery == Some(false)).then_some(Rule::NotOnBattery));
        let idle_for = one.when_idle_for_ms.map(|ms| Duration::from_millis(ms.into()));
        rules.extend(idle_for.map(Rule::IdleFor));
    }
    Ok(rules)
}

fn rule_to_pb(rule: &Rule) -> pb::Sharing {
    let nothing = pb::Sharing::default();
    match rule {
        Rule::Hours(windows) => {
            pb::Sharing { hours: windows.iter().map(|w| w.as_str().to_owned()).collect(), ..nothing }
        }
        Rule::NotOnBattery => pb::Sharing { on_battery: Some(false), ..nothing },
        Rule::IdleFor(least) => pb::Sharing { when_idle_for_ms: Some(millis(*least)), ..nothing },
    }
}

/// A text cut to `most` bytes.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

fn bad_name(name: &str, why: &BadName) -> Failure {
    let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
    Failure::new(FailureCode::InvalidRequest, format!("the provider name '{shown}' {why}"))
}

/// A provider as it is pushed.
pub fn provider_to_pb(p: &Provider) -> pb::Provider {
    let state = match p.state {
        ProviderState::Ready => pb::ProviderState::Ready,
        ProviderState::Loading => pb::ProviderState::Loading,
        ProviderState::Unavailable => pb::ProviderState::Unavailable,
    };
    pb::Provider {
        name: p.name.as_str().to_owned(),
        r#type: p.kind.to_string(),
        model: p.model.to_string(),
        tier: p.tier.clone(),
        description: p.description.clone(),
        publish: p.publish,
        max_in_flight: p.max_in_flight,
        state: state.into(),
        state_detail: p.state_detail.clone(),
        features: p.features.clone(),
        context_tokens: p.context_tokens,
        max_output_tokens: p.max_output_tokens,
        server_address: p.server.as_ref().map(|server| server.host.to_string()).unwrap_or_default(),
        server_port: p.server.as_ref().map(|server| server.port.into()),
        sharing: p.sharing.iter().map(rule_to_pb).collect(),
    }
}

fn provider_state(state: pb::ProviderState) -> ProviderState {
    match state {
        pb::ProviderState::Unspecified | pb::ProviderState::Ready => ProviderState::Ready,
        pb::ProviderState::Loading => ProviderState::Loading,
        pb::ProviderState::Unavailable => ProviderState::Unavailable,
    }
}

/// The pieces of a message in their order; none is a sign of life.
pub fn pieces(chunk: pb::TaskChunk) -> impl Iterator<Item = Output> {
    use pb::{piece::Output as More, task_chunk::Output as First};
    let first = chunk.output.map(|output| match output {
        First::ChunkJson(json) => Output::Raw(json),
        First::Delta(delta) => Output::Delta(plain_piece(delta)),
    });
    let more = chunk.more.into_iter().filter_map(|piece| piece.output).map(|output| match output {
        More::ChunkJson(json) => Output::Raw(json),
        More::Delta(delta) => Output::Delta(plain_piece(delta)),
    });
    first.into_iter().chain(more)
}

fn plain_piece(delta: pb::Delta) -> Delta {
    Delta {
        content: delta.content,
        reasoning: delta.reasoning,
        tool_calls: delta.tool_calls.into_iter().map(tool_call_delta).collect(),
        finish_reason: delta.finish_reason,
    }
}

/// Why a plain piece of output is not accepted, if it is too large.
pub fn oversized_piece(output: &Output) -> Option<Failure> {
    let Output::Delta(delta) = output else { return None };
    oversized(&delta.content, &delta.reasoning, &delta.tool_calls)
}

/// The outcome, unless it is a plain answer that is too large.
pub fn bounded(outcome: Outcome) -> Outcome {
    let Outcome::Result(result) = &outcome else { return outcome };
    let oversized = oversized(&result.content, &result.reasoning, &result.tool_calls);
    oversized.map_or(outcome, Outcome::Failed)
}

fn oversized(content: &str, reasoning: &str, calls: &[ToolCallDelta]) -> Option<Failure> {
    let parts = calls.iter().flat_map(|call| [&*call.id, &*call.name, &*call.arguments]);
    let bytes: usize = parts.chain([content, reasoning]).map(json_len).sum();
    (bytes > MAX_PLAIN_JSON).then(|| {
        let message =
            format!("the local program's text has {bytes} bytes as JSON; {MAX_PLAIN_JSON} are the most");
        Failure::new(FailureCode::BadOutput, message)
    })
}

fn json_len(text: &str) -> usize {
    let escapes = text.bytes().filter(|byte| *byte < b' ').count();
    text.len() + ESCAPE * escapes
}

fn tool_call_delta(call: pb::ToolCallDelta) -> ToolCallDelta {
    ToolCallDelta { index: call.index, id: call.id, name: call.name, arguments: call.arguments }
}

/// How the local side ended a task.
pub fn outcome(outcome: Option<pb::task_finished::Outcome>) -> Outcome {
    use pb::task_finished::Outcome as Pb;
    match outcome {
        None => Outcome::Complete,
        Some(Pb::BodyJson(body)) => Outcome::Body(body),
        Some(Pb::Result(result)) => Outcome::Result(completion_result(result)),
        Some(Pb::Error(error)) => Outcome::Failed(failure(error)),
        Some(Pb::Cancelled(_)) => Outcome::Cancelled,
    }
}

fn completion_result(result: pb::CompletionResult) -> CompletionResult {
    let call = |(index, call): (usize, pb::ToolCall)| ToolCallDelta {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        id: call.id,
        name: call.name,
        arguments: call.arguments,
    };
    CompletionResult {
        content: result.content,
        reasoning: result.reasoning,
        tool_calls: result.tool_calls.into_iter().enumerate().map(call).collect(),
        finish_reason: result.finish_reason,
    }
}

/// What an inference used.
pub fn usage(usage: Option<pb::Usage>) -> Usage {
    usage.map_or_else(Usage::default, |u| Usage {
        input_tokens: u.input_tokens,
        output_tokens: u.output_tokens,
        cached_input_tokens: u.cached_input_tokens,
        reasoning_output_tokens: u.reasoning_output_tokens,
    })
}

/// What an inference used, where anything is known.
pub fn usage_to_pb(usage: Usage) -> Option<pb::Usage> {
    (usage != Usage::default()).then_some(pb::Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_input_tokens: usage.cached_input_tokens,
        reasoning_output_tokens: usage.reasoning_output_tokens,
    })
}

/// A failure that a local program reports.
pub fn failure(error: pb::Error) -> Failure {
    let code = failure_code(error.code());
    let message = if error.message.is_empty() {
        format!("the provider failed: {}", code.as_str())
    } else {
        cut(error.message, MAX_MESSAGE)
    };
    Failure {
        code,
        message,
        retryable: error.retryable,
        retry_after: error.retry_after_ms.map(|ms| Duration::from_millis(ms.into())),
        http_status: error.http_status.and_then(|s| u16::try_from(s).ok()),
        body: error.body_json,
        owner_detail: cut(error.owner_detail, MAX_MESSAGE).into(),
    }
}

fn failure_code(code: pb::ErrorCode) -> FailureCode {
    match code {
        pb::ErrorCode::InvalidRequest => FailureCode::InvalidRequest,
        pb::ErrorCode::ModelNotFound => FailureCode::ModelNotFound,
        pb::ErrorCode::ProviderAuth => FailureCode::ProviderAuth,
        pb::ErrorCode::RateLimited => FailureCode::RateLimited,
        pb::ErrorCode::Overloaded => FailureCode::Overloaded,
        pb::ErrorCode::ProviderUnavailable => FailureCode::Unavailable,
        pb::ErrorCode::Timeout => FailureCode::ProviderTimeout,
        pb::ErrorCode::ContextLength => FailureCode::ContextLength,
        pb::ErrorCode::ContentFiltered => FailureCode::ContentFiltered,
        pb::ErrorCode::Duplicate => FailureCode::Duplicate,
        pb::ErrorCode::SlowConsumer => FailureCode::SlowConsumer,
        pb::ErrorCode::Internal | pb::ErrorCode::Unspecified => FailureCode::Internal,
    }
}

/// The wire has fewer codes. A code that it lacks becomes the one to which the receiver should react in the same way.
fn error_code(code: FailureCode) -> pb::ErrorCode {
    use FailureCode as F;
    match code {
        F::InvalidRequest | F::TooLarge | F::BadTask => pb::ErrorCode::InvalidRequest,
        F::ModelNotFound => pb::ErrorCode::ModelNotFound,
        F::ProviderAuth => pb::ErrorCode::ProviderAuth,
        F::RateLimited => pb::ErrorCode::RateLimited,
        F::Overloaded => pb::ErrorCode::Overloaded,
        F::Unavailable | F::ProviderLost | F::ShuttingDown => pb::ErrorCode::ProviderUnavailable,
        F::ProviderTimeout
        | F::QueueTimeout
        | F::FirstTokenTimeout
        | F::IdleTokenTimeout
        | F::TaskTimeout => pb::ErrorCode::Timeout,
        F::ContextLength => pb::ErrorCode::ContextLength,
        F::ContentFiltered => pb::ErrorCode::ContentFiltered,
        F::Duplicate => pb::ErrorCode::Duplicate,
        F::SlowConsumer => pb::ErrorCode::SlowConsumer,
        F::BadOutput | F::DeliveryFailed | F::Internal => pb::ErrorCode::Internal,
    }
}

/// Why an offer is not taken, if it is not: what refuses it is an error that says so.
pub fn refusal(outcome: &Option<pb::task_finished::Outcome>) -> Option<Failure> {
    match outcome {
        Some(pb::task_finished::Outcome::Error(error)) if error.refused => Some(failure(error.clone())),
        _ => None,
    }
}

/// A failure, as either side reports it.
pub fn error(failure: &Failure) -> pb::Error {
    pb::Error {
        code: error_code(failure.code).into(),
        message: failure.message.clone(),
        retryable: failure.retryable,
        retry_after_ms: failure.retry_after.map(millis),
        http_status: failure.http_status.map(u32::from),
        body_json: failure.body.clone(),
        refused: false,
        owner_detail: failure.owner_detail.to_string(),
    }
}

/// A verdict, and the reason if it is a refusal.
pub fn verdict(verdict: &Verdict) -> (pb::Verdict, Option<pb::Error>) {
    match verdict {
        Verdict::Published => (pb::Verdict::Published, None),
        Verdict::NotOptedIn => (pb::Verdict::NotOptedIn, None),
        Verdict::StandingBy => (pb::Verdict::StandingBy, None),
        Verdict::Refused(failure) => (pb::Verdict::Refused, Some(error(failure))),
    }
}

/// What became of a snapshot.
pub fn snapshot_result(generation: u32, verdicts: &Verdicts) -> pb::session_response::Payload {
    let one = |(name, v): &(String, Verdict)| {
        let (verdict, error) = verdict(v);
        pb::ProviderVerdict { name: name.clone(), verdict: verdict.into(), error }
    };
    let verdicts = verdicts.iter().map(one).collect();
    pb::session_response::Payload::ProviderSnapshotResult(pb::ProviderSnapshotResult { generation, verdicts })
}

/// A request to stop a task.
pub fn task_cancel(id: &str, reason: CancelReason) -> pb::session_response::Payload {
    let reason = match reason {
        CancelReason::CallerGone => pb::CancelReason::CallerGone,
        CancelReason::Deadline => pb::CancelReason::Deadline,
        CancelReason::UpstreamLost => pb::CancelReason::UpstreamLost,
        CancelReason::Shutdown => pb::CancelReason::Shutdown,
    };
    pb::session_response::Payload::TaskCancel(pb::TaskCancel {
        task_id: id.to_owned(),
        reason: reason.into(),
    })
}

/// The link to mcpd.
pub fn link_status(status: &LinkStatus) -> pb::AgentStatus {
    let state = match status.state {
        LinkState::NoCredentials => pb::AgentState::NoCredentials,
        LinkState::Idle => pb::AgentState::Idle,
        LinkState::Connecting => pb::AgentState::Connecting,
        LinkState::Online => pb::AgentState::Online,
        LinkState::Backoff => pb::AgentState::Backoff,
        LinkState::Refused => pb::AgentState::Refused,
        LinkState::Draining => pb::AgentState::Draining,
    };
    pb::AgentStatus {
        state: state.into(),
        detail: status.detail.what.clone(),
        advice: status.detail.advice.clone(),
        next_attempt_ms: status.next_attempt.map(millis),
    }
}
