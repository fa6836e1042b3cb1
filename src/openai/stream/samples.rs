//! Random streams of the kinds that providers send, and of kinds near them.

use proptest::prelude::*;

use super::model::TEXTS;

/// Stands for a text that is put in later; no chunk has it.
const LATER: char = '\u{1}';

pub fn a_text() -> impl Strategy<Value = String> {
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
        1 => Just(r#","finish_reason":"""#),
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
pub fn a_stream() -> impl Strategy<Value = Vec<String>> {
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
