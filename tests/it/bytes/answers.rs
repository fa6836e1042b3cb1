//! Random answers, and what a caller must get from them.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::{
    json::{a_gap, a_key, a_value, a_word},
    model::mergeable,
    said::{Members, parse, said},
    samples,
};

/// What the chunk that ends every stream here says at its end.
pub const LAST: &str = r#","x_last":1.0}"#;

/// The chunk that ends a stream: each choice that has begun ends with it.
fn stop(chunks: &[String]) -> String {
    let mut indices = BTreeSet::from([0]);
    for chunk in chunks {
        // What is not decoded need not be text: halves of surrogates are among the samples.
        let chunk: Members = parse(chunk).expect("an object");
        let choices = chunk.get("choices").and_then(|choices| parse::<Vec<Members>>(choices.get()));
        let index = |choice: &Members| parse::<u64>(choice.get("index")?.get());
        indices.extend(choices.iter().flatten().filter_map(index));
    }
    let choice = |index| format!(r#"{{"index":{index},"delta":{{}},"finish_reason":"stop"}}"#);
    let choices = indices.into_iter().map(choice).collect::<Vec<_>>().join(",");
    format!(r#"{{"id":"c","created":1,"choices":[{choices}] {LAST}"#)
}

/// A stream of chunks with members around the choices that nobody knows.
pub fn a_stream() -> impl Strategy<Value = Vec<String>> {
    let odd = prop::collection::vec(
        prop_oneof![2 => Just(String::new()), 1 => a_member().prop_map(|member| format!("{member},"))],
        1..3,
    );
    (samples::a_stream(), odd, prop::collection::vec(any::<prop::sample::Index>(), 1..8)).prop_map(
        |(chunks, odd, order)| {
            let chunk = |(chunk, odd): (String, &String)| chunk.replacen('{', &format!("{{{odd}"), 1);
            let odd = order.iter().cycle().map(|at| at.get(&odd));
            let stop = stop(&chunks);
            chunks.into_iter().zip(odd).map(chunk).chain([stop]).collect()
        },
    )
}

/// A whole answer, with white space around it.
pub fn a_completion() -> impl Strategy<Value = String> {
    let choice = (a_word(), a_value(), a_gap()).prop_map(|(text, odd, gap)| {
        format!(r#"{{"index":0,{gap}"message":{{"role":"assistant","content":"{text}","x_odd":{odd}}},"finish_reason" : "stop"}}"#)
    });
    let members = prop::collection::vec(a_member(), 0..3);
    (a_gap(), members, choice, members_after(), a_gap()).prop_map(
        |(before, members, choice, after, behind)| {
            let start: String = members.iter().map(|member| format!("{member},")).collect();
            format!("{before}{{{start}\"choices\":[{choice}]{after}}}{behind}")
        },
    )
}

fn members_after() -> impl Strategy<Value = String> {
    prop::collection::vec(a_member(), 0..2)
        .prop_map(|members| members.iter().map(|member| format!(" , {member}")).collect())
}

fn a_member() -> impl Strategy<Value = String> {
    (a_key(), a_gap(), a_value()).prop_map(|(key, gap, value)| format!("\"{key}\":{gap}{value}"))
}

/// Whether a chunk holds nothing but the usage: a caller that did not ask for it does not get it.
pub fn is_usage(chunk: &str) -> bool {
    let top: Members = parse(chunk).expect("an object");
    let is_empty = |choices: &str| parse::<Vec<Value>>(choices).is_some_and(|choices| choices.is_empty());
    top.get("usage").is_some_and(|usage| usage.get().starts_with('{'))
        && top.get("choices").is_none_or(|choices| is_empty(choices.get()))
}

/// Whether a chunk has at most a role: it waits for what follows, so that it does not keep the first token.
pub fn waits(chunk: &str) -> bool {
    mergeable(chunk).is_some_and(|chunk| chunk.says_nothing)
}

/// The caller got what the provider sent: byte for byte what must not merge, and nothing passes that; between two of those the
/// same is said, with the same members around it.
pub fn check(got: &[String], sent: &[String]) {
    let (got, sent) = (segments(got), segments(sent));
    assert_eq!(got.len(), sent.len(), "what does not merge: {got:#?} for {sent:#?}");
    for ((got, got_end), (sent, sent_end)) in got.iter().zip(&sent) {
        assert_eq!(got_end, sent_end);
        assert_eq!(said(got), said(sent));
        if got.len() == sent.len() {
            let sorted = |chunks: &[String]| {
                let mut chunks = chunks.to_vec();
                chunks.sort_unstable();
                chunks
            };
            assert_eq!(sorted(got), sorted(sent), "nothing merged, so nothing changed");
        }
        for chunk in got {
            assert!(sent.iter().any(|sent| around(sent) == around(chunk)), "{chunk} of {sent:#?}");
        }
    }
}

/// The members around a chunk's choices.
fn around(chunk: &str) -> Vec<(String, String)> {
    let top: Members = parse(chunk).expect("an object");
    let others = top.into_iter().filter(|(key, _)| key != "choices");
    others.map(|(key, value)| (key, value.get().to_owned())).collect()
}

/// The chunks between two that do not merge, each run with the one that ended it.
fn segments(chunks: &[String]) -> Vec<(Vec<String>, Option<&String>)> {
    let mut segments = vec![(Vec::new(), None)];
    for chunk in chunks {
        let (run, end) = segments.last_mut().expect("it begins with one");
        match mergeable(chunk) {
            Some(_) => run.push(chunk.clone()),
            None => {
                *end = Some(chunk);
                segments.push((Vec::new(), None));
            }
        }
    }
    segments
}
