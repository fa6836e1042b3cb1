//! The link when it cannot know what mcpd has done, and right after a wake.

use super::{
    link::{Bench, passing, registers},
    *,
};
use crate::domain::{CallFailure, LinkState};

#[test]
fn a_set_is_registered_again_after_a_failed_call_for_another_one_may_have_arrived() {
    let mut bench = Bench::online();
    bench.pass(SECOND);
    assert_eq!(registers(&bench.want(&["a", "b"])), [2]);
    assert_eq!(bench.act(LinkInput::Registered(2, Err(passing()))), []);
    assert_eq!(bench.want(&["a"]), [], "the backoff");
    assert_eq!(registers(&bench.pass(10 * SECOND)), [3], "mcpd may list b");
    assert_eq!(bench.registered(3), [], "the channel has stayed open");
    assert_eq!(bench.state(), LinkState::Online);
}

#[test]
fn a_set_is_registered_again_after_a_sleep_took_the_answer_for_another_one() {
    let mut bench = Bench::online();
    bench.pass(SECOND);
    assert_eq!(registers(&bench.want(&["a", "b"])), [2]);
    bench.pass(SECOND);
    assert_eq!(bench.want(&["a"]), [], "one call at a time");
    assert_eq!(registers(&bench.act(LinkInput::Woke)), [3], "mcpd may list b");
}

#[test]
fn retry_after_is_heeded_right_after_a_wake_too() {
    let mut bench = Bench::online();
    bench.pass(10 * SECOND);
    bench.act(LinkInput::Woke);
    let busy = CallFailure::Passing("too many".into(), Some(20 * SECOND));
    bench.act(LinkInput::ChannelClosed(1, busy));
    assert!(registers(&bench.pass(20 * SECOND - MS)).is_empty());
    assert_eq!(registers(&bench.pass(MS)), [2]);
}
