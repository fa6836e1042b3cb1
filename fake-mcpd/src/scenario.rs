//! A scenario file: faults by time or by task, as JSON.

use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

use crate::spec::{Step, Trigger};

/// Why a scenario is not understood.
#[derive(Debug, thiserror::Error)]
pub enum BadScenario {
    /// It is not the list that it should be.
    #[error("the scenario is no JSON list of {{\"atMs\" or \"atTask\", \"fault\"}}: {0}")]
    Shape(#[from] serde_json::Error),
    /// One of its steps is wrong.
    #[error("step {number} of the scenario: {reason}")]
    Step {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    #[serde(default)]
    at_ms: Option<u64>,
    #[serde(default)]
    at_task: Option<u64>,
    fault: Value,
}

/// Reads `[{"atMs": 5000, "fault": "drop"}, {"atTask": 3, "fault": {"kind": "silent"}}]`.
///
/// # Errors
/// If the text is not such a list; for a bad fault with its number, from 1.
pub fn parse(json: &str) -> Result<Vec<Step>, BadScenario> {
    let lines: Vec<Line> = serde_json::from_str(json)?;
    let step = |(index, line): (usize, Line)| {
        read(line).map_err(|reason| BadScenario::Step { number: index + 1, reason })
    };
    lines.into_iter().enumerate().map(step).collect()
}

fn read(line: Line) -> Result<Step, String> {
    let trigger = match (line.at_ms, line.at_task) {
        (Some(ms), None) => Trigger::After(Duration::from_millis(ms)),
        (None, Some(number)) => Trigger::AtTask(number),
        _ => return Err("exactly one of atMs and atTask says when".to_owned()),
    };
    let step = Step::from_json(line.fault).map_err(|error| error.to_string())?;
    match step.trigger {
        Trigger::After(Duration::ZERO) => Ok(Step { trigger, ..step }),
        _ => Err("its fault has a trigger of its own: keep atMs or atTask only".to_owned()),
    }
}
