//! Offers that a session does not take.

use super::*;
use crate::domain::{Failure, Outcome};

fn full() -> Failure {
    Failure::new(FailureCode::Overloaded, "the GPU is busy with something else")
}

/// So many sessions with one provider; the first one serves.
fn sessions(count: u64) -> Rig {
    let mut rig = Rig::new();
    for session in 1..=count {
        rig.open(session, &format!("program {session}"));
        rig.push(session, vec![provider("llm", 1)]);
    }
    rig
}

fn refuse(rig: &mut Rig, session: u64) -> Vec<Effect> {
    rig.act(Input::Refused(SessionKey(session), TaskKey(0), full()))
}

fn offered_to(effects: &[Effect]) -> Vec<u64> {
    let session = |effect: &Effect| match effect {
        Effect::Offer(_, session, _) => Some(session.0),
        _ => None,
    };
    effects.iter().filter_map(session).collect()
}

#[test]
fn a_refused_offer_goes_to_a_session_that_stands_by_and_has_not_refused_it() {
    let mut rig = sessions(3);
    assert_eq!(offered_to(&rig.act(Input::Task(task("a", "llm", true)))), [1]);
    let effects = refuse(&mut rig, 1);
    assert!(effects.contains(&Effect::Requeued(TaskKey(0), FailureCode::Overloaded)), "{effects:?}");
    assert_eq!(offered_to(&effects), [2]);
    assert_eq!(offered_to(&refuse(&mut rig, 2)), [3], "the first one has refused it");
    let effects = rig.act(Input::Finished(SessionKey(3), TaskKey(0), Outcome::Complete));
    assert!(matches!(effects[..], [Effect::End(_, End::Answer(_), _)]), "{effects:?}");
}

#[test]
fn a_refusal_that_nobody_can_make_good_is_the_callers_answer() {
    for standing_by in [0, 1] {
        let mut rig = sessions(1 + standing_by);
        rig.act(Input::Task(task("a", "llm", true)));
        let mut effects = refuse(&mut rig, 1);
        if standing_by == 1 {
            effects = refuse(&mut rig, 2);
        }
        assert_eq!(failures(&effects), [(0, FailureCode::Overloaded)]);
    }
}

#[test]
fn a_stand_by_that_is_busy_is_not_asked() {
    let mut rig = sessions(2);
    rig.act(Input::Task(task("a", "llm", true)));
    refuse(&mut rig, 1);
    let effects = rig.act(Input::Task(task("b", "llm", true)));
    assert_eq!(offered_to(&effects), [1], "the first one still serves the name");
    let effects = rig.act(Input::Refused(SessionKey(1), TaskKey(1), full()));
    assert_eq!(failures(&effects), [(1, FailureCode::Overloaded)]);
}

#[test]
fn a_task_that_its_program_refuses_while_it_leaves_goes_to_the_head_of_the_next_ones_queue() {
    let mut rig = sessions(2);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.act(Input::SessionDraining(SessionKey(1), None));
    assert_eq!(offered_to(&refuse(&mut rig, 1)), [2]);
}

#[test]
fn a_refusal_after_output_or_after_the_end_of_the_task_is_offered_to_nobody() {
    let mut rig = sessions(2);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.output(TaskKey(0), false);
    let effects = refuse(&mut rig, 1);
    assert_eq!((failures(&effects), offered_to(&effects)), (vec![(0, FailureCode::Overloaded)], vec![]));
    let mut rig = sessions(2);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.act(Input::CallerLeft(TaskId::new("a").unwrap()));
    assert_eq!(refuse(&mut rig, 1), [], "its slot is free, and nobody waits");
    assert_eq!(refuse(&mut rig, 1), [], "a second refusal says nothing");
}

#[test]
fn a_refusal_frees_the_slot_for_the_next_task() {
    let mut rig = sessions(1);
    rig.act(Input::Task(task("a", "llm", true)));
    rig.act(Input::Task(task("b", "llm", true)));
    assert_eq!(offers(&refuse(&mut rig, 1)), [1]);
}
