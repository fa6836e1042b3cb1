//! How commands print: tables and ages as kubectl's users expect them, and nothing that could control a terminal.

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, TimeZone};
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Row, Table, presets};
use ratatui::crossterm::style::{self, Stylize as _};
use serde::Serialize;

use crate::{domain::Printable, telemetry};

/// Blanks between two columns, as in kubectl.
const GAP: u16 = 3;
/// What is printed for an empty cell, as in kubectl.
pub const NONE: &str = "<none>";
/// The width that is assumed if a terminal does not report its own.
const USUAL_WIDTH: u16 = 80;
/// A path is not cut to less than this many characters: it could no longer be told from others.
const PATH_WIDTH: usize = 16;

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

/// When the output has colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    /// Also into files and pipes
    Always,
    /// Never
    Never,
}

static COLOR: OnceLock<Color> = OnceLock::new();

/// Settles for the rest of the process when its output has colours; the first word counts.
pub fn set_color(color: Color) {
    let _ = COLOR.set(color);
    if color == Color::Always {
        // The library would heed NO_COLOR by itself.
        style::force_color_output(true);
    }
}

fn has_color(is_terminal: bool) -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    match COLOR.get().copied().unwrap_or_default() {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => is_terminal && !is_set("NO_COLOR") && env::var_os("TERM").is_none_or(|t| t != "dumb"),
    }
}

/// Says on standard error what went wrong.
pub fn complain(message: &str) {
    let label = "error:";
    let line = Printable(message).to_string();
    if telemetry::say(&format!("{label} {line}")) {
        return;
    }
    let label = match has_color(io::stderr().is_terminal()) {
        true => label.red().bold().to_string(),
        false => label.to_owned(),
    };
    // If that fails, nobody can be told.
    let _ = writeln!(io::stderr(), "{label} {line}");
}

/// Prints one sentence on standard error, after the lines of the log if this process has one.
pub fn note(message: &str) {
    let line = Printable(message).to_string();
    if !telemetry::say(&line) {
        // If that fails, nobody can be told.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// How standard output wants its text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Most columns of a line; `None` where the reader gets everything.
    pub width: Option<u16>,
    /// Whether words that say how something is are coloured.
    pub color: bool,
}

impl Look {
    /// The look of this process's standard output: a terminal has a width, a file or a pipe gets everything.
    pub fn of_stdout() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let width = || ratatui::crossterm::terminal::size().map_or(USUAL_WIDTH, |(columns, _)| columns);
        Self { width: is_terminal.then(width), color: has_color(is_terminal) }
    }

    /// A word in the colour of what it says.
    pub fn paint(self, word: &str) -> String {
        match word {
            _ if !self.color => word.to_owned(),
            "active" | "online" | "ready" | "published" | "ok" => word.green().to_string(),
            "inactive" | "unavailable" | "refused" | "backoff" | "FAILURE" => word.red().to_string(),
            "paused" | "loading" | "withdrawn" | "warning" | "draining" => word.yellow().to_string(),
            _ => word.to_owned(),
        }
    }
}

/// A table in kubectl's manner. Cells are made printable; with a width, paths are cut in their middle and other cells at
/// their end with "…", so that no line is longer.
pub fn table(header: &[&str], rows: &[Vec<String>], look: Look) -> String {
    let mut cells: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    if let Some(width) = look.width {
        cut_paths(header, &mut cells, width.into());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in cells {
        table.add_row(std::mem::take(Row::from(row).max_height(1)));
    }
    match look.width {
        // The last column's gap is cut off below, so the table may have it on top.
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width + GAP),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table.lines().map(|line| painted(line.trim_end(), look) + "\n").collect()
}

/// Shortens the cells that hold a path where the table is too wide: what tells one path from another is its end.
fn cut_paths(header: &[&str], cells: &mut [Vec<String>], width: usize) {
    let gaps = usize::from(GAP) * header.len().saturating_sub(1);
    let widest = |column: usize, cells: &[Vec<String>]| {
        let widths = cells.iter().map(|row| row[column].chars().count());
        widths.chain([header[column].len()]).max().unwrap_or_default()
    };
    for column in 0..header.len() {
        let all: usize = (0..header.len()).map(|column| widest(column, cells)).sum();
        let excess = (all + gaps).saturating_sub(width);
        let room = widest(column, cells).saturating_sub(excess).max(PATH_WIDTH);
        for row in cells.iter_mut().filter(|row| row[column].contains('/')) {
            row[column] = cut_middle(&row[column], room);
        }
    }
}

/// A text of at most `room` characters: its beginning, "…" and its longer end.
fn cut_middle(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    let (head, tail) = (room.saturating_sub(1) / 3, room.saturating_sub(1) - room.saturating_sub(1) / 3);
    text.chars().take(head).chain(['…']).chain(text.chars().skip(length - tail)).collect()
}

/// A line of a table with the words that say how something is in their colours.
fn painted(line: &str, look: Look) -> String {
    if !look.color {
        return line.to_owned();
    }
    line.split(' ').map(|word| look.paint(word)).collect::<Vec<_>>().join(" ")
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

/// A point in time as a clock on the wall shows it, with the date where it is not today; a text that is not one as it is.
pub fn time_of_day<Z: TimeZone>(rfc3339: &str, now: &DateTime<Z>) -> String
where
    Z::Offset: Display,
{
    let Ok(time) = DateTime::parse_from_rfc3339(rfc3339) else { return Printable(rfc3339).to_string() };
    let time = time.with_timezone(&now.timezone());
    let is_today = time.date_naive() == now.date_naive();
    time.format(if is_today { "%H:%M" } else { "%Y-%m-%d %H:%M" }).to_string()
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

    fn narrow(width: u16) -> Look {
        Look { width: Some(width), ..Look::default() }
    }

    #[test]
    fn a_path_is_cut_in_its_middle_and_its_row_fits() {
        let path =
            "/home/somebody/models/bartowski/Llama-3.2-3B-Instruct-GGUF/Llama-3.2-3B-Instruct-Q4_K_M.gguf";
        let text = table(&["NAME", "MODEL", "STATUS"], &rows(&[&["qwen3", path, "active"]]), narrow(60));
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.contains("…") && text.contains("Q4_K_M.gguf   active"), "{text}");
        assert!(text.lines().nth(1).is_some_and(|row| row.starts_with("qwen3   /home/")), "{text}");
    }

    #[test]
    fn only_words_that_say_how_something_is_have_a_colour() {
        let look = Look { width: None, color: true };
        style::force_color_output(true);
        let text = table(&["NAME", "STATUS"], &rows(&[&["a", "active"]]), look);
        assert_eq!(text, "NAME   STATUS\na      \u{1b}[38;5;10mactive\u{1b}[39m\n");
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
        let text = table(&["NAME", "KIND"], &rows(&[&["qwen3", ""], &["a", "virtual"]]), Look::default());
        assert_eq!(text, "NAME    KIND\nqwen3   <none>\na       virtual\n");
    }

    #[test]
    fn a_table_in_a_terminal_is_cut_to_its_width_and_never_wraps() {
        let text = table(&["NAME", "DETAIL"], &rows(&[&["qwen3", &"long ".repeat(40)]]), narrow(40));
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains('…'));
    }

    #[test]
    fn a_hostile_cell_cannot_steer_the_terminal_or_break_the_line() {
        let text = table(&["NAME"], &rows(&[&["a\u{1b}[2J\nb"]]), Look::default());
        assert_eq!(text, "NAME\na\\u{1b}[2J\\u{a}b\n");
    }
}
