//! What was measured, as tables for people and as JSON for programs.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::{Deserialize, Serialize};

use crate::{
    cells::{CELLS, IDLE, metric},
    goals::{Verdict, verdicts},
    run::Values,
    stats::median,
    system::{DIRECT, Scheme},
};

/// Everything that was measured, of all rounds, in the order in which it was.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report(Vec<Entry>);

/// What one round gave for one system.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    cell: String,
    scheme: String,
    system: String,
    values: Values,
}

/// The medians: by cell and scheme, then by system.
#[derive(Debug, Default)]
pub struct Results {
    cells: BTreeMap<(String, String), BTreeMap<String, Values>>,
    order: Vec<String>,
}

impl Report {
    /// Takes what one round gave for one system under one load.
    pub fn add(&mut self, cell: &str, scheme: Scheme, system: &str, values: Values) {
        let (cell, scheme, system) = (cell.to_owned(), scheme.to_string(), system.to_owned());
        self.0.push(Entry { cell, scheme, system, values });
    }

    /// Adds what another run wrote as JSON.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read_json(&mut self, path: &Path) -> Result<(), String> {
        let failed = |error: String| format!("{} cannot be read: {error}", path.display());
        let json = fs::read(path).map_err(|error| failed(error.to_string()))?;
        let Self(more) = serde_json::from_slice(&json).map_err(|error| failed(error.to_string()))?;
        self.0.extend(more);
        Ok(())
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<(), String> {
        let json = serde_json::to_string(self).map_err(|error| error.to_string())?;
        fs::write(path, json + "\n").map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }

    /// The medians of the rounds.
    pub fn medians(&self) -> Results {
        let mut results = Results::default();
        let mut rounds = BTreeMap::<_, BTreeMap<String, Vec<&Values>>>::new();
        for Entry { cell, scheme, system, values } in &self.0 {
            if !results.order.contains(system) {
                results.order.push(system.clone());
            }
            let cell = rounds.entry((cell.clone(), scheme.clone())).or_default();
            cell.entry(system.clone()).or_default().push(values);
        }
        for (cell, systems) in rounds {
            let mut systems =
                systems.into_iter().map(|(system, rounds)| (system, medians(&rounds))).collect();
            compare_to_direct(&mut systems);
            results.cells.insert(cell, systems);
        }
        results
    }
}

fn medians(rounds: &[&Values]) -> Values {
    let of = |name: &str| {
        let values = rounds.iter().filter_map(|values| values.get(name).copied());
        Some((name.to_owned(), median(values.collect())?))
    };
    metric::ALL.into_iter().filter_map(of).collect()
}

fn compare_to_direct(systems: &mut BTreeMap<String, Values>) {
    let Some(direct) = systems.get(DIRECT).cloned() else { return };
    for (_, values) in systems.iter_mut().filter(|(system, _)| *system != DIRECT) {
        for (of, over) in
            [(metric::FIRST_P50, metric::FIRST_OVER_P50), (metric::FIRST_P99, metric::FIRST_OVER_P99)]
        {
            if let (Some(own), Some(direct)) = (values.get(of), direct.get(of)) {
                values.insert(over.to_owned(), own - direct);
            }
        }
    }
}

impl Results {
    /// All tables, one per cell and scheme, and the goals.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        let titles = CELLS.iter().map(|cell| (cell.id, cell.title)).chain([(IDLE, "nothing to do")]);
        for (id, title) in titles {
            for scheme in Scheme::ALL {
                if let Some(systems) = self.of(id, scheme) {
                    let _ = write!(out, "\n{id}, {scheme}: {title}\n\n{}\n", self.table(systems));
                }
            }
        }
        let verdicts = self.verdicts();
        if !verdicts.is_empty() {
            let _ = write!(out, "\ngoals\n\n{}\n", goal_table(&verdicts));
        }
        out
    }

    /// Whether every goal that was measured is met.
    pub fn goals_met(&self) -> bool {
        self.verdicts().iter().all(|verdict| verdict.met)
    }

    fn of(&self, cell: &str, scheme: Scheme) -> Option<&BTreeMap<String, Values>> {
        self.cells.get(&(cell.to_owned(), scheme.to_string()))
    }

    fn verdicts(&self) -> Vec<Verdict> {
        verdicts(|cell, scheme| self.of(cell, scheme))
    }

    fn table(&self, systems: &BTreeMap<String, Values>) -> Table {
        let names: Vec<_> = self.order.iter().filter(|name| systems.contains_key(*name)).collect();
        let mut table = new_table(std::iter::once("").chain(names.iter().map(|name| name.as_str())));
        for row in metric::ALL {
            let values: Vec<_> = names.iter().map(|name| systems[*name].get(row)).collect();
            if values.iter().any(Option::is_some) {
                let cells = values.into_iter().map(|value| value.map_or("-".to_owned(), |v| number(*v)));
                table.add_row(std::iter::once(row.to_owned()).chain(cells));
            }
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table
    }
}

fn goal_table(verdicts: &[Verdict]) -> Table {
    let mut table = new_table(["system", "cell", "over", "what", "goal", "limit", "value", ""]);
    for Verdict { goal, limit, value, met } in verdicts {
        let outcome = if *met { "met" } else { "MISSED" };
        table.add_row(goal.iter().cloned().chain([number(*limit), number(*value), outcome.to_owned()]));
    }
    table
}

fn new_table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(header);
    table
}

/// Three figures that count.
fn number(value: f64) -> String {
    match value.abs() {
        big if big >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(name: &str, value: f64) -> Values {
        Values::from([(name.to_owned(), value)])
    }

    #[test]
    fn the_middle_of_the_rounds_stands_in_the_table() {
        let mut report = Report::default();
        for cpu in [1.0, 9.0, 2.0] {
            report.add("plain", Scheme::H2, "agent", values(metric::CPU_REQUESTS, cpu));
        }
        assert_eq!(report.medians().of("plain", Scheme::H2).unwrap()["agent"][metric::CPU_REQUESTS], 2.0);
    }

    #[test]
    fn the_first_token_is_compared_to_what_direct_had() {
        let mut report = Report::default();
        report.add("paced64", Scheme::H1, DIRECT, values(metric::FIRST_P50, 11.0));
        report.add("paced64", Scheme::H1, "agent", values(metric::FIRST_P50, 12.5));
        let results = report.medians();
        assert_eq!(results.of("paced64", Scheme::H1).unwrap()["agent"][metric::FIRST_OVER_P50], 1.5);
    }
}
