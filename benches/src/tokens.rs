//! The answers that everybody in the bench knows beforehand: a request's own fields say which tokens must come back.

use std::{fmt::Write as _, time::Duration};

use serde::Deserialize;

/// Every so many tokens one has characters that JSON must escape, as code and tables have them.
const ESCAPED_EVERY: u32 = 16;

/// One inference of the bench. It travels as ordinary and as unknown fields of the OpenAI body, so a relay that loses a
/// byte of the body loses the right answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Spec {
    /// Makes this answer another one than that of every other request.
    pub seed: u32,
    /// Tokens of the answer.
    #[serde(rename = "max_tokens")]
    pub tokens: u32,
    /// Microseconds that the model thinks before each token; 0 gives bursts of tokens.
    #[serde(rename = "delayUs")]
    pub delay_us: u64,
    /// Whether the answer is a stream.
    pub stream: bool,
}

impl Spec {
    /// The request's OpenAI body.
    pub fn body(&self) -> String {
        let Self { seed, tokens, delay_us, stream } = self;
        format!(
            concat!(
                r#"{{"model":"bench","messages":[{{"role":"system","content":"You are a helpful assistant."}},"#,
                r#"{{"role":"user","content":"Tell me a story about a relay."}}],"temperature":0.7,"#,
                r#""seed":{},"max_tokens":{},"delayUs":{},"stream":{}}}"#
            ),
            seed, tokens, delay_us, stream
        )
    }

    /// The answer's whole text.
    pub fn text(&self) -> String {
        (0..self.tokens).fold(String::new(), |mut text, index| {
            token_into(&mut text, self.seed, index, "\"é\n");
            text
        })
    }

    /// What the model thinks for before each token.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us)
    }

    /// The event of one token, as an OpenAI-compatible server writes it.
    pub fn event_into(&self, out: &mut String, index: u32) {
        let role = if index == 0 { r#""role":"assistant","# } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(out, r#"data: {}{{{role}"content":""#, self.head("chat.completion.chunk"));
        token_into(out, self.seed, index, r#"\"é\n"#);
        out.push_str("\"},\"finish_reason\":null}]}\n\n");
    }

    /// The events after the last token.
    pub fn end_into(&self, out: &mut String) {
        let _ =
            write!(out, r#"data: {}{{}},"finish_reason":"stop"}}]}}"#, self.head("chat.completion.chunk"));
        out.push_str("\n\ndata: [DONE]\n\n");
    }

    /// The whole answer of a request that asked for no stream.
    pub fn completion(&self) -> String {
        let mut out = self.head("chat.completion").replace("\"delta\":", "\"message\":");
        out.push_str(r#"{"role":"assistant","content":""#);
        (0..self.tokens).for_each(|index| token_into(&mut out, self.seed, index, r#"\"é\n"#));
        let tokens = self.tokens;
        let _ = write!(
            out,
            r#""}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":21,"completion_tokens":{tokens},"total_tokens":{}}}}}"#,
            tokens + 21
        );
        out
    }

    fn head(&self, object: &str) -> String {
        format!(
            r#"{{"id":"chatcmpl-{:08x}","object":"{object}","created":1760000000,"model":"bench","choices":[{{"index":0,"delta":"#,
            self.seed
        )
    }
}

/// A word of some six characters; `special` now and then, in plain or in escaped form.
fn token_into(out: &mut String, seed: u32, index: u32, special: &str) {
    let _ = write!(out, " {:x}.{index}", seed.wrapping_add(index) & 0xfff);
    if index % ESCAPED_EVERY == ESCAPED_EVERY - 1 {
        out.push_str(special);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const SPEC: Spec = Spec { seed: 77, tokens: 40, delay_us: 5, stream: true };

    #[test]
    fn a_body_says_which_answer_it_wants() {
        assert_eq!(serde_json::from_str::<Spec>(&SPEC.body()).unwrap(), SPEC);
    }

    #[test]
    fn the_events_and_the_completion_carry_the_same_text() {
        let mut events = String::new();
        (0..SPEC.tokens).for_each(|index| SPEC.event_into(&mut events, index));
        let contents = events.split("\n\n").filter_map(|event| {
            let chunk: Value = serde_json::from_str(event.strip_prefix("data: ")?).unwrap();
            Some(chunk["choices"][0]["delta"]["content"].as_str().unwrap().to_owned())
        });
        assert_eq!(contents.collect::<String>(), SPEC.text());
        let completion: Value = serde_json::from_str(&SPEC.completion()).unwrap();
        assert_eq!(completion["choices"][0]["message"]["content"], SPEC.text());
    }
}
