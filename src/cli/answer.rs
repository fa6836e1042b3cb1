//! What an OpenAI answer shows a person: its text as it comes, and one sentence for whatever is no
//! text, so that no answer ends in silence.

use std::fmt::Write as _;

use serde_json::Value;

use super::Stop;
use crate::domain::Printable;

/// How many characters of a tool call's arguments are shown: more would be a page, not a sentence.
const MAX_ARGUMENT_CHARS: usize = 300;

/// What has been seen of one answer's first choice.
#[derive(Debug, Default)]
pub struct Answer {
    has_text: bool,
    has_reasoning: bool,
    refusal: String,
    tools: Vec<ToolCall>,
    finish_reason: String,
}

#[derive(Debug, Default)]
struct ToolCall {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

/// How an answer ended, for a person.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is left to say.
    Complete,
    /// A line that belongs to the answer.
    Shown(String),
    /// A remark; the answer is usable.
    Remark(String),
    /// The answer is no answer.
    Failed(String),
}

impl Answer {
    /// Takes a chunk's `delta` or a completion's `message`, and gives the text to print.
    pub fn take(&mut self, body: &Value) -> String {
        let Some(choice) = body.pointer("/choices/0") else { return String::new() };
        if let Some(reason) = choice["finish_reason"].as_str().filter(|reason| !reason.is_empty()) {
            reason.clone_into(&mut self.finish_reason);
        }
        let message = choice.get("delta").or_else(|| choice.get("message")).unwrap_or(&Value::Null);
        self.refusal += message["refusal"].as_str().unwrap_or_default();
        let reasoning = ["reasoning_content", "reasoning"].iter();
        self.has_reasoning |= reasoning.filter_map(|key| message[*key].as_str()).any(|text| !text.is_empty());
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            self.tool_call(call);
        }
        let text = content_text(&message["content"]);
        self.has_text |= !text.is_empty();
        text
    }

    /// Another id or another index begins another call; everything else continues the last one.
    fn tool_call(&mut self, call: &Value) {
        let (index, id) = (call["index"].as_u64(), call["id"].as_str().unwrap_or_default());
        let continues = self
            .tools
            .last()
            .is_some_and(|last| (id.is_empty() || id == last.id) && (index.is_none() || index == last.index));
        if !continues {
            self.tools.push(ToolCall { index, id: id.to_owned(), ..ToolCall::default() });
        }
        if let Some(last) = self.tools.last_mut() {
            last.name += call["function"]["name"].as_str().unwrap_or_default();
            last.arguments += call["function"]["arguments"].as_str().unwrap_or_default();
        }
    }

    /// What has to be said once the answer of `llm` is over.
    pub fn end(&self, llm: &str) -> Ending {
        let answer = format!("the answer of LLM \"{}\"", Printable(llm));
        if !self.refusal.is_empty() {
            let refusal = Printable(&self.refusal);
            return Ending::Failed(format!("LLM \"{}\" refuses: {refusal}", Printable(llm)));
        }
        if self.finish_reason == "content_filter" {
            return Ending::Failed(format!(
                "{answer} was stopped by the provider's content filter: ask differently"
            ));
        }
        if !self.tools.is_empty() {
            return Ending::Shown(self.tool_lines());
        }
        match (self.finish_reason.as_str(), self.has_text, self.has_reasoning) {
            ("length", true, _) => Ending::Remark(format!("{answer} was cut at its token limit")),
            ("length", false, _) => Ending::Failed(format!(
                "{answer} reached its token limit before any text: raise the provider's limit, or ask for less"
            )),
            (_, true, _) => Ending::Complete,
            (_, false, true) => {
                Ending::Failed(format!("{answer} has reasoning but no text: -o json shows it"))
            }
            (_, false, false) => Ending::Remark(format!("{answer} is empty")),
        }
    }

    fn tool_lines(&self) -> String {
        let mut lines = String::new();
        for call in &self.tools {
            let arguments: String = call.arguments.chars().take(MAX_ARGUMENT_CHARS).collect();
            let _ = writeln!(lines, "tool call: {}({})", Printable(&call.name), Printable(&arguments));
        }
        lines
    }
}

impl Ending {
    /// The line to print after the answer, if any, and how the command ends.
    pub fn split(self) -> (Option<String>, Option<String>, Result<(), Stop>) {
        match self {
            Self::Complete => (None, None, Ok(())),
            Self::Shown(line) => (Some(line), None, Ok(())),
            Self::Remark(remark) => (None, Some(remark), Ok(())),
            Self::Failed(why) => (None, None, Err(Stop::Failed(why))),
        }
    }
}

/// The text of a `content`, which is a string or a list of parts.
fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(|part| part["text"].as_str().unwrap_or_default()).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole(message: Value, finish_reason: Value) -> (String, Ending) {
        let mut answer = Answer::default();
        let text = answer.take(&json!({"choices": [{"message": message, "finish_reason": finish_reason}]}));
        (text, answer.end("x"))
    }

    #[test]
    fn content_in_parts_is_text() {
        let parts = json!({"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]});
        assert_eq!(whole(parts, json!("stop")), ("Hello".into(), Ending::Complete));
    }

    #[test]
    fn what_is_no_text_is_said_in_one_sentence() {
        let ended = |message, reason| whole(message, json!(reason)).1;
        let failed = |why: &str| Ending::Failed(why.to_owned());
        assert_eq!(
            ended(json!({"content": null, "reasoning_content": "hm"}), "stop"),
            failed("the answer of LLM \"x\" has reasoning but no text: -o json shows it")
        );
        assert_eq!(
            ended(json!({"content": null, "refusal": "No."}), "stop"),
            failed("LLM \"x\" refuses: No.")
        );
        assert_eq!(
            ended(json!({"content": "a"}), "content_filter"),
            failed("the answer of LLM \"x\" was stopped by the provider's content filter: ask differently")
        );
        assert_eq!(
            ended(json!({"content": "", "reasoning": "hm"}), "length"),
            failed(
                "the answer of LLM \"x\" reached its token limit before any text: raise the provider's limit, or ask for less"
            )
        );
        assert_eq!(
            ended(json!({"content": "a"}), "length"),
            Ending::Remark("the answer of LLM \"x\" was cut at its token limit".into())
        );
        assert_eq!(ended(json!({}), "stop"), Ending::Remark("the answer of LLM \"x\" is empty".into()));
    }

    #[test]
    fn tool_calls_are_gathered_from_their_pieces_and_shown() {
        let mut answer = Answer::default();
        for call in [
            json!({"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": "{\"city\":"}}),
            json!({"index": 0, "function": {"arguments": "\"Oslo\"}"}}),
            json!({"index": 0, "id": "b", "function": {"name": "time\u{1b}", "arguments": "{}"}}),
        ] {
            answer.take(&json!({"choices": [{"delta": {"tool_calls": [call]}}]}));
        }
        let shown = "tool call: weather({\"city\":\"Oslo\"})\ntool call: time\\u{1b}({})\n";
        assert_eq!(answer.end("x"), Ending::Shown(shown.into()));
    }
}
