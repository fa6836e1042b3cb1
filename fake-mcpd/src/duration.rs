//! Durations in JSON: a text such as `"2s"`, or a number of milliseconds.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

pub(crate) fn read(value: &Value) -> Result<Duration, String> {
    if let Some(ms) = value.as_u64() {
        return Ok(Duration::from_millis(ms));
    }
    let text = value.as_str().ok_or_else(|| format!("{value} is no duration"))?;
    humantime::parse_duration(text).map_err(|error| format!("{text:?} is no duration: {error}"))
}

pub(crate) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    read(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    required(deserializer).map(Some)
}

pub(crate) fn plain<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    humantime::format_duration(*value).to_string().serialize(serializer)
}

pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|value| humantime::format_duration(value).to_string()).serialize(serializer)
}
