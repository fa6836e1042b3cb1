//! The event that hands over a task.

use std::{borrow::Cow, cell::Cell, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{number_or_none, text_or_none};
use crate::domain::RequestFacts;

/// The data of a [`TASK_EVENT`](super::TASK_EVENT). It borrows from the event, so that the request is passed on byte for byte and uncopied.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskEvent<'a> {
    /// [`INFER_KIND`](super::INFER_KIND), or something this agent cannot do.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// mcpd's id of the task.
    #[serde(borrow)]
    pub task_id: Cow<'a, str>,
    /// The virtual LLM that is asked for.
    #[serde(borrow, default)]
    pub llm_name: Cow<'a, str>,
    /// Whether the caller wants a stream.
    #[serde(default)]
    pub streaming: bool,
    /// The OpenAI chat body, byte for byte; absent in tasks of other kinds.
    #[serde(borrow, default, deserialize_with = "as_written")]
    pub request: Option<&'a str>,
    /// What the body asks for, where that was to be read.
    #[serde(skip)]
    pub asked: RequestFacts,
    /// W3C trace context of the caller.
    #[serde(default, deserialize_with = "text_or_none")]
    pub traceparent: Option<String>,
    /// Goes with `traceparent`.
    #[serde(default, deserialize_with = "text_or_none")]
    pub tracestate: Option<String>,
    /// Milliseconds from now until nobody waits for the answer any more; see [`TaskEvent::deadline`].
    #[serde(default, deserialize_with = "number_or_none")]
    pub deadline_ms: Option<f64>,
    /// A display name of who called.
    #[serde(default, deserialize_with = "text_or_none")]
    pub caller: Option<String>,
}

/// Of which bodies it is read what they ask for. A plain task is relayed alike whatever stands in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFacts {
    /// What the relay itself needs.
    OfStreams,
    /// For traces.
    OfAll,
}

impl<'a> TaskEvent<'a> {
    /// Reads the data of an event.
    ///
    /// # Errors
    /// If the data is not JSON, lacks `kind` or `taskId`, or has a field of a wrong type that cannot count as absent.
    pub fn read(data: &'a str, facts: ReadFacts) -> Result<Self, serde_json::Error> {
        let event: Self = serde_json::from_str(data)?;
        Ok(event.with_asked(facts))
    }

    fn with_asked(mut self, facts: ReadFacts) -> Self {
        if self.streaming || facts == ReadFacts::OfAll {
            let body = self.request.unwrap_or_default().as_bytes();
            self.asked = RequestFacts::read(body).unwrap_or_default();
        }
        self
    }

    /// Time left for the whole task, counted from the event's arrival; zero when it has passed.
    pub fn deadline(&self) -> Option<Duration> {
        Some(Duration::try_from_secs_f64(self.deadline_ms?.max(0.0) / 1000.0).unwrap_or(Duration::MAX))
    }
}

/// The id in the data of a task event that is not a valid [`TaskEvent`], so that its caller gets an error and does not hang. It is found
/// whatever else is wrong before or after it, and even if it is a number. If there are several, the last one counts.
pub fn readable_task_id(data: &str) -> Option<String> {
    let found = Cell::new(None);
    // An error means that the reading ended early; what was found until then counts.
    let _ = TaskIdReader(&found).deserialize(&mut serde_json::Deserializer::from_str(data));
    found.into_inner()
}

/// The text of any value, as it is written; `None` for a null.
fn as_written<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de str>, D::Error> {
    Option::<&RawValue>::deserialize(from).map(|raw| raw.map(RawValue::get))
}

struct TaskIdReader<'a>(&'a Cell<Option<String>>);

impl<'de> DeserializeSeed<'de> for TaskIdReader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TaskIdReader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key != "taskId" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match map.next_value::<Value>()? {
                Value::String(id) => self.0.set(Some(id)),
                Value::Number(id) => self.0.set(Some(id.to_string())),
                _ => {}
            }
        }
        Ok(())
    }
}
