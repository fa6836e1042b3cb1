//! Four deadlines, four errors; cancellation and its bound; drain; who gets a lost session's tasks.

use super::*;
use crate::{
    core::shutdown::shutting_down,
    domain::{CancelReason, Outcome},
};

const SESSION: SessionKey = SessionKey(1);

fn codes(passed: &[(Duration, Effect)]) -> Vec<(Duration, FailureCode)> {
    let failed = |(at, effect): &(Duration, Effect)| match effect {
        Effect::End(_, End::Failed(failure), _) => Some((*at, failure.code)),
        _ => None,
    };
    passed.iter().filter_map(failed).collect()
}

#[test]
fn a_task_without_a_slot_ends_with_its_queue_timeout() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("a", "llm", false)));
    rig.act(Input::Task(task("b", "llm", false)));
    assert_eq!(codes(&rig.pass(50 * SECOND)), [(40 * SECOND, FailureCode::QueueTimeout)]);
}

#[test]
fn a_stream_without_a_token_ends_with_its_first_token_timeout() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("a", "llm", true)));
    let passed = rig.pass(90 * SECOND);
    assert_eq!(codes(&passed)[..1], [(60 * SECOND, FailureCode::FirstTokenTimeout)]);
    let told = |e: &(Duration, Effect)| e.1 == Effect::Cancel(TaskKey(0), SESSION, CancelReason::Deadline);
    assert!(passed.iter().any(told), "the provider is told: {passed:?}");
}

#[test]
fn a_stream_that_falls_silent_ends_with_its_idle_timeout_counted_from_the_last_sign() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("a", "llm", true)));
    for _ in 0..10 {
        assert_eq!(codes(&rig.pass(20 * SECOND)), [], "it gives a token every 20 s");
        rig.output(TaskKey(0), true);
    }
    assert_eq!(codes(&rig.pass(40 * SECOND)), [(30 * SECOND, FailureCode::IdleTokenTimeout)]);
}

#[test]
fn a_stream_that_stalls_right_after_its_first_token_does_not_wait_for_the_longer_first_token_timeout() {
    for first_token_after in [0, 1, 29, 31, 59] {
        let mut rig = Rig::serving(1);
        rig.act(Input::Task(task("a", "llm", true)));
        assert_eq!(codes(&rig.pass(first_token_after * SECOND)), []);
        rig.output(TaskKey(0), true);
        assert_eq!(codes(&rig.pass(40 * SECOND)), [(30 * SECOND, FailureCode::IdleTokenTimeout)]);
    }
}

#[test]
fn a_whole_task_ends_a_quarter_second_before_the_nearer_deadline() {
    for (asked, expected) in [(None, 600 * SECOND), (Some(5 * SECOND), 5 * SECOND)] {
        let mut rig = Rig::serving(1);
        rig.act(Input::Task(Task { deadline: asked, ..task("a", "llm", false) }));
        let passed = codes(&rig.pass(700 * SECOND));
        assert_eq!(passed, [(expected - DEADLINE_MARGIN, FailureCode::TaskTimeout)]);
    }
}

#[test]
fn the_four_timeouts_are_504_with_four_codes() {
    use FailureCode::{FirstTokenTimeout, IdleTokenTimeout, QueueTimeout, TaskTimeout};
    let codes = [QueueTimeout, FirstTokenTimeout, IdleTokenTimeout, TaskTimeout];
    assert!(codes.iter().all(|code| code.http_status() == 504));
    let words: std::collections::BTreeSet<_> = codes.iter().map(|code| code.as_str()).collect();
    assert_eq!(words.len(), codes.len());
}

#[test]
fn a_cancelled_task_holds_its_slot_until_its_provider_confirms() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.act(Input::Task(task("b", "llm", true)));
    let effects = rig.act(Input::CallerLeft(TaskId::new("a").unwrap()));
    assert!(effects.contains(&Effect::Cancel(TaskKey(0), SESSION, CancelReason::CallerGone)), "{effects:?}");
    assert_eq!(offers(&effects), [0; 0]);
    assert_eq!(offers(rig.pass(5 * SECOND).iter().map(|(_, e)| e)), [0; 0]);
    assert_eq!(offers(&rig.act(Input::Finished(SESSION, TaskKey(0), Outcome::Cancelled))), [1]);
}

#[test]
fn a_cancel_that_nobody_confirms_gives_the_slot_back_after_its_bound() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.act(Input::Task(task("b", "llm", true)));
    rig.act(Input::CallerLeft(TaskId::new("a").unwrap()));
    let passed = rig.pass(CANCEL_BOUND - MS);
    assert_eq!(offers(passed.iter().map(|(_, e)| e)), [0; 0]);
    assert_eq!(offers(rig.pass(MS).iter().map(|(_, e)| e)), [1]);
}

#[test]
fn an_overloaded_provider_refuses_at_once_and_says_when_to_come_back() {
    let mut rig = Rig::serving(1);
    (0..3).for_each(|n| drop(rig.act(Input::Task(task(&format!("t{n}"), "llm", false)))));
    let effects = rig.act(Input::Task(task("one too many", "llm", false)));
    let Some(Effect::End(_, End::Failed(failure), _)) = effects.last() else { panic!("{effects:?}") };
    assert_eq!((failure.code, failure.status()), (FailureCode::Overloaded, 429));
    assert!(failure.retry_after.is_some());
}

#[test]
fn what_a_lost_session_had_not_begun_waits_for_its_return_and_the_rest_ends_at_once() {
    let mut rig = Rig::serving(2);
    rig.act(Input::Task(task("silent", "llm", true)));
    rig.act(Input::Task(task("begun", "llm", true)));
    rig.output(TaskKey(1), true);
    let effects = rig.act(Input::SessionClosed(SESSION));
    assert_eq!(failures(&effects), [(1, FailureCode::ProviderLost)]);
    assert!(effects.contains(&Effect::Requeued(TaskKey(0), FailureCode::ProviderLost)), "{effects:?}");
    rig.pass(3 * SECOND);
    rig.open(2, "program");
    assert_eq!(offers(&rig.push(2, vec![provider("llm", 2)])), [0]);
}

#[test]
fn the_tasks_of_a_lost_session_are_offered_again_in_the_order_in_which_they_came() {
    let mut rig = Rig::serving(3);
    for id in ["first", "second", "third", "fourth"] {
        rig.act(Input::Task(task(id, "llm", true)));
    }
    rig.act(Input::SessionClosed(SESSION));
    rig.open(2, "program");
    assert_eq!(offers(&rig.push(2, vec![provider("llm", 4)])), [0, 1, 2, 3]);
}

#[test]
fn a_session_that_does_not_return_within_the_grace_ends_its_tasks() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("silent", "llm", true)));
    rig.act(Input::SessionClosed(SESSION));
    let passed = codes(&rig.pass(20 * SECOND));
    assert!(matches!(passed[..], [(at, _)] if at == SESSION_GRACE), "{passed:?}");
}

#[test]
fn what_an_old_session_still_says_touches_nothing_of_the_new_one() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.open(2, "program");
    assert_eq!(offers(&rig.push(2, vec![provider("llm", 1)])), [0]);
    let late = [
        Input::Finished(SESSION, TaskKey(0), Outcome::Complete),
        Input::Broken(SESSION, TaskKey(0), shutting_down()),
        Input::Snapshot(SESSION, 7, Vec::new()),
        Input::SessionDraining(SESSION, None),
        Input::SessionClosed(SESSION),
    ];
    for input in late {
        let said = format!("{input:?}");
        assert_eq!(rig.act(input), [], "{said}");
    }
    assert!(rig.core.tasks.is_with(TaskKey(0), SessionKey(2)) && rig.core.tasks.is_open(TaskKey(0)));
}

#[test]
fn a_drain_refuses_what_comes_lets_work_finish_and_ends_the_rest() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("runs", "llm", true)));
    rig.act(Input::Task(task("waits", "llm", true)));
    assert_eq!(failures(&rig.act(Input::Drain)), [(1, FailureCode::ShuttingDown)]);
    assert_eq!(failures(&rig.act(Input::Task(task("late", "llm", true)))), [(2, FailureCode::ShuttingDown)]);
    (1..=2).for_each(|key| drop(rig.act(Input::Settled(TaskKey(key)))));
    assert_eq!(codes(&rig.pass(20 * SECOND)), [(20 * SECOND, FailureCode::ShuttingDown)]);
    assert_eq!(rig.act(Input::Settled(TaskKey(0))).last(), Some(&Effect::Drained));
}

#[test]
fn a_drain_ends_although_mcpd_takes_nothing() {
    let mut rig = Rig::serving(1);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.act(Input::Finished(SESSION, TaskKey(0), Outcome::Complete));
    rig.act(Input::Drain);
    let passed = rig.pass(100 * SECOND);
    let last = passed.last().map(|(at, effect)| (*at, effect));
    assert_eq!(last, Some((20 * SECOND + DRAIN_DELIVERY_BOUND, &Effect::Drained)));
}
