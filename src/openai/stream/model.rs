//! A plain model of merging, which parses everything and joins lists of chunks: what the contract's rule allows, said again in another way.

use serde_json::value::RawValue;

use super::said::{Members, parse};

/// The members of a delta whose texts are joined.
pub const TEXTS: [&str; 4] = ["content", "reasoning_content", "reasoning", "refusal"];

/// One chunk that the rule lets merge, parsed.
pub struct Parsed {
    top: Members,
    choice: Members,
    delta: Members,
    index: u32,
    role: Option<String>,
    /// It has no text, at most a role.
    pub says_nothing: bool,
    call: Option<u32>,
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// The rule's view of one chunk; `None` is a barrier.
pub fn mergeable(chunk: &str) -> Option<Parsed> {
    let top: Members = parse(chunk)?;
    let choices: Vec<Members> = parse(top.get("choices")?.get())?;
    let [choice] = <[Members; 1]>::try_from(choices).ok()?;
    let delta: Members = parse(choice.get("delta")?.get())?;
    let index = parse(choice.get("index")?.get())?;
    let known = |key: &str| matches!(key, "index" | "delta" | "logprobs");
    let logs: Option<Members> = parse(choice.get("logprobs").map_or("null", |l| l.get()))?;
    let logs = logs.unwrap_or_default();
    let no_reason =
        |key: &str, value: &RawValue| key == "finish_reason" && matches!(value.get(), "\"\"" | "\"null\"");
    let others_null = choice.iter().all(|(key, value)| known(key) || is_null(value) || no_reason(key, value))
        && top.get("usage").is_none_or(|usage| is_null(usage))
        && logs.keys().all(|key| matches!(key.as_str(), "content" | "refusal"));
    let call = match delta.get("tool_calls").filter(|calls| !is_null(calls)) {
        Some(calls) => Some(only_arguments(calls.get())?),
        None => None,
    };
    let understood = delta.iter().all(|(key, value)| {
        is_null(value) || matches!(key.as_str(), "role" | "tool_calls") || TEXTS.contains(&key.as_str())
    });
    let role = delta.get("role").filter(|role| !is_null(role)).map(|role| role.get().to_owned());
    let empty = |value: &RawValue| matches!(value.get(), "null" | "\"\"" | "[]");
    let says_nothing = call.is_none()
        && delta.iter().all(|(key, value)| key == "role" || empty(value))
        && logs.values().all(|log| empty(log));
    let fits = others_null && understood;
    fits.then_some(Parsed { top, choice, delta, index, role, says_nothing, call })
}

fn only_arguments(calls: &str) -> Option<u32> {
    let calls: Vec<Members> = parse(calls)?;
    let [call] = <[Members; 1]>::try_from(calls).ok()?;
    let function: Members = parse(call.get("function")?.get())?;
    (call.len() == 2 && function.len() == 1 && function.contains_key("arguments")).then_some(())?;
    parse(call.get("index")?.get())
}

/// What must be equal in two chunks that merge.
fn frame(parsed: &Parsed) -> Vec<(String, String)> {
    let nulls = |key: &str, value| is_null(value) && !TEXTS.contains(&key) && key != "tool_calls";
    let top = parsed.top.iter().filter(|(key, _)| !matches!(key.as_str(), "created" | "choices"));
    let choice = parsed.choice.iter().filter(|(key, _)| !matches!(key.as_str(), "delta" | "logprobs"));
    let logprobs = ("logprobs".to_owned(), parsed.choice.contains_key("logprobs").to_string());
    top.chain(choice)
        .chain(parsed.delta.iter().filter(|(key, value)| nulls(key, value)))
        .map(|(key, value)| (key.clone(), value.get().to_owned()))
        .chain([logprobs])
        .collect()
}

/// The plain model of the buffer: lists of chunks that belong together.
#[derive(Default)]
pub struct Model {
    /// What waits, in order.
    pub parts: Vec<ModelPart>,
}

pub struct ModelPart {
    /// The chunks that became one.
    pub chunks: Vec<String>,
    /// The first chunk; `None` is a barrier.
    first: Option<Parsed>,
    call: Option<u32>,
}

impl Model {
    /// Takes one chunk.
    pub fn push(&mut self, chunk: &str) {
        let next = mergeable(chunk);
        if let Some((part, call)) = next.as_ref().and_then(|next| Some((self.place(next)?, next.call))) {
            part.call = part.call.or(call);
            return part.chunks.push(chunk.to_owned());
        }
        let call = next.as_ref().and_then(|next| next.call);
        self.parts.push(ModelPart { chunks: vec![chunk.to_owned()], first: next, call });
    }

    fn place(&mut self, next: &Parsed) -> Option<&mut ModelPart> {
        let barrier = self.parts.iter().rposition(|part| part.first.is_none()).map_or(0, |at| at + 1);
        let mut open = self.parts[barrier..].iter_mut().rev();
        let part = open.find(|part| part.first.as_ref().is_some_and(|first| first.index == next.index))?;
        let same_call = part.call.is_none() || next.call.is_none() || part.call == next.call;
        let same_frame = part.first.as_ref().is_some_and(|first| frame(first) == frame(next));
        let same_role = part.first.as_ref().is_some_and(|first| match (&first.role, &next.role) {
            (None, other) => other.is_none(),
            (Some(_), None) => first.says_nothing,
            (Some(a), Some(b)) => a == b,
        });
        (same_call && same_role && same_frame).then_some(part)
    }
}
