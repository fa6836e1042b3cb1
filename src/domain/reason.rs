//! Why something is as it is, for people.

use std::fmt;

/// What is so, and what helps. The two are kept apart because the first may have a library's or a server's words in it, which can look
/// like anything. Never a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// What is so: "the certificate at https://mcpd has expired". Empty where there is nothing to say.
    pub what: String,
    /// What to do about it; empty where that is not known.
    pub advice: String,
}

impl Reason {
    /// What is so, and what helps.
    pub fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into() }
    }

    /// The parts of a sentence of ours that says "what: what to do".
    pub fn of_sentence(sentence: &str) -> Self {
        sentence.rsplit_once(": ").map_or_else(|| sentence.into(), |(what, advice)| Self::new(what, advice))
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.what.is_empty()
    }

    /// The same with other words for what is so, made of these.
    #[must_use]
    pub fn within(self, words: impl FnOnce(&str) -> String) -> Self {
        Self { what: words(&self.what), ..self }
    }

    /// The same with this advice where it has none.
    #[must_use]
    pub fn or_advice(self, advice: &str) -> Self {
        if self.advice.is_empty() { Self::new(self.what, advice) } else { self }
    }
}

impl<T: Into<String>> From<T> for Reason {
    fn from(what: T) -> Self {
        Self::new(what, "")
    }
}

/// One sentence, for a status or a log: "what; what to do".
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, "; {}", self.advice) }
    }
}
