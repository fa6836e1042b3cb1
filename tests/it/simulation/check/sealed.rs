//! What can be promised where TLS hides what the network did to each call, or parts went in uploads, which the relay does not read: tokens, ends and mcpd's verdict in full, moments with the
//! longest time that trouble may take.

use fake_mcpd::{Rule, TaskEnd};
use mcprelay::core::END_DELIVERY_BOUND;

use super::{ends, ms, task::Task};
use crate::simulation::{
    plan,
    run::word,
    story::{Call, Finish, Ms, Story},
};

/// How long after its end a stopping agent may still be waiting for mcpd: the last calls' own timeouts.
const STOP: Ms = 60_000;

/// What is wrong with a story of an encrypted link in trouble.
pub fn breaches(story: &Story) -> Vec<String> {
    let mut found = Vec::new();
    for (n, call) in story.calls.iter().enumerate().filter(|(_, call)| call.refused.is_none()) {
        let task = Task::new(story, call);
        let wrong = [ends::tokens(&task), missing(story, &task), unexplained(&task)];
        found.extend(wrong.into_iter().flatten().map(|why| format!("call {n} ({}): {why}", call.task)));
    }
    found.extend(contract(story));
    found.extend(stop(story));
    found
}

/// Whoever was taken in and still waits has an end once the agent has had all the time there is.
fn missing(story: &Story, task: &Task<'_>) -> Option<String> {
    let call = task.call;
    let waits = call.end.is_none() && call.left_at.is_none() && task.received();
    let (gone, _) = story.stopped?;
    let latest = call.at + ms(plan::TASK_TIMEOUT) + ms(END_DELIVERY_BOUND);
    (waits && latest < gone).then(|| format!("it was taken in and has no end, which was due at {latest} ms"))
}

/// A failure has a reason that some party of the story had.
fn unexplained(task: &Task<'_>) -> Option<String> {
    let (at, end) = task.call.end.as_ref()?;
    let said_nothing = matches!(end, TaskEnd::Failed { message, .. } if message.is_empty());
    let good = task.runs.iter().any(|(_, run)| run.finished.is_some_and(|(_, how)| how == Finish::Ok));
    let vanished = word(end) == "caller gone" && task.call.left_at.is_none() && good;
    (said_nothing || vanished).then(|| format!("its end at {at} ms says nothing: {}", word(end)))
}

/// mcpd's verdict, but for what a network may hold up or lose without anybody's doing.
fn contract(story: &Story) -> impl Iterator<Item = String> {
    let by_arrival =
        |rule: Rule| matches!(rule, Rule::MissingHeartbeat | Rule::RegisterUnderWay | Rule::RegisterTooOften);
    let untold = |v: &fake_mcpd::Violation| {
        v.rule == Rule::ResultAfterEnd && v.detail.contains("nobody waits")
            // The reply that refused the end as too large came after one that was lost.
            || v.rule == Rule::TwoEnds && refused(story, &v.subject)
    };
    let judged = story.violations.iter().filter(move |v| !by_arrival(v.rule) && !untold(v));
    judged.map(|v| format!("{:?} of {} at {} ms: {}", v.rule, v.subject, v.at_ms, v.detail))
}

fn refused(story: &Story, task: &str) -> bool {
    let of_it = |call: &&Call| call.task == task;
    let call = story.calls.iter().find(of_it);
    call.is_some_and(|call| Task::new(story, call).attempts.iter().any(|a| a.status() == Some(413)))
}

fn stop(story: &Story) -> Option<String> {
    let Some((gone, drained)) = story.stopped else { return Some("the agent never stopped".to_owned()) };
    let latest = story.drain_at + ms(story.drain_timeout) + STOP;
    match drained {
        false => Some("the agent stopped without having drained".to_owned()),
        true => {
            (gone > latest).then(|| format!("the agent was gone at {gone} ms; {latest} ms is the latest"))
        }
    }
}
