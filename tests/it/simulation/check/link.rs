//! The link: registers and heartbeats at their pace, repeats after their waits, and a stop that ends.

use std::collections::BTreeMap;

use fake_mcpd::{Rule, Violation};
use mcprelay::core::{DRAIN_DELIVERY_BOUND, link::REGISTER_SPACING};

use super::{
    SLACK, ms,
    task::{Attempt, Task, attempts, outcome, unseen_calls},
};
use crate::{
    simulation::{
        plan::NAMES,
        story::{Ms, Story},
    },
    support::wire::{Request, What},
};

/// When a register call or a heartbeat that nobody answers is given up.
const CALL_TIMEOUT: Ms = 15_000;
/// The heartbeat's interval.
const HEARTBEAT: Ms = 30_000;
/// The least wait after a failure of the link.
const BACKOFF: Ms = 5_000;
/// How long after a wake the link is tried once a second; the sleep is looked for once a second, too.
const EAGER: Ms = 61_000;
/// When a call is given up then.
const WAKE_TIMEOUT: Ms = 900;
/// How often it is tried then.
const EAGER_RETRY: Ms = 1_000;
/// How long the last connections to the socket may take to end.
const SERVER_STOP: Ms = 5_000;
/// What may be between the last task's end and the agent's: the register call that says goodbye keeps its distance, too.
const GOODBYE: Ms = 300;
/// mcpd's time to live of a session.
const SESSION_TTL: Ms = 90_000;

/// What is wrong with the link.
pub fn breaches(story: &Story) -> Vec<String> {
    let mut found: Vec<_> = contract(story).collect();
    for life in 0..story.lives.len() {
        found.extend(registers(story, life));
        found.extend(heartbeats(story, life));
        found.extend(backoff(story, life));
    }
    found.extend(repeats(story));
    found.extend(stop(story));
    found
}

/// mcpd's own verdict. What it cannot see (a call that the agent had given up, another life, what never arrived) is judged here by
/// what the agent did.
fn contract(story: &Story) -> impl Iterator<Item = String> {
    let seen_here =
        |rule: Rule| matches!(rule, Rule::MissingHeartbeat | Rule::RegisterUnderWay | Rule::RegisterTooOften);
    let judged = story
        .violations
        .iter()
        .filter(move |v| !seen_here(v.rule) && !too_large_later(story, v) && !untold(story, v));
    judged.map(|v| format!("{:?} of {} at {} ms: {}", v.rule, v.subject, v.at_ms, v.detail))
}

/// mcpd said that nobody waits, and the reply was lost on its way. What comes once it has arrived is judged with the task.
fn untold(story: &Story, violation: &Violation) -> bool {
    let call = story.calls.iter().find(|c| c.task == violation.subject);
    let told = call.and_then(|call| Task::new(story, call).told);
    violation.rule == Rule::ResultAfterEnd
        && violation.detail.contains("nobody waits")
        && told.is_none_or(|told| told >= violation.at_ms)
}

/// An end whose reply was lost and that is then too large on order, as it never is to an mcpd that has taken it: the agent must think
/// that it was too large before, and tells a smaller one.
fn too_large_later(story: &Story, violation: &Violation) -> bool {
    let mut all = attempts(story, &violation.subject).into_iter().skip_while(|a| !a.is_ambiguous());
    violation.rule == Rule::TwoEnds && all.any(|a| a.status() == Some(413))
}

/// The calls of one kind in one life, with their place in what was seen.
fn calls<'a>(story: &'a Story, life: usize, call: &'a str) -> impl Iterator<Item = (usize, Ms, &'a Request)> {
    let life = &story.lives[life];
    let within = move |at: Ms| at >= life.since && life.until.is_none_or(|until| at <= until);
    story.wire.iter().enumerate().filter_map(move |(n, p)| match &p.what {
        What::Request(request) if request.call == call && within(p.at) => Some((n, p.at, request)),
        _ => None,
    })
}

/// How a set without a provider is written.
const NOTHING: &str = r#""providers":[]"#;
pub const REGISTER: &str = "_provider-register";
const STREAM: &str = "_provider-stream";
const BEAT: &str = "_provider-heartbeat";

/// When a life was first registered: then it opens its channel.
pub fn first_registered(story: &Story, life: usize) -> Option<Ms> {
    calls(story, life, STREAM).map(|(_, at, _)| at).min()
}

/// One register call at a time, and not within 250 ms of the one before.
fn registers(story: &Story, life: usize) -> Vec<String> {
    let all: Vec<_> = calls(story, life, REGISTER).collect();
    let pair = |pair: &[(usize, Ms, &Request)]| {
        let [(n, first, _), (_, second, _)] = pair else { return None };
        let (over, _) = outcome(story, *n, CALL_TIMEOUT);
        // What was called before a sleep is as good as lost.
        let slept = story.woke.iter().any(|woke| *first <= *woke + EAGER && *woke <= *second);
        if second - first < ms(REGISTER_SPACING) {
            return Some(format!("register calls at {first} and {second} ms"));
        }
        (*second < over && !slept)
            .then(|| format!("a register call at {second} ms while that of {first} ms was under way"))
    };
    all.windows(2).filter_map(pair).collect()
}

/// While the channel is open a heartbeat leaves every 30 s, and no more of them.
fn heartbeats(story: &Story, life: usize) -> Vec<String> {
    let beats: Vec<Ms> = calls(story, life, BEAT).map(|(_, at, _)| at).collect();
    let mut found = Vec::new();
    for (n, opened, _) in calls(story, life, STREAM) {
        let (since, reply) = outcome(story, n, Ms::MAX / 2);
        if !matches!(reply, Some((200, _))) {
            continue;
        }
        let closed =
            story.wire[n..].iter().find(|p| p.connection == story.wire[n].connection && p.what.is_end());
        let until = closed.map_or(story.stopped.map_or(since, |(at, _)| at), |p| p.at);
        let within = beats.iter().copied().filter(|at| (since..=until).contains(at));
        let moments: Vec<_> = [since].into_iter().chain(within).chain([until]).collect();
        let gap = moments
            .windows(2)
            .find(|pair| pair[1] - pair[0] > HEARTBEAT + SLACK && !story.is_refused(pair[0], pair[1]));
        found.extend(gap.map(|pair| {
            format!("no heartbeat from {} to {} ms, with the channel of {opened} ms open", pair[0], pair[1])
        }));
    }
    let hasty = |pair: &&[Ms]| pair[1] - pair[0] + SLACK < HEARTBEAT && !story.may_hurry(pair[0], pair[1]);
    found.extend(
        beats.windows(2).filter(hasty).map(|pair| format!("heartbeats at {} and {} ms", pair[0], pair[1])),
    );
    found
}

/// After a failure of a register call or of the channel nothing is tried before the wait is over.
fn backoff(story: &Story, life: usize) -> Vec<String> {
    let mut tries: Vec<_> = calls(story, life, REGISTER).chain(calls(story, life, STREAM)).collect();
    tries.sort_unstable_by_key(|(n, ..)| *n);
    let mut found = Vec::new();
    for (n, at, _) in &tries {
        let Some(failed) = story.failed(*n) else { continue };
        let Some((_, next, _)) = tries.iter().find(|(m, again, _)| m > n && *again >= failed) else {
            continue;
        };
        let least = if story.woke_before(failed) { EAGER_RETRY } else { BACKOFF };
        if next + SLACK < failed + least && !story.may_hurry(*at, *next) && !story.rested(failed, *next) {
            found.push(format!("the link failed at {failed} ms and was tried again at {next} ms"));
        }
    }
    found
}

/// A part that was not taken is sent again after its wait, as the same bytes; the first time after a 401 at once.
fn repeats(story: &Story) -> Vec<String> {
    let mut found = Vec::new();
    for call in story.calls.iter().filter(|c| !c.task.is_empty()) {
        let mut last: BTreeMap<&str, Attempt<'_>> = BTreeMap::new();
        for attempt in attempts(story, &call.task) {
            let key = attempt.request.key.as_deref().unwrap_or_default();
            let Some(before) = last.insert(key, attempt) else { continue };
            let now = &last[key];
            let least = if before.status() == Some(401) { 0 } else { before.least_wait() };
            if now.at + SLACK < before.over + least && story.life_at(before.at) == story.life_at(now.at) {
                found.push(format!("{key} failed at {} ms and was sent again at {} ms", before.over, now.at));
            }
            if now.request.body != before.request.body {
                found.push(format!("{key} was sent again with other bytes at {} ms", now.at));
            }
        }
    }
    found
}

/// A drain leaves nothing without an end and does not last longer than it may.
fn stop(story: &Story) -> Vec<String> {
    let Some((gone, drained)) = story.stopped else { return vec!["the agent never stopped".to_owned()] };
    let mut found = Vec::new();
    let latest = stopped_by(story, gone);
    if gone > latest {
        found.push(format!("the agent was gone at {gone} ms; {latest} ms is the latest"));
    }
    if !drained {
        found.push("the agent stopped without having drained".to_owned());
    }
    found
}

/// When a stopping agent is gone at the latest: at once if nothing runs, after its drain timeout if something does, and later only
/// for as long as mcpd does not take what it is told.
fn stopped_by(story: &Story, gone: Ms) -> Ms {
    let at = story.drain_at;
    let since = story.lives.last().map_or(0, |life| life.since);
    let runs = story.runs.iter().any(|r| {
        r.at >= since
            && r.finished.is_none_or(|(end, _)| end >= at)
            && r.lost_at.is_none_or(|lost| lost >= at)
    });
    let open = story.calls.iter().any(|c| {
        let end = c.end.as_ref().map(|(end, _)| *end).or(c.left_at);
        c.refused.is_none() && end.is_none_or(|end| end >= at)
    });
    let blocked = story.blocked.iter().any(|((from, to), _)| *from <= gone && at <= *to);
    let mut posts = story.calls.iter().flat_map(|c| attempts(story, &c.task));
    let held = story.is_held(at, gone) || posts.any(|a| a.at <= gone && a.done() > at + SLACK);
    let drain = if runs || open || blocked || held { ms(story.drain_timeout) } else { 0 };
    let delivery = if held { ms(DRAIN_DELIVERY_BOUND) } else { 0 };
    let server = if blocked { SERVER_STOP } else { 0 };
    at + drain + delivery.max(if held { CALL_TIMEOUT } else { 0 }) + server + GOODBYE
}

impl Story {
    /// Whether a control channel that was open at a moment stayed so for a while.
    pub(super) fn is_connected(&self, at: Ms, lasting: Ms) -> bool {
        let ends = |connection: u64| {
            self.wire.iter().any(|p| p.connection == connection && p.what.is_end() && p.at <= at + lasting)
        };
        let told = self.wire.iter().filter(|p| p.at == at && matches!(p.what, What::Event { .. }));
        told.map(|p| p.connection).any(|connection| !ends(connection))
    }

    /// When a register call or a channel failed in a way that is waited for; `None` if it did not, or registers again at once.
    fn failed(&self, n: usize) -> Option<Ms> {
        let What::Request(request) = &self.wire[n].what else { return None };
        let channel = request.call == STREAM;
        if !channel && request.body.contains(NOTHING) {
            // To deregister is best effort; whatever becomes of it, nothing waits for it.
            return None;
        }
        let timeout = match channel {
            true => 2 * CALL_TIMEOUT,
            false if self.woke_before(self.wire[n].at) => WAKE_TIMEOUT,
            false => CALL_TIMEOUT,
        };
        match outcome(self, n, timeout) {
            (_, Some((200, _))) if channel => self.broke(n),
            // The session is not known any more, the token may be a new one, the names are somebody else's.
            (_, Some((200 | 401 | 403 | 404 | 409 | 410, _))) => None,
            (_, None) if matches!(outcome(self, n, CALL_TIMEOUT), (_, Some((200, _)))) => None,
            (at, None) if self.is_given_up(n, at) => None,
            (at, _) => Some(at),
        }
    }

    /// Whether the agent itself ended a call before its time, for a reason of its own.
    fn is_given_up(&self, n: usize, at: Ms) -> bool {
        let (connection, sent) = (self.wire[n].connection, self.wire[n].at);
        let closed = |p: &crate::simulation::story::Passed| {
            p.connection == connection && p.at == at && p.what == What::AgentClosed
        };
        self.wire[n..].iter().any(closed) && at < sent + CALL_TIMEOUT
    }

    /// When an open channel was ended by somebody else than the agent.
    fn broke(&self, n: usize) -> Option<Ms> {
        let end =
            self.wire[n..].iter().find(|p| p.connection == self.wire[n].connection && p.what.is_end())?;
        matches!(end.what, What::Cut | What::McpdClosed).then_some(end.at)
    }

    /// Whether something came between two calls that makes the second one due at once.
    fn may_hurry(&self, from: Ms, until: Ms) -> bool {
        let refused = |p: &crate::simulation::story::Passed| {
            matches!(p.what, What::Reply { status: 401 | 403 | 404 | 409 | 410, .. })
        };
        let new =
            |moments: &[Ms]| moments.iter().any(|at| (from.saturating_sub(EAGER_RETRY)..=until).contains(at));
        new(&self.woke)
            || new(&self.credentials)
            || self.wire.iter().any(|p| refused(p) && (from..=until).contains(&p.at))
    }

    /// Whether nothing was published for a while: whoever has nothing to publish waits for nothing.
    fn rested(&self, from: Ms, until: Ms) -> bool {
        let empty = |at: Ms| NAMES.iter().all(|name| self.publishers(name, at).is_empty());
        let mut changes = self.presence.iter().map(|p| p.at).filter(|at| (from..=until).contains(at));
        self.is_paused(from, until) || empty(from + 1) || empty(until.saturating_sub(1)) || changes.any(empty)
    }

    fn woke_before(&self, at: Ms) -> bool {
        self.woke.iter().any(|woke| (*woke..=woke + EAGER).contains(&at))
    }

    /// Whether a connection was reset before its call could be seen.
    pub(super) fn is_refused(&self, from: Ms, until: Ms) -> bool {
        unseen_calls(self).iter().any(|at| (from..=until).contains(at))
    }

    /// Whether a call of the agent was held up or had to be repeated.
    fn is_held(&self, from: Ms, until: Ms) -> bool {
        let slow = |n: usize| {
            let What::Request(request) = &self.wire[n].what else { return false };
            let (over, reply) = outcome(self, n, 2 * CALL_TIMEOUT);
            let taken = matches!(reply, Some((200 | 404 | 410, _)));
            request.call != STREAM
                && over >= from
                && self.wire[n].at <= until
                && (!taken || over - self.wire[n].at > SLACK)
        };
        (0..self.wire.len()).any(slow) || self.is_refused(from, until)
    }

    /// Whether mcpd can have heard no heartbeat for as long as it keeps a session.
    pub(super) fn is_silent(&self, at: Ms) -> bool {
        let from = at.saturating_sub(SESSION_TTL);
        let dead = self.lives.iter().any(|life| life.until.is_some_and(|until| (from..=at).contains(&until)));
        dead || self.is_held(from, at)
    }
}

impl What {
    /// Whether a connection ended with it.
    fn is_end(&self) -> bool {
        matches!(self, Self::Cut | Self::AgentClosed | Self::McpdClosed)
    }
}
