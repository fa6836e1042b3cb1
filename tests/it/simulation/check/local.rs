//! What the local programs saw: one run at a time, told within 100 ms to stop, and slots that are given back.

use super::{
    SLACK, ms,
    task::{Attempt, Task},
};
use crate::simulation::story::{Ms, Presence, Run, Step, Story};
use mcprelay::core::CANCEL_BOUND;

/// Whoever leaves frees the provider within this.
const TOLD_WITHIN: Ms = 100;

/// What is wrong with a task's runs.
pub fn breaches(task: &Task<'_>) -> Vec<String> {
    let each = task.runs.iter().flat_map(|(n, run)| {
        [
            cancel(task, *n, run),
            offered_late(task, *n, run),
            unwritten(task, *n, run),
            stopping(task, *n, run),
        ]
    });
    each.chain([runs_once(task), posted_late(task), overfull(task)]).flatten().collect()
}

/// What a program has seen is on disk, or the next life would not know that it has to be ended.
fn unwritten(task: &Task<'_>, n: usize, run: &Run) -> Option<String> {
    let life = &task.story.lives[run.life - 1];
    (!life.took.contains(&task.call.task))
        .then(|| format!("run {n} began, and its task was not written down"))
}

/// A stopping agent offers nothing more.
fn stopping(task: &Task<'_>, n: usize, run: &Run) -> Option<String> {
    let told = task.story.drain_at;
    let unread = task.story.is_blocked(&run.program, told.saturating_sub(SLACK), run.at);
    (run.at > told + SLACK && !unread)
        .then(|| format!("run {n} began at {} ms, and the agent was stopping since {told} ms", run.at))
}

/// What comes while the queue is full does not wait in it.
fn overfull(task: &Task<'_>) -> Option<String> {
    let (arrived, until) = (task.arrived?, task.waited_until()?);
    // An offer that was lost before anybody read it is queued again, full or not.
    let lost = |p: &Presence| p.step == Step::Lost && p.names.contains(&task.call.llm) && p.at <= until;
    if until <= arrived + SLACK || task.story.presence.iter().any(lost) || task.is_read_late(0, until) {
        return None;
    }
    let before = |other: &&Task<'_>| {
        let here = other.call.llm == task.call.llm && other.story.life_at(arrived) == other.arrived_in();
        here && other.arrived.is_some_and(|at| at + SLACK < arrived)
            && other.waited_until().is_some_and(|until| until > arrived + SLACK)
    };
    let others = task.story.calls.iter().filter(|c| c.refused.is_none() && c.task != task.call.task);
    let waiting = others.map(|call| Task::new(task.story, call)).filter(|other| before(&other)).count();
    let most = task.story.max_queued as usize;
    (waiting >= most)
        .then(|| format!("it came at {arrived} ms, when {waiting} of {most} waited, and waited too"))
}

impl Task<'_> {
    /// Until when it waited in the queue for its first offer; `None` if it cannot be told that it did.
    fn waited_until(&self) -> Option<Ms> {
        let timeout = |a: &&Attempt<'_>| a.request.is_end() && a.request.body.contains("queue_timeout");
        self.runs.first().map(|(_, run)| run.at).or(self.attempts.iter().find(timeout).map(|a| a.at))
    }

    fn arrived_in(&self) -> Option<usize> {
        self.story.life_at(self.arrived?)
    }
}

/// A run whose task is over, by the caller's leaving or by the agent's own end, is told so.
fn cancel(task: &Task<'_>, n: usize, run: &Run) -> Option<String> {
    let ended = task.end_sent().map(|a| a.at);
    let over = [task.told, ended].into_iter().flatten().min().filter(|over| *over >= run.at)?;
    let due = over + TOLD_WITHIN;
    let gone = [run.finished.map(|(at, _)| at), run.lost_at].into_iter().flatten().min();
    let lives = task.story.lives.get(run.life - 1)?.until.is_none_or(|until| until > due);
    if gone.is_some_and(|at| at <= due) || !lives || task.story.is_blocked(&run.program, run.at, due) {
        return None;
    }
    match run.cancelled_at {
        Some(at) if at <= due => None,
        Some(at) => Some(format!("run {n} was told {} ms after its task was over", at - over)),
        None => Some(format!("run {n} was never told that its task was over at {over} ms")),
    }
}

/// Nothing is offered whose caller is known to be gone, or that has its end.
fn offered_late(task: &Task<'_>, n: usize, run: &Run) -> Option<String> {
    let ended = task.end_sent().map(|a| a.at);
    let over = [task.told, ended].into_iter().flatten().min()?;
    let unread = task.story.is_blocked(&run.program, over.saturating_sub(SLACK), run.at);
    (run.at > over + SLACK && !unread)
        .then(|| format!("run {n} began at {} ms, and its task was over at {over} ms", run.at))
}

/// Nothing is posted once mcpd has said that nobody waits.
fn posted_late(task: &Task<'_>) -> Option<String> {
    let told = task.told?;
    let late = task
        .attempts
        .iter()
        .find(|a| a.at > told + SLACK && !a.request.key.as_ref().is_some_and(|k| k.ends_with("/restart")))?;
    let life = |at| task.story.life_at(at);
    (life(told) == life(late.at)).then(|| {
        format!("it was posted at {} ms, after mcpd had said at {told} ms that nobody waits", late.at)
    })
}

/// It is offered again only where the one before was lost, and never in another life.
fn runs_once(task: &Task<'_>) -> Option<String> {
    task.runs.windows(2).find_map(|pair| {
        let [(_, before), (run, after)] = pair else { return None };
        if before.life != after.life {
            return Some(format!("run {run} is of another life of the agent than the one before"));
        }
        let lost = before.lost_at.is_some_and(|at| at <= after.at);
        (!lost).then(|| format!("run {run} began although the one before was not lost"))
    })
}

impl Story {
    /// A program that has a free slot of a name all the time between two moments, if everybody who might serve it then has.
    pub(super) fn idle_slot(&self, name: &str, from: Ms, until: Ms) -> Option<&str> {
        let publishers = self.publishers(name, from);
        let stable = publishers == self.publishers(name, until) && !self.is_paused(from, until);
        let life = self.life_at(from).filter(|_| stable)?;
        let idle = |(program, in_grace): &&(&str, bool)| {
            let busy = self.runs.iter().filter(|r| {
                r.life == life + 1 && r.program == *program && r.name == name && r.holds_a_slot(from, until)
            });
            !in_grace && !self.is_blocked(program, from, until) && busy.count() < self.max_in_flight as usize
        };
        let all = !publishers.is_empty() && publishers.iter().all(|p| idle(&p));
        all.then(|| publishers[0].0)
    }

    /// How many other tasks of a name wait at a moment, at most.
    pub(super) fn waiting(&self, name: &str, at: Ms, but: &str) -> usize {
        let others = self.calls.iter().filter(|c| c.llm == name && c.refused.is_none() && c.task != but);
        let over = |call: &&crate::simulation::story::Call| {
            let ended = call.end.as_ref().map(|(end, _)| *end).or(call.left_at);
            let runs = self
                .runs
                .iter()
                .any(|r| r.task == call.task && r.at + SLACK < at && r.lost_at.is_none_or(|lost| lost > at));
            call.at > at + SLACK || ended.is_some_and(|end| end + SLACK < at) || runs
        };
        others.filter(|call| !over(call)).count()
    }
}

impl Run {
    /// Whether it holds its slot at some moment between the two.
    fn holds_a_slot(&self, from: Ms, until: Ms) -> bool {
        let given_up = self.cancelled_at.map(|at| at + ms(CANCEL_BOUND));
        let ends = [self.finished.map(|(at, _)| at), self.lost_at, given_up];
        self.at <= until && ends.into_iter().flatten().all(|end| end >= from)
    }
}
