//! One task as everybody saw it, and the latest moment at which its end may come.

use std::{collections::BTreeSet, time::Duration};

use super::{SLACK, ms};
use crate::{
    simulation::{
        plan,
        story::{Call, Finish, Ms, Run, Story},
    },
    support::wire::{Request, What},
};
use mcprelay::core::{DEADLINE_MARGIN, DRAIN_DELIVERY_BOUND, END_DELIVERY_BOUND, SESSION_GRACE};

/// When a POST that nobody answers is given up.
const POST_TIMEOUT: Ms = 30_000;
/// How long a part that is being sent may hold up an error behind it.
const FAILURE_PATIENCE: Ms = 1_000;
/// The first wait before a part is sent again, the longest, and what jitter adds to it at most.
const RETRY: (Ms, Ms) = (100, 5_000);
/// Wait before the end of a former life's task is told again.
const RESTART_RETRY: Ms = 2_000;

/// One POST of a task.
pub struct Attempt<'a> {
    pub at: Ms,
    /// When the agent had its reply, or could give up waiting for it.
    pub over: Ms,
    pub reply: Option<(u16, Option<u64>)>,
    pub request: &'a Request,
    /// How often the same part failed before, at least and at most: some calls end unseen.
    pub before: (u32, u32),
}

impl Attempt<'_> {
    /// Whether it is to be sent again.
    pub fn failed(&self) -> bool {
        matches!(self.reply, None | Some((401 | 408 | 425 | 429 | 500..=599, _)))
    }

    /// Whether mcpd may have taken it, or not.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self.reply, None | Some((500 | 502 | 504, _)))
    }

    pub fn status(&self) -> Option<u16> {
        self.reply.map(|(status, _)| status)
    }

    /// The longest wait until it is sent again.
    fn wait(&self) -> Ms {
        (doubled(self.before.1) * 3 / 2).max(self.asked())
    }

    /// The shortest wait until it is sent again.
    pub fn least_wait(&self) -> Ms {
        doubled(self.before.0).max(self.asked())
    }

    /// What mcpd asked to wait.
    fn asked(&self) -> Ms {
        self.reply.and_then(|(_, asked)| asked).unwrap_or_default() * 1_000
    }

    /// Until when nothing more can be expected after it than the next one.
    pub fn done(&self) -> Ms {
        self.over + if self.failed() { self.wait() } else { 0 }
    }
}

fn doubled(before: u32) -> Ms {
    (RETRY.0 << before.min(16)).min(RETRY.1)
}

/// One call and all that has to do with it.
pub struct Task<'a> {
    pub story: &'a Story,
    pub call: &'a Call,
    /// When the task's event reached the agent.
    pub arrived: Option<Ms>,
    /// When the agent was told that the caller is gone.
    pub told: Option<Ms>,
    pub attempts: Vec<Attempt<'a>>,
    pub runs: Vec<(usize, &'a Run)>,
}

impl<'a> Task<'a> {
    pub fn new(story: &'a Story, call: &'a Call) -> Self {
        let runs = story.runs.iter().enumerate().filter(|(_, run)| run.task == call.task).collect();
        let attempts = attempts(story, &call.task);
        let arrived = event(story, "task", &call.task, 0);
        let gone = attempts.iter().find(|a| matches!(a.status(), Some(404 | 410))).map(|a| a.over);
        // A cancel that overtakes its task says nothing.
        let cancel = arrived.and_then(|(place, _)| event(story, "cancel", &call.task, place));
        let arrived = arrived.map(|(_, at)| at);
        let cancel = cancel.map(|(_, at)| at);
        let told = [cancel, gone].into_iter().flatten().min();
        Self { story, call, arrived, told, attempts, runs }
    }

    /// Whether an agent took the task in.
    pub fn received(&self) -> bool {
        self.story.lives.iter().any(|life| life.took.contains(&self.call.task))
    }

    /// The life that left it without an end, if one did and another one followed.
    pub fn left_by(&self) -> Option<usize> {
        let lives = &self.story.lives;
        lives[..lives.len() - 1].iter().position(|life| life.left.contains(&self.call.task))
    }

    pub fn end_at(&self) -> Option<Ms> {
        self.call.end.as_ref().map(|(at, _)| *at)
    }

    pub fn succeeded(&self) -> bool {
        use fake_mcpd::TaskEnd;
        matches!(self.call.end, Some((_, TaskEnd::Done | TaskEnd::Reply { status: 200, .. })))
    }

    /// When the agent first tried to tell the end.
    pub fn end_sent(&self) -> Option<&Attempt<'a>> {
        self.attempts.iter().find(|a| a.request.is_end())
    }

    /// Until when the whole task may take.
    pub fn whole(&self) -> Ms {
        let limit = plan::TASK_TIMEOUT.min(self.call.deadline.unwrap_or(plan::TASK_TIMEOUT));
        self.arrived.unwrap_or(Ms::MAX / 2) + ms(limit.saturating_sub(DEADLINE_MARGIN))
    }

    /// The latest moment at which the agent decides the end, by what its provider did.
    pub fn decided(&self) -> Ms {
        let Some(arrived) = self.arrived else { return Ms::MAX / 2 };
        let waits = match self.runs.last() {
            None => self.unseen(arrived).unwrap_or(self.queued(arrived, plan::QUEUE)),
            Some((_, run)) => self.decided_by(run),
        };
        let draining = arrived.max(self.story.drain_at + ms(self.story.drain_timeout));
        self.whole().min(waits).min(draining)
    }

    fn decided_by(&self, run: &Run) -> Ms {
        let stopped = [run.finished.map(|(at, _)| at), run.cancelled_at].into_iter().flatten().min();
        match run.lost_at.filter(|lost| stopped.is_none_or(|at| at > *lost)) {
            Some(lost) if run.last_sign.is_some_and(|at| at <= lost) => lost,
            Some(lost) => self.unseen(lost).unwrap_or(self.queued(lost, SESSION_GRACE.min(plan::QUEUE))),
            None => stopped.unwrap_or(Ms::MAX / 2).min(self.silent(run)),
        }
    }

    /// The deadline of what waits; a stopping agent lets nothing wait.
    fn queued(&self, since: Ms, limit: Duration) -> Ms {
        (since + ms(limit)).min(self.story.drain_at.max(since))
    }

    /// The deadline of a run that says nothing more.
    fn silent(&self, run: &Run) -> Ms {
        let since = run.last_sign.map_or(run.at, |at| at.max(run.at));
        match (self.call.streaming, run.first_token) {
            (false, _) => Ms::MAX / 2,
            (true, Some(_)) => since + ms(plan::IDLE_TOKEN),
            (true, None) => since + ms(plan::FIRST_TOKEN),
        }
    }

    /// An offer that lies unread in a blocked program's connection is seen by nobody; its deadline is the first token's.
    fn unseen(&self, since: Ms) -> Option<Ms> {
        let until = since + ms(plan::QUEUE);
        let token = if self.call.streaming { ms(plan::FIRST_TOKEN) } else { Ms::MAX / 4 };
        self.is_read_late(since, until).then_some(until + token)
    }

    /// Whether a program that serves the name read nothing at some moment between the two.
    pub fn is_read_late(&self, from: Ms, until: Ms) -> bool {
        let serves = |program: &str| {
            self.story.presence.iter().any(|p| p.program == program && p.names.contains(&self.call.llm))
        };
        self.story
            .blocked
            .iter()
            .any(|((since, to), program)| *since <= until && from <= *to && serves(program))
    }

    /// Whether mcpd refused the end for good, so that the agent is done with it.
    fn is_refused(&self) -> bool {
        let status =
            |of: u16| self.attempts.iter().filter(move |a| a.request.is_end() && a.status() == Some(of));
        [400, 403, 409].into_iter().any(|of| status(of).next().is_some()) || status(413).count() > 1
    }

    /// The latest moment at which the end reaches mcpd: since it was decided, as long as the task's own calls were held up.
    pub fn latest(&self) -> Ms {
        if self.is_refused() {
            return Ms::MAX / 2;
        }
        if let Some(life) = self.left_by() {
            return self.told_by_successor(life);
        }
        self.delivered(self.decided())
    }

    /// When something that was decided at `decided` is delivered at the latest.
    pub fn delivered(&self, decided: Ms) -> Ms {
        let held = |a: &Attempt<'_>| a.done().saturating_sub(a.at.max(decided));
        let (ends, parts): (Vec<_>, Vec<_>) = self.attempts.iter().partition(|a| a.request.is_end());
        let parts: Ms = parts.into_iter().map(held).sum();
        // An error does not wait for what is still being sent; an answer does.
        let parts = if self.succeeded() || self.answered() { parts } else { parts.min(FAILURE_PATIENCE) };
        let until = self.past_refusals(decided, decided) + parts + ends.into_iter().map(held).sum::<Ms>();
        self.past_refusals(decided, until)
    }

    /// A call whose connection was reset before it could be seen may be this task's: the next one comes within the longest wait.
    fn past_refusals(&self, from: Ms, mut until: Ms) -> Ms {
        for at in unseen_calls(self.story) {
            if at <= until && at + RETRY.1 * 3 / 2 >= from {
                until = until.max(at + RETRY.1 * 3 / 2);
            }
        }
        until
    }

    /// A former life's tasks are ended, one after the other, once the next one is registered.
    fn told_by_successor(&self, life: usize) -> Ms {
        let by = self.end_at().unwrap_or(Ms::MAX);
        let lives = self.story.lives.iter().enumerate().skip(life + 1);
        let registered =
            lives.filter_map(|(n, _)| super::link::first_registered(self.story, n)).rfind(|at| *at <= by);
        let Some(registered) = registered else { return Ms::MAX / 2 };
        let before: Vec<_> = self.story.lives.iter().flat_map(|life| &life.left).collect();
        let others = before.into_iter().flat_map(|id| attempts(self.story, id));
        let restart = |a: &Attempt<'_>| {
            a.at >= registered && a.request.key.as_ref().is_some_and(|k| k.ends_with("/restart"))
        };
        let wait = |a: &Attempt<'_>| a.asked().max(RESTART_RETRY);
        let held = others.filter(restart).map(|a| a.over - a.at + if a.failed() { wait(&a) } else { 0 });
        self.past_refusals(registered, registered + held.sum::<Ms>() + RESTART_RETRY)
    }

    /// Until when the agent goes on offering the end to mcpd.
    pub fn given_up(&self) -> Ms {
        let (_, gone) = (self.story.drain_at, self.story.stopped.map_or(Ms::MAX, |(at, _)| at));
        let drained = self.story.drain_at + ms(self.story.drain_timeout) + ms(DRAIN_DELIVERY_BOUND);
        (self.whole() + ms(END_DELIVERY_BOUND)).min(drained).min(gone) - SLACK
    }

    /// Whether a run of it came to a good end, in time or not.
    fn answered(&self) -> bool {
        self.runs.iter().any(|(_, run)| matches!(run.finished, Some((_, Finish::Ok))))
    }

    /// Whether a run of it came to a good end that the agent heard of.
    pub fn good_run(&self) -> Option<&Run> {
        let (_, run) = self.runs.last()?;
        let (at, finish) = run.finished?;
        let heard = run.lost_at.is_none_or(|lost| lost > at) && run.cancelled_at.is_none_or(|told| told > at);
        (finish == Finish::Ok && heard).then_some(*run)
    }
}

/// When an event that names a task first reached the agent, from a place in what was seen on; with its own place.
fn event(story: &Story, name: &str, task: &str, from: usize) -> Option<(usize, Ms)> {
    let is = |what: &What| matches!(what, What::Event { name: n, task: t } if n == name && t == task);
    let mut later = story.wire.iter().enumerate().skip(from);
    later.find(|(_, p)| is(&p.what)).map(|(place, p)| (place, p.at))
}

/// All POSTs of a task, in order.
pub fn attempts<'a>(story: &'a Story, task: &str) -> Vec<Attempt<'a>> {
    let mut all: Vec<Attempt<'a>> = Vec::new();
    let unseen = unseen_calls(story);
    for (n, passed) in story.wire.iter().enumerate() {
        let What::Request(request) = &passed.what else { continue };
        if request.task() != Some(task) {
            continue;
        }
        let (over, reply) = outcome(story, n, POST_TIMEOUT);
        let same = || all.iter().filter(|a| a.request.key == request.key);
        // After a 401 it may have been sent again at once, which is no wait that doubles.
        let waited = same().filter(|a| a.status() != Some(401)).count() as u32;
        let hidden = unseen.iter().filter(|at| **at <= passed.at).count() as u32;
        let before = (waited, same().count() as u32 + hidden);
        all.push(Attempt { at: passed.at, over, reply, request, before });
    }
    all
}

/// How a request ended: when the agent knew, and the reply if there was one.
pub fn outcome(story: &Story, request: usize, timeout: Ms) -> (Ms, Option<(u16, Option<u64>)>) {
    let sent = &story.wire[request];
    let given_up = sent.at + timeout;
    let next = story.wire[request + 1..].iter().find(|p| p.connection == sent.connection);
    match next {
        Some(p) if p.at <= given_up => match p.what {
            What::Reply { status, retry_after } => (p.at, Some((status, retry_after))),
            _ => (p.at, None),
        },
        _ => (given_up, None),
    }
}

/// When connections ended before anything could be sent on them.
pub fn unseen_calls(story: &Story) -> Vec<Ms> {
    let requests = story.wire.iter().filter(|p| matches!(p.what, What::Request(_)));
    let asked: BTreeSet<_> = requests.map(|p| p.connection).collect();
    let ended = |what: &What| matches!(what, What::Refused | What::Cut | What::McpdClosed);
    story.wire.iter().filter(|p| ended(&p.what) && !asked.contains(&p.connection)).map(|p| p.at).collect()
}
