//! A trace as a picture: a waterfall of its spans, as text for a terminal or as SVG.

use std::{
    collections::HashMap,
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use opentelemetry::trace::{SpanId, SpanKind};
use opentelemetry_sdk::trace::SpanData;

/// Columns of the text's names, indents included.
const NAME_COLUMNS: usize = 34;
/// Columns of the text's bars: with names and numbers a line has 80.
const BAR_COLUMNS: usize = 34;
/// Sizes of the SVG, in pixels.
const SVG: Sizes = Sizes { width: 960, row: 26, left: 330, right: 90, top: 56 };

struct Sizes {
    width: u32,
    row: u32,
    left: u32,
    right: u32,
    top: u32,
}

/// One line of the picture: a span with its place in time, from the trace's begin.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    kind: SpanKind,
    depth: usize,
    start: Duration,
    length: Duration,
}

/// A trace, laid out: every span behind its parent, children by their begin.
#[derive(Debug)]
pub(super) struct Waterfall {
    rows: Vec<Row>,
    total: Duration,
}

impl Waterfall {
    /// Lays out the trace of the span named `root`, if it is there.
    pub(super) fn of(spans: &[SpanData], root: &str) -> Option<Self> {
        let root = spans.iter().find(|span| span.name == root)?;
        let mut children: HashMap<SpanId, Vec<&SpanData>> = HashMap::new();
        for span in spans.iter().filter(|s| s.span_context.trace_id() == root.span_context.trace_id()) {
            children.entry(span.parent_span_id).or_default().push(span);
        }
        children.values_mut().for_each(|spans| spans.sort_by_key(|span| span.start_time));
        let mut rows = Vec::new();
        lay_out(root, 0, root.start_time, &children, &mut rows);
        let total = rows.iter().map(|row| row.start + row.length).max().unwrap_or_default();
        Some(Self { rows, total })
    }

    /// 80 columns of text.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let name: String =
                format!("{}{}", "  ".repeat(row.depth), row.name).chars().take(NAME_COLUMNS).collect();
            let (from, to) = self.place(row, BAR_COLUMNS);
            let bar = format!("{}{}", " ".repeat(from), "█".repeat(to - from));
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<NAME_COLUMNS$} {bar:<BAR_COLUMNS$} {:>9}", millis(row.length));
        }
        out
    }

    /// The first and the last column of a row's bar, which is never empty.
    fn place(&self, row: &Row, columns: usize) -> (usize, usize) {
        let total = self.total.as_secs_f64().max(f64::EPSILON);
        let column = |at: Duration| (at.as_secs_f64() / total * columns as f64).round() as usize;
        let from = column(row.start).min(columns - 1);
        (from, column(row.start + row.length).clamp(from + 1, columns))
    }

    /// The same as an image.
    pub(super) fn svg(&self, title: &str) -> String {
        let height = SVG.top + SVG.row * u32::try_from(self.rows.len()).unwrap_or(0) + 16;
        let width = SVG.width;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"ui-monospace, monospace\" \
             font-size=\"13\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
             <text x=\"16\" y=\"28\" font-size=\"15\" fill=\"#1f2328\">{}</text>\n",
            escaped(title)
        );
        for (at, row) in (0..).zip(&self.rows) {
            out.push_str(&self.svg_row(row, SVG.top + SVG.row * at));
        }
        out + "</svg>\n"
    }

    fn svg_row(&self, row: &Row, y: u32) -> String {
        let room = f64::from(SVG.width - SVG.left - SVG.right);
        let total = self.total.as_secs_f64().max(f64::EPSILON);
        let x = f64::from(SVG.left) + row.start.as_secs_f64() / total * room;
        let width = (row.length.as_secs_f64() / total * room).max(1.5);
        let colour = match row.kind {
            SpanKind::Consumer => "#8250df",
            SpanKind::Client => "#0969da",
            _ => "#9a6700",
        };
        let (name_x, text_y) = (16 + 14 * row.depth, y + 17);
        format!(
            "<text x=\"{name_x}\" y=\"{text_y}\" fill=\"#1f2328\">{}</text>\n\
             <rect x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" rx=\"2\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\" fill=\"#59636e\">{}</text>\n",
            escaped(&row.name),
            y + 5,
            SVG.row - 10,
            SVG.width - 16,
            millis(row.length),
        )
    }
}

fn lay_out(
    span: &SpanData,
    depth: usize,
    begin: SystemTime,
    children: &HashMap<SpanId, Vec<&SpanData>>,
    rows: &mut Vec<Row>,
) {
    rows.push(Row {
        name: shown_name(span),
        kind: span.span_kind.clone(),
        depth,
        start: span.start_time.duration_since(begin).unwrap_or_default(),
        length: span.end_time.duration_since(span.start_time).unwrap_or_default(),
    });
    for child in children.get(&span.span_context.span_id()).into_iter().flatten() {
        lay_out(child, depth + 1, begin, children, rows);
    }
}

/// A service's full name leaves no room for anything else: its last part is enough here.
fn shown_name(span: &SpanData) -> String {
    match span.name.rsplit_once('.') {
        Some((_, last)) if span.name.contains('/') => last.to_owned(),
        _ => span.name.clone().into_owned(),
    }
}

fn millis(length: Duration) -> String {
    format!("{:.2} ms", length.as_secs_f64() * 1000.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
