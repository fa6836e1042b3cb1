//! One end each, in time, with what was said and a reason that is true.

use fake_mcpd::TaskEnd;
use mcprelay::core::{DEADLINE_MARGIN, SESSION_GRACE};

use super::{SLACK, ms, task::Task};
use crate::simulation::{
    plan,
    run::word,
    story::{Finish, Ms, Presence, Run, Step},
};

/// An overloaded provider's refusal leaves within this.
const REFUSAL: Ms = 50;

/// What is wrong with a task's end.
pub fn breaches(task: &Task<'_>) -> Vec<String> {
    let all = [tokens(task), taken(task), missing(task), late(task), lost(task), unexplained(task)];
    all.into_iter().flatten().collect()
}

/// What the caller read is the beginning of what one run said; all of it, where the end is a success.
pub fn tokens(task: &Task<'_>) -> Option<String> {
    let mut words = task.call.text.split_whitespace();
    let said = |run: usize, n: u32| format!("{run}.{n}");
    let of = match words.clone().next() {
        None => None,
        Some(first) => match task.runs.iter().find(|(run, _)| said(*run, 0) == first) {
            Some(found) => Some(found),
            None => return Some(format!("the first token is {first}, which no run of it began with")),
        },
    };
    if let Some((run, _)) = of {
        for (n, word) in words.by_ref().enumerate() {
            let expected = said(*run, n as u32);
            if word != expected {
                return Some(format!("token {n} is {word} and should be {expected}"));
            }
        }
    }
    task.succeeded().then(|| whole(task, of.map(|(_, run)| *run))).flatten()
}

fn whole(task: &Task<'_>, of: Option<&Run>) -> Option<String> {
    let got = task.call.text.split_whitespace().count() as u32;
    let good = |run: &Run| run.finished.is_some_and(|(_, finish)| finish == Finish::Ok);
    match of {
        Some(run) if !good(run) => Some("it ended well, and its run did not".to_owned()),
        Some(run) if run.tokens != got => {
            Some(format!("it has {got} of {} tokens and ended well", run.tokens))
        }
        Some(_) => None,
        None if task.runs.iter().any(|(_, run)| good(run) && run.tokens == 0) => None,
        None => Some("it ended well without any token, and no run of it did".to_owned()),
    }
}

/// Whatever reached the agent, it took in.
fn taken(task: &Task<'_>) -> Option<String> {
    let arrived = task.arrived?;
    let lives = |at| task.story.life_at(at);
    let lived = lives(arrived).is_some() && lives(arrived) == lives(arrived + SLACK);
    let connected = task.story.is_connected(arrived, SLACK);
    (lived && connected && !task.received())
        .then(|| format!("it reached the agent at {arrived} ms and was not taken in"))
}

/// There is an end. That there are not two is mcpd's verdict.
fn missing(task: &Task<'_>) -> Option<String> {
    let waits = task.call.end.is_none() && task.call.left_at.is_none() && task.received();
    let (gone, _) = task.story.stopped?;
    (waits && task.latest() + SLACK < gone)
        .then(|| format!("it was handed over and has no end, which was due at {} ms", task.latest()))
}

/// The end came in time.
fn late(task: &Task<'_>) -> Option<String> {
    let (at, end) = task.call.end.as_ref().filter(|_| task.received())?;
    let latest = task.latest();
    if let TaskEnd::Failed { code: "deadline", .. } = end {
        return (latest + SLACK < *at)
            .then(|| format!("mcpd's deadline came at {at} ms, before the agent's end, due at {latest} ms"));
    }
    let is_refusal = word(end).starts_with("429") && task.runs.is_empty();
    if is_refusal && *at > latest.min(task.refused_by()) + REFUSAL {
        return Some(format!(
            "the refusal took until {at} ms; {} ms is the latest",
            task.refused_by() + REFUSAL
        ));
    }
    (*at > latest + SLACK).then(|| format!("its end came at {at} ms and was due at {latest} ms"))
}

/// What a run came to is what the caller got, unless its way there was cut off for good.
fn lost(task: &Task<'_>) -> Option<String> {
    let (at, end) = task.call.end.as_ref()?;
    let finished = task.good_run()?.finished?.0;
    let by_mcpd = matches!(end, TaskEnd::Failed { code: "deadline" | "restarted" | "provider_gone", .. });
    let unseen = task.arrived.is_some_and(|arrived| task.story.is_refused(arrived, *at));
    let doubtful = !task.story.idempotent && (unseen || task.attempts.iter().any(|a| a.is_ambiguous()));
    let refused = task.attempts.iter().any(|a| matches!(a.status(), Some(400 | 403 | 413)));
    let excused = by_mcpd || doubtful || refused || task.left_by().is_some() || *at >= task.given_up();
    (finished + SLACK < *at && !task.succeeded() && !excused)
        .then(|| format!("its run ended well at {finished} ms, and it got {}", word(end)))
}

/// Every failure has its cause in the story, and a deadline has passed when it is said to.
fn unexplained(task: &Task<'_>) -> Option<String> {
    let (at, end) = task.call.end.as_ref()?;
    if task.succeeded() {
        return None;
    }
    let sent = task.end_sent().map_or(*at, |a| a.at);
    let code = word(end);
    let says = |text: &str| matches!(end, TaskEnd::Failed { message, .. } if message.contains(text));
    let is = |name: &str, text: &str| code.ends_with(name) || says(text);
    let explained = if is("provider_lost", "went away before its end") {
        task.runs.iter().any(|(_, run)| run.lost_at.is_some_and(|lost| lost <= sent))
            || task.is_lost_unread(sent)
    } else if is("first_token_timeout", "first token") {
        task.token_timeout(sent, plan::FIRST_TOKEN, false)
    } else if is("idle_token_timeout", "next token") {
        task.token_timeout(sent, plan::IDLE_TOKEN, true)
    } else if is("queue_timeout", "no slot of the provider became free") {
        return task.queue_timeout(sent);
    } else if is("task_timeout", "did not end within its time") {
        sent + SLACK >= task.whole()
    } else if is("shutting_down", "the agent is stopping") {
        sent >= task.story.drain_at
    } else if says("the agent was restarted while") {
        task.left_by().is_some()
    } else if is("restarted", "mcpd forgot its sessions") {
        task.story.forgot.contains(at)
    } else if is("overloaded", "is full") {
        return task.overloaded();
    } else if is("unavailable", "no provider named") || says("was withdrawn") || says("is paused") {
        task.unavailable(sent)
    } else if is("delivery_failed", "mcpd did not take")
        || says("could repeat tokens")
        || is("too_large", "too large")
    {
        task.undeliverable(sent)
    } else if code.ends_with("deadline") {
        // Judged by when it came.
        true
    } else {
        task.runs.iter().any(|(_, run)| matches!(run.finished, Some((when, Finish::Bad)) if when <= *at))
            || task.runs.iter().any(|(_, run)| run.meant == Finish::Bad)
            || code.ends_with("provider_gone") && task.story.is_silent(*at)
    };
    (!explained).then(|| format!("nothing explains its end {code} at {at} ms, sent at {sent} ms"))
}

impl Task<'_> {
    /// Until when a refusal is delivered: it is decided as the task arrives.
    fn refused_by(&self) -> Ms {
        self.delivered(self.arrived.unwrap_or_default())
    }

    /// Whether a program went away that may have had an offer which nobody read.
    fn is_lost_unread(&self, sent: Ms) -> bool {
        let lost = |p: &Presence| p.step == Step::Lost && p.names.contains(&self.call.llm);
        let near = |at: Ms| (sent.saturating_sub(SLACK)..=sent + SLACK).contains(&at);
        self.story.presence.iter().any(|p| lost(p) && near(p.at))
    }

    /// Whether the output had been missing for so long when this was said.
    fn token_timeout(&self, sent: Ms, limit: std::time::Duration, begun: bool) -> bool {
        let silent = |run: &Run| {
            let since = run.last_sign.filter(|at| *at < sent).map_or(run.at, |at| at.max(run.at));
            run.first_token.is_some_and(|at| at < sent) == begun && since + ms(limit) <= sent + SLACK
        };
        let arrived = self.arrived.unwrap_or_default();
        let unread = !begun && arrived + ms(limit) <= sent + SLACK;
        self.runs.iter().any(|(_, run)| silent(run)) || unread && self.is_read_late(arrived, sent)
    }

    /// It waited as long as it had to, and all the while for good reason.
    fn queue_timeout(&self, sent: Ms) -> Option<String> {
        let since = self.runs.last().and_then(|(_, run)| run.lost_at).or(self.arrived)?;
        let requeued = !self.runs.is_empty() || self.is_read_late(since, sent);
        let least = since + ms(if requeued { plan::QUEUE.min(SESSION_GRACE) } else { plan::QUEUE });
        if sent + SLACK < least {
            return Some(format!(
                "it was told at {sent} ms that its time in the queue was over, which was due at {least} ms"
            ));
        }
        self.story.idle_slot(self.call.llm, sent - SLACK, sent - SLACK).map(|program| {
            format!("it waited in the queue until {sent} ms although {program} had a free slot")
        })
    }

    /// A refusal for overload is true, or the provider's own.
    fn overloaded(&self) -> Option<String> {
        let refused = |run: &Run| matches!(run.finished, Some((_, Finish::Bad)));
        if self.runs.iter().any(|(_, run)| refused(run)) {
            return None;
        }
        let Some(TaskEnd::Reply { retry_after: Some(_), .. }) = self.call.end.as_ref().map(|(_, end)| end)
        else {
            return Some("the refusal has no Retry-After".to_owned());
        };
        let arrived = self.arrived?;
        let waiting = self.story.waiting(self.call.llm, arrived, &self.call.task);
        if waiting >= self.story.max_queued as usize {
            return None;
        }
        self.story
            .idle_slot(self.call.llm, arrived.saturating_sub(SLACK), arrived + SLACK)
            .map(|program| format!("it was refused although {program} had a free slot and {waiting} waited"))
    }

    /// Nobody published the name at some moment of its wait.
    fn unavailable(&self, sent: Ms) -> bool {
        let arrived = self.arrived.unwrap_or_default().saturating_sub(SLACK);
        let changes = self.story.presence.iter().map(|p| p.at).filter(|at| (arrived..=sent).contains(at));
        let graces = self
            .story
            .presence
            .iter()
            .map(|p| p.at + ms(SESSION_GRACE))
            .filter(|at| (arrived..=sent).contains(at));
        let mut moments = changes.chain(graces).chain([arrived, sent]);
        self.story.is_paused(arrived, sent)
            || self.story.is_conflicted(self.call.llm, arrived, sent)
            || moments.any(|at| self.story.publishers(self.call.llm, at).is_empty())
    }

    /// mcpd did not take a part, or may have, or its time was over.
    fn undeliverable(&self, sent: Ms) -> bool {
        let refused = |status| matches!(status, Some(400 | 403 | 409 | 413));
        let lost =
            self.attempts.iter().any(|a| refused(a.status()) || a.is_ambiguous() && !self.story.idempotent);
        let doubtful =
            self.arrived.is_some_and(|at| self.story.is_refused(at, sent)) && !self.story.idempotent;
        lost || doubtful || sent + ms(DEADLINE_MARGIN) >= self.whole().min(self.given_up())
    }
}
