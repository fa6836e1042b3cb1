//! OpenAI's JSON for answers that come in plain fields.

use bytes::Bytes;

use crate::{
    domain::{CompletionResult, Delta, ToolCallDelta, Usage},
    json::text::{member, quote_into},
};

/// What the agent puts into the chunks and bodies that it builds itself. It is the same for all chunks of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkEnvelope {
    /// The answer's id: `chatcmpl-...`.
    pub id: String,
    /// The model that answers.
    pub model: String,
    /// When, in seconds since 1970.
    pub created: u64,
}

impl ChunkEnvelope {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> ChunkEnvelope {
        ChunkEnvelope { id: "chatcmpl-1".to_owned(), model: "tiny".to_owned(), created: 7 }
    }

    fn call(arguments: &str) -> ToolCallDelta {
        ToolCallDelta { index: 0, id: "c".to_owned(), name: "f".to_owned(), arguments: arguments.to_owned() }
    }

    const USAGE: Usage = Usage::new(Some(1), Some(2));

    #[test]
    fn a_plain_answer_becomes_a_body() {
        let result = CompletionResult {
            content: "a\"b".to_owned(),
            reasoning: "r".to_owned(),
            ..CompletionResult::default()
        };
        let expected = r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"a\"b","reasoning_content":"r"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
        assert_eq!(stamp().completion(&result, Some(USAGE)), expected);
        let empty = stamp().completion(&CompletionResult::default(), None);
        assert!(empty.ends_with(br#""content":""},"finish_reason":"stop"}]}"#));
    }

    #[test]
    fn plain_tool_calls_become_calls_without_content() {
        let result =
            CompletionResult { tool_calls: vec![call("{}"), call("1")], ..CompletionResult::default() };
        let body = stamp().completion(&result, None);
        let message = r#""message":{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"c","type":"function","function":{"name":"f","arguments":"1"}}]},"finish_reason":"tool_calls"}"#;
        assert!(body.windows(message.len()).any(|window| window == message.as_bytes()), "{body:?}");
        let chunks = stamp().chunks(&result, None, true);
        let delta = r#""delta":{"role":"assistant","tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{}"}},{"index":1,"#;
        assert!(chunks[0].windows(delta.len()).any(|window| window == delta.as_bytes()), "{chunks:?}");
        assert_eq!(chunks.len(), 1);
    }

    #[test]
    fn a_plain_answer_to_a_stream_is_one_chunk_and_the_usage_if_it_is_wanted() {
        let result = CompletionResult {
            content: "a".to_owned(),
            finish_reason: "length".to_owned(),
            ..CompletionResult::default()
        };
        let head =
            r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":["#;
        let whole = format!(
            r#"{head}{{"index":0,"delta":{{"role":"assistant","content":"a"}},"finish_reason":"length"}}]}}"#
        );
        assert_eq!(stamp().chunks(&result, Some(USAGE), false), std::slice::from_ref(&whole));
        let usage =
            format!(r#"{head}],"usage":{{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}}}"#);
        assert_eq!(stamp().chunks(&result, Some(USAGE), true), [whole, usage]);
    }

    #[test]
    fn what_was_not_counted_is_left_out() {
        let mut out = Vec::new();
        write_usage(&mut out, Usage::new(None, Some(2)));
        write_usage(&mut out, Usage::default());
        assert_eq!(out, br#"{"completion_tokens":2}{}"#);
    }
}
