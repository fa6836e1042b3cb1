//! For whom this machine worked: one file a day in the home, and what is read from them.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::AddAssign,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use chrono::{Days, NaiveDate};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::files::write_atomically;
use crate::pb::{UsageBy, UsageRow};

/// How many days are kept.
pub const KEPT_DAYS: u64 = 400;
/// Most callers a day that have rows of their own.
const MAX_CALLERS: usize = 1000;
/// Most rows of one day, whatever the number of LLMs.
const MAX_ROWS: usize = 4000;
/// Most rows of a report.
const MAX_REPORTED: usize = 1000;
/// Where everything goes that has no row of its own.
const OTHER: &str = "_other";
const SUFFIX: &str = ".json";

/// What was done for somebody. Tokens are counted as providers report them; a task that reports none counts none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Tasks that ended with an answer.
    #[serde(skip_serializing_if = "is_zero")]
    pub ok: u64,
    /// Tasks that ended with an error.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed: u64,
    /// Tasks whose caller went away.
    #[serde(skip_serializing_if = "is_zero")]
    pub cancelled: u64,
    /// Tokens of prompts.
    #[serde(skip_serializing_if = "is_zero")]
    pub input_tokens: u64,
    /// Tokens of answers.
    #[serde(skip_serializing_if = "is_zero")]
    pub output_tokens: u64,
    /// Time of inference, in milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub inference_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.ok = self.ok.saturating_add(other.ok);
        self.failed = self.failed.saturating_add(other.failed);
        self.cancelled = self.cancelled.saturating_add(other.cancelled);
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.inference_ms = self.inference_ms.saturating_add(other.inference_ms);
    }
}

/// One day: the counts of each caller, by LLM. A caller whom mcpd does not name is the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Day {
    llms: BTreeMap<String, BTreeMap<String, Counts>>,
    /// How many rows each caller has.
    #[serde(skip)]
    callers: BTreeMap<String, usize>,
}

impl Day {
    /// Adds what was done for a caller.
    pub fn add(&mut self, llm: &str, caller: &str, counts: Counts) {
        let has_row = |caller: &str| self.llms.get(llm).is_some_and(|rows| rows.contains_key(caller));
        let is_full = self.callers.values().sum::<usize>() >= MAX_ROWS
            || (!self.callers.contains_key(caller) && self.callers.len() >= MAX_CALLERS);
        let caller = if has_row(caller) || !is_full { caller } else { OTHER };
        if !has_row(caller) {
            *self.callers.entry(caller.to_owned()).or_default() += 1;
        }
        *self.llms.entry(llm.to_owned()).or_default().entry(caller.to_owned()).or_default() += counts;
    }

    /// The day as its file has it. One that is broken is set aside, with a warning.
    pub fn load(folder: &Path, date: NaiveDate) -> Self {
        let path = file_of(folder, date);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Self>(&text)?));
        match read {
            Ok(mut day) => {
                let callers: Vec<_> = day.llms.values().flat_map(|rows| rows.keys().cloned()).collect();
                callers.into_iter().for_each(|caller| *day.callers.entry(caller).or_default() += 1);
                return day;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let aside = path.with_extension("broken");
                let set_aside = fs::rename(&path, &aside).map_or("left where it is", |()| "set aside");
                warn!("cannot read the usage in {}: {error}; the file is {set_aside}", path.display());
            }
        }
        Self::default()
    }

    /// Writes the day's file.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn save(&self, folder: &Path, date: NaiveDate) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        write_atomically(&file_of(folder, date), &serde_json::to_vec(self)?)
    }
}

fn file_of(folder: &Path, date: NaiveDate) -> PathBuf {
    folder.join(format!("{date}{SUFFIX}"))
}

/// The days that have a file, in their order.
fn days_in(folder: &Path) -> Vec<NaiveDate> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let date = |name: &str| name.strip_suffix(SUFFIX)?.parse().ok();
    let mut days: Vec<_> = entries.filter_map(|entry| date(entry.file_name().to_str()?)).collect();
    days.sort_unstable();
    days
}

/// Removes the files of days that are not kept any more.
pub fn prune(folder: &Path, today: NaiveDate) {
    for date in days_in(folder).into_iter().take_while(|date| *date + Days::new(KEPT_DAYS) <= today) {
        if let Err(error) = fs::remove_file(file_of(folder, date)) {
            warn!("cannot remove the usage of {date}: {error}");
        }
    }
}

/// The usage of the last `days`, `today` included; 0 is all of them. `now` has today's counts where a running agent has newer ones
/// than the file.
pub fn report(folder: &Path, by: UsageBy, days: u32, today: NaiveDate, now: Option<&Day>) -> Vec<UsageRow> {
    let since = match days {
        0 => NaiveDate::MIN,
        _ => today - Days::new(u64::from(days - 1)),
    };
    let mut sums = BTreeMap::<String, Counts>::new();
    let mut add = |date: NaiveDate, day: &Day| {
        for (llm, rows) in &day.llms {
            for (caller, counts) in rows {
                let key = match by {
                    UsageBy::Unspecified | UsageBy::Caller => caller.clone(),
                    UsageBy::Llm => llm.clone(),
                    UsageBy::Day => date.to_string(),
                };
                *sums.entry(key).or_default() += *counts;
            }
        }
    };
    let written = days_in(folder).into_iter().filter(|date| *date >= since);
    written
        .filter(|date| now.is_none() || *date != today)
        .for_each(|date| add(date, &Day::load(folder, date)));
    now.into_iter().for_each(|day| add(today, day));
    let mut rows: Vec<_> = sums.into_iter().collect();
    if by != UsageBy::Day {
        rows.sort_by_key(|(key, counts)| (key == OTHER, std::cmp::Reverse(counts.inference_ms)));
    }
    if rows.len() > MAX_REPORTED {
        let mut rest = Counts::default();
        rows.drain(MAX_REPORTED - 1..).for_each(|(_, counts)| rest += counts);
        rows.push((OTHER.to_owned(), rest));
    }
    rows.into_iter().map(|(key, counts)| row(key, counts)).collect()
}

/// Exact up to 2^53, which no agent reaches.
#[allow(clippy::cast_precision_loss)]
fn row(key: String, counts: Counts) -> UsageRow {
    UsageRow {
        key,
        tasks_ok: counts.ok as f64,
        tasks_failed: counts.failed as f64,
        tasks_cancelled: counts.cancelled as f64,
        input_tokens: counts.input_tokens as f64,
        output_tokens: counts.output_tokens as f64,
        inference_seconds: counts.inference_ms as f64 / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: u32) -> NaiveDate {
        NaiveDate::from_ymd_opt(2026, 12, n).unwrap()
    }

    fn worked(ok: u64) -> Counts {
        Counts { ok, output_tokens: 10 * ok, inference_ms: 500 * ok, ..Counts::default() }
    }

    fn keys(rows: &[UsageRow]) -> Vec<(&str, f64)> {
        rows.iter().map(|row| (&*row.key, row.tasks_ok)).collect()
    }

    #[test]
    fn days_are_summed_up_by_caller_llm_and_day() {
        let home = tempfile::tempdir().unwrap();
        let (mut first, mut today) = (Day::default(), Day::default());
        first.add("qwen3", "alice", worked(1));
        first.add("qwen3", "", worked(5));
        first.save(home.path(), day(1)).unwrap();
        today.add("llama", "alice", worked(2));
        let report = |by, days| report(home.path(), by, days, day(2), Some(&today));
        assert_eq!(keys(&report(UsageBy::Caller, 0)), [("", 5.0), ("alice", 3.0)]);
        assert_eq!(keys(&report(UsageBy::Llm, 7)), [("qwen3", 6.0), ("llama", 2.0)]);
        assert_eq!(keys(&report(UsageBy::Day, 2)), [("2026-12-01", 6.0), ("2026-12-02", 2.0)]);
        let alone = report(UsageBy::Caller, 1);
        assert_eq!((keys(&alone), alone[0].inference_seconds), (vec![("alice", 2.0)], 1.0));
    }

    #[test]
    fn beyond_a_thousand_callers_the_rest_share_a_row_and_a_day_stays_small() {
        let home = tempfile::tempdir().unwrap();
        let mut today = Day::default();
        let busy = Counts { failed: 12, input_tokens: 1_234_567, ..worked(4_321) };
        for n in 0..1_200 {
            today.add("qwen3", &format!("caller-{n}@example.com"), busy);
        }
        assert_eq!(today.llms["qwen3"].len(), MAX_CALLERS + 1);
        assert_eq!(today.llms["qwen3"][OTHER].ok, 200 * busy.ok);
        today.save(home.path(), day(1)).unwrap();
        let size = fs::metadata(file_of(home.path(), day(1))).unwrap().len();
        assert!(size * KEPT_DAYS < 64 << 20, "{size} bytes a day");
        let mut again = Day::load(home.path(), day(1));
        again.add("qwen3", "caller-1@example.com", worked(1));
        again.add("qwen3", "somebody new", worked(1));
        assert_eq!(again.llms["qwen3"].len(), MAX_CALLERS + 1, "also after a restart");
        (0..10)
            .for_each(|llm| (0..1_000).for_each(|n| again.add(&format!("llm-{llm}"), &n.to_string(), busy)));
        let rows: usize = again.llms.values().map(BTreeMap::len).sum();
        assert!(rows <= MAX_ROWS + 20, "{rows} rows");
    }

    #[test]
    fn old_days_go_and_a_broken_one_is_set_aside() {
        let home = tempfile::tempdir().unwrap();
        let today = day(31);
        for days in [0, 1, KEPT_DAYS - 1, KEPT_DAYS, KEPT_DAYS + 9] {
            Day::default().save(home.path(), today - Days::new(days)).unwrap();
        }
        fs::write(home.path().join("notes.txt"), "").unwrap();
        prune(home.path(), today);
        assert_eq!(days_in(home.path()), [today - Days::new(KEPT_DAYS - 1), today - Days::new(1), today]);
        fs::write(file_of(home.path(), today), "{\"llms\":").unwrap();
        assert_eq!(Day::load(home.path(), today), Day::default());
        assert_eq!(fs::read(home.path().join("2026-12-31.broken")).unwrap(), b"{\"llms\":");
    }
}
