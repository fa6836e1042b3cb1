//! What is registered is what is opted in: nothing else, nothing less, and a program that comes back within its grace flaps nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{SLACK, link::REGISTER};
use crate::{
    simulation::story::{Ms, Story},
    support::wire::What,
};

/// How long a name that mcpd gave to somebody else is left out.
const CONFLICT: Ms = 60_000;

/// What is wrong with the sets that were registered.
pub fn breaches(story: &Story) -> Vec<String> {
    let sets = story.wire.iter().filter_map(|p| match &p.what {
        What::Request(request) if request.call == REGISTER => Some((p.at, names(&request.body)?)),
        _ => None,
    });
    sets.flat_map(|(at, set)| judge(story, at, &set)).collect()
}

fn names(body: &str) -> Option<BTreeSet<String>> {
    let body: Value = serde_json::from_str(body).ok()?;
    body["providers"].as_array()?.iter().map(|p| p["name"].as_str().map(str::to_owned)).collect()
}

/// Holds one set against what the programs published a moment before and after.
fn judge(story: &Story, at: Ms, set: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for name in crate::simulation::plan::NAMES {
        // What is published in this very moment may be in it or not.
        let Some(before) = at.checked_sub(SLACK) else { continue };
        let moments = [before, at, at + SLACK];
        if story.presence.iter().any(|p| p.names.contains(&name) && (moments[0]..=moments[2]).contains(&p.at))
        {
            continue;
        }
        let published = moments.map(|at| !story.publishers(name, at).is_empty());
        let kept = story.is_paused(moments[0], moments[2])
            || story.is_conflicted(name, at.saturating_sub(CONFLICT), at);
        if published == [true; 3] && !set.contains(name) && !kept && at < story.drain_at {
            found.push(format!("{name} was left out of the list at {at} ms although a program publishes it"));
        }
        if published == [false; 3] && set.contains(name) {
            found.push(format!("{name} was registered at {at} ms although nobody publishes it"));
        }
    }
    found
}

impl Story {
    /// Whether mcpd said that the name is somebody else's.
    pub(super) fn is_conflicted(&self, name: &str, from: Ms, until: Ms) -> bool {
        let told = |p: &crate::simulation::story::Passed| {
            matches!(p.what, What::Reply { status: 409, .. }) && p.at + CONFLICT >= from && p.at <= until
        };
        // The reply's body is not kept; a conflict is ordered for one name, and the others are registered without it.
        !name.is_empty() && self.wire.iter().any(told)
    }
}
