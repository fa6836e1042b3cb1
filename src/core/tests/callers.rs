//! Fairness among callers, through the whole core.

use super::*;
use crate::domain::Outcome;

fn asked(rig: &mut Rig, id: &str, caller: Option<&str>) -> Vec<Effect> {
    rig.act(Input::Task(Task { caller: caller.map(Into::into), ..task(id, "llm", false) }))
}

#[test]
fn one_callers_batch_leaves_room_in_the_queue_and_the_next_slot_goes_to_another() {
    let mut rig = Rig::serving(1);
    asked(&mut rig, "running", Some("batch"));
    asked(&mut rig, "waiting", Some("batch"));
    let effects = asked(&mut rig, "too many", Some("batch"));
    let [_, Effect::End(_, End::Failed(failure), _)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(failure.message, "1 of this caller's tasks wait for 'llm' already; try again later");
    assert!(failure.code == FailureCode::Overloaded && failure.retry_after.is_some());
    assert_eq!(failures(&asked(&mut rig, "question", Some("bob"))), []);
    let full = failures(&asked(&mut rig, "beyond", Some("eve")));
    assert_eq!(full, [(4, FailureCode::Overloaded)], "the queue's own limit");
    let effects = rig.act(Input::Finished(SessionKey(1), TaskKey(0), Outcome::Complete));
    assert_eq!(offers(&effects), [3], "bob's, although the batch's waits longer");
}

#[test]
fn callers_whom_nobody_names_have_the_whole_queue() {
    let mut rig = Rig::serving(1);
    for id in ["running", "first", "second"] {
        assert_eq!(failures(&asked(&mut rig, id, None)), []);
    }
    assert_eq!(failures(&asked(&mut rig, "third", None)), [(3, FailureCode::Overloaded)]);
}
