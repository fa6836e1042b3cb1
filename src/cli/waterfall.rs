//! A trace as a picture: a waterfall of its spans, as text for a terminal.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use opentelemetry::trace::SpanId;
use opentelemetry_sdk::trace::SpanData;

use crate::telemetry::names;

/// Columns of the text's names, indents included.
const NAME_COLUMNS: usize = 34;
/// Columns of the text's bars.
const BAR_COLUMNS: usize = 34;
/// Columns of the text's durations: with names, bars and the spaces in between, a line has 80.
const LENGTH_COLUMNS: usize = 10;
/// From this many seconds on, a duration is given in seconds: longer numbers are hard to read, and there is no room for them.
const MOST_MILLIS: f64 = 9.99;
/// The mark of the first token, inside a bar and outside of one.
const TOKEN_ON_BAR: char = '◆';
const TOKEN_BESIDE: char = '┊';

/// A point in time, counted from the beginning of the trace.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bar {
    start: Duration,
    length: Duration,
}

/// One line of the picture: a span, or several alike that follow each other, as the POSTs of a stream do.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    depth: usize,
    bars: Vec<Bar>,
}

/// A trace, laid out: every span after its parent, children in the order of their beginnings.
#[derive(Debug)]
pub(super) struct Waterfall {
    rows: Vec<Row>,
    total: Duration,
    /// When the first token went to mcpd; `None` for an answer in one piece.
    first_token: Option<Duration>,
}

impl Waterfall {
    /// Lays out the trace of the span named `root`, if it is there.
    pub(super) fn of(spans: &[SpanData], root: &str) -> Option<Self> {
        let root = spans.iter().find(|span| span.name == root)?;
        let of_trace = |span: &&SpanData| span.span_context.trace_id() == root.span_context.trace_id();
        let spans: Vec<_> = spans.iter().filter(of_trace).collect();
        let mut children: HashMap<SpanId, Vec<&SpanData>> = HashMap::new();
        for span in &spans {
            children.entry(span.parent_span_id).or_default().push(span);
        }
        children.values_mut().for_each(|spans| spans.sort_by_key(|span| span.start_time));
        let mut rows = Vec::new();
        lay_out(root, 0, root.start_time, &children, &mut rows);
        let total = rows.iter().flat_map(|row| &row.bars).map(|bar| bar.start + bar.length).max();
        let first_token = first_token(&spans).map(|at| since(root.start_time, at));
        Some(Self { rows, total: total.unwrap_or_default(), first_token })
    }

    /// 80 columns of text.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let name: String =
                format!("{}{}", "  ".repeat(row.depth), row.label()).chars().take(NAME_COLUMNS).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "{name:<NAME_COLUMNS$} {} {:>LENGTH_COLUMNS$}",
                self.text_bars(row),
                spelt(row.length())
            );
        }
        if let Some(at) = self.first_token {
            let label = format!("{TOKEN_ON_BAR} first token after {}", spelt(at));
            let indent = NAME_COLUMNS + 1 + self.column(at, BAR_COLUMNS).min(BAR_COLUMNS - 1);
            let _ = writeln!(out, "{}{label}", " ".repeat(indent.min(80 - label.chars().count())));
        }
        out
    }

    fn text_bars(&self, row: &Row) -> String {
        let mut cells = vec![' '; BAR_COLUMNS];
        for bar in &row.bars {
            let (from, to) = self.place(*bar, BAR_COLUMNS);
            cells[from..to].fill('█');
        }
        if let Some(at) = self.first_token {
            let cell = &mut cells[self.column(at, BAR_COLUMNS).min(BAR_COLUMNS - 1)];
            *cell = if *cell == ' ' { TOKEN_BESIDE } else { TOKEN_ON_BAR };
        }
        cells.into_iter().collect()
    }

    /// The first and the last column of a bar, which is never empty.
    fn place(&self, bar: Bar, columns: usize) -> (usize, usize) {
        let from = self.column(bar.start, columns).min(columns - 1);
        (from, self.column(bar.start + bar.length, columns).clamp(from + 1, columns))
    }

    fn column(&self, at: Duration, columns: usize) -> usize {
        (self.part(at) * columns as f64).round() as usize
    }

    /// A point in time as a fraction of the whole, from 0 to 1.
    fn part(&self, at: Duration) -> f64 {
        at.as_secs_f64() / self.total.as_secs_f64().max(f64::EPSILON)
    }
}

impl Row {
    fn label(&self) -> String {
        match self.bars.len() {
            1 => self.name.clone(),
            n => format!("{} ×{n}", self.name),
        }
    }

    fn length(&self) -> Duration {
        self.bars.iter().map(|bar| bar.length).sum()
    }
}

fn lay_out(
    span: &SpanData,
    depth: usize,
    begin: SystemTime,
    children: &HashMap<SpanId, Vec<&SpanData>>,
    rows: &mut Vec<Row>,
) {
    let bar = Bar { start: since(begin, span.start_time), length: since(span.start_time, span.end_time) };
    let row = Row { name: span.name.clone().into_owned(), depth, bars: vec![bar] };
    match rows.last_mut() {
        Some(last) if (&last.name, last.depth) == (&row.name, depth) => last.bars.push(bar),
        _ => rows.push(row),
    }
    for child in children.get(&span.span_context.span_id()).into_iter().flatten() {
        lay_out(child, depth + 1, begin, children, rows);
    }
}

/// When the first token of a stream went to mcpd, which is with the first POST. The provider's first chunk often has only a role, and waits
/// for the token.
fn first_token(spans: &[&SpanData]) -> Option<SystemTime> {
    let is_stream =
        spans.iter().flat_map(|span| span.events.iter()).any(|e| e.name == names::span::FIRST_CHUNK);
    let posts = spans.iter().filter(|span| is_stream && span.name == names::span::POST);
    posts.map(|span| span.start_time).min()
}

fn since(begin: SystemTime, at: SystemTime) -> Duration {
    at.duration_since(begin).unwrap_or_default()
}

fn spelt(length: Duration) -> String {
    match length.as_secs_f64() {
        seconds if seconds < MOST_MILLIS => format!("{:.2} ms", seconds * 1000.0),
        seconds => format!("{seconds:.2} s"),
    }
}
