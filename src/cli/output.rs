//! How commands print: tables and ages as kubectl's users expect them, and nothing that could control a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, SystemTime},
};

use comfy_table::{ContentArrangement, Row, Table, presets};
use serde::Serialize;

use crate::{domain::Printable, telemetry};

/// Blanks between two columns, as in kubectl.
const GAP: u16 = 3;
/// What is printed for an empty cell, as in kubectl.
pub const NONE: &str = "<none>";
/// The width that is assumed if a terminal does not report its own.
const USUAL_WIDTH: u16 = 80;

/// Prints a text, and a line end if it has none.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Prints a value as indented JSON.
pub fn print_json<T: Serialize>(value: &T) -> io::Result<()> {
    print(&serde_json::to_string_pretty(value).map_err(io::Error::other)?)
}

/// Says on standard error what went wrong.
pub fn complain(message: &str) {
    note(&format!("error: {message}"));
}

/// Prints one sentence on standard error, after the lines of the log if this process has one.
pub fn note(message: &str) {
    let line = Printable(message).to_string();
    if !telemetry::say(&line) {
        // If that fails, nobody can be told.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// The terminal's width in columns; `None` if standard output is not a terminal, so that its reader gets everything.
pub fn terminal_width() -> Option<u16> {
    let width = || ratatui::crossterm::terminal::size().map_or(USUAL_WIDTH, |(columns, _)| columns);
    io::stdout().is_terminal().then(width)
}

/// A table in kubectl's manner. Cells are made printable; with a width, cells are cut with "…" so that no line is longer.
pub fn table(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for cells in rows {
        let mut row = Row::from(cells.iter().map(|cell| shown(cell)));
        table.add_row(std::mem::take(row.max_height(1)));
    }
    match width {
        // The last column's gap is cut off below, so the table may have it on top.
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width + GAP),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A cell's text: printable, and [`NONE`] if it is empty.
fn shown(cell: &str) -> String {
    match cell {
        "" => NONE.to_owned(),
        text => Printable(text).to_string(),
    }
}

/// How long something has lasted, as kubectl writes it: 5s, 3m12s, 4h, 2d3h.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 2 * 365 => format!("{days}d"),
        _ => two(days / 365, "y", days % 365, "d"),
    }
}

fn two(large: u64, unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    }
}

/// The age of a point in time; `<unknown>` for a text that is not one. A point in the future is 0 s old, because clocks differ.
pub fn age_since(rfc3339: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(rfc3339) {
        Ok(time) => age(now.duration_since(time).unwrap_or_default()),
        Err(_) => "<unknown>".into(),
    }
}

/// A short time as people read it: 85ms, 1.2s, 14s, then as an age.
pub fn latency(milliseconds: u32) -> String {
    match milliseconds {
        0..1_000 => format!("{milliseconds}ms"),
        1_000..10_000 => format!("{:.1}s", f64::from(milliseconds) / 1000.0),
        _ => age(Duration::from_millis(milliseconds.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn ages_are_those_of_kubectl() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (183_600, "2d3h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_point_in_time_that_is_to_come_is_new_and_a_bad_one_unknown() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(age_since("1970-01-01T00:00:55Z", now), "5s");
        assert_eq!(age_since("1970-01-01T00:02:00.5Z", now), "0s");
        assert_eq!(age_since("yesterday", now), "<unknown>");
    }

    #[test]
    fn short_times_keep_the_digits_that_matter() {
        assert_eq!([85, 1_250, 14_900, 130_000].map(latency), ["85ms", "1.2s", "14s", "2m10s"]);
    }

    #[test]
    fn a_table_looks_like_kubectls() {
        let text = table(&["NAME", "KIND"], &rows(&[&["qwen3", ""], &["a", "virtual"]]), None);
        assert_eq!(text, "NAME    KIND\nqwen3   <none>\na       virtual\n");
    }

    #[test]
    fn a_table_in_a_terminal_is_cut_to_its_width_and_never_wraps() {
        let text = table(&["NAME", "DETAIL"], &rows(&[&["qwen3", &"long ".repeat(40)]]), Some(40));
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains('…'));
    }

    #[test]
    fn a_hostile_cell_cannot_steer_the_terminal_or_break_the_line() {
        let text = table(&["NAME"], &rows(&[&["a\u{1b}[2J\nb"]]), None);
        assert_eq!(text, "NAME\na\\u{1b}[2J\\u{a}b\n");
    }
}
