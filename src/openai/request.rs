//! What a task asks for, read once and shallowly from its body.

use crate::{
    domain::RequestFacts,
    json::{
        Malformed,
        scan::{self, Scanner, Span, number},
        text,
    },
};

/// Most texts of `stop` that are kept; OpenAI takes four.
const MAX_STOP: usize = 16;
/// Longest text that is kept of each, in bytes: they become an attribute of a trace.
const MAX_WORD: usize = 256;

impl RequestFacts {
    /// Reads a body, which must be one JSON object.
    ///
    /// # Errors
    /// If the body is not one JSON object.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut facts = Self::default();
        scan::object(body, |scan, key| facts.member(scan, key))?;
        Ok(facts)
    }

    /// Reads the value of one member of the body. Of several with one name the last counts, as parsers have it.
    pub(crate) fn member(&mut self, scan: &mut Scanner<'_>, key: Span) -> Result<(), Malformed> {
        match scan.of(key) {
            b"stop" => self.stop = stop(scan)?,
            b"stream_options" => self.include_usage = include_usage(scan)?,
            b"reasoning_effort" => self.reasoning_effort = word(scan)?,
            b"response_format" => self.response_format = format(scan)?,
            key => {
                let value = scan.skip()?;
                self.setting(key, scan.of(value));
            }
        }
        Ok(())
    }

    fn setting(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"stream" => self.stream = flag(value),
            b"max_completion_tokens" => self.max_tokens = number(value).or(self.max_tokens),
            b"max_tokens" => self.max_tokens = self.max_tokens.or_else(|| number(value)),
            b"n" => self.n = number(value),
            b"temperature" => self.temperature = float(value),
            b"top_p" => self.top_p = float(value),
            b"top_k" => self.top_k = whole(value),
            b"frequency_penalty" => self.frequency_penalty = float(value),
            b"presence_penalty" => self.presence_penalty = float(value),
            b"seed" => self.seed = whole(value),
            _ => {}
        }
    }
}

fn include_usage(scan: &mut Scanner<'_>) -> Result<bool, Malformed> {
    if scan.peek()? != b'{' {
        return scan.skip().map(|_| false);
    }
    let mut wanted = false;
    scan.object(|scan, key| {
        let value = scan.skip()?;
        if scan.of(key) == b"include_usage" {
            wanted = scan.of(value) == b"true";
        }
        Ok(())
    })?;
    Ok(wanted)
}

/// The `type` of an object, if it is a text.
fn format(scan: &mut Scanner<'_>) -> Result<Option<String>, Malformed> {
    if scan.peek()? != b'{' {
        return scan.skip().map(|_| None);
    }
    let mut kind = None;
    scan.object(|scan, key| {
        match scan.of(key) {
            b"type" => kind = word(scan)?,
            _ => drop(scan.skip()?),
        }
        Ok(())
    })?;
    Ok(kind)
}

/// A text; whatever else there is is passed.
fn word(scan: &mut Scanner<'_>) -> Result<Option<String>, Malformed> {
    if scan.peek()? != b'"' {
        return scan.skip().map(|_| None);
    }
    let written = scan.string()?;
    Ok(text::unescape_text(scan.text_of(written), MAX_WORD))
}

/// One text, or a list of them; whatever else there is is passed.
fn stop(scan: &mut Scanner<'_>) -> Result<Vec<String>, Malformed> {
    let mut all = Vec::new();
    let mut take = |scan: &mut Scanner<'_>| {
        if scan.peek()? != b'"' || all.len() == MAX_STOP {
            return scan.skip().map(drop);
        }
        let written = scan.string()?;
        all.extend(text::unescape_text(scan.text_of(written), MAX_WORD));
        Ok(())
    };
    match scan.peek()? {
        b'[' => scan.array(take).map(drop)?,
        _ => take(scan)?,
    }
    Ok(all)
}

fn flag(value: &[u8]) -> Option<bool> {
    match value {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

fn whole(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
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
            "n":2,"stop":["END","\n",7],"reasoning_effort":"low","response_format":{"json_schema":{"type":"x"},"type":"json_schema"},"messages":[{"role":"user","content":"max_tokens"}]}"#;
        let expected = RequestFacts {
            stream: Some(true),
            include_usage: true,
            max_tokens: Some(6),
            temperature: Some(0.5),
            top_p: Some(1.0),
            top_k: Some(40),
            frequency_penalty: Some(-1.5),
            presence_penalty: Some(2.0),
            seed: Some(-7),
            n: Some(2),
            stop: vec!["END".to_owned(), "\n".to_owned()],
            reasoning_effort: Some("low".to_owned()),
            response_format: Some("json_schema".to_owned()),
        };
        assert_eq!(RequestFacts::read(body), Ok(expected));
        let older = RequestFacts::read(br#"{"max_tokens":5}"#).expect("an object");
        assert_eq!(older.max_tokens, Some(5));
        let one = RequestFacts::read(br#"{"stop":"a\u0062"}"#).expect("an object");
        assert_eq!(one.stop, ["ab"]);
        let many = format!(r#"{{"stop":[{}"end"]}}"#, r#""x","#.repeat(99));
        assert_eq!(RequestFacts::read(many.as_bytes()).expect("an object").stop, vec!["x"; MAX_STOP]);
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
