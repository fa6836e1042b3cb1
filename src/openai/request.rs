//! What a task asks for, read once and shallowly from its body.

use super::{
    Malformed,
    scan::{self, Scanner, number},
};

/// What an OpenAI chat body asks for. A member that is missing or is not what OpenAI says is `None`: whether it is wrong is
/// for the provider to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestFacts {
    /// `stream`.
    pub stream: Option<bool>,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `max_completion_tokens`, or the older `max_tokens`.
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Sampling among the likeliest, which is not OpenAI's own but most servers'.
    pub top_k: Option<f64>,
    /// Frequency penalty.
    pub frequency_penalty: Option<f64>,
    /// Presence penalty.
    pub presence_penalty: Option<f64>,
    /// The seed.
    pub seed: Option<i64>,
    /// How many choices.
    pub n: Option<u32>,
}

impl RequestFacts {
    /// Reads a body, which must be one JSON object.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut facts = Self::default();
        scan::object(body, |scan, key| facts.member(scan, scan.of(key)))?;
        Ok(facts)
    }

    fn member(&mut self, scan: &mut Scanner<'_>, key: &[u8]) -> Result<(), Malformed> {
        if key != b"stream_options" {
            let value = scan.skip()?;
            self.setting(key, scan.of(value));
            return Ok(());
        }
        // Of several the last one counts, as parsers have it.
        self.include_usage = false;
        if scan.peek()? != b'{' {
            return scan.skip().map(drop);
        }
        scan.object(|scan, key| {
            let value = scan.skip()?;
            if scan.of(key) == b"include_usage" {
                self.include_usage = scan.of(value) == b"true";
            }
            Ok(())
        })
        .map(drop)
    }

    fn setting(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"stream" => self.stream = flag(value),
            b"max_completion_tokens" => self.max_tokens = number(value).or(self.max_tokens),
            b"max_tokens" => self.max_tokens = self.max_tokens.or_else(|| number(value)),
            b"n" => self.n = number(value),
            b"temperature" => self.temperature = float(value),
            b"top_p" => self.top_p = float(value),
            b"top_k" => self.top_k = float(value),
            b"frequency_penalty" => self.frequency_penalty = float(value),
            b"presence_penalty" => self.presence_penalty = float(value),
            b"seed" => self.seed = std::str::from_utf8(value).ok().and_then(|seed| seed.parse().ok()),
            _ => {}
        }
    }
}

fn flag(value: &[u8]) -> Option<bool> {
    match value {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

fn float(value: &[u8]) -> Option<f64> {
    let number: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    number.is_finite().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        let body = br#"{"model":"m","stream":true,"stream_options":{"x":1,"include_usage":true},"max_tokens":5,
            "max_completion_tokens":6,"temperature":0.5,"top_p":1,"top_k":40,"frequency_penalty":-1.5,"presence_penalty":2,"seed":-7,
            "n":2,"messages":[{"role":"user","content":"max_tokens"}]}"#;
        let expected = RequestFacts {
            stream: Some(true),
            include_usage: true,
            max_tokens: Some(6),
            temperature: Some(0.5),
            top_p: Some(1.0),
            top_k: Some(40.0),
            frequency_penalty: Some(-1.5),
            presence_penalty: Some(2.0),
            seed: Some(-7),
            n: Some(2),
        };
        assert_eq!(RequestFacts::read(body), Ok(expected));
        let older = RequestFacts::read(br#"{"max_tokens":5}"#).expect("an object");
        assert_eq!(older.max_tokens, Some(5));
    }

    #[test]
    fn odd_members_are_none_and_never_fail_a_task() {
        let body =
            br#"{"stream":"yes","stream_options":true,"max_tokens":"5","temperature":1e999,"top_p":"x","seed":1.5,
            "n":-1,"stop":{"a":[]},"max_completion_tokens":null}"#;
        assert_eq!(RequestFacts::read(body), Ok(RequestFacts::default()));
    }

    #[test]
    fn of_several_options_the_last_ones_count() {
        for (last, asked) in
            [("{}", false), ("null", false), ("1", false), (r#"{"include_usage":true}"#, true)]
        {
            let body = format!(r#"{{"stream_options":{{"include_usage":true}},"stream_options":{last}}}"#);
            let facts = RequestFacts::read(body.as_bytes()).expect("an object");
            assert_eq!(facts.include_usage, asked, "{last}");
        }
    }

    #[test]
    fn only_an_object_is_a_request() {
        assert_eq!(RequestFacts::read(b"[]"), Err(Malformed::NotObject));
        assert_eq!(RequestFacts::read(b"{\"a\""), Err(Malformed::NotJson));
        assert_eq!(RequestFacts::read(b"{\"a\":\"\xff\"}"), Err(Malformed::NotUtf8));
    }
}
