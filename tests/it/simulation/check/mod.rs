//! The sentence, exactly: every task handed over gets exactly one end, its tokens arrive once and in order, and nobody waits longer
//! than the deadlines say.

use std::time::Duration;

use fake_mcpd::{Rule, TaskEnd};

use super::{
    plan,
    run::word,
    story::{Call, Finish, Ms, Run, Story, Trouble},
};
use mcprelay::core::{DRAIN_DELIVERY_BOUND, END_DELIVERY_BOUND};

/// What a moment may be late for reasons of rounding.
const SLACK: Ms = 300;
/// How long the last connections to the socket may take to end.
const SERVER_STOP: Ms = 5_000;
/// How long a killed agent's task waits for its successor beyond its downtime, or for mcpd's own word: mcpd's time to live of a session.
const SUCCESSOR: Ms = 100_000;

/// Every way in which a story breaks the promise, in words.
pub fn breaches(story: &Story) -> Vec<String> {
    let mut found = story.slot_breaches.clone();
    for (n, call) in story.calls.iter().enumerate().filter(|(_, call)| call.refused.is_none()) {
        let of_call = Seen { story, call };
        let each = [
            of_call.tokens(),
            of_call.end(),
            of_call.wait(),
            of_call.outcome(),
            of_call.cancel(),
            of_call.runs_once(),
        ];
        found.extend(each.into_iter().flatten().map(|why| format!("call {n} ({}): {why}", call.task)));
    }
    found.extend(contract(story));
    found.extend(stop(story));
    found
}

/// mcpd's own verdict, without what is a broken network's doing and not the agent's.
fn contract(story: &Story) -> Vec<String> {
    let troubled = story.troubles.iter().any(|(_, _, t)| matches!(t, Trouble::Network | Trouble::Mcpd));
    let network =
        |rule: Rule| matches!(rule, Rule::MissingHeartbeat | Rule::RegisterUnderWay | Rule::RegisterTooOften);
    let killed = story.lives.len() > 1;
    let honest = |rule: Rule| (troubled || killed) && network(rule);
    story
        .violations
        .iter()
        .filter(|v| !honest(v.rule))
        .map(|v| format!("{:?} of {} at {} ms: {}", v.rule, v.subject, v.at_ms, v.detail))
        .collect()
}

/// A drain leaves nothing without an end and does not last longer than it may.
fn stop(story: &Story) -> Vec<String> {
    let Some((gone, drained)) = story.stopped else { return vec!["the agent never stopped".to_owned()] };
    let ms = |d: Duration| d.as_millis() as Ms;
    let allowed = ms(story.drain_timeout) + ms(DRAIN_DELIVERY_BOUND) + SERVER_STOP + SLACK;
    let mut found = Vec::new();
    if gone > story.drain_at + allowed {
        found.push(format!("the agent took {} ms to stop; {allowed} ms are allowed", gone - story.drain_at));
    }
    if !drained {
        found.push("the agent stopped without having drained".to_owned());
    }
    let unreachable = story.troubled(story.drain_at, gone, &[Trouble::Network, Trouble::Mcpd]);
    // What a drained agent could not deliver, or a former life left, is told by a successor.
    let own = story.lives.last().into_iter().flat_map(|life| &life.left).filter(|id| !story.is_former(id));
    found.extend(
        own.filter(|_| !unreachable).map(|id| format!("{id} has no end although the agent has drained")),
    );
    found
}

impl Story {
    /// Whether something was wrong between two moments that excuses what came of it.
    fn troubled(&self, from: Ms, until: Ms, kinds: &[Trouble]) -> bool {
        let overlaps =
            |(since, to, kind): &(Ms, Ms, Trouble)| kinds.contains(kind) && *since <= until && from <= *to;
        self.troubles.iter().any(overlaps)
    }

    /// Whether an earlier life of the agent had the task.
    fn is_former(&self, id: &str) -> bool {
        self.lives.iter().rev().skip(1).any(|life| life.took.iter().any(|t| t == id))
    }
}

/// One call and all that has to do with it.
struct Seen<'a> {
    story: &'a Story,
    call: &'a Call,
}

impl Seen<'_> {
    fn runs(&self) -> impl Iterator<Item = (usize, &Run)> {
        self.story.runs.iter().enumerate().filter(|(_, run)| run.task == self.call.task)
    }

    /// Whether an agent took the task in.
    fn received(&self) -> bool {
        self.story.lives.iter().any(|life| life.took.contains(&self.call.task))
    }

    fn troubled(&self, from: Ms, until: Ms, kinds: &[Trouble]) -> bool {
        self.story.troubled(from, until, kinds)
    }

    fn disturbed(&self, until: Ms) -> bool {
        use Trouble::{Agent, Forgot, Mcpd, Network};
        self.troubled(self.call.at, until, &[Network, Mcpd, Forgot, Agent])
    }

    /// What the caller read is the beginning of what one run said; all of it, where the end is a success.
    fn tokens(&self) -> Option<String> {
        let mut words = self.call.text.split_whitespace();
        let said = |run: usize, n: u32| format!("{run}.{n}");
        let of = match words.clone().next() {
            None => None,
            Some(first) => match self.runs().find(|(run, _)| said(*run, 0) == first) {
                Some(found) => Some(found),
                None => return Some(format!("the first token is {first}, which no run of it began with")),
            },
        };
        if let Some((run, _)) = of {
            let all: Vec<_> = words.by_ref().collect();
            for (n, word) in all.iter().enumerate() {
                let expected = said(run, n as u32);
                if **word != expected {
                    return Some(format!("token {n} is {word} and should be {expected}"));
                }
            }
        }
        self.succeeded().then(|| self.whole(of)).flatten()
    }

    fn succeeded(&self) -> bool {
        matches!(self.call.end, Some((_, TaskEnd::Done | TaskEnd::Reply { status: 200, .. })))
    }

    fn whole(&self, of: Option<(usize, &Run)>) -> Option<String> {
        let got = self.call.text.split_whitespace().count() as u32;
        let good = |run: &Run| run.finished.is_some_and(|(_, finish)| finish == Finish::Ok);
        match of {
            Some((_, run)) if !good(run) => Some("it ended well, and its run did not".to_owned()),
            Some((_, run)) if run.tokens != got => {
                Some(format!("it has {got} of {} tokens and ended well", run.tokens))
            }
            Some(_) => None,
            None if self.runs().any(|(_, run)| good(run) && run.tokens == 0) => None,
            None => Some("it ended well without any token, and no run of it did".to_owned()),
        }
    }

    /// There is an end. That there are not two is mcpd's verdict.
    fn end(&self) -> Option<String> {
        let waits = self.call.end.is_none() && self.call.left_at.is_none();
        let (gone, _) = self.story.stopped?;
        let excused =
            self.troubled(self.story.drain_at, gone, &[Trouble::Network, Trouble::Mcpd, Trouble::Agent]);
        (waits && self.received() && !excused).then(|| "it was handed over and has no end".to_owned())
    }

    /// The end came in time.
    fn wait(&self) -> Option<String> {
        let (at, end) = self.call.end.as_ref()?;
        let ms = |d: Duration| d.as_millis() as Ms;
        let limit = ms(plan::TASK_TIMEOUT.min(self.call.deadline.unwrap_or(plan::TASK_TIMEOUT)));
        let waited = at - self.call.at;
        if !self.received() {
            return None;
        }
        let own_deadline = matches!(end, TaskEnd::Failed { code: "deadline", .. });
        let allowed = if self.disturbed(*at) { limit + ms(END_DELIVERY_BOUND) + SUCCESSOR } else { limit };
        if waited > allowed + SLACK {
            return Some(format!("it waited {waited} ms for its end; {allowed} ms are allowed"));
        }
        // A part that is posted again for a lost reply takes its time from the deadline.
        let excused = self.disturbed(*at) || self.troubled(self.call.at, *at, &[Trouble::Armed]);
        (own_deadline && !excused).then(|| "mcpd's deadline came before the agent's".to_owned())
    }

    /// What a run came to is what the caller got, unless something was in the way.
    fn outcome(&self) -> Option<String> {
        let (at, end) = self.call.end.as_ref()?;
        let code = word(end);
        let timely =
            |run: &Run| run.finished.is_some_and(|(when, finish)| finish == Finish::Ok && when <= *at);
        let finished_well = self.runs().last().is_some_and(|(_, run)| run.lost_at.is_none() && timely(run));
        if finished_well && !self.succeeded() && !self.disturbed(*at) && !self.past_a_deadline(*at) {
            return Some(format!("its run ended well, and it got {code}"));
        }
        if code.starts_with("429") && self.runs().next().is_none() {
            return self.refusal(*at, end);
        }
        self.unexplained(*at, &code, end)
    }

    fn past_a_deadline(&self, at: Ms) -> bool {
        let limit = plan::TASK_TIMEOUT.min(self.call.deadline.unwrap_or(plan::TASK_TIMEOUT));
        at + SLACK + mcprelay::core::DEADLINE_MARGIN.as_millis() as Ms
            >= self.call.at + limit.as_millis() as Ms
    }

    /// Overload is said at once and says when to come back.
    fn refusal(&self, at: Ms, end: &TaskEnd) -> Option<String> {
        let excused = self.disturbed(at) || self.troubled(self.call.at, at, &[Trouble::Armed]);
        let late = at - self.call.at > 50 && !excused;
        let TaskEnd::Reply { retry_after, .. } = end else { return None };
        match (late, retry_after) {
            (true, _) => Some(format!("the refusal took {} ms", at - self.call.at)),
            (_, None) => Some("the refusal has no Retry-After".to_owned()),
            _ => None,
        }
    }

    /// Every failure that the agent makes up has its cause in the story.
    fn unexplained(&self, at: Ms, code: &str, end: &TaskEnd) -> Option<String> {
        let says = |text: &str| matches!(end, TaskEnd::Failed { message, .. } if message.contains(text));
        let is = |name: &str, text: &str| code.ends_with(name) || says(text);
        let killed = self.story.lives.iter().any(|life| life.left.contains(&self.call.task));
        let draining = at >= self.story.drain_at;
        let silent = |run: &Run| run.meant == Finish::Never || run.lost_at.is_some();
        let waited = at - self.call.at;
        let explained = if is("provider_lost", "went away before its end") {
            self.runs().any(|(_, run)| run.lost_at.is_some())
        } else if is("first_token_timeout", "first token") {
            self.runs().any(|(_, run)| silent(run)) || self.local(self.call.at, at)
        } else if is("idle_token_timeout", "next token") {
            self.runs().any(|(_, run)| silent(run) || self.local(run.at, at))
        } else if is("queue_timeout", "no slot of the provider became free") {
            waited + SLACK >= plan::QUEUE.min(mcprelay::core::SESSION_GRACE).as_millis() as Ms
        } else if is("task_timeout", "did not end within its time") {
            self.past_a_deadline(at) || self.disturbed(at)
        } else if is("shutting_down", "the agent is stopping") {
            draining
        } else if says("the agent was restarted while") {
            killed
        } else if is("restarted", "mcpd forgot its sessions") {
            self.troubled(self.call.at, at, &[Trouble::Forgot])
        } else if is("delivery_failed", "mcpd did not take") || says("could repeat tokens") {
            !self.story.idempotent || self.disturbed(at)
        } else {
            true
        };
        (!explained).then(|| format!("nothing explains its end {code} at {at} ms"))
    }

    fn local(&self, from: Ms, until: Ms) -> bool {
        self.troubled(from, until, &[Trouble::Local])
    }

    /// Whoever leaves frees the provider within 100 ms.
    fn cancel(&self) -> Option<String> {
        let left = self.call.left_at?;
        let (_, run) = self.runs().last()?;
        let ended = run.finished.map_or(Ms::MAX, |(at, _)| at).min(run.lost_at.unwrap_or(Ms::MAX));
        let cut = self.troubled(run.at, left + 100, &[Trouble::Armed]);
        let excused = cut
            || self.disturbed(left + 100)
            || self.local(run.at, left + 100)
            || left + 100 >= self.story.drain_at;
        if ended <= left + 100 || run.at > left || excused {
            return None;
        }
        match run.cancelled_at {
            Some(at) if at <= left + 100 => None,
            Some(at) => Some(format!("its provider was told {} ms after the caller left", at - left)),
            None => Some("its provider was never told that the caller left".to_owned()),
        }
    }

    /// It is offered again only where the one before was lost, and never in another life.
    fn runs_once(&self) -> Option<String> {
        let runs: Vec<_> = self.runs().collect();
        runs.windows(2).find_map(|pair| {
            let [(_, before), (run, after)] = pair else { return None };
            if before.life != after.life {
                return Some(format!("run {run} is of another life of the agent than the one before"));
            }
            let lost = before.lost_at.is_some_and(|at| at <= after.at);
            (!lost).then(|| format!("run {run} began although the one before was not lost"))
        })
    }
}
