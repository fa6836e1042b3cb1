//! Pauses that end by themselves, and the owner's sharing rules.

use proptest::prelude::*;

use super::*;
use crate::{
    core::providers::SETTLING,
    domain::{Fact, Facts, Pause, Rule, UnixTime},
};

fn facts(now: u64, on_battery: Fact<bool>) -> Input {
    Input::Facts(Facts { now: UnixTime(now), minute_of_week: 0, on_battery, idle_for: Fact::Unknown })
}

/// One session with a provider that is not shared on battery, and another one that always is.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.open(1, "program");
    let careful = Provider { sharing: vec![Rule::NotOnBattery], ..provider("careful", 1) };
    rig.push(1, vec![careful, provider("always", 1)]);
    rig
}

fn state(rig: &Rig, name: &str) -> Option<Paused> {
    rig.core.providers().into_iter().find(|p| p.provider.name.as_str() == name).unwrap().paused
}

fn published(rig: &Rig) -> Vec<String> {
    rig.core.providers.published().keys().map(ToString::to_string).collect()
}

#[test]
fn a_timed_pause_ends_when_the_machines_clock_says_so() {
    let mut rig = rig();
    rig.act(facts(1, Fact::Is(false)));
    assert_eq!(published(&rig), ["always", "careful"]);
    let pause = Pause { until: Some(UnixTime(100)) };
    rig.act(Input::SetPaused(Some(name("always")), Some(pause)));
    assert_eq!(
        (state(&rig, "always"), published(&rig)),
        (Some(Paused::ByOwner(pause)), vec!["careful".into()])
    );
    let effects = rig.act(Input::Task(task("t", "always", false)));
    assert_eq!(failures(&effects), [(0, FailureCode::Unavailable)]);
    rig.act(facts(99, Fact::Is(false)));
    assert_eq!(published(&rig), ["careful"]);
    rig.act(facts(100, Fact::Is(false)));
    assert_eq!((state(&rig, "always"), published(&rig).len()), (None, 2));
    assert_eq!(*rig.core.pauses(), Pauses::default());
}

#[test]
fn a_rule_pauses_at_once_and_work_comes_again_once_it_has_held_for_a_while() {
    let mut rig = rig();
    assert_eq!(published(&rig), ["always"], "nothing is known yet");
    rig.act(facts(0, Fact::Is(false)));
    assert_eq!(published(&rig), ["always", "careful"], "the first look counts at once");
    assert_eq!(offers(&rig.act(Input::Task(task("running", "careful", false)))), [0]);
    rig.act(Input::Task(task("waiting", "careful", false)));
    let effects = rig.act(facts(1, Fact::Is(true)));
    assert_eq!(failures(&effects), [(1, FailureCode::Unavailable)], "what runs goes on, what waits does not");
    assert_eq!(state(&rig, "careful"), Some(Paused::ByRule("on battery")));
    let effects = rig.act(Input::Task(task("late", "careful", false)));
    let Effect::End(_, End::Failed(failure), _) = &effects[1] else { panic!("{effects:?}") };
    assert_eq!(failure.message, "'careful' is paused by its owner; try again later");
    assert_eq!(failure.for_owner(), "'careful' is paused: on battery; see `mcprelay status`");
    let held = |rig: &mut Rig, wait: Duration| {
        rig.now += wait;
        rig.act(facts(2, Fact::Is(false)));
        published(rig).len() == 2
    };
    assert!(!held(&mut rig, SECOND) && !held(&mut rig, SETTLING - SECOND));
    rig.act(facts(2, Fact::Unreadable));
    assert!(matches!(state(&rig, "careful"), Some(Paused::ByRule(why)) if why.contains("cannot be told")));
    assert!(!held(&mut rig, SETTLING), "it was broken in between");
    assert!(held(&mut rig, SETTLING));
}

#[test]
fn a_program_whose_rules_allow_it_takes_over_from_one_whose_rules_do_not() {
    let mut rig = rig();
    rig.open(2, "other");
    rig.push(2, vec![provider("careful", 1)]);
    rig.act(facts(0, Fact::Is(true)));
    assert_eq!(published(&rig), ["always", "careful"]);
    let effects = rig.act(Input::Task(task("t", "careful", false)));
    assert!(matches!(effects[..], [.., Effect::Offer(_, SessionKey(2), _)]), "{effects:?}");
}

proptest! {
    /// Whatever the facts do, a rule allows work only if it is fulfilled now, and either was from the first look on or has been for 30 s.
    #[test]
    fn a_rule_that_flaps_never_lets_work_through_within_its_settling(looks in proptest::collection::vec((any::<bool>(), 1u32..40), 1..60)) {
        let mut rig = rig();
        let (mut held_since, mut ever_broken) = (None, false);
        for (fulfilled, seconds) in looks {
            rig.now += SECOND * seconds;
            rig.act(facts(0, Fact::Is(!fulfilled)));
            held_since = if fulfilled { held_since.or(Some(rig.now)) } else { None };
            ever_broken |= !fulfilled;
            let settled = held_since.is_some_and(|since| !ever_broken || rig.now - since >= SETTLING);
            prop_assert_eq!(state(&rig, "careful").is_none(), settled);
        }
    }
}
