//! The link to mcpd: backoff, wake, quick closes, epochs.

use std::collections::BTreeMap;

use super::*;
use crate::{
    core::link::{Link, McpdChange},
    domain::{CallFailure, LinkState, LinkStatus},
};

pub(super) fn passing() -> CallFailure {
    CallFailure::Passing("it broke".into(), None)
}

pub(super) fn unknown() -> CallFailure {
    CallFailure::Unknown("no such session".into())
}

/// A link with one provider to publish, and a clock.
pub(super) struct Bench {
    link: Link,
    pub(super) now: Instant,
    /// The number of the last heartbeat.
    beat: u64,
}

impl Bench {
    pub(super) fn new(seed: u64) -> Self {
        Self { link: Link::new(&settings().link, None, seed), now: Instant::now(), beat: 0 }
    }

    /// Registered, the channel open, without a byte so far.
    pub(super) fn opened() -> Self {
        let mut bench = Self::new(1);
        bench.act(LinkInput::Credentials(Ok(McpdChange::Same)));
        let effects = bench.want(&["a"]);
        assert_eq!(registers(&effects), [1]);
        assert_eq!(channels(&bench.registered(1)), [1]);
        bench.act(LinkInput::ChannelOpened(1));
        bench
    }

    /// Registered, the channel open and proved.
    pub(super) fn online() -> Self {
        let mut bench = Self::opened();
        bench.act(LinkInput::ChannelProved(1));
        assert_eq!(bench.state(), LinkState::Online);
        bench
    }

    pub(super) fn act(&mut self, input: LinkInput) -> Vec<LinkEffect> {
        let mut effects = Vec::new();
        self.link.handle(input, self.now, &mut effects);
        self.effects(effects)
    }

    /// Answers the last heartbeat.
    pub(super) fn beaten(&mut self, reply: Result<(), CallFailure>) -> Vec<LinkEffect> {
        self.act(LinkInput::Heartbeat(self.beat, reply))
    }

    pub(super) fn registered(&mut self, attempt: u64) -> Vec<LinkEffect> {
        self.act(LinkInput::Registered(attempt, Ok("s".to_owned())))
    }

    pub(super) fn want(&mut self, names: &[&str]) -> Vec<LinkEffect> {
        let set: BTreeMap<_, _> = names.iter().map(|n| (name(n), provider(n, 1))).collect();
        let mut effects = Vec::new();
        self.link.want(set, self.now, &mut effects);
        self.effects(effects)
    }

    /// Tasks are under way.
    pub(super) fn busy(&mut self) {
        self.link.set_busy(true, self.now, &mut Vec::new());
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.link.next_deadline()
    }

    /// Lets time pass up to the next thing that is done; says how long that took.
    pub(super) fn until_something(&mut self) -> (Duration, Vec<LinkEffect>) {
        let began = self.now;
        for _ in 0..100 {
            let due = self.link.next_deadline().expect("something is to come");
            self.now = self.now.max(due);
            let mut effects = Vec::new();
            self.link.tick(self.now, &mut effects);
            if !effects.is_empty() {
                return (self.now - began, self.effects(effects));
            }
        }
        panic!("the link wakes up and does nothing");
    }

    pub(super) fn pass(&mut self, time: Duration) -> Vec<LinkEffect> {
        let until = self.now + time;
        let mut all = Vec::new();
        while let Some(due) = self.link.next_deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.link.tick(self.now, &mut all);
        }
        self.now = until;
        self.effects(all)
    }

    fn pass_and_want(&mut self, time: Duration, names: &[&str]) -> Vec<LinkEffect> {
        self.pass(time);
        self.want(names)
    }

    pub(super) fn status(&self) -> LinkStatus {
        self.link.status(self.now)
    }

    pub(super) fn state(&self) -> LinkState {
        self.status().state
    }

    fn effects(&mut self, effects: Vec<LinkEffect>) -> Vec<LinkEffect> {
        for effect in &effects {
            if let LinkEffect::Heartbeat { number, .. } = effect {
                self.beat = *number;
            }
        }
        effects
    }
}

pub(super) fn registers(effects: &[LinkEffect]) -> Vec<u64> {
    let attempt = |effect: &LinkEffect| match effect {
        LinkEffect::Register { attempt, .. } => Some(*attempt),
        _ => None,
    };
    effects.iter().filter_map(attempt).collect()
}

pub(super) fn channels(effects: &[LinkEffect]) -> Vec<u64> {
    let epoch = |effect: &LinkEffect| match effect {
        LinkEffect::OpenChannel { epoch, .. } => Some(*epoch),
        _ => None,
    };
    effects.iter().filter_map(epoch).collect()
}

pub(super) fn beats(effects: &[LinkEffect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, LinkEffect::Heartbeat { .. })).count()
}

#[test]
fn only_a_channel_that_was_lost_is_counted_when_it_is_opened_again() {
    let mut bench = Bench::online();
    bench.want(&[]);
    bench.pass(SECOND);
    bench.registered(2);
    let effects = bench.pass_and_want(SECOND, &["a"]);
    assert_eq!((registers(&effects), channels(&bench.registered(3))), (vec![3], vec![2]));
    assert_eq!(bench.link.reconnects(), 0, "nothing was opted in meanwhile");
    bench.act(LinkInput::ChannelOpened(2));
    bench.act(LinkInput::ChannelClosed(2, passing()));
    let effects = bench.pass(10 * SECOND);
    bench.registered(registers(&effects)[0]);
    assert_eq!(bench.link.reconnects(), 1);
}

#[test]
fn the_wait_doubles_from_five_seconds_to_a_minute_with_up_to_half_of_it_on_top() {
    let mut bench = Bench::online();
    bench.act(LinkInput::ChannelClosed(1, passing()));
    for (n, least) in [5, 10, 20, 40, 60, 60, 60].into_iter().enumerate() {
        let mut waited = Duration::ZERO;
        let attempt = loop {
            let (passed, effects) = bench.until_something();
            waited += passed;
            if beats(&effects) > 0 {
                bench.beaten(Ok(()));
            }
            if let [attempt] = registers(&effects)[..] {
                break attempt;
            }
        };
        let (least, most) = (least * SECOND, least * SECOND * 3 / 2);
        assert!(
            (least..=most).contains(&waited),
            "wait {n} was {waited:?} and should be {least:?} to {most:?}"
        );
        bench.act(LinkInput::Registered(attempt, Err(passing())));
    }
}

#[test]
fn a_channel_that_proved_itself_starts_the_backoff_over_and_one_that_did_not_does_not() {
    for proved in [true, false] {
        let mut bench = Bench::online();
        bench.act(LinkInput::ChannelClosed(1, passing()));
        for attempt in 2..5 {
            while registers(&bench.until_something().1).is_empty() {}
            bench.act(LinkInput::Registered(attempt, Err(passing())));
        }
        while registers(&bench.until_something().1).is_empty() {}
        assert_eq!(channels(&bench.registered(5)), [2]);
        bench.act(LinkInput::ChannelOpened(2));
        if proved {
            bench.act(LinkInput::ChannelProved(2));
        }
        bench.pass(6 * SECOND);
        bench.act(LinkInput::ChannelClosed(2, passing()));
        let next = bench.link.status(bench.now).next_attempt.expect("it waits");
        assert_eq!(next <= 8 * SECOND, proved, "{next:?}");
    }
}

#[test]
fn retry_after_lengthens_the_wait_and_never_shortens_it() {
    for (asked, least) in [(1, 5), (30, 30), (100_000, 600)] {
        let mut bench = Bench::online();
        bench.act(LinkInput::ChannelClosed(1, CallFailure::Passing("busy".into(), Some(asked * SECOND))));
        let next = bench.link.status(bench.now).next_attempt.expect("it waits");
        assert!((least * SECOND..=least * SECOND * 3 / 2).contains(&next), "{asked}: {next:?}");
    }
}

#[test]
fn a_session_that_mcpd_forgot_is_registered_at_once_and_within_the_backoff_after_that() {
    let mut bench = Bench::online();
    bench.pass(30 * SECOND);
    let effects = bench.beaten(Err(unknown()));
    assert_eq!(
        (registers(&effects), effects.contains(&LinkEffect::CloseChannel)),
        (vec![2], true),
        "{effects:?}"
    );
    bench.registered(2);
    bench.pass(SECOND);
    let effects = bench.act(LinkInput::ChannelClosed(2, unknown()));
    assert_eq!(registers(&effects), [0; 0], "the second time running it waits: {effects:?}");
    assert_eq!(bench.state(), LinkState::Backoff);
}

#[test]
fn a_session_that_mcpd_forgot_under_a_register_call_is_registered_again_after_its_reply() {
    for heartbeat_tells in [true, false] {
        let mut bench = Bench::online();
        bench.pass(SECOND);
        assert_eq!(registers(&bench.want(&["a", "b"])), [2]);
        bench.pass(30 * SECOND);
        let effects = match heartbeat_tells {
            true => bench.beaten(Err(unknown())),
            false => bench.act(LinkInput::ChannelClosed(1, unknown())),
        };
        assert_eq!(registers(&effects), [0; 0], "one register call at a time");
        let effects = bench.registered(2);
        assert_eq!((registers(&effects), channels(&effects)), (vec![3], vec![]), "{effects:?}");
        assert_eq!(channels(&bench.registered(3)), [2]);
    }
}

#[test]
fn a_channel_that_opens_again_while_the_goodbye_is_under_way_has_its_heartbeat() {
    let mut bench = Bench::online();
    assert_eq!(registers(&bench.pass_and_want(SECOND, &[])), [2]);
    assert_eq!(channels(&bench.pass_and_want(SECOND, &["a"])), [2], "mcpd still lists it");
    bench.act(LinkInput::ChannelOpened(2));
    assert_eq!(beats(&bench.pass(30 * SECOND)), 1);
}

#[test]
fn what_is_wanted_again_while_the_goodbye_fails_waits_like_after_any_failure() {
    let mut bench = Bench::online();
    bench.pass(crate::core::link::REGISTER_SPACING);
    assert_eq!(registers(&bench.want(&[])), [2], "the goodbye");
    bench.pass(crate::core::link::REGISTER_SPACING);
    assert!(registers(&bench.want(&["a"])).is_empty(), "one call at a time");
    assert!(registers(&bench.act(LinkInput::Registered(2, Err(passing())))).is_empty());
    let (waited, effects) = bench.until_something();
    assert_eq!(registers(&effects), [3]);
    assert!(waited >= Duration::from_secs(5), "{waited:?}");
}

#[test]
fn three_channels_closed_at_once_mean_another_process_and_a_minute_of_rest() {
    let mut bench = Bench::online();
    for epoch in 1..=3 {
        bench.pass(SECOND);
        bench.act(LinkInput::ChannelClosed(epoch, passing()));
        if epoch < 3 {
            let attempt = loop {
                if let [attempt] = registers(&bench.until_something().1)[..] {
                    break attempt;
                }
            };
            bench.registered(attempt);
            bench.act(LinkInput::ChannelOpened(epoch + 1));
            bench.act(LinkInput::ChannelProved(epoch + 1));
        }
    }
    let status = bench.link.status(bench.now);
    assert_eq!((status.state, status.next_attempt), (LinkState::Refused, Some(60 * SECOND)));
    assert!(status.detail.to_string().contains("another process"), "{}", status.detail);
}

#[test]
fn a_wrong_path_is_refused_by_name_and_tried_within_the_backoff() {
    let mut bench = Bench::new(1);
    bench.act(LinkInput::Credentials(Ok(McpdChange::Same)));
    bench.want(&["a"]);
    for attempt in 1..20 {
        bench.act(LinkInput::Registered(attempt, Err(unknown())));
        let status = bench.link.status(bench.now);
        assert_eq!(status.state, LinkState::Refused);
        assert!(status.detail.to_string().contains("check-mcpd"), "{}", status.detail);
        let (waited, effects) = bench.until_something();
        assert!(waited >= 5 * SECOND && registers(&effects) == [attempt + 1], "{waited:?} {effects:?}");
    }
}

#[test]
fn when_mcpd_gives_every_name_away_after_a_reconnect_no_call_is_made_for_a_minute() {
    let mut bench = Bench::online();
    bench.act(LinkInput::ChannelClosed(1, passing()));
    while registers(&bench.until_something().1).is_empty() {}
    let effects = bench.act(LinkInput::Registered(2, Err(CallFailure::Conflict([name("a")].into()))));
    assert_eq!((effects, bench.state()), (vec![], LinkState::Refused), "an empty set is a call, too");
    let (waited, effects) = bench.until_something();
    assert_eq!((waited, registers(&effects)), (super::super::link::CONFLICT_RETRY, vec![3]));
    bench.act(LinkInput::Registered(3, Err(CallFailure::Conflict([name("a")].into()))));
    bench.pass(SECOND);
    assert_eq!(registers(&bench.want(&[])), [4], "its owner has withdrawn it");
}

#[test]
fn nothing_of_an_old_channel_or_call_touches_the_new_one() {
    let mut bench = Bench::online();
    bench.act(LinkInput::ChannelClosed(1, passing()));
    while registers(&bench.until_something().1).is_empty() {}
    assert_eq!(channels(&bench.registered(2)), [2]);
    bench.act(LinkInput::ChannelOpened(2));
    bench.act(LinkInput::ChannelProved(2));
    let late = [
        LinkInput::ChannelClosed(1, passing()),
        LinkInput::ChannelClosed(1, unknown()),
        LinkInput::ChannelOpened(1),
        LinkInput::ChannelProved(1),
        LinkInput::Registered(1, Err(unknown())),
        LinkInput::Registered(2, Ok("another session".to_owned())),
    ];
    for input in late {
        let said = format!("{input:?}");
        assert_eq!(bench.act(input), [], "{said}");
        assert_eq!((bench.state(), bench.link.session()), (LinkState::Online, Some("s")), "{said}");
    }
}

#[test]
fn what_is_withdrawn_is_not_opened_again_while_mcpd_has_not_answered() {
    let mut bench = Bench::online();
    bench.pass(30 * SECOND);
    let effects = bench.want(&[]);
    assert!(
        effects.contains(&LinkEffect::CloseChannel)
            && registers(&effects) == [2]
            && channels(&effects).is_empty(),
        "{effects:?}"
    );
    assert_eq!(bench.beaten(Ok(())), [], "nothing more is to be done");
    assert_eq!(bench.registered(2), []);
    assert_eq!(bench.link.next_deadline(), None);
}

#[test]
fn register_calls_keep_a_quarter_second_apart_and_the_newest_set_wins() {
    let mut bench = Bench::online();
    assert_eq!(bench.want(&["a", "b"]), [], "the first call was this very moment");
    assert_eq!(bench.want(&["a", "c"]), []);
    let (waited, effects) = bench.until_something();
    let [LinkEffect::Register { attempt: 2, providers, .. }] = &effects[..] else { panic!("{effects:?}") };
    let names: Vec<_> = providers.iter().map(|p| p.name.as_str()).collect();
    assert_eq!((waited, names), (super::super::link::REGISTER_SPACING, vec!["a", "c"]));
    assert_eq!(bench.registered(2), [], "the channel stays open across a change of the set");
}

#[test]
fn a_wake_beats_at_once_and_then_tries_once_a_second_for_a_minute() {
    let mut bench = Bench::online();
    bench.pass(10 * SECOND);
    let effects = bench.act(LinkInput::Woke);
    assert!(matches!(effects[..], [LinkEffect::Heartbeat { after_wake: true, .. }]), "{effects:?}");
    bench.beaten(Err(passing()));
    let woke = bench.now;
    let mut attempts = Vec::new();
    while bench.now < woke + 100 * SECOND {
        let (_, effects) = bench.until_something();
        if beats(&effects) > 0 {
            bench.beaten(Err(passing()));
        }
        if let [attempt] = registers(&effects)[..] {
            attempts.push(bench.now - woke);
            bench.act(LinkInput::Registered(attempt, Err(passing())));
        }
    }
    let eager: Vec<_> = (1..=60).map(|n| n * SECOND).collect();
    assert_eq!(attempts[..60], eager);
    assert!(attempts[61] - attempts[60] >= 5 * SECOND, "then the usual backoff: {:?}", &attempts[60..]);
}

#[test]
fn a_wake_with_a_good_network_opens_the_channel_anew_once() {
    let mut bench = Bench::online();
    bench.pass(10 * SECOND);
    bench.act(LinkInput::Woke);
    let effects = bench.beaten(Ok(()));
    assert!(
        effects[0] == LinkEffect::CloseChannel && channels(&effects) == [2] && effects.len() == 2,
        "{effects:?}"
    );
    bench.act(LinkInput::ChannelOpened(2));
    bench.act(LinkInput::ChannelProved(2));
    assert_eq!(beats(&bench.pass(30 * SECOND)), 1);
    assert_eq!(bench.beaten(Ok(())), []);
    assert_eq!(bench.state(), LinkState::Online);
}
