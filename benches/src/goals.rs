//! The goals, all in one table; `docs/performance.md` has the same, with what was measured.

use std::{collections::BTreeMap, fmt};

use crate::{
    cells::{IDLE, metric::*},
    run::Values,
    system::{
        AGENT, AGENT_NODE, AGENT_POSTS, DIRECT, FLOOR, NODE, NODE_PER_TOKEN, Scheme, TRACED_GRPC, TRACED_HTTP,
    },
};

/// A line of the table: in all of these cells over all of these schemes one value of a system keeps to a bound.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    system: &'static str,
    cells: &'static [&'static str],
    over: &'static [Scheme],
    metric: &'static str,
    bound: Bound,
}

/// On which side of a limit a value has to be.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(Limit),
    AtLeast(Limit),
}

/// A number, or one that another system had under the same load in the same run.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Fixed(f64),
    Times(f64, &'static str),
    Plus(f64, &'static str),
}
use Bound::{AtLeast, AtMost};
use Limit::{Fixed, Plus, Times};

/// The build that the agent is compared with: `run --also before=PATH`.
const BEFORE: &str = "before";
const EVERY: &[&str] = &["plain", "burst", "paced8", "paced64", "spread64", "paced256"];
const ALL_BUT_BURST: &[&str] = &["plain", "paced8", "paced64", "spread64", "paced256"];
const STEADY: &[&str] = &["paced64", "spread64"];
const TRACED: &[&str] = &["plain", "burst", "paced64"];
const TLS: &[Scheme] = Scheme::TLS;
const H1: &[Scheme] = &[Scheme::H1];
const H2: &[Scheme] = &[Scheme::H2];
const HTTP: &[Scheme] = &[Scheme::Http];

/// What the relay has to reach.
pub const GOALS: [Goal; 35] = [
    // Against the build before.
    goal(AGENT, EVERY, TLS, CPU_REQUESTS, AtMost(Times(1.2, BEFORE))),
    goal(AGENT, ALL_BUT_BURST, HTTP, CPU_REQUESTS, AtMost(Times(1.5, BEFORE))),
    goal(AGENT, &["burst"], HTTP, CPU_REQUESTS, AtMost(Times(1.3, BEFORE))),
    // Against a registrar of one's own.
    goal(AGENT, &["plain"], H1, CPU_REQUESTS, AtMost(Times(0.45, NODE))),
    goal(AGENT, &["paced64"], H1, CPU_REQUESTS, AtMost(Times(0.45, NODE_PER_TOKEN))),
    goal(AGENT, &["burst"], H1, TOKENS, AtLeast(Times(25.0, NODE_PER_TOKEN))),
    // What a reader feels.
    goal(AGENT, STEADY, H2, FIRST_OVER_P50, AtMost(Fixed(1.2))),
    goal(AGENT, STEADY, H2, FIRST_OVER_P99, AtMost(Fixed(5.0))),
    goal(AGENT, STEADY, TLS, FIRST_OVER_P50, AtMost(Times(1.3, FLOOR))),
    goal(AGENT, STEADY, TLS, GAP_P99, AtMost(Times(1.25, DIRECT))),
    goal(AGENT, &["paced8"], TLS, CHUNKS, AtLeast(Fixed(120.0))),
    // An mcpd that is far away, and what an upload saves.
    goal(AGENT, &["rtt100"], TLS, GAP_P50, AtMost(Fixed(22.0))),
    goal(AGENT, &["rtt100"], TLS, GAP_P99, AtMost(Fixed(45.0))),
    goal(AGENT, &["rtt100"], TLS, FIRST_P50, AtMost(Times(1.05, AGENT_POSTS))),
    goal(AGENT, &["paced64"], TLS, CPU_REQUESTS, AtMost(Times(0.5, AGENT_POSTS))),
    goal(AGENT, &["paced64"], TLS, CPU_MCPD, AtMost(Times(0.5, AGENT_POSTS))),
    goal(AGENT, &["burst"], TLS, TOKENS, AtLeast(Times(1.0, AGENT_POSTS))),
    // What the machine feels.
    goal(AGENT, &["burst"], TLS, CPU_REQUESTS, AtMost(Fixed(1.0))),
    goal(AGENT, &["paced256"], TLS, CPU_REQUESTS, AtMost(Fixed(5.2))),
    goal(AGENT, &["paced256"], TLS, TOKENS, AtLeast(Fixed(19_000.0))),
    goal(AGENT, &["paced256"], TLS, PEAK_RSS, AtMost(Fixed(30.0))),
    goal(AGENT, EVERY, TLS, TO_MCPD, AtMost(Fixed(0.0))),
    goal(AGENT, EVERY, TLS, TO_PROVIDER, AtMost(Fixed(0.0))),
    goal(AGENT, &[IDLE], TLS, IDLE_RSS, AtMost(Fixed(15.0))),
    goal(AGENT, &[IDLE], TLS, START, AtMost(Fixed(100.0))),
    // A Node program beside the agent.
    goal(AGENT_NODE, &["plain"], H1, CPU_REQUESTS, AtMost(Times(1.0, NODE))),
    goal(AGENT_NODE, &["paced64"], H1, CPU_REQUESTS, AtMost(Times(0.45, NODE_PER_TOKEN))),
    goal(AGENT_NODE, &["burst"], TLS, CPU_REQUESTS, AtMost(Fixed(1.0))),
    goal(AGENT_NODE, &["burst"], TLS, FIRST_P50, AtMost(Fixed(15.0))),
    goal(AGENT_NODE, &["burst"], TLS, TOKENS, AtLeast(Fixed(150_000.0))),
    goal(AGENT_NODE, &["paced64"], TLS, FIRST_OVER_P50, AtMost(Fixed(1.5))),
    // Telemetry with every task traced: 40 us of CPU a plain task, and what is dropped costs nothing.
    goal(TRACED_HTTP, &["plain"], TLS, CPU_REQUESTS, AtMost(Plus(0.040, AGENT))),
    goal(TRACED_GRPC, &["plain"], TLS, CPU_REQUESTS, AtMost(Plus(0.040, AGENT))),
    goal(TRACED_HTTP, TRACED, TLS, SPANS, AtLeast(Fixed(4.95))),
    goal(TRACED_GRPC, TRACED, TLS, SPANS, AtLeast(Fixed(4.95))),
];

const fn goal(
    system: &'static str,
    cells: &'static [&'static str],
    over: &'static [Scheme],
    metric: &'static str,
    bound: Bound,
) -> Goal {
    Goal { system, cells, over, metric, bound }
}

/// What became of one goal in one cell over one scheme.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The line of the goals' table: system, cell, scheme, metric, bound.
    pub goal: [String; 5],
    /// The number that the value is held against.
    pub limit: f64,
    /// What was measured.
    pub value: f64,
    /// Whether it keeps to the bound.
    pub met: bool,
}

/// The verdicts on all goals whose values were measured; `values` has those of a cell over a scheme by system.
pub fn verdicts<'a>(values: impl Fn(&str, Scheme) -> Option<&'a BTreeMap<String, Values>>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for goal in &GOALS {
        for &cell in goal.cells {
            for &over in goal.over {
                verdicts.extend(values(cell, over).and_then(|systems| goal.verdict(cell, over, systems)));
            }
        }
    }
    verdicts
}

impl Goal {
    fn verdict(&self, cell: &str, over: Scheme, systems: &BTreeMap<String, Values>) -> Option<Verdict> {
        let value = |system: &str| systems.get(system)?.get(self.metric).copied();
        let own = value(self.system)?;
        let (Bound::AtMost(limit) | Bound::AtLeast(limit)) = self.bound;
        let limit = match limit {
            Fixed(limit) => limit,
            Times(factor, system) => factor * value(system)?,
            Plus(more, system) => more + value(system)?,
        };
        let met = if matches!(self.bound, AtMost(_)) { own <= limit } else { own >= limit };
        let bound = self.bound.to_string();
        let goal = [self.system, cell, &over.to_string(), self.metric, &bound].map(str::to_owned);
        Some(Verdict { goal, limit, value: own, met })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, limit) = match self {
            AtMost(limit) => ("at most", limit),
            AtLeast(limit) => ("at least", limit),
        };
        match limit {
            Fixed(limit) => write!(f, "{word} {limit}"),
            Times(factor, system) => write!(f, "{word} {factor} x {system}"),
            Plus(more, system) => write!(f, "{word} {system} + {more}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn systems(values: &[(&str, &'static str, f64)]) -> BTreeMap<String, Values> {
        let mut systems = BTreeMap::<String, Values>::new();
        for (system, metric, value) in values {
            systems.entry((*system).to_owned()).or_default().insert((*metric).to_owned(), *value);
        }
        systems
    }

    #[test]
    fn a_goal_against_another_system_takes_its_value_of_the_same_load() {
        let systems = systems(&[(AGENT, CPU_REQUESTS, 2.0), (NODE, CPU_REQUESTS, 4.0)]);
        let found = verdicts(|cell, over| (cell == "plain" && over == Scheme::H1).then_some(&systems));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].goal, [AGENT, "plain", "https h1", CPU_REQUESTS, "at most 0.45 x node"]);
        assert_eq!((found[0].value, found[0].limit, found[0].met), (2.0, 1.8, false));
    }

    #[test]
    fn the_page_has_every_goal() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let page = words(include_str!("../../docs/performance.md"));
        for goal in &GOALS {
            let over = goal.over.iter().map(Scheme::to_string).collect::<Vec<_>>().join(", ");
            let row = format!(
                "| {} | {} | {over} | {} | {} |",
                goal.system,
                goal.cells.join(", "),
                goal.metric,
                goal.bound
            );
            assert!(page.contains(&words(&row)), "docs/performance.md lacks the goal {row}");
        }
    }
}
