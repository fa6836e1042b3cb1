//! The event that hands over a task.

use std::{borrow::Cow, cell::Cell, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{number_or_none, text_or_none};
use crate::{
    domain::RequestFacts,
    openai::{
        Malformed,
        scan::{Scanner, number},
        usual::{self, Names, UNUSUAL},
    },
};

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
        Self::usual(data, facts).map_or_else(|_| Self::unusual(data, facts), Ok)
    }

    /// Lets serde read.
    pub(super) fn unusual(data: &'a str, facts: ReadFacts) -> Result<Self, serde_json::Error> {
        serde_json::from_str(data).map(|event| Self::with_asked(event, facts))
    }

    fn with_asked(mut self, facts: ReadFacts) -> Self {
        if self.streaming || facts == ReadFacts::OfAll {
            let body = self.request.unwrap_or_default().as_bytes();
            self.asked = RequestFacts::read(body).unwrap_or_default();
        }
        self
    }

    /// Reads data that is written in the usual way, with the same result as serde; any other data is an error here.
    pub(super) fn usual(data: &'a str, facts: ReadFacts) -> Result<Self, Malformed> {
        let mut event = Self::default();
        let mut names = Names::default();
        let mut read = false;
        Scanner::of_text(data)?.whole_object(|scan, key| {
            match scan.of(key) {
                b"kind" => event.kind = names.first(KIND).and_then(|()| usual::text(scan))?.into(),
                b"taskId" => event.task_id = names.first(TASK_ID).and_then(|()| usual::text(scan))?.into(),
                b"llmName" => event.llm_name = names.first(LLM).and_then(|()| usual::text(scan))?.into(),
                b"streaming" => event.streaming = names.first(STREAMING).and_then(|()| flag(scan))?,
                b"request" => {
                    names.first(REQUEST)?;
                    read = event.streaming || facts == ReadFacts::OfAll;
                    event.request = body(scan, read.then_some(&mut event.asked))?;
                }
                b"traceparent" => {
                    event.traceparent = names.first(PARENT).and_then(|()| text_or_null(scan))?
                }
                b"tracestate" => event.tracestate = names.first(STATE).and_then(|()| text_or_null(scan))?,
                b"deadlineMs" => {
                    event.deadline_ms = names.first(DEADLINE).and_then(|()| milliseconds(scan))?
                }
                b"caller" => event.caller = names.first(CALLER).and_then(|()| text_or_null(scan))?,
                _ => usual::other(scan, key)?,
            }
            Ok(())
        })?;
        if !names.has(KIND | TASK_ID) {
            return Err(UNUSUAL);
        }
        // mcpd says that it is a stream before it gives the body; whoever does otherwise has it read a second time.
        Ok(if read { event } else { event.with_asked(facts) })
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

const KIND: u32 = 1;
const TASK_ID: u32 = 1 << 1;
const LLM: u32 = 1 << 2;
const STREAMING: u32 = 1 << 3;
const REQUEST: u32 = 1 << 4;
const PARENT: u32 = 1 << 5;
const STATE: u32 = 1 << 6;
const DEADLINE: u32 = 1 << 7;
const CALLER: u32 = 1 << 8;

/// The text of any value, as it is written; `None` for a null.
fn as_written<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de str>, D::Error> {
    Option::<&RawValue>::deserialize(from).map(|raw| raw.map(RawValue::get))
}

fn flag(scan: &mut Scanner<'_>) -> Result<bool, Malformed> {
    match usual::value(scan)? {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(UNUSUAL),
    }
}

/// The body's way through here is the only one on which all of it is looked at, so what it asks for is read on it.
fn body<'a>(scan: &mut Scanner<'a>, asked: Option<&mut RequestFacts>) -> Result<Option<&'a str>, Malformed> {
    if usual::null(scan)? {
        return Ok(None);
    }
    let body = match asked {
        Some(asked) if scan.peek()? == b'{' => scan.object(|scan, name| asked.member(scan, name))?,
        _ => scan.skip()?,
    };
    Ok(Some(scan.text_of(body)))
}

fn text_or_null(scan: &mut Scanner<'_>) -> Result<Option<String>, Malformed> {
    if usual::null(scan)? { Ok(None) } else { usual::text(scan).map(|text| Some(text.to_owned())) }
}

/// A whole number that a double can hold exactly, so that serde would read the same value.
fn milliseconds(scan: &mut Scanner<'_>) -> Result<Option<f64>, Malformed> {
    if usual::null(scan)? {
        return Ok(None);
    }
    let digits = scan.skip()?;
    number(scan.of(digits)).map(|number| Some(number.into())).ok_or(UNUSUAL)
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
