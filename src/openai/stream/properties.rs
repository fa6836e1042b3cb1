//! Merging against a plain model, which parses everything and joins lists of chunks.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{
    said::{Members, parse, said},
    *,
};

const TEXTS: [&str; 4] = ["content", "reasoning_content", "reasoning", "refusal"];

/// One chunk that the rule lets merge, parsed.
struct Parsed {
    top: Members,
    choice: Members,
    delta: Members,
    index: u32,
    role: Option<String>,
    says_nothing: bool,
    call: Option<u32>,
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// The rule's view of one chunk; `None` is a barrier.
fn mergeable(chunk: &str) -> Option<Parsed> {
    let top: Members = parse(chunk)?;
    let choices: Vec<Members> = parse(top.get("choices")?.get())?;
    let [choice] = <[Members; 1]>::try_from(choices).ok()?;
    let delta: Members = parse(choice.get("delta")?.get())?;
    let index = parse(choice.get("index")?.get())?;
    let known = |key: &str| matches!(key, "index" | "delta" | "logprobs");
    let logs: Option<Members> = parse(choice.get("logprobs").map_or("null", |l| l.get()))?;
    let logs = logs.unwrap_or_default();
    let others_null = choice.iter().all(|(key, value)| known(key) || is_null(value))
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
    let idle = |key: &str, value| is_null(value) && !TEXTS.contains(&key) && key != "tool_calls";
    let top = parsed.top.iter().filter(|(key, _)| !matches!(key.as_str(), "created" | "choices"));
    let choice = parsed.choice.iter().filter(|(key, _)| !matches!(key.as_str(), "delta" | "logprobs"));
    let logprobs = ("logprobs".to_owned(), parsed.choice.contains_key("logprobs").to_string());
    top.chain(choice)
        .chain(parsed.delta.iter().filter(|(key, value)| idle(key, value)))
        .map(|(key, value)| (key.clone(), value.get().to_owned()))
        .chain([logprobs])
        .collect()
}

/// The plain model of the buffer: lists of chunks that belong together.
#[derive(Default)]
struct Model {
    parts: Vec<ModelPart>,
}

struct ModelPart {
    chunks: Vec<String>,
    /// The first chunk; `None` is a barrier.
    first: Option<Parsed>,
    call: Option<u32>,
}

impl Model {
    fn push(&mut self, chunk: &str) {
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

/// Stands for a text that is put in later; no chunk has it.
const LATER: char = '\u{1}';

fn a_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ -!#-\\[\\]-~]{0,6}",
        "\\PC{0,3}".prop_map(
            |text| serde_json::to_string(&text).map_or(String::new(), |t| t[1..t.len() - 1].to_owned())
        ),
        Just(r"\ud83d".to_owned()),
        Just(r"\ude00".to_owned()),
        Just(r#"\"\\\/\n\u0041"#.to_owned()),
    ];
    prop::collection::vec(piece, 0..3).prop_map(|pieces| pieces.concat())
}

fn a_delta() -> impl Strategy<Value = String> {
    let text = || {
        (prop::sample::select(&TEXTS[..]), a_text()).prop_map(|(key, text)| format!(r#""{key}":"{text}""#))
    };
    let content = || Just(format!("\"content\":\"{LATER}\""));
    let arguments = (0..2_u32, a_text()).prop_map(|(index, text)| {
        format!(r#""tool_calls":[{{"index":{index},"function":{{"arguments":"{text}"}}}}]"#)
    });
    let call = (0..2_u32).prop_map(|index| {
        format!(r#""tool_calls":[{{"index":{index},"id":"i","type":"function","function":{{"name":"f","arguments":""}}}}]"#)
    });
    let role = || Just(r#""role":"assistant""#.to_owned());
    let members = prop_oneof![
        10 => content().prop_map(|member| vec![member]),
        4 => text().prop_map(|member| vec![member]),
        2 => (text(), Just(r#""reasoning_content":null"#.to_owned())).prop_map(|(a, b)| vec![a, b]),
        2 => role().prop_map(|member| vec![member]),
        1 => (role(), content()).prop_map(|(a, b)| vec![a, b]),
        2 => Just(vec![r#""content":null"#.to_owned(), r#""role":"assistant""#.to_owned()]),
        3 => arguments.prop_map(|member| vec![member]),
        1 => call.prop_map(|member| vec![member]),
        1 => (content(), Just(r#""function_call":null"#.to_owned())).prop_map(|(a, b)| vec![a, b]),
        1 => (content(), Just(r#""future":{"a":[1.50]}"#.to_owned())).prop_map(|(a, b)| vec![a, b]),
        1 => Just(vec![]),
    ];
    members.prop_map(|mut members| {
        // A name that comes twice makes a chunk that no model can read; that case has its own tests.
        members.dedup_by_key(|member| member.split(':').next().map(str::to_owned));
        format!("{{{}}}", members.join(","))
    })
}

fn a_choice() -> impl Strategy<Value = String> {
    let logprobs = prop_oneof![
        6 => Just(""),
        4 => Just(r#","logprobs":null"#),
        2 => Just(r#","logprobs":{"content":[{"token":"a","logprob":-1.50}]}"#),
        1 => Just(r#","logprobs":{"content":[],"refusal":null}"#),
        1 => Just(r#","logprobs":{"refusal":[1,2], "content":null}"#),
    ];
    let end = prop_oneof![
        16 => Just(""),
        4 => Just(r#","finish_reason":null"#),
        1 => Just(r#","finish_reason":"stop""#),
        1 => Just(r#","stop_reason":null"#),
        1 => Just(r#","token_ids":[7]"#),
    ];
    let index = prop_oneof![6 => Just(0), 2 => Just(1), 1 => Just(2)];
    (index, a_delta(), logprobs, end)
        .prop_map(|(index, delta, logs, end)| format!(r#"{{"index":{index},"delta":{delta}{logs}{end}}}"#))
}

fn a_chunk(created_first: bool) -> impl Strategy<Value = String> {
    let choices = prop_oneof![
        20 => a_choice(),
        1 => (a_choice(), a_choice()).prop_map(|(a, b)| format!("{a},{b}")),
        1 => Just(String::new()),
    ];
    let created = prop_oneof![8 => Just(1), 1 => Just(22)];
    let tail = prop_oneof![
        16 => Just(""),
        1 => Just(r#","usage":null"#),
        1 => Just(r#","usage":{"prompt_tokens":1}"#),
        1 => Just(r#","fingerprint":"f""#),
    ];
    (choices, created, tail).prop_map(move |(choices, created, tail)| {
        let created = format!("\"created\":{created}");
        let choices = format!("\"choices\":[{choices}]");
        let (one, two) = if created_first { (created, choices) } else { (choices, created) };
        format!(r#"{{"id":"c",{one},{two}{tail}}}"#)
    })
}

/// A few kinds of chunks that come again and again with other texts, as in streams.
fn a_stream() -> impl Strategy<Value = Vec<String>> {
    any::<bool>().prop_flat_map(|created_first| {
        let kinds = prop::collection::vec(a_chunk(created_first), 1..5);
        let pieces = prop::collection::vec((any::<prop::sample::Index>(), 1..4_usize, a_text()), 1..16);
        (kinds, pieces).prop_map(|(kinds, pieces)| {
            let run = |(kind, times, text): &(prop::sample::Index, usize, String)| {
                vec![kind.get(&kinds).replace(LATER, text); *times]
            };
            pieces.iter().flat_map(run).collect()
        })
    })
}

fn text(chunk: &Bytes) -> String {
    String::from_utf8(chunk.to_vec()).expect("UTF-8")
}

fn a_buffer() -> StreamBuffer {
    StreamBuffer::new(1 << 22, Stamp { id: String::new(), model: String::new(), created: 0 })
}

/// A part as it left the buffer is what the model put together.
fn check_part(sent: &str, merged: &[String]) {
    if let [only] = merged {
        assert_eq!(sent, only, "a chunk alone is not changed");
        return;
    }
    assert_eq!(said(&[sent]), said(merged));
    let top = |chunk: &str| {
        let mut top: Members = parse(chunk).expect("an object");
        top.remove("choices");
        top.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(top(sent), top(&merged[0]));
}

proptest! {
    #[test]
    fn merging_does_what_the_model_does(chunks in a_stream(), pops in prop::collection::vec(0..6_u8, 64)) {
        let (mut buffer, mut model) = (a_buffer(), Model::default());
        for (chunk, pop) in chunks.iter().zip(pops.iter().cycle()) {
            buffer.push_raw(chunk.clone().into()).expect("the chunk is taken");
            model.push(chunk);
            if *pop == 0 {
                check_part(&text(&buffer.pop().expect("a part waits")), &model.parts.remove(0).chunks);
            }
            prop_assert_eq!(buffer.pending_parts(), model.parts.len());
        }
        for part in &model.parts {
            check_part(&text(&buffer.pop().expect("a part waits")), &part.chunks);
        }
        prop_assert_eq!((buffer.pop(), buffer.pending_bytes()), (None, 0));
    }

    #[test]
    fn a_merged_stream_says_what_the_stream_said(chunks in a_stream()) {
        let mut buffer = a_buffer();
        for chunk in &chunks {
            buffer.push_raw(chunk.clone().into()).expect("the chunk is taken");
        }
        let sent: Vec<_> = std::iter::from_fn(|| buffer.pop()).map(|chunk| text(&chunk)).collect();
        prop_assert_eq!(said(&sent), said(&chunks));
    }

    #[test]
    fn a_stream_that_is_sent_as_it_comes_is_not_changed(chunks in a_stream()) {
        let mut buffer = a_buffer();
        for chunk in &chunks {
            buffer.push_raw(chunk.clone().into()).expect("the chunk is taken");
            prop_assert_eq!(buffer.pop(), Some(Bytes::from(chunk.clone())));
        }
    }

    #[test]
    fn recognising_a_chunk_and_reading_it_come_to_the_same(chunks in a_stream()) {
        let (mut fast, mut slow) = (a_buffer(), a_buffer());
        for chunk in &chunks {
            slow.template = None;
            let chunk = Bytes::from(chunk.clone());
            prop_assert_eq!(fast.push_raw(chunk.clone()), slow.push_raw(chunk));
        }
        prop_assert_eq!(fast.facts(), slow.facts());
        prop_assert_eq!(fast.pending_bytes(), slow.pending_bytes());
        while let Some(part) = fast.pop_escaped(b"<", b">") {
            prop_assert_eq!(Some(part), slow.pop_escaped(b"<", b">"));
        }
    }
}
