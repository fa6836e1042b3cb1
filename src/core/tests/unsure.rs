//! The link where it cannot know what mcpd has done, and right after a wake.

use super::{
    link::{Bench, passing, registers},
    *,
};
use crate::domain::{CallFailure, LinkState};

#[test]
fn retry_after_is_heeded_right_after_a_wake_too() {
    let mut bench = Bench::online();
    bench.pass(10 * SECOND);
    bench.act(LinkInput::Woke);
    let busy = CallFailure::Passing("too many".to_owned(), Some(20 * SECOND));
    bench.act(LinkInput::ChannelClosed(1, busy));
    assert!(registers(&bench.pass(20 * SECOND - MS)).is_empty());
    assert_eq!(registers(&bench.pass(MS)), [2]);
}
