//! The promise, exactly: every task handed over gets exactly one end, its tokens arrive once and in order, and nobody waits longer
//! than the deadlines say.
//!
//! Nothing is excused on a plain link because something was broken at the time. The relay between the agent and mcpd records when the agent
//! sent what and what became of it, so a delay is forgiven only for as long as this task's own calls were held up, and the wait
//! before a repeated one. It cannot read an encrypted link: what of that is in trouble is judged by [`sealed`], and the rest as mcpd saw it.

mod ends;
mod link;
mod list;
mod local;
mod sealed;
mod task;

use super::story::{Ms, Step, Story};
use mcprelay::core::SESSION_GRACE;
use task::Task;

/// What a moment may be late for reasons of rounding, of several things in one millisecond.
const SLACK: Ms = 10;

/// Every way in which a story breaks the promise, in words.
pub fn breaches(story: &Story) -> Vec<String> {
    let mut found = story.slot_breaches.clone();
    if story.sealed {
        found.extend(sealed::breaches(story));
        return found;
    }
    for (n, call) in story.calls.iter().enumerate().filter(|(_, call)| call.refused.is_none()) {
        let task = Task::new(story, call);
        let each = ends::breaches(&task).into_iter().chain(local::breaches(&task));
        found.extend(each.map(|why| format!("call {n} ({}): {why}", call.task)));
    }
    found.extend(link::breaches(story));
    found.extend(list::breaches(story));
    found
}

impl Story {
    /// The life that the agent has at a moment, if it has one.
    fn life_at(&self, at: Ms) -> Option<usize> {
        self.lives.iter().position(|life| life.since <= at && life.until.is_none_or(|until| at <= until))
    }

    /// The programs that publish a name at a moment, to an agent in its life then; with whether they are only in their grace.
    fn publishers(&self, name: &str, at: Ms) -> Vec<(&str, bool)> {
        let Some(since) = self.life_at(at).map(|life| self.lives[life].since) else { return Vec::new() };
        let mut programs: Vec<(&str, bool)> = Vec::new();
        for p in self.presence.iter().filter(|p| p.at >= since && p.at <= at && p.names.contains(&name)) {
            let before = programs.iter().position(|(program, _)| *program == p.program);
            let was = before.map(|n| programs.remove(n));
            match (p.step, was) {
                (Step::Pushed, _) => programs.push((&p.program, false)),
                (Step::Lost, Some((program, _))) if p.at + ms(SESSION_GRACE) > at => {
                    programs.push((program, true))
                }
                (Step::Lost | Step::Withdrew | Step::Drained, _) => {}
            }
        }
        programs
    }

    /// Whether a program reads nothing at some moment between the two.
    fn is_blocked(&self, program: &str, from: Ms, until: Ms) -> bool {
        self.blocked.iter().any(|((since, to), of)| of == program && *since <= until && from <= *to)
    }

    fn is_paused(&self, from: Ms, until: Ms) -> bool {
        self.paused.iter().any(|(since, to)| *since <= until && from <= *to)
    }
}

fn ms(duration: std::time::Duration) -> Ms {
    Ms::try_from(duration.as_millis()).expect("a schedule is short")
}
