//! A JSON reader that only says where things are. It checks the whole text, copies nothing and allocates nothing.

use super::{Malformed, text};

/// Deepest nesting that is read; serde_json's own limit, so that what passes here can be parsed behind us too.
const MAX_DEPTH: u32 = 128;

type Scan<T> = Result<T, Malformed>;

/// A stretch of a text. 32 bits, because each pending chunk keeps a dozen of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    pub(super) fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }

    pub(super) fn is_empty(self) -> bool {
        self.start == self.end
    }
}

pub(super) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
}

/// Reads the one object that `text` is. `member` gets each key as it is written, and must read exactly the value.
pub(super) fn object<'a>(text: &'a [u8], member: impl FnMut(&mut Scanner<'a>, Span) -> Scan<()>) -> Scan<()> {
    let mut scan = Scanner::new(text)?;
    if scan.peek()? != b'{' {
        scan.skip()?;
        scan.end()?;
        return Err(Malformed::NotObject);
    }
    scan.object(member)?;
    scan.end()
}

/// Whether `text` is one JSON object.
pub(super) fn check_object(text: &[u8]) -> Scan<()> {
    object(text, |scan, _| scan.skip().map(drop))
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a [u8]) -> Scan<Self> {
        u32::try_from(text.len()).map_err(|_| Malformed::TooLong)?;
        std::str::from_utf8(text).map_err(|_| Malformed::NotUtf8)?;
        Ok(Self { text, at: 0, depth: 0 })
    }

    /// The bytes of a stretch.
    pub(super) fn of(&self, span: Span) -> &'a [u8] {
        &self.text[span.start as usize..span.end as usize]
    }

    /// The first byte of what comes next; white space before it is passed.
    pub(super) fn peek(&mut self) -> Scan<u8> {
        while let Some(&byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Ok(byte);
            }
            self.at += 1;
        }
        Err(Malformed::NotJson)
    }

    /// Reads an object.
    pub(super) fn object(&mut self, mut member: impl FnMut(&mut Self, Span) -> Scan<()>) -> Scan<Span> {
        self.sequence(b'{', b'}', |scan| {
            let key = scan.string()?;
            scan.expect(b':')?;
            scan.peek()?;
            member(scan, key)
        })
    }

    /// Reads an array. The stretch is that of its elements, from the first to the end of the last.
    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Scan<()>) -> Scan<Span> {
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

    /// Reads a string. The stretch is that between its quotes.
    pub(super) fn string(&mut self) -> Scan<Span> {
        self.expect(b'"')?;
        let start = self.at;
        self.at += text::body_len(&self.text[start..]).ok_or(Malformed::NotJson)?;
        let body = span(start, self.at);
        self.literal(b"\"")?;
        Ok(body)
    }

    /// Reads whatever value comes next.
    pub(super) fn skip(&mut self) -> Scan<Span> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'"' => self.string().map(drop)?,
            b'{' => self.object(|scan, _| scan.skip().map(drop)).map(drop)?,
            b'[' => self.array(|scan| scan.skip().map(drop)).map(drop)?,
            b'n' => self.literal(b"null")?,
            b't' => self.literal(b"true")?,
            b'f' => self.literal(b"false")?,
            _ => self.number()?,
        }
        Ok(span(start, self.at))
    }

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

    fn expect(&mut self, byte: u8) -> Scan<()> {
        if self.peek()? != byte {
            return Err(Malformed::NotJson);
        }
        self.at += 1;
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> Scan<()> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Malformed::NotJson);
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Scan<()> {
        self.one_of(b"-");
        if !self.one_of(b"0") {
            self.digits()?;
        }
        if self.one_of(b".") {
            self.digits()?;
        }
        if self.one_of(b"eE") {
            self.one_of(b"+-");
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Scan<()> {
        let count = self.text[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += count;
        if count == 0 { Err(Malformed::NotJson) } else { Ok(()) }
    }

    fn one_of(&mut self, bytes: &[u8]) -> bool {
        let found = self.text.get(self.at).is_some_and(|b| bytes.contains(b));
        self.at += usize::from(found);
        found
    }

    fn end(&mut self) -> Scan<()> {
        match self.peek() {
            Ok(_) => Err(Malformed::NotJson),
            Err(_) => Ok(()),
        }
    }
}

/// A whole number as JSON writes it.
pub(super) fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
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
    fn nesting_is_read_as_deep_as_its_limit() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert_eq!(check_object(nested(128).as_bytes()), Ok(()));
        assert_eq!(check_object(nested(129).as_bytes()), Err(Malformed::TooDeep));
        assert_eq!(check_object("[".repeat(1 << 20).as_bytes()), Err(Malformed::TooDeep));
    }
}
