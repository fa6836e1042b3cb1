//! The text of an answer, read only where content is to be recorded.

use serde::Deserialize;

use super::request::MAX_CONTENT_BYTES;
use crate::domain::{Outcome, Output};

/// What the first choice of an answer says. Longer than an attribute may be it is given up, so it holds little.
#[derive(Debug, Default)]
pub struct AnswerText {
    text: String,
    too_long: bool,
}

/// An OpenAI chunk or a whole completion, as far as its text goes.
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
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

impl AnswerText {
    /// Takes the text of one piece of output.
    pub fn output(&mut self, output: &Output) {
        match output {
            Output::Raw(chunk) => self.json(chunk),
            Output::Delta(delta) => self.push(&delta.content),
            Output::Alive => {}
        }
    }

    /// Takes the text of an answer that came whole.
    pub fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Body(body) => self.json(body),
            Outcome::Result(result) => self.push(&result.content),
            Outcome::Complete | Outcome::Failed(_) | Outcome::Cancelled => {}
        }
    }

    /// The text; `None` if there is none, or more than an attribute takes.
    pub fn get(&self) -> Option<&str> {
        (!self.text.is_empty() && !self.too_long).then_some(&self.text)
    }

    /// What is no answer has no text; saying so is the delivery's work.
    fn json(&mut self, json: &[u8]) {
        if self.too_long {
            return;
        }
        let choices = serde_json::from_slice(json).map(|a: Answer| a.choices).unwrap_or_default();
        choices
            .iter()
            .filter(|c| c.index == 0)
            .filter_map(|c| c.message.content.as_deref())
            .for_each(|text| self.push(text));
    }

    fn push(&mut self, text: &str) {
        self.too_long |= self.text.len() + text.len() > MAX_CONTENT_BYTES;
        if self.too_long {
            self.text = String::new();
        } else {
            self.text.push_str(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CompletionResult, Delta};

    fn raw(json: &str) -> Output {
        Output::Raw(json.to_owned().into())
    }

    #[test]
    fn the_first_choices_pieces_become_one_text() {
        let mut answer = AnswerText::default();
        answer.output(&raw(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"one "}}]}"#));
        answer.output(&raw(r#"{"choices":[{"index":1,"delta":{"content":"another"}}]}"#));
        answer.output(&raw(r#"{"choices":[{"index":0,"delta":{"content":null},"finish_reason":"stop"}]}"#));
        answer.output(&raw("[DONE]"));
        answer.output(&Output::Delta(Delta { content: "two".to_owned(), ..Delta::default() }));
        assert_eq!(answer.get(), Some("one two"));
    }

    #[test]
    fn a_whole_answer_has_its_text_in_either_form() {
        let body = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"}}]}"#;
        let result = CompletionResult { content: "hello".to_owned(), ..CompletionResult::default() };
        for outcome in [Outcome::Body(body.into()), Outcome::Result(result)] {
            let mut answer = AnswerText::default();
            answer.outcome(&outcome);
            assert_eq!(answer.get(), Some("hello"));
        }
    }

    #[test]
    fn a_text_that_no_attribute_takes_is_given_up_and_not_held() {
        let mut answer = AnswerText::default();
        let piece = Output::Delta(Delta { content: "x".repeat(MAX_CONTENT_BYTES), ..Delta::default() });
        answer.output(&piece);
        assert!(answer.get().is_some());
        answer.output(&piece);
        assert_eq!((answer.get(), answer.text.capacity()), (None, 0));
    }
}
