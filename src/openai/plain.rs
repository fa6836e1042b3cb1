//! OpenAI's JSON for answers that come in plain form.

use bytes::Bytes;

use super::text::{member, quote_into};
use crate::domain::{CompletionResult, Delta, ToolCallDelta, Usage};

/// What the agent puts into the chunks and bodies that it builds itself; the same for a whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The answer's id: `chatcmpl-...`.
    pub id: String,
    /// The model that answers.
    pub model: String,
    /// When, in seconds since 1970.
    pub created: u64,
}

impl Stamp {
    /// Everything before the choices.
    fn head(&self, out: &mut Vec<u8>, object: &str) {
        out.extend_from_slice(b"{\"id\":");
        quote_into(out, &self.id);
        out.extend_from_slice(
            format!(",\"object\":\"{object}\",\"created\":{},\"model\":", self.created).as_bytes(),
        );
        quote_into(out, &self.model);
        out.extend_from_slice(b",\"choices\":[");
    }

    /// Everything before the choices of a chunk.
    pub(super) fn chunk_head(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.id.len() + self.model.len());
        self.head(&mut out, "chat.completion.chunk");
        out
    }

    /// The whole body for a plain answer.
    pub fn completion(&self, result: &CompletionResult, usage: Option<Usage>) -> Bytes {
        let mut out = Vec::with_capacity(256 + result.content.len() + result.reasoning.len());
        self.head(&mut out, "chat.completion");
        out.extend_from_slice(b"{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":");
        if result.content.is_empty() && !result.tool_calls.is_empty() {
            out.extend_from_slice(b"null");
        } else {
            quote_into(&mut out, &result.content);
        }
        words(&mut out, "reasoning_content", &result.reasoning);
        tool_calls(&mut out, result.tool_calls.iter().map(|call| (None, call)));
        out.extend_from_slice(b"},\"finish_reason\":");
        quote_into(&mut out, finish_reason(result));
        out.extend_from_slice(b"}]");
        if let Some(usage) = usage {
            out.extend_from_slice(b",\"usage\":");
            write_usage(&mut out, usage);
        }
        out.push(b'}');
        out.into()
    }

    /// The chunks of a plain answer that comes at once: one with everything and, if the caller wants to see the usage
    /// and it is known, one with that.
    pub fn chunks(&self, result: &CompletionResult, usage: Option<Usage>, include_usage: bool) -> Vec<Bytes> {
        let head = self.chunk_head();
        let delta = Delta {
            content: result.content.clone(),
            reasoning: result.reasoning.clone(),
            tool_calls: (0..)
                .zip(&result.tool_calls)
                .map(|(index, call)| ToolCallDelta { index, ..call.clone() })
                .collect(),
            finish_reason: finish_reason(result).to_owned(),
        };
        let mut out = Vec::with_capacity(head.len() + 128 + result.content.len());
        write_chunk(&mut out, &head, &delta, true);
        let usage = usage.filter(|_| include_usage).map(|usage| usage_chunk(&head, usage));
        std::iter::once(out.into()).chain(usage).collect()
    }
}

fn finish_reason(result: &CompletionResult) -> &str {
    match result.finish_reason.as_str() {
        "" if result.tool_calls.is_empty() => "stop",
        "" => "tool_calls",
        given => given,
    }
}

/// Appends a chunk with one piece of the first choice.
pub(super) fn write_chunk(out: &mut Vec<u8>, head: &[u8], delta: &Delta, role: bool) {
    out.extend_from_slice(head);
    out.extend_from_slice(b"{\"index\":0,\"delta\":{");
    if role {
        words(out, "role", "assistant");
    }
    words(out, "content", &delta.content);
    words(out, "reasoning_content", &delta.reasoning);
    tool_calls(out, delta.tool_calls.iter().map(|call| (Some(call.index), call)));
    out.extend_from_slice(b"},\"finish_reason\":");
    match delta.finish_reason.as_str() {
        "" => out.extend_from_slice(b"null"),
        reason => quote_into(out, reason),
    }
    out.extend_from_slice(b"}]}");
}

/// The chunk without choices that tells the usage.
pub(super) fn usage_chunk(head: &[u8], usage: Usage) -> Bytes {
    let mut out = Vec::with_capacity(head.len() + 96);
    out.extend_from_slice(head);
    out.extend_from_slice(b"],\"usage\":");
    write_usage(&mut out, usage);
    out.push(b'}');
    out.into()
}

/// Appends OpenAI's `usage`. What was not counted is left out: nothing is estimated.
pub(super) fn write_usage(out: &mut Vec<u8>, usage: Usage) {
    let total = usage.input_tokens.zip(usage.output_tokens).map(|(i, o)| u64::from(i) + u64::from(o));
    let counts = [
        ("prompt_tokens", usage.input_tokens.map(u64::from)),
        ("completion_tokens", usage.output_tokens.map(u64::from)),
        ("total_tokens", total),
    ];
    let known = counts.iter().filter_map(|(name, count)| count.map(|count| format!("\"{name}\":{count}")));
    out.push(b'{');
    out.extend_from_slice(known.collect::<Vec<_>>().join(",").as_bytes());
    out.push(b'}');
}

/// Appends a member, unless its text is empty.
fn words(out: &mut Vec<u8>, name: &str, value: &str) {
    if !value.is_empty() {
        member(out, name.as_bytes());
        quote_into(out, value);
    }
}

/// Appends the calls, if there are any; those of a chunk with their index, and with their id, type and name only where
/// they begin.
fn tool_calls<'a>(out: &mut Vec<u8>, calls: impl Iterator<Item = (Option<u32>, &'a ToolCallDelta)>) {
    let mut any = false;
    for (index, call) in calls {
        if any {
            out.push(b',');
        } else {
            member(out, b"tool_calls");
            out.push(b'[');
        }
        any = true;
        tool_call(out, index, call);
    }
    if any {
        out.push(b']');
    }
}

fn tool_call(out: &mut Vec<u8>, index: Option<u32>, call: &ToolCallDelta) {
    out.push(b'{');
    if let Some(index) = index {
        member(out, b"index");
        out.extend_from_slice(index.to_string().as_bytes());
    }
    words(out, "id", &call.id);
    let begins = index.is_none() || !call.id.is_empty() || !call.name.is_empty();
    if begins {
        words(out, "type", "function");
    }
    member(out, b"function");
    out.push(b'{');
    words(out, "name", &call.name);
    member(out, b"arguments");
    quote_into(out, &call.arguments);
    out.extend_from_slice(b"}}");
}
