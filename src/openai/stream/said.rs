//! What the chunks of a stream say together, however they were merged: the model that the tests of merging share.
//! Strings are joined in their escaped form, so that no text is lost on the way, and numbers are kept as they were written.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The members of an object, unparsed.
pub type Members = BTreeMap<String, Box<RawValue>>;

/// `text` as what is asked for, if it is that.
pub fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// What chunks say together, for one choice: each text, array and value by its path.
pub type Said = BTreeMap<(u32, String), String>;

/// Reads what `chunks` say together; each must be an object.
pub fn said<S: AsRef<str>>(chunks: &[S]) -> Said {
    let mut said = Said::new();
    for chunk in chunks {
        let top: Members = parse(chunk.as_ref()).expect("an object");
        let choices: Vec<Members> = top.get("choices").and_then(|c| parse(c.get())).unwrap_or_default();
        for choice in choices {
            let index: u32 = choice.get("index").and_then(|i| parse(i.get())).unwrap_or(0);
            for (key, value) in &choice {
                add(&mut said, index, key, value.get());
            }
        }
    }
    said
}

fn add(said: &mut Said, index: u32, path: &str, value: &str) {
    if let Some(members) = parse::<Members>(value) {
        let call = members.get("index").map_or("", |index| index.get());
        for (key, value) in members.iter().filter(|(key, _)| *key != "index") {
            add(said, index, &format!("{path}{call}.{key}"), value.get());
        }
    } else if let (true, Some(elements)) = (path.ends_with("calls"), parse::<Vec<Box<RawValue>>>(value)) {
        elements.iter().for_each(|element| add(said, index, path, element.get()));
    } else if value != "null" {
        let text = said.entry((index, path.to_owned())).or_default();
        let joins = value.starts_with(['"', '[']);
        let inner = if joins { &value[1..value.len() - 1] } else { value };
        let comma = value.starts_with('[') && !text.is_empty() && !inner.is_empty();
        // A role is said, not spelt out: every client takes the last.
        if !joins || path.ends_with(".role") {
            text.clear();
        }
        text.push_str(if comma { "," } else { "" });
        text.push_str(inner);
    }
}

#[test]
fn the_model_reads_what_chunks_say() {
    let chunk = |text: &str| {
        format!(r#"{{"choices":[{{"index":2,"delta":{{"content":"{text}","x":{{"y":[1]}}}}}}]}}"#)
    };
    let said = said(&[chunk("a"), chunk("b")]);
    assert_eq!(said[&(2, "delta.content".to_owned())], "ab");
    assert_eq!(said[&(2, "delta.x.y".to_owned())], "1,1");
}
