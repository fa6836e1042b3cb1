//! The request on its way to the server: a few values are set by their place in the text, every other
//! byte stays as it came.

use std::{borrow::Cow, fmt, ops::Range};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::json::text::quote_into;

/// Asks a server for the usage at the end of a stream.
const INCLUDE_USAGE: &[u8] = br#"{"include_usage":true}"#;

/// What a request is to say when it leaves.
#[derive(Clone, Copy, Debug)]
pub(in crate::provide) struct Wanted<'a> {
    /// The server's name of the model.
    pub(in crate::provide) model: &'a str,
    /// Whether the caller wants a stream, whatever the body says.
    pub(in crate::provide) stream: bool,
    /// Whether a stream asks for the usage: some servers refuse requests that do.
    pub(in crate::provide) usage: bool,
}

/// A request as it goes to the server.
#[derive(Debug)]
pub(in crate::provide) struct RewrittenRequest {
    /// The body.
    pub(in crate::provide) body: Bytes,
    /// Whether the body asks for a stream.
    pub(in crate::provide) stream: bool,
    /// Whether the host, not the caller, asked for the usage chunk: it is then removed from the answer.
    pub(in crate::provide) usage_is_ours: bool,
}

/// Sets the top-level `model`, `stream` where the caller wants one, and for a stream
/// `stream_options.include_usage`. Costs one pass and one copy.
///
/// A key that occurs several times is replaced everywhere: servers differ in which occurrence they use.
///
/// # Errors
/// If `body` is not a JSON object.
pub(in crate::provide) fn rewrite_request(
    body: &Bytes,
    wanted: Wanted<'_>,
) -> Result<RewrittenRequest, serde_json::Error> {
    let request: Members<'_> = serde_json::from_slice(body)?;
    let mut model = Vec::with_capacity(wanted.model.len() + 2);
    quote_into(&mut model, wanted.model);
    let mut edits = Edits::new(body);
    edits.set(&request, "model", &model);
    if wanted.stream && request.last("stream") != Some("true") {
        edits.set(&request, "stream", b"true");
    }
    let stream = wanted.stream || request.last("stream") == Some("true");
    let usage_is_ours = stream && wanted.usage && !request_usage(&request, &mut edits)?;
    Ok(RewrittenRequest { stream, usage_is_ours, body: edits.apply() })
}

/// Edits `stream_options` so that usage is included; returns whether the caller had asked for it.
fn request_usage(request: &Members<'_>, edits: &mut Edits<'_>) -> Result<bool, serde_json::Error> {
    let Some(last) = request.last("stream_options") else {
        edits.set(request, "stream_options", INCLUDE_USAGE);
        return Ok(false);
    };
    if last.starts_with('{')
        && serde_json::from_str::<Members<'_>>(last)?.last("include_usage") == Some("true")
    {
        return Ok(true);
    }
    for value in request.all("stream_options") {
        match value {
            "null" => edits.replace(value, INCLUDE_USAGE),
            options if options.starts_with('{') => {
                let place = edits.place(value).start + 1;
                edits.set_at(place, &serde_json::from_str(options)?, "include_usage", b"true");
            }
            // Anything but an object or null is the caller's mistake, which the provider will explain.
            _ => {}
        }
    }
    Ok(false)
}

/// The members of an object in their order, repeated names too; each value as it is written.
#[derive(Debug)]
struct Members<'a>(Vec<(Cow<'a, str>, &'a str)>);

impl<'a> Members<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| *value)
    }

    fn last(&self, name: &str) -> Option<&'a str> {
        self.all(name).last()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A map of serde's keeps one of several members with one name, so this is written by hand.
struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &RawValue>()? {
            members.push((name, value.get()));
        }
        Ok(Members(members))
    }
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

    /// Puts a key before the others of the object that begins before `place`.
    fn insert_at(&mut self, place: usize, key: &str, value: &[u8], is_empty: bool) {
        let is_second = self.edits.iter().any(|(range, _)| *range == (place..place));
        let (before, after): (&[u8], &[u8]) = match (is_empty, is_second) {
            (false, _) => (b"", b","),
            (true, false) => (b"", b""),
            (true, true) => (b",", b""),
        };
        let member = [before, b"\"", key.as_bytes(), b"\":", value, after].concat();
        self.edits.push((place..place, member.into()));
    }

    fn set(&mut self, members: &Members<'_>, key: &str, with: &'a [u8]) {
        self.set_at(self.start, members, key, with);
    }

    /// Sets `key` wherever it occurs among `members`, whose first one would stand at `place`.
    fn set_at(&mut self, place: usize, members: &Members<'_>, key: &str, with: &'a [u8]) {
        if members.last(key).is_none() {
            self.insert_at(place, key, with, members.0.is_empty());
        }
        for value in members.all(key) {
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

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
