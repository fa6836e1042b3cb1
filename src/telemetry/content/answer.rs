//! What an answer says, gathered from its pieces only where content is to be recorded.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{MAX_CONTENT_BYTES, ToolCall, bounded, call_part, text_part};
use crate::domain::{Delta, Outcome, Output, ToolCallDelta};

/// What each choice of an answer says. Longer than an attribute may be it is given up, so it holds little.
#[derive(Debug, Default)]
pub struct AnswerContent {
    choices: BTreeMap<u32, Said>,
    bytes: usize,
    too_long: bool,
}

#[derive(Debug, Default)]
struct Said {
    text: String,
    reasoning: String,
    calls: BTreeMap<u32, Call>,
}

#[derive(Debug, Default)]
struct Call {
    id: Option<String>,
    name: Option<String>,
    arguments: String,
}

/// An OpenAI chunk or a whole completion, as far as its content goes.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(alias = "delta")]
    message: AnswerMessage,
}

#[derive(Deserialize)]
struct AnswerMessage {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

impl AnswerContent {
    /// Takes one piece of output.
    pub fn output(&mut self, output: &Output) {
        match output {
            Output::Raw(chunk) => self.json(chunk),
            Output::Delta(delta) => self.plain(delta),
            Output::Alive => {}
        }
    }

    /// Takes an answer that came whole.
    pub fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Body(body) => self.json(body),
            Outcome::Result(result) => {
                let calls = result.tool_calls.clone();
                let (content, reasoning) = (result.content.clone(), result.reasoning.clone());
                self.plain(&Delta { content, reasoning, tool_calls: calls, ..Delta::default() });
            }
            Outcome::Complete | Outcome::Failed(_) | Outcome::Cancelled => {}
        }
    }

    /// The answer in the conventions' JSON form, one message a choice, each with why it ended; `None` if there is
    /// none, or more than an attribute takes.
    pub(in crate::telemetry) fn messages(&self, finish_reasons: &[(u32, String)]) -> Option<String> {
        let reason =
            |choice| finish_reasons.iter().find(|(index, _)| *index == choice).map(|(_, why)| &**why);
        let message = |(choice, said): (&u32, &Said)| {
            let finish_reason = reason(*choice).unwrap_or("error");
            json!({"role": "assistant", "parts": said.parts(), "finish_reason": finish_reason})
        };
        let messages: Vec<Value> = self.choices.iter().map(message).collect();
        if messages.is_empty() { None } else { bounded(&Value::from(messages)) }
    }

    /// What is no answer says nothing; to complain of it is the delivery's work.
    fn json(&mut self, json: &[u8]) {
        if self.too_long {
            return;
        }
        let choices = serde_json::from_slice(json).map(|answer: Answer| answer.choices).unwrap_or_default();
        for Choice { index, message } in choices {
            let calls = (0..).zip(message.tool_calls.unwrap_or_default()).map(|(place, call)| {
                let (name, arguments) = call.function.map(|f| (f.name, f.arguments)).unwrap_or_default();
                let piece = Call { id: call.id, name, arguments: arguments.unwrap_or_default() };
                (call.index.unwrap_or(place), piece)
            });
            let text = message.content.unwrap_or_default();
            let reasoning = message.reasoning_content.or(message.reasoning).unwrap_or_default();
            self.take(index, &text, &reasoning, calls);
        }
    }

    fn plain(&mut self, delta: &Delta) {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let call = |call: &ToolCallDelta| Call {
            id: some(&call.id),
            name: some(&call.name),
            arguments: call.arguments.clone(),
        };
        let calls = delta.tool_calls.iter().map(|each| (each.index, call(each)));
        self.take(0, &delta.content, &delta.reasoning, calls);
    }

    fn take(&mut self, choice: u32, text: &str, reasoning: &str, calls: impl Iterator<Item = (u32, Call)>) {
        let calls: Vec<_> = calls.collect();
        let arguments: usize = calls.iter().map(|(_, call)| call.arguments.len()).sum();
        self.bytes += text.len() + reasoning.len() + arguments;
        self.too_long |= self.bytes > MAX_CONTENT_BYTES;
        if self.too_long {
            return self.choices.clear();
        }
        if !text.is_empty() || !reasoning.is_empty() || !calls.is_empty() {
            self.choices.entry(choice).or_default().take(text, reasoning, calls);
        }
    }
}

impl Said {
    fn take(&mut self, text: &str, reasoning: &str, calls: Vec<(u32, Call)>) {
        self.text.push_str(text);
        self.reasoning.push_str(reasoning);
        for (index, piece) in calls {
            let call = self.calls.entry(index).or_default();
            call.id = call.id.take().or(piece.id);
            call.name = call.name.take().or(piece.name);
            call.arguments.push_str(&piece.arguments);
        }
    }

    fn parts(&self) -> Vec<Value> {
        let reasoning = json!({"type": "reasoning", "content": self.reasoning});
        let reasoning = (!self.reasoning.is_empty()).then_some(reasoning);
        let text = (!self.text.is_empty()).then(|| text_part(self.text.as_str()));
        let calls =
            self.calls.values().map(|call| call_part(call.id.clone(), call.name.clone(), &call.arguments));
        reasoning.into_iter().chain(text).chain(calls).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::CompletionResult;

    fn raw(json: &str) -> Output {
        Output::Raw(json.to_owned().into())
    }

    fn said(answer: &AnswerContent, reasons: &[(u32, String)]) -> Value {
        serde_json::from_str(&answer.messages(reasons).unwrap()).unwrap()
    }

    #[test]
    fn the_pieces_of_each_choice_become_one_message() {
        let mut answer = AnswerContent::default();
        answer.output(&raw(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"one "}}]}"#));
        answer.output(&raw(r#"{"choices":[{"index":1,"delta":{"content":"another"}}]}"#));
        answer.output(&raw(r#"{"choices":[{"index":0,"delta":{"content":null},"finish_reason":"stop"}]}"#));
        answer.output(&raw("[DONE]"));
        answer.output(&Output::Delta(Delta { content: "two".to_owned(), ..Delta::default() }));
        let want = json!([
            {"role": "assistant", "parts": [{"type": "text", "content": "one two"}], "finish_reason": "stop"},
            {"role": "assistant", "parts": [{"type": "text", "content": "another"}], "finish_reason": "error"},
        ]);
        assert_eq!(said(&answer, &[(0, "stop".to_owned())]), want);
    }

    #[test]
    fn reasoning_and_the_pieces_of_a_tools_call_are_parts() {
        let mut answer = AnswerContent::default();
        answer.output(&raw(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#));
        let call = |piece: &str| raw(&format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{piece}]}}}}]}}"#));
        answer.output(&call(r#"{"index":0,"id":"c1","function":{"name":"w","arguments":"{\"a\""}}"#));
        answer.output(&call(r#"{"index":0,"function":{"arguments":":1}"}}"#));
        let parts = json!([
            {"type": "reasoning", "content": "hm"},
            {"type": "tool_call", "id": "c1", "name": "w", "arguments": {"a": 1}},
        ]);
        assert_eq!(said(&answer, &[])[0]["parts"], parts);
    }

    #[test]
    fn a_whole_answer_says_the_same_in_either_form() {
        let body = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"}}]}"#;
        let result = CompletionResult { content: "hello".to_owned(), ..CompletionResult::default() };
        for outcome in [Outcome::Body(body.into()), Outcome::Result(result)] {
            let mut answer = AnswerContent::default();
            answer.outcome(&outcome);
            assert_eq!(said(&answer, &[])[0]["parts"], json!([{"type": "text", "content": "hello"}]));
        }
    }

    #[test]
    fn an_answer_that_no_attribute_takes_is_given_up_and_not_held() {
        let mut answer = AnswerContent::default();
        let piece = Output::Delta(Delta { content: "x".repeat(MAX_CONTENT_BYTES / 2), ..Delta::default() });
        answer.output(&piece);
        assert!(answer.messages(&[]).is_some());
        answer.output(&piece);
        answer.output(&piece);
        assert_eq!((answer.messages(&[]), answer.choices.len()), (None, 0));
    }
}
