//! The attributes of one span: each is added where it is known, and a value that is `None` is no attribute.

use opentelemetry::{Array, KeyValue, StringValue, Value};

/// Longest text from a peer that becomes an attribute, in bytes: a name fits, a hostile megabyte does not.
const MAX_TEXT_BYTES: usize = 256;

/// What a span is to say.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<KeyValue>);

impl Attributes {
    /// Adds a value of ours.
    pub(super) fn add(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(key, value));
    }

    /// Adds a value of ours that may be unknown.
    pub(super) fn add_known<V: Into<Value>>(&mut self, key: &'static str, value: Option<V>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }

    /// Adds a peer's text, cut to what an attribute may cost.
    pub(super) fn text<'a>(&mut self, key: &'static str, value: impl Into<Option<&'a str>>) {
        self.add_known(key, value.into().map(|text| cut(text).to_owned()));
    }

    /// Adds a peer's texts, each cut likewise; none is no attribute.
    pub(super) fn texts<'a>(&mut self, key: &'static str, values: impl Iterator<Item = &'a str>) {
        let values: Vec<StringValue> = values.map(|value| cut(value).to_owned().into()).collect();
        self.add_known(key, (!values.is_empty()).then_some(Value::Array(Array::String(values))));
    }

    pub(super) fn into_vec(self) -> Vec<KeyValue> {
        self.0
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}
