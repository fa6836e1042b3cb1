//! The request's way through: two values are put in by their place in the text, every other byte stays as it came.

use std::{fmt, ops::Range};

use bytes::{Bytes, BytesMut};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// What asks a server for the numbers at the end of a stream.
const INCLUDE_USAGE: &str = r#"{"include_usage":true}"#;

/// A request as it goes to the provider.
#[derive(Debug)]
pub(in crate::provide) struct Spliced {
    /// The body, with the entry's model and the wish for usage in it.
    pub(in crate::provide) body: Bytes,
    /// Whether the body asks for a stream.
    pub(in crate::provide) stream: bool,
    /// Whether we, not the caller, asked for the usage chunk: it is then dropped from the answer.
    pub(in crate::provide) usage_is_ours: bool,
}

/// Sets the top-level `model` to `model` and, for a stream, `stream_options.include_usage` to true. Costs one pass and one copy.
///
/// A key that is there several times is replaced everywhere: servers differ in which one they believe.
///
/// # Errors
/// If `body` is not a JSON object.
pub(in crate::provide) fn splice(body: &Bytes, model: &str) -> Result<Spliced, serde_json::Error> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let mut edits = Edits::new(body);
    let model = serde_json::to_string(model)?;
    edits.set(&request.model, "model", &model, request.is_empty);
    let asked = request.stream && wish_for_usage(&request, &mut edits)?;
    Ok(Spliced { stream: request.stream, usage_is_ours: request.stream && !asked, body: edits.apply() })
}

/// Edits `stream_options` so that usage is included; tells whether the caller had asked for it.
fn wish_for_usage(request: &Request<'_>, edits: &mut Edits<'_>) -> Result<bool, serde_json::Error> {
    let Some(last) = request.stream_options.last() else {
        edits.insert("stream_options", INCLUDE_USAGE, false);
        return Ok(false);
    };
    let asked = match last.get() {
        options if options.starts_with('{') => serde_json::from_str::<Options<'_>>(options)?.asked(),
        _ => false,
    };
    if asked {
        return Ok(true);
    }
    for value in &request.stream_options {
        match value.get() {
            "null" => edits.replace(value, INCLUDE_USAGE),
            options if options.starts_with('{') => {
                let options: Options<'_> = serde_json::from_str(options)?;
                let place = edits.place(value).start + 1;
                edits.set_at(place, &options.include_usage, "include_usage", "true", options.is_empty);
            }
            // Neither an object nor null is the caller's mistake, and the provider's to explain.
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
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    /// `text` is a JSON object, perhaps after white space.
    fn new(text: &'a Bytes) -> Self {
        let start = memchr::memchr(b'{', text).map_or(0, |brace| brace + 1);
        Self { text, start, edits: Vec::new() }
    }

    /// Where `value`, a part of the text, is in it.
    fn place(&self, value: &RawValue) -> Range<usize> {
        let start = value.get().as_ptr().addr() - self.text.as_ptr().addr();
        start..start + value.get().len()
    }

    fn replace(&mut self, value: &RawValue, with: &str) {
        self.edits.push((self.place(value), with.to_owned()));
    }

    /// Puts a key before all others of the top-level object.
    fn insert(&mut self, key: &str, value: &str, is_only: bool) {
        self.insert_at(self.start, key, value, is_only);
    }

    fn insert_at(&mut self, place: usize, key: &str, value: &str, is_only: bool) {
        let comma = if is_only { "" } else { "," };
        self.edits.push((place..place, format!("\"{key}\":{value}{comma}")));
    }

    fn set(&mut self, values: &[&RawValue], key: &str, with: &str, is_only: bool) {
        self.set_at(self.start, values, key, with, is_only);
    }

    fn set_at(&mut self, place: usize, values: &[&RawValue], key: &str, with: &str, is_only: bool) {
        if values.is_empty() {
            self.insert_at(place, key, with, is_only);
        }
        for value in values {
            self.replace(value, with);
        }
    }

    fn apply(mut self) -> Bytes {
        // Stable: keys that go to the same place keep their order.
        self.edits.sort_by_key(|(place, _)| place.start);
        let added: usize = self.edits.iter().map(|(_, with)| with.len()).sum();
        let mut out = BytesMut::with_capacity(self.text.len() + added);
        let mut at = 0;
        for (place, with) in &self.edits {
            out.extend_from_slice(&self.text[at..place.start]);
            out.extend_from_slice(with.as_bytes());
            at = place.end;
        }
        out.extend_from_slice(&self.text[at..]);
        out.freeze()
    }
}

/// The parts of a request that matter here, as places in its text.
#[derive(Default)]
struct Request<'a> {
    model: Vec<&'a RawValue>,
    stream_options: Vec<&'a RawValue>,
    stream: bool,
    is_empty: bool,
}

/// The parts of `stream_options` that matter here.
#[derive(Default)]
struct Options<'a> {
    include_usage: Vec<&'a RawValue>,
    is_empty: bool,
}

impl Options<'_> {
    fn asked(&self) -> bool {
        self.include_usage.last().is_some_and(|value| value.get() == "true")
    }
}

/// The keys that matter, compared after their escapes are resolved; a derive would refuse a key that comes twice.
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
                Key::Model => request.model.push(map.next_value()?),
                Key::StreamOptions => request.stream_options.push(map.next_value()?),
                Key::Stream => request.stream = map.next_value::<&RawValue>()?.get() == "true",
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
                Key::IncludeUsage => options.include_usage.push(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
