//! Random JSON as text: what a parser and a serializer would tidy up is left as it is.

use proptest::prelude::*;

/// White space that may stand between two tokens.
pub fn a_gap() -> impl Strategy<Value = String> {
    prop_oneof![8 => Just(""), 3 => Just(" "), 1 => Just("\n  "), 1 => Just("\t"), 1 => Just(" \r\n")]
        .prop_map(str::to_owned)
}

/// The inside of a JSON string, as it is written.
pub fn a_word() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ -!#-\\[\\]-~]{0,8}",
        2 => "[é日\u{1F600}\u{7f}\u{2028}]{1,2}",
        1 => prop::sample::select(vec![
            r"\u00e9", r"\/", r"\\", r#"\""#, r"\n\r\t\b\f", r"\ud83d\ude00", r"\ud83d", r"\u0000", r"\u003C",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..3).prop_map(|pieces| pieces.concat())
}

/// A number that a double does not hold, or that a serializer would write in another way.
fn a_number() -> impl Strategy<Value = String> {
    const ODD: [&str; 11] = [
        "0",
        "-0",
        "1.0",
        "1.50",
        "-0.10",
        "1e5",
        "1E+05",
        "12345678901234567890123",
        "9007199254740993",
        "1e400",
        "0.1000000000000000055511151231257827",
    ];
    prop_oneof![
        prop::sample::select(&ODD[..]).prop_map(str::to_owned),
        any::<i32>().prop_map(|n| n.to_string())
    ]
}

/// Any JSON value, not too deep.
pub fn a_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["null", "true", "false", "[]", "{}"]).prop_map(str::to_owned),
        a_number(),
        a_word().prop_map(|word| format!("\"{word}\"")),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            prop::collection::vec((a_gap(), inner.clone(), a_gap()), 1..4)
                .prop_map(|items| format!("[{}]", joined(&items, |(a, item, b)| format!("{a}{item}{b}")))),
            prop::collection::vec((a_key(), inner), 1..4).prop_map(|members| {
                format!("{{{}}}", joined(&members, |(key, value)| format!("\"{key}\":{value}")))
            }),
        ]
    })
}

/// A member's name as it is written; the few short ones come twice in one object now and then.
pub fn a_key() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "x_[a-c]",
        1 => Just(r"x_\u0061".to_owned()),
        1 => Just("é".to_owned()),
        1 => Just(String::new()),
        1 => prop::sample::select(vec!["model", "stream", "error", "usage", "finish_reason", "data", "chunk"])
            .prop_map(|name| format!("{name} ")),
    ]
}

/// The texts of `items`, with commas between them.
pub fn joined<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    items.iter().map(text).collect::<Vec<_>>().join(",")
}
