//! A JSON reader that only says where things are. It checks the whole text, copies nothing and allocates nothing.

use super::{
    Malformed,
    skip::{self, MAX_DEPTH},
};

type Scan<T> = Result<T, Malformed>;

/// A range of a text, in bytes. It has 32-bit numbers, because each pending chunk keeps a dozen ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }

    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }
}

pub(crate) struct Scanner<'a> {
    whole: &'a str,
    text: &'a [u8],
    at: usize,
    depth: u32,
}

/// Reads `text`, which must be one object. `member` gets each key as it is written, and must read exactly its value.
pub(crate) fn object<'a>(text: &'a [u8], member: impl FnMut(&mut Scanner<'a>, Span) -> Scan<()>) -> Scan<()> {
    Scanner::new(text)?.whole_object(member)
}

/// Whether `text` is one JSON object.
pub(crate) fn check_object(text: &[u8]) -> Scan<()> {
    object(text, |scan, _| scan.skip().map(drop))
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Scan<Self> {
        check_length(text)?;
        let text = std::str::from_utf8(text).map_err(|_| Malformed::NotUtf8)?;
        Ok(Self::at_start(text))
    }

    fn at_start(text: &'a str) -> Self {
        Self { whole: text, text: text.as_bytes(), at: 0, depth: 0 }
    }

    /// Reads the whole text, which must be one object, as [`object`] does.
    pub(crate) fn whole_object(mut self, member: impl FnMut(&mut Self, Span) -> Scan<()>) -> Scan<()> {
        if self.peek()? != b'{' {
            self.skip()?;
            self.end()?;
            return Err(Malformed::NotObject);
        }
        self.object(member)?;
        self.end()
    }

    /// The bytes of a range.
    pub(crate) fn of(&self, span: Span) -> &'a [u8] {
        span.of(self.text)
    }

    /// The same as text.
    pub(crate) fn text_of(&self, span: Span) -> &'a str {
        &self.whole[span.start as usize..span.end as usize]
    }

    /// The first byte of what comes next; skips white space before it.
    #[inline]
    pub(crate) fn peek(&mut self) -> Scan<u8> {
        let (byte, at) = skip::next(self.text, self.at)?;
        self.at = at;
        Ok(byte)
    }

    /// Reads an object.
    #[inline]
    pub(crate) fn object(&mut self, mut member: impl FnMut(&mut Self, Span) -> Scan<()>) -> Scan<Span> {
        self.sequence(b'{', b'}', |scan| {
            let key = scan.string()?;
            scan.expect(b':')?;
            scan.peek()?;
            member(scan, key)
        })
    }

    /// Reads an array. Returns the range from its first element to the end of its last.
    #[inline]
    pub(crate) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Scan<()>) -> Scan<Span> {
        let (mut first, mut last) = (None, self.at);
        self.sequence(b'[', b']', |scan| {
            scan.peek()?;
            first.get_or_insert(scan.at);
            element(scan)?;
            last = scan.at;
            Ok(())
        })?;
        Ok(span(first.unwrap_or(last), last))
    }

    /// Reads a string. Returns the range between its quotes.
    #[inline(always)]
    pub(crate) fn string(&mut self) -> Scan<Span> {
        self.expect(b'"')?;
        let start = self.at;
        let end = skip::closing_quote(self.text, start)?;
        self.at = end + 1;
        Ok(span(start, end))
    }

    /// Reads whatever value comes next.
    pub(crate) fn skip(&mut self) -> Scan<Span> {
        let (first, start) = skip::next(self.text, self.at)?;
        self.at = match first {
            b'{' | b'[' => skip::nested(self.text, start, self.depth)?,
            _ => skip::scalar(self.text, first, start)?,
        };
        Ok(span(start, self.at))
    }

    #[inline]
    fn sequence(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Self) -> Scan<()>) -> Scan<Span> {
        self.expect(open)?;
        let start = self.at - 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Malformed::TooDeep);
        }
        if self.peek()? != close {
            item(self)?;
            while self.peek()? == b',' {
                self.at += 1;
                item(self)?;
            }
        }
        self.expect(close)?;
        self.depth -= 1;
        Ok(span(start, self.at))
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Scan<()> {
        if self.peek()? != byte {
            return Err(Malformed::NotJson);
        }
        self.at += 1;
        Ok(())
    }

    fn end(&mut self) -> Scan<()> {
        match self.peek() {
            Ok(_) => Err(Malformed::NotJson),
            Err(_) => Ok(()),
        }
    }
}

/// A [`Span`] must be able to hold every position in the text.
fn check_length(text: &[u8]) -> Scan<()> {
    u32::try_from(text.len()).map(drop).map_err(|_| Malformed::TooLong)
}

/// A whole number as JSON writes it, also with the plus sign that some write in a string.
pub(crate) fn number(digits: &[u8]) -> Option<u32> {
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let mut number = 0_u32;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(digit.into())?;
    }
    (!digits.is_empty()).then_some(number)
}

/// The text is known to be shorter than 4 GiB.
fn span(start: usize, end: usize) -> Span {
    Span { start: start as u32, end: end as u32 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    /// JSON, and texts that are nearly JSON.
    fn nearly_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("false".to_owned()),
            "-?[0-9]{1,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?",
            "\"[a-zé\\\\nu0\" ]{0,5}\"",
            Just("\"\"".to_owned()),
        ];
        let value = leaf.prop_recursive(4, 24, 4, |inner| {
            let member =
                ("\"[a-z]{0,2}\" ?", inner.clone()).prop_map(|(key, value)| format!("{key}:{value}"));
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(|items| format!("[ {}]", items.join(", "))),
                prop::collection::vec(member, 0..4).prop_map(|items| format!("{{{} }}", items.join(","))),
            ]
        });
        let slip = (any::<prop::sample::Index>(), "[\\[\\]{},:\" 0n\\\\]?");
        (value, prop::collection::vec(slip, 0..2)).prop_map(|(text, slips)| {
            slips.iter().fold(format!("{{\"k\":{text}}}"), |text, (at, with)| {
                let mut chars: Vec<char> = text.chars().collect();
                let at = at.index(chars.len());
                chars.splice(at..=at, with.chars());
                chars.into_iter().collect()
            })
        })
    }

    proptest! {
        #[test]
        fn an_object_is_what_serde_json_takes_for_one(text in nearly_json()) {
            let valid = serde_json::from_str::<IgnoredAny>(&text).is_ok() && text.trim_start().starts_with('{');
            prop_assert_eq!(check_object(text.as_bytes()).is_ok(), valid);
        }

        #[test]
        fn a_number_is_what_the_standard_library_reads(text in "[+-]?[0-9]{0,11}[ .eé]?") {
            prop_assert_eq!(number(text.as_bytes()), text.parse().ok());
        }

        #[test]
        fn what_is_skipped_is_one_value_from_its_first_byte_to_its_last(text in nearly_json(), space in "[ \t\r\n]{0,2}") {
            let text = format!("{space}{text}, 1");
            let mut values = serde_json::Deserializer::from_str(&text).into_iter::<Box<serde_json::value::RawValue>>();
            let expected = values.next().expect("there is something").ok();
            let mut scan = Scanner::new(text.as_bytes()).expect("it is short");
            let found = scan.skip().ok().map(|span| scan.text_of(span));
            // Serde looks behind a value too, which here is for the caller.
            if let Some(expected) = expected {
                prop_assert_eq!(found, Some(expected.get()));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let text = [b"{\"a\":".as_slice(), &bytes].concat();
            let valid = std::str::from_utf8(&text).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
            prop_assert_eq!(check_object(&text).is_ok(), valid);
        }
    }

    #[test]
    fn stretches_are_where_the_values_are() {
        let text = br#" { "a" : "x\"y" , "b":[ 1 , {"c":[]} ],"d":{ } , "e": -1.5e3 } "#;
        let mut found = Vec::new();
        object(text, |scan, key| {
            let key = scan.of(key);
            let value = match key {
                b"a" => scan.string()?,
                b"b" => scan.array(|scan| scan.skip().map(drop))?,
                _ => scan.skip()?,
            };
            found.push((key, scan.of(value)));
            Ok(())
        })
        .expect("it is an object");
        let expected: [(&[u8], &[u8]); 4] =
            [(b"a", br#"x\"y"#), (b"b", br#"1 , {"c":[]}"#), (b"d", b"{ }"), (b"e", b"-1.5e3")];
        assert_eq!(found, expected);
    }

    #[test]
    fn every_level_ends_as_it_began() {
        let levels = 128;
        let kinds: Vec<bool> = (0..levels).map(|level| level % 3 != 1).collect();
        let begin: String = kinds.iter().map(|object| if *object { "{\"a\":" } else { "[1, " }).collect();
        let end: String = kinds.iter().rev().map(|object| if *object { "}" } else { "]" }).collect();
        assert_eq!(check_object(format!("{begin}null{end}").as_bytes()), Ok(()));
        for level in 0..levels {
            let mut end = end.clone();
            let other = if &end[level..=level] == "}" { "]" } else { "}" };
            end.replace_range(level..=level, other);
            assert_eq!(check_object(format!("{begin}null{end}").as_bytes()), Err(Malformed::NotJson));
        }
    }

    #[test]
    fn nesting_is_read_as_deep_as_its_limit() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert_eq!(check_object(nested(128).as_bytes()), Ok(()));
        assert_eq!(check_object(nested(129).as_bytes()), Err(Malformed::TooDeep));
        assert_eq!(check_object("[".repeat(1 << 20).as_bytes()), Err(Malformed::TooDeep));
    }
}
