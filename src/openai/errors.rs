//! How an error is told from an answer, in the shapes that servers give it where an answer should be.

use crate::json::{
    Malformed,
    scan::{self, Scanner, Span},
};

/// What the members of an object, other than its choices and usage, say about its being an error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ErrorSigns {
    /// `error` is there and not null.
    error: bool,
    /// It says something: it is not an empty object or text, or one with nothing but empty members.
    words: bool,
    /// `"object": "error"`, as older vLLMs and litellm write it.
    object: bool,
    /// `message` or `detail` where a chunk has none.
    message: bool,
}

impl ErrorSigns {
    /// Reads the value of one member.
    pub(super) fn member(&mut self, scan: &mut Scanner<'_>, key: Span) -> Result<(), Malformed> {
        let name = scan.of(key);
        let span = scan.skip()?;
        let value = scan.of(span);
        match name {
            b"error" if value != b"null" => {
                self.error = true;
                self.words |= says_something(value);
            }
            b"object" => self.object |= value == b"\"error\"",
            b"message" | b"detail" => self.message |= says_something(value),
            _ => {}
        }
        Ok(())
    }

    /// Whether they make it an error. An empty `error` beside choices or usage is none: some servers write one into every chunk.
    pub(super) fn is_error(self, any_choice: bool, usage: bool) -> bool {
        let answer = any_choice || usage;
        self.words || self.object || (!answer && (self.error || self.message))
    }
}

/// Whether there is anything in a value: a text, a number, or an object with such a member.
fn says_something(value: &[u8]) -> bool {
    match value {
        b"null" | b"\"\"" | b"{}" | b"[]" | b"false" => false,
        [b'{', ..] => {
            let mut any = false;
            let read = scan::object(value, |scan, _| {
                let span = scan.skip()?;
                any |= !matches!(scan.of(span), b"null" | b"\"\"" | b"{}" | b"[]" | b"false" | b"0");
                Ok(())
            });
            any && read.is_ok()
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;

    fn is_error(chunk: &str) -> bool {
        read::read(chunk.as_bytes()).expect("an object").is_error
    }

    #[test]
    fn an_error_is_one_in_whatever_shape() {
        for chunk in [
            r#"{"error":{"message":"out of memory"}}"#,
            r#"{"error":"out of memory"}"#,
            r#"{"error":{}}"#,
            r#"{"error":{},"choices":null}"#,
            r#"{"error":{"message":"m"},"choices":[]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"x"}}],"error":{"code":502}}"#,
            r#"{"object":"error","message":"m","code":404}"#,
            r#"{"message":"m","type":"server_error"}"#,
            r#"{"detail":[{"loc":["body"],"msg":"m"}]}"#,
        ] {
            assert!(is_error(chunk), "{chunk}");
        }
    }

    #[test]
    fn an_empty_error_beside_an_answer_is_none() {
        for error in
            ["null", "{}", "\"\"", r#"{"message":"","type":"","param":"","code":null}"#, "false", "[]"]
        {
            for answer in [
                r#""choices":[{"index":0,"delta":{"content":"x"}}]"#,
                r#""choices":[],"usage":{"prompt_tokens":1}"#,
            ] {
                let chunk = format!(r#"{{{answer},"error":{error}}}"#);
                assert!(!is_error(&chunk), "{chunk}");
            }
        }
        assert!(!is_error(r#"{"choices":[],"error":null}"#));
    }
}
