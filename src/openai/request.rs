//! What a task asks for, read once and shallowly from its body.

use super::{
    Malformed,
    scan::{self, Scanner, number},
    text,
};

/// Longest model name or stop sequence that is kept, in bytes: they become attributes of traces.
const MAX_WORD: usize = 256;
/// How many stop sequences are kept: OpenAI's own limit.
const MAX_STOPS: usize = 4;

/// What an OpenAI chat body asks for. A member that is missing or is not what OpenAI says is `None`: whether it is wrong is
/// for the provider to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestFacts {
    /// The model that is asked for, at most 256 bytes of it.
    pub model: Option<String>,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `max_completion_tokens`, or the older `max_tokens`.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Frequency penalty.
    pub frequency_penalty: Option<f64>,
    /// Presence penalty.
    pub presence_penalty: Option<f64>,
    /// The seed.
    pub seed: Option<i64>,
    /// How many choices.
    pub n: Option<u32>,
    /// Stop sequences, at most 4, each at most 256 bytes of it.
    pub stop: Vec<String>,
}

impl RequestFacts {
    /// Reads a body, which must be one JSON object.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut facts = Self::default();
        scan::object(body, |scan, key| facts.member(scan, scan.of(key)))?;
        Ok(facts)
    }

    fn member(&mut self, scan: &mut Scanner<'_>, key: &[u8]) -> Result<(), Malformed> {
        match (key, scan.peek()?) {
            (b"model", b'"') => self.model = string(scan)?,
            (b"stop", b'"') => self.stop = string(scan)?.into_iter().collect(),
            (b"stop", b'[') => self.stop = strings(scan)?,
            (b"stream_options", b'{') => {
                scan.object(|scan, key| {
                    let value = scan.skip()?;
                    if scan.of(key) == b"include_usage" {
                        self.include_usage = scan.of(value) == b"true";
                    }
                    Ok(())
                })?;
            }
            _ => {
                let value = scan.skip()?;
                self.number(key, scan.of(value));
            }
        }
        Ok(())
    }

    fn number(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"max_completion_tokens" => self.max_tokens = number(value).or(self.max_tokens),
            b"max_tokens" => self.max_tokens = self.max_tokens.or_else(|| number(value)),
            b"n" => self.n = number(value),
            b"temperature" => self.temperature = float(value),
            b"top_p" => self.top_p = float(value),
            b"frequency_penalty" => self.frequency_penalty = float(value),
            b"presence_penalty" => self.presence_penalty = float(value),
            b"seed" => self.seed = std::str::from_utf8(value).ok().and_then(|seed| seed.parse().ok()),
            _ => {}
        }
    }
}

fn float(value: &[u8]) -> Option<f64> {
    let number: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    number.is_finite().then_some(number)
}

fn string(scan: &mut Scanner<'_>) -> Result<Option<String>, Malformed> {
    let body = scan.string()?;
    Ok(text::unescape(scan.of(body), MAX_WORD))
}

fn strings(scan: &mut Scanner<'_>) -> Result<Vec<String>, Malformed> {
    let mut found = Vec::new();
    scan.array(|scan| {
        if found.len() < MAX_STOPS && scan.peek()? == b'"' {
            found.extend(string(scan)?);
        } else {
            scan.skip()?;
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        let body = br#"{"model":"tin\u0079","stream":true,"stream_options":{"x":1,"include_usage":true},"max_tokens":5,
            "max_completion_tokens":6,"temperature":0.5,"top_p":1,"frequency_penalty":-1.5,"presence_penalty":2,"seed":-7,
            "n":2,"stop":["a","\n",3,"b","c","d"],"messages":[{"role":"user","content":"max_tokens"}]}"#;
        let expected = RequestFacts {
            model: Some("tiny".to_owned()),
            include_usage: true,
            max_tokens: Some(6),
            temperature: Some(0.5),
            top_p: Some(1.0),
            frequency_penalty: Some(-1.5),
            presence_penalty: Some(2.0),
            seed: Some(-7),
            n: Some(2),
            stop: ["a", "\n", "b", "c"].map(str::to_owned).to_vec(),
        };
        assert_eq!(RequestFacts::read(body), Ok(expected));
        let older = RequestFacts::read(br#"{"max_tokens":5,"stop":"x"}"#).expect("an object");
        assert_eq!((older.max_tokens, older.stop), (Some(5), vec!["x".to_owned()]));
    }

    #[test]
    fn odd_members_are_none_and_never_fail_a_task() {
        let body =
            br#"{"model":1,"stream_options":true,"max_tokens":"5","temperature":1e999,"top_p":"x","seed":1.5,
            "n":-1,"stop":{"a":[]},"max_completion_tokens":null}"#;
        assert_eq!(RequestFacts::read(body), Ok(RequestFacts::default()));
    }

    #[test]
    fn long_words_are_cut() {
        let body = format!(r#"{{"model":"{}"}}"#, "m".repeat(100_000));
        let facts = RequestFacts::read(body.as_bytes()).expect("an object");
        assert_eq!(facts.model.map(|model| model.len()), Some(MAX_WORD));
    }

    #[test]
    fn only_an_object_is_a_request() {
        assert_eq!(RequestFacts::read(b"[]"), Err(Malformed::NotObject));
        assert_eq!(RequestFacts::read(b"{\"a\""), Err(Malformed::NotJson));
        assert_eq!(RequestFacts::read(b"{\"a\":\"\xff\"}"), Err(Malformed::NotUtf8));
    }
}
