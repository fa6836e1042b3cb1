//! The request on its way to the server: two values are set by their place in the text, every other byte stays as it came.

use std::{borrow::Cow, fmt, ops::Range};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::openai::{
    Malformed,
    scan::{self, Scanner},
    text::quote_into,
    usual,
};

/// Asks a server for the usage at the end of a stream.
const INCLUDE_USAGE: &[u8] = br#"{"include_usage":true}"#;

/// A request as it goes to the provider.
#[derive(Debug)]
pub(in crate::provide) struct Spliced {
    /// The body, with the entry's model and the request for usage in it.
    pub(in crate::provide) body: Bytes,
    /// Whether the body asks for a stream.
    pub(in crate::provide) stream: bool,
    /// Whether the host, not the caller, asked for the usage chunk: it is then removed from the answer.
    pub(in crate::provide) usage_is_ours: bool,
}

/// Sets the top-level `model` to `model` and, for a stream, `stream_options.include_usage` to true. Costs one pass and one copy.
///
/// A key that occurs several times is replaced everywhere: servers differ in which occurrence they use.
///
/// # Errors
/// If `body` is not a JSON object.
pub(in crate::provide) fn splice(body: &Bytes, model: &str) -> Result<Spliced, serde_json::Error> {
    let request = Request::read(body)?;
    let mut quoted = Vec::with_capacity(model.len() + 2);
    quote_into(&mut quoted, model);
    let mut edits = Edits::new(body);
    edits.set(&request.model, "model", &quoted, request.is_empty);
    let asked = request.stream && wish_for_usage(&request, &mut edits)?;
    Ok(Spliced { stream: request.stream, usage_is_ours: request.stream && !asked, body: edits.apply() })
}

/// Edits `stream_options` so that usage is included; returns whether the caller had asked for it.
fn wish_for_usage(request: &Request<'_>, edits: &mut Edits<'_>) -> Result<bool, serde_json::Error> {
    let Some(last) = request.stream_options.last() else {
        edits.insert("stream_options", INCLUDE_USAGE, false);
        return Ok(false);
    };
    if last.starts_with('{') && Options::read(last)?.asked() {
        return Ok(true);
    }
    for value in &request.stream_options {
        match *value {
            "null" => edits.replace(value, INCLUDE_USAGE),
            options if options.starts_with('{') => {
                let options = Options::read(options)?;
                let place = edits.place(value).start + 1;
                edits.set_at(place, &options.include_usage, "include_usage", b"true", options.is_empty);
            }
            // Anything but an object or null is the caller's mistake, which the provider will explain.
            _ => {}
        }
    }
    Ok(false)
}

/// The edits of one text, by the place of what they replace.
struct Edits<'a> {
    text: &'a Bytes,
    /// Where the object's first key would be.
    start: usize,
    edits: Vec<(Range<usize>, Cow<'a, [u8]>)>,
}

impl<'a> Edits<'a> {
    /// `text` is a JSON object, perhaps after white space.
    fn new(text: &'a Bytes) -> Self {
        let start = memchr::memchr(b'{', text).map_or(0, |brace| brace + 1);
        Self { text, start, edits: Vec::new() }
    }

    /// Where `value`, a part of the text, is in it.
    fn place(&self, value: &str) -> Range<usize> {
        let start = value.as_ptr().addr() - self.text.as_ptr().addr();
        start..start + value.len()
    }

    /// A value that is right already costs no copy.
    fn replace(&mut self, value: &str, with: &'a [u8]) {
        if value.as_bytes() != with {
            self.edits.push((self.place(value), with.into()));
        }
    }

    /// Puts a key before all others of the top-level object.
    fn insert(&mut self, key: &str, value: &[u8], is_only: bool) {
        self.insert_at(self.start, key, value, is_only);
    }

    fn insert_at(&mut self, place: usize, key: &str, value: &[u8], is_only: bool) {
        let comma: &[u8] = if is_only { b"" } else { b"," };
        let member = [b"\"", key.as_bytes(), b"\":", value, comma].concat();
        self.edits.push((place..place, member.into()));
    }

    fn set(&mut self, values: &[&str], key: &str, with: &'a [u8], is_only: bool) {
        self.set_at(self.start, values, key, with, is_only);
    }

    fn set_at(&mut self, place: usize, values: &[&str], key: &str, with: &'a [u8], is_only: bool) {
        if values.is_empty() {
            self.insert_at(place, key, with, is_only);
        }
        for value in values {
            self.replace(value, with);
        }
    }

    fn apply(mut self) -> Bytes {
        if self.edits.is_empty() {
            return self.text.clone();
        }
        // Stable: keys that go to the same place keep their order.
        self.edits.sort_by_key(|(place, _)| place.start);
        // The exact size, because converting a vector with spare room costs one more allocation.
        let added: usize = self.edits.iter().map(|(_, with)| with.len()).sum();
        let removed: usize = self.edits.iter().map(|(place, _)| place.len()).sum();
        let mut out = Vec::with_capacity(self.text.len() + added - removed);
        let mut at = 0;
        for (place, with) in &self.edits {
            out.extend_from_slice(&self.text[at..place.start]);
            out.extend_from_slice(with);
            at = place.end;
        }
        out.extend_from_slice(&self.text[at..]);
        out.into()
    }
}

/// The parts of a request that matter here, as places in its text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request<'a> {
    model: Vec<&'a str>,
    stream_options: Vec<&'a str>,
    stream: bool,
    is_empty: bool,
}

impl<'a> Request<'a> {
    fn read(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        Self::usual(body).map_or_else(|_| serde_json::from_slice(body), Ok)
    }

    /// Reads an object without escapes in its keys, with the same result as serde.
    fn usual(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut request = Self { is_empty: true, ..Self::default() };
        scan::object(body, |scan, key| {
            request.is_empty = false;
            match scan.of(key) {
                b"model" => request.model.push(usual::value(scan)?),
                b"stream_options" => request.stream_options.push(usual::value(scan)?),
                b"stream" => request.stream = usual::value(scan)? == "true",
                _ => usual::other(scan, key)?,
            }
            Ok(())
        })?;
        Ok(request)
    }
}

/// The parts of `stream_options` that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options<'a> {
    include_usage: Vec<&'a str>,
    is_empty: bool,
}

impl<'a> Options<'a> {
    fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        Self::usual(text).map_or_else(|_| serde_json::from_str(text), Ok)
    }

    /// Reads an object without escapes in its keys, with the same result as serde.
    fn usual(text: &'a str) -> Result<Self, Malformed> {
        let mut options = Self { is_empty: true, ..Self::default() };
        Scanner::of_text(text)?.whole_object(|scan, key| {
            options.is_empty = false;
            match scan.of(key) {
                b"include_usage" => options.include_usage.push(usual::value(scan)?),
                _ => usual::other(scan, key)?,
            }
            Ok(())
        })?;
        Ok(options)
    }

    fn asked(&self) -> bool {
        self.include_usage.last() == Some(&"true")
    }
}

/// The keys that matter, compared after their escapes are resolved. It is written by hand because a derive would refuse a repeated key.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Key {
    Model,
    Stream,
    StreamOptions,
    IncludeUsage,
    #[serde(other)]
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for Request<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RequestVisitor)
    }
}

struct RequestVisitor;

impl<'de> Visitor<'de> for RequestVisitor {
    type Value = Request<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object with a chat-completions request")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut request = Request { is_empty: true, ..Request::default() };
        while let Some(key) = map.next_key()? {
            request.is_empty = false;
            match key {
                Key::Model => request.model.push(raw(&mut map)?),
                Key::StreamOptions => request.stream_options.push(raw(&mut map)?),
                Key::Stream => request.stream = raw(&mut map)? == "true",
                Key::IncludeUsage | Key::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(request)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Options<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OptionsVisitor)
    }
}

/// The next value as it is written.
fn raw<'de, A: MapAccess<'de>>(map: &mut A) -> Result<&'de str, A::Error> {
    map.next_value::<&RawValue>().map(RawValue::get)
}

struct OptionsVisitor;

impl<'de> Visitor<'de> for OptionsVisitor {
    type Value = Options<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stream options")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut options = Options { is_empty: true, ..Options::default() };
        while let Some(key) = map.next_key()? {
            options.is_empty = false;
            match key {
                Key::IncludeUsage => options.include_usage.push(raw(&mut map)?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
