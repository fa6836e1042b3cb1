//! What was measured, as tables for people and as JSON for programs.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::{
    cells::{Bound, CELLS, GOALS, Goal, metric},
    run::Values,
    stats::median,
};

/// The lines of a table, in this order.
const ROWS: [&str; 19] = [
    metric::REQUESTS,
    metric::TOKENS,
    metric::LATENCY_P50,
    metric::LATENCY_P99,
    metric::FIRST_P50,
    metric::FIRST_P99,
    metric::FIRST_OVER_P50,
    metric::FIRST_OVER_P99,
    metric::GAP_P50,
    metric::GAP_P99,
    metric::CPU_REQUESTS,
    metric::CPU_TOKENS,
    metric::PEAK_RSS,
    metric::POSTS,
    metric::CHUNKS,
    metric::CONNECTIONS,
    metric::SPANS,
    metric::IDLE_RSS,
    metric::START,
];

/// Everything that was measured, of all rounds.
#[derive(Debug, Default)]
pub struct Report {
    cells: Vec<(String, Rounds)>,
}

/// What every round gave, by system.
type Rounds = Vec<(String, Vec<Values>)>;

/// The medians: per cell and system.
#[derive(Debug, Serialize)]
pub struct Results {
    cells: BTreeMap<String, BTreeMap<String, Values>>,
    goals: Vec<Verdict>,
    #[serde(skip)]
    order: Vec<String>,
}

/// What became of one goal.
#[derive(Clone, Debug, Serialize)]
struct Verdict {
    system: &'static str,
    cell: &'static str,
    metric: &'static str,
    goal: String,
    limit: f64,
    value: f64,
    met: bool,
}

impl Report {
    /// Takes what one round gave for one system under one load.
    pub fn add(&mut self, cell: &str, system: &str, values: Values) {
        let systems = entry(&mut self.cells, cell);
        entry(systems, system).push(values);
    }

    /// The medians of the rounds, and how they compare.
    pub fn medians(self) -> Results {
        let mut order = Vec::new();
        let mut cells = BTreeMap::new();
        for (cell, systems) in self.cells {
            let mut values = BTreeMap::new();
            for (system, rounds) in systems {
                if !order.contains(&system) {
                    order.push(system.clone());
                }
                values.insert(system, medians(&rounds));
            }
            compare_to_direct(&mut values);
            cells.insert(cell, values);
        }
        let goals = GOALS.iter().filter_map(|goal| verdict(goal, &cells)).collect();
        Results { cells, goals, order }
    }
}

/// The value under `key`, which is put at the end if there is none.
fn entry<'a, T: Default>(list: &'a mut Vec<(String, T)>, key: &str) -> &'a mut T {
    let at = list.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
        list.push((key.to_owned(), T::default()));
        list.len() - 1
    });
    &mut list[at].1
}

fn medians(rounds: &[Values]) -> Values {
    let of = |name: &'static str| {
        let values = rounds.iter().filter_map(|values| values.get(name).copied());
        Some((name, median(values.collect())?))
    };
    ROWS.into_iter().filter_map(of).collect()
}

fn compare_to_direct(systems: &mut BTreeMap<String, Values>) {
    let Some(direct) = systems.get("direct").cloned() else { return };
    for (system, values) in systems.iter_mut().filter(|(system, _)| *system != "direct") {
        debug_assert!(!system.is_empty());
        for (of, over) in
            [(metric::FIRST_P50, metric::FIRST_OVER_P50), (metric::FIRST_P99, metric::FIRST_OVER_P99)]
        {
            if let (Some(own), Some(direct)) = (values.get(of), direct.get(of)) {
                let difference = own - direct;
                values.insert(over, difference);
            }
        }
    }
}

fn verdict(goal: &Goal, cells: &BTreeMap<String, BTreeMap<String, Values>>) -> Option<Verdict> {
    let systems = cells.get(goal.cell)?;
    let value = *systems.get(goal.system)?.get(goal.metric)?;
    let word = if goal.at_most { "at most" } else { "at least" };
    let (limit, text) = match goal.bound {
        Bound::Fixed(limit) => (limit, format!("{word} {}", number(limit))),
        Bound::Times(factor, system) => {
            (factor * systems.get(system)?.get(goal.metric)?, format!("{word} {factor} x {system}"))
        }
    };
    let met = if goal.at_most { value <= limit } else { value >= limit };
    Some(Verdict { system: goal.system, cell: goal.cell, metric: goal.metric, goal: text, limit, value, met })
}

impl Results {
    /// All tables, one per cell, and the goals.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        let titles = CELLS.iter().map(|cell| (cell.id, cell.title)).chain([("idle", "nothing to do")]);
        for (id, title) in titles {
            if let Some(systems) = self.cells.get(id) {
                let _ = write!(out, "\n{id}: {title}\n\n{}\n", self.table(systems));
            }
        }
        if !self.goals.is_empty() {
            let _ = write!(out, "\ngoals\n\n{}\n", self.goal_table());
        }
        out
    }

    fn table(&self, systems: &BTreeMap<String, Values>) -> Table {
        let names: Vec<_> = self.order.iter().filter(|name| systems.contains_key(*name)).collect();
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(std::iter::once("").chain(names.iter().map(|name| name.as_str())));
        for row in ROWS {
            let values: Vec<_> = names.iter().map(|name| systems[*name].get(row)).collect();
            if values.iter().any(Option::is_some) {
                let cells =
                    values.into_iter().map(|value| value.map_or("-".to_owned(), |value| number(*value)));
                table.add_row(std::iter::once(row.to_owned()).chain(cells));
            }
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table
    }

    fn goal_table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["system", "cell", "what", "goal", "limit", "value", ""]);
        for Verdict { system, cell, metric, goal, limit, value, met } in &self.goals {
            let word = if *met { "met" } else { "MISSED" };
            table.add_row([system, cell, metric, goal.as_str(), &number(*limit), &number(*value), word]);
        }
        table
    }

    /// Whether every goal that was measured is met.
    pub fn goals_met(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
    }

    /// The same as JSON.
    pub fn write_json(&self, path: &Path) -> Result<(), String> {
        let json = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        fs::write(path, json + "\n").map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }
}

/// Three figures that count.
fn number(value: f64) -> String {
    match value.abs() {
        big if big >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_against_another_system_takes_its_value_of_the_same_run() {
        let mut report = Report::default();
        for (cpu, node) in [(1.0, 5.0), (9.0, 4.0), (2.0, 12.0)] {
            report.add("plain", "agent", Values::from([(metric::CPU_REQUESTS, cpu)]));
            report.add("plain", "node", Values::from([(metric::CPU_REQUESTS, node)]));
        }
        let results = report.medians();
        assert_eq!(results.goals.len(), 1);
        let goal = &results.goals[0];
        assert_eq!((goal.value, goal.limit, goal.met), (2.0, 1.25, false));
    }

    #[test]
    fn the_first_token_is_compared_to_what_direct_had() {
        let mut report = Report::default();
        report.add("paced64", "direct", Values::from([(metric::FIRST_P50, 11.0)]));
        report.add("paced64", "agent", Values::from([(metric::FIRST_P50, 12.5)]));
        let results = report.medians();
        assert_eq!(results.cells["paced64"]["agent"][metric::FIRST_OVER_P50], 1.5);
    }
}
