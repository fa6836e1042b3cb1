//! What a trace tells of an OpenAI chat body: its settings always, its messages only on demand.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{names::key, spans::Attributes};
use crate::domain::RequestFacts;

/// Most content that one attribute takes, in bytes. A span waits in the export's queue, so its size bounds that memory.
pub(super) const MAX_CONTENT_BYTES: usize = 16 * 1024;

/// Writes the `gen_ai.request.*` attributes of what was asked for.
pub(super) fn settings(to: &mut Attributes<'_>, facts: &RequestFacts) {
    to.whole(key::REQUEST_MAX_TOKENS, facts.max_tokens.map(i64::from));
    to.whole(key::REQUEST_SEED, facts.seed);
    to.whole(key::REQUEST_CHOICE_COUNT, facts.n.filter(|n| *n != 1).map(i64::from));
    to.real(key::REQUEST_TEMPERATURE, facts.temperature);
    to.real(key::REQUEST_TOP_P, facts.top_p);
    to.real(key::REQUEST_TOP_K, facts.top_k);
    to.real(key::REQUEST_FREQUENCY_PENALTY, facts.frequency_penalty);
    to.real(key::REQUEST_PRESENCE_PENALTY, facts.presence_penalty);
    to.flag(key::REQUEST_STREAM, facts.stream);
    to.peers_all(key::REQUEST_STOP_SEQUENCES, facts.stop.iter().map(String::as_str));
}

#[derive(Deserialize)]
struct Conversation<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    role: String,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// The messages of `body` in the conventions' JSON form. Content: only for who asked for it.
pub(super) fn input_messages(body: &[u8]) -> Option<String> {
    let conversation: Conversation<'_> = serde_json::from_slice(body).ok()?;
    let messages: Vec<_> = conversation
        .messages
        .iter()
        .map(|m| serde_json::json!({"role": m.role, "parts": [{"type": "text", "content": text_of(m)}]}))
        .collect();
    bounded(serde_json::Value::from(messages).to_string())
}

/// The answer in the conventions' JSON form. Content: only for who asked for it.
pub(super) fn output_messages(answer: &str, finish_reason: &str) -> Option<String> {
    let parts = serde_json::json!([{"type": "text", "content": answer}]);
    let message = serde_json::json!([{"role": "assistant", "parts": parts, "finish_reason": finish_reason}]);
    bounded(message.to_string())
}

/// A message's text; content that is not a text (images, parts) as the JSON that it is.
fn text_of(message: &Message<'_>) -> String {
    let raw = message.content.map_or("", RawValue::get);
    serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned())
}

/// Half a JSON text is of no use to anybody, so too long a one is left out.
fn bounded(json: String) -> Option<String> {
    (json.len() <= MAX_CONTENT_BYTES).then_some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(facts: &RequestFacts) -> Vec<String> {
        let mut values = Vec::new();
        settings(&mut Attributes::Values(&mut values), facts);
        values.iter().map(|each| format!("{}={}", each.key, each.value)).collect()
    }

    #[test]
    fn what_was_asked_for_becomes_attributes_and_what_was_not_does_not() {
        let stop = vec!["END".to_owned()];
        let facts = RequestFacts { n: Some(2), temperature: Some(0.5), stop, ..RequestFacts::default() };
        assert_eq!(
            shown(&facts),
            [
                "gen_ai.request.choice.count=2",
                "gen_ai.request.temperature=0.5",
                "gen_ai.request.stop_sequences=[\"END\"]"
            ]
        );
        assert!(shown(&RequestFacts { n: Some(1), ..RequestFacts::default() }).is_empty());
    }

    #[test]
    fn messages_are_given_in_the_conventions_form_or_not_at_all() {
        let body = br#"{"messages":[{"role":"user","content":"hi"}]}"#;
        let want = r#"[{"parts":[{"content":"hi","type":"text"}],"role":"user"}]"#;
        assert_eq!(input_messages(body).unwrap(), want);
        let long = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(20_000));
        assert!(input_messages(long.as_bytes()).is_none());
    }
}
