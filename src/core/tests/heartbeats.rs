//! Heartbeats: when they come, and which answers count.

use super::{
    link::{Bench, beats, channels, passing, registers, unknown},
    *,
};
use crate::{
    core::link::McpdChange,
    domain::{CallFailure, LinkState},
};

#[test]
fn heartbeats_go_on_while_the_channel_is_down() {
    let mut bench = Bench::online();
    bench.act(LinkInput::ChannelClosed(1, passing()));
    let mut seen = 0;
    for _ in 0..10 {
        let effects = bench.pass(30 * SECOND);
        seen += beats(&effects);
        if beats(&effects) > 0 {
            bench.beaten(Err(passing()));
        }
        if let Some(attempt) = registers(&effects).last() {
            bench.act(LinkInput::Registered(*attempt, Err(passing())));
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn retry_after_puts_the_next_heartbeat_off_and_never_brings_it_forward() {
    for (asked, wait) in [(50, 50), (5, 30), (3_600, 600)] {
        let mut bench = Bench::online();
        assert_eq!(beats(&bench.pass(30 * SECOND)), 1);
        let busy = CallFailure::Passing("too many".into(), Some(asked * SECOND));
        assert_eq!(bench.beaten(Err(busy)), []);
        assert_eq!(beats(&bench.pass(wait * SECOND - Duration::from_millis(1))), 0, "asked for {asked} s");
        assert_eq!(beats(&bench.pass(Duration::from_millis(1))), 1, "asked for {asked} s");
    }
}

#[test]
fn the_answer_to_a_heartbeat_at_another_mcpd_says_nothing_of_this_one() {
    let mut bench = Bench::online();
    assert_eq!(beats(&bench.pass(30 * SECOND)), 1);
    assert_eq!(registers(&bench.act(LinkInput::Credentials(Ok(McpdChange::Other(None))))), [2]);
    assert_eq!(channels(&bench.registered(2)), [2]);
    bench.act(LinkInput::ChannelOpened(2));
    bench.act(LinkInput::ChannelProved(2));
    assert_eq!(bench.beaten(Err(unknown())), []);
    assert_eq!(bench.state(), LinkState::Online);
    assert_eq!(beats(&bench.pass(30 * SECOND)), 1, "the new one hears from us");
}

#[test]
fn the_answer_to_a_heartbeat_from_before_the_session_was_registered_again_says_nothing_of_it() {
    let mut bench = Bench::online();
    assert_eq!(beats(&bench.pass(30 * SECOND)), 1);
    assert_eq!(registers(&bench.act(LinkInput::ChannelClosed(1, unknown()))), [2]);
    assert_eq!(channels(&bench.registered(2)), [2]);
    bench.act(LinkInput::ChannelOpened(2));
    bench.act(LinkInput::ChannelProved(2));
    assert_eq!(bench.beaten(Err(unknown())), [], "mcpd said so before it was asked to register");
    assert_eq!((bench.state(), beats(&bench.pass(30 * SECOND))), (LinkState::Online, 1));
}

/// Found by fuzzing: the agent spun.
#[test]
fn no_heartbeat_is_due_for_ever_where_there_is_no_session() {
    let mut bench = Bench::online();
    bench.busy();
    bench.want(&[]);
    assert_eq!(beats(&bench.pass(30 * SECOND)), 1, "what is under way keeps the session");
    bench.act(LinkInput::Credentials(Ok(McpdChange::Other(None))));
    let changed = CallFailure::Unauthorized { detail: "an old token".into(), changed: true };
    assert_eq!(bench.beaten(Err(changed)), []);
    assert!(bench.next_deadline().is_none_or(|due| due > bench.now), "{:?}", bench.next_deadline());
}
