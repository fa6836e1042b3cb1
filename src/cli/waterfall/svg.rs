//! The waterfall as an image. Colours and sizes are for a page with a white background.

use std::{fmt::Write as _, time::Duration};

use opentelemetry::trace::SpanKind;

use super::{Bar, Row, Waterfall, spelt};

/// Pixels.
const WIDTH: u32 = 960;
const MARGIN: u32 = 24;
const LEFT: u32 = 270;
const RIGHT: u32 = 120;
const ROW: u32 = 34;
const BAR: u32 = 18;
/// Where the rows begin: below the title, the legend and the times.
const TOP: u32 = 104;
const INDENT: usize = 16;
/// Characters of a name, indents counted as two: the room to the left of the bars.
const NAME: usize = 30;
/// The least visible width of a bar.
const LEAST_BAR: f64 = 2.5;
/// About how many marks the time axis has.
const MARKS: f64 = 6.0;

const INK: &str = "#1f2328";
const FAINT: &str = "#59636e";
const GRID: &str = "#d8dee4";
const TOKEN: &str = "#cf222e";
const KINDS: [(SpanKind, &str, &str); 3] = [
    (SpanKind::Consumer, "#8250df", "the task"),
    (SpanKind::Internal, "#bf8700", "waiting"),
    (SpanKind::Client, "#0969da", "a call"),
];

impl Waterfall {
    /// The same as an image.
    pub(in crate::cli) fn svg(&self, title: &str) -> String {
        let height = self.bottom() + MARGIN + 18;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"ui-monospace, 'DejaVu Sans Mono', monospace\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        text(&mut out, (MARGIN.into(), 34.0), "start", INK, title, " font-size=\"16\" font-weight=\"600\"");
        legend(&mut out);
        self.axis(&mut out);
        for (at, row) in (0..).zip(&self.rows) {
            self.row(&mut out, row, TOP + ROW * at);
        }
        self.token(&mut out);
        out + "</svg>\n"
    }

    fn bottom(&self) -> u32 {
        TOP + ROW * u32::try_from(self.rows.len()).unwrap_or(0)
    }

    /// The pixel of a point in time.
    fn x(&self, at: Duration) -> f64 {
        f64::from(LEFT) + self.part(at) * f64::from(WIDTH - LEFT - RIGHT)
    }

    /// A line and a time at every round number of milliseconds.
    fn axis(&self, out: &mut String) {
        let step = round_step(self.total.as_secs_f64() * 1000.0 / MARKS);
        let marks =
            (0..).map(|n| f64::from(n) * step).take_while(|ms| *ms <= self.total.as_secs_f64() * 1000.0);
        for ms in marks {
            let x = self.x(Duration::from_secs_f64(ms / 1000.0));
            line(out, x, self.bottom(), GRID, "");
            text(out, (x, f64::from(TOP) - 12.0), "middle", FAINT, &format!("{ms} ms"), " font-size=\"11\"");
        }
    }

    fn row(&self, out: &mut String, row: &Row, y: u32) {
        let middle = f64::from(y) + 17.0 + 4.5;
        let name_x = f64::from(MARGIN) + (INDENT * row.depth) as f64;
        let name: String = row.label().chars().take(NAME - 2 * row.depth.min(NAME / 2)).collect();
        text(out, (name_x, middle), "start", INK, &name, "");
        row.bars.iter().for_each(|bar| self.bar(out, *bar, colour(&row.kind), y));
        let length = spelt(row.length());
        text(out, (f64::from(WIDTH - MARGIN), middle), "end", FAINT, &length, "");
    }

    fn bar(&self, out: &mut String, bar: Bar, colour: &str, y: u32) {
        let (x, top) = (self.x(bar.start), y + (ROW - BAR) / 2);
        let width = (self.x(bar.start + bar.length) - x).max(LEAST_BAR);
        put(
            out,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>"
            ),
        );
    }

    /// The first token, which is what people wait for.
    fn token(&self, out: &mut String) {
        let Some(at) = self.first_token else { return };
        let (x, bottom) = (self.x(at), self.bottom());
        line(out, x, bottom, TOKEN, " stroke-width=\"1.5\" stroke-dasharray=\"5 3\"");
        let (left, right, below, tip) = (x - 6.0, x + 6.0, bottom + 6, bottom + 12);
        put(
            out,
            format_args!(
                "<path d=\"M{x:.1} {bottom} L{right:.1} {below} L{x:.1} {tip} L{left:.1} {below} Z\" fill=\"{TOKEN}\"/>"
            ),
        );
        // If there is no room on the right, the label goes to the left.
        let (label_x, anchor) = if self.part(at) < 0.7 { (x + 12.0, "start") } else { (x - 12.0, "end") };
        let label = format!("first token after {}", spelt(at));
        text(out, (label_x, f64::from(bottom) + 11.0), anchor, TOKEN, &label, " font-weight=\"600\"");
    }
}

fn colour(kind: &SpanKind) -> &'static str {
    KINDS.iter().find(|(known, ..)| known == kind).map_or(FAINT, |(_, colour, _)| colour)
}

fn legend(out: &mut String) {
    for (at, (_, colour, what)) in (0..).zip(&KINDS) {
        let x = MARGIN + 110 * at;
        put(
            out,
            format_args!("<rect x=\"{x}\" y=\"52\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{colour}\"/>"),
        );
        text(out, (f64::from(x) + 18.0, 62.5), "start", FAINT, what, " font-size=\"12\"");
    }
}

/// A vertical line from above the rows to `bottom`.
fn line(out: &mut String, x: f64, bottom: u32, colour: &str, more: &str) {
    let top = TOP - 6;
    put(
        out,
        format_args!(
            "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{colour}\"{more}/>"
        ),
    );
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str, more: &str) {
    let text = escaped(text);
    put(
        out,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\"{more}>{text}</text>"
        ),
    );
}

fn put(out: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{element}");
}

/// The next of 1, 2, 5, 10, 20, 50 ... that is not less than `least`.
fn round_step(least: f64) -> f64 {
    let steps = (0..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
    steps.into_iter().find(|step| *step >= least).unwrap_or(least)
}

fn escaped(text: &str) -> String {
    let printable: String = text.chars().filter(|c| !c.is_control()).collect();
    printable.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
