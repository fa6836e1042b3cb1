//! What the ends of several channels in a row say, and what a change of mcpd forgets.

use super::{
    link::{Bench, channels, registers},
    *,
};
use crate::{
    core::link::McpdChange,
    domain::{CallFailure, LinkState, Reason, Trouble},
};

fn ended(in_order: bool, silent: Duration) -> CallFailure {
    CallFailure::ChannelEnded { detail: "mcpd closed the control channel".into(), in_order, silent }
}

/// Lets the open channel live for this long and end, then waits for the next one; how long the whole took.
fn live_and_end(bench: &mut Bench, epoch: u64, life: Duration, why: CallFailure) -> Duration {
    let began = bench.now;
    bench.pass(life);
    bench.act(LinkInput::ChannelClosed(epoch, why));
    if bench.state() != LinkState::Refused {
        let attempt = loop {
            if let [attempt] = registers(&bench.until_something().1)[..] {
                break attempt;
            }
        };
        assert_eq!(channels(&bench.registered(attempt)), [epoch + 1]);
        bench.act(LinkInput::ChannelOpened(epoch + 1));
        bench.act(LinkInput::ChannelProved(epoch + 1));
    }
    bench.now - began
}

#[test]
fn four_channels_that_mcpd_ended_in_order_within_half_a_minute_are_another_processs_doing() {
    let mut bench = Bench::online();
    let mut took = Duration::ZERO;
    // Another agent with the same session waits as long as this one, so each takes the channel over from the other.
    for (epoch, life) in (1..).zip([5_300, 6_900, 7_400, 5_900]) {
        assert_eq!(bench.state(), LinkState::Online);
        let life = MS * life;
        took += live_and_end(&mut bench, epoch, life, ended(true, life));
    }
    let status = bench.status();
    assert_eq!((status.state, status.next_attempt), (LinkState::Refused, Some(60 * SECOND)));
    assert!(status.detail.to_string().contains("another process"), "{}", status.detail);
    assert!(took < 120 * SECOND, "{took:?}");
}

#[test]
fn channels_that_broke_or_lived_longer_are_no_other_processs_doing() {
    for (in_order, life) in [(false, 7), (true, 31)] {
        let mut bench = Bench::online();
        for epoch in 1..=8 {
            live_and_end(&mut bench, epoch, life * SECOND, ended(in_order, Duration::ZERO));
            assert_eq!(bench.state(), LinkState::Online);
        }
    }
}

#[test]
fn channels_that_end_after_the_same_silence_say_from_the_second_on_that_a_proxy_ends_them_and_what_to_set() {
    for (in_order, timeout) in [(true, 8), (false, 8), (false, 60), (true, 2)] {
        let mut bench = Bench::online();
        for epoch in 1..=8 {
            let jitter = MS * u32::try_from(epoch * 13 % 40).unwrap();
            live_and_end(
                &mut bench,
                epoch,
                timeout * SECOND + jitter,
                ended(in_order, timeout * SECOND + jitter),
            );
            let status = bench.status();
            assert_eq!(status.state, LinkState::Online);
            let says = status.detail.to_string().contains("read timeout")
                && status.detail.to_string().contains("proxy_read_timeout");
            assert_eq!(says, epoch >= 2, "after {epoch}: {}", status.detail);
        }
        bench.pass(3 * timeout * SECOND);
        assert_eq!(bench.status().detail.to_string(), "", "a channel has outlived it");
    }
}

#[test]
fn at_another_mcpd_neither_conflicts_nor_waits_nor_what_channels_did_count() {
    let refused = CallFailure::Unauthorized { detail: "401".into(), changed: false };
    let conflict = CallFailure::Conflict([name("a")].into());
    let busy = CallFailure::Passing("busy".into(), Some(600 * SECOND));
    for why in [refused, conflict, busy] {
        let mut bench = Bench::online();
        bench.act(LinkInput::ChannelClosed(1, ended(true, Duration::ZERO)));
        let (_, effects) = bench.until_something();
        bench.act(LinkInput::Registered(registers(&effects)[0], Err(why.clone())));
        bench.pass(SECOND);
        let effects = bench.act(LinkInput::Credentials(Ok(McpdChange::Other(Some("kept".to_owned())))));
        let [LinkEffect::SessionLeft(left), LinkEffect::Register { session, providers, .. }] = &effects[..]
        else {
            panic!("{why}: {effects:?}")
        };
        let withdrawn = left.as_deref();
        assert_eq!((withdrawn, session.as_deref(), providers.len()), (Some("s"), Some("kept"), 1), "{why}");
        assert_eq!(bench.state(), LinkState::Connecting);
    }
}

#[test]
fn a_channel_taken_over_at_the_former_mcpd_says_nothing_of_the_new_one() {
    let mut bench = Bench::online();
    for epoch in 1..=3 {
        live_and_end(
            &mut bench,
            epoch,
            MS * (5_000 + 700 * u32::try_from(epoch).unwrap()),
            ended(true, SECOND),
        );
    }
    bench.pass(SECOND);
    let attempts = registers(&bench.act(LinkInput::Credentials(Ok(McpdChange::Other(None)))));
    assert_eq!(channels(&bench.registered(attempts[0])), [5]);
    bench.act(LinkInput::ChannelOpened(5));
    bench.act(LinkInput::ChannelProved(5));
    live_and_end(&mut bench, 5, 6 * SECOND, ended(true, SECOND));
    assert_eq!(bench.state(), LinkState::Online);
}

#[test]
fn an_open_channel_without_a_byte_is_not_online_and_says_after_twenty_seconds_what_to_set() {
    let mut bench = Bench::opened();
    bench.pass(20 * SECOND - MS);
    assert_eq!((bench.state(), bench.status().trouble), (LinkState::Connecting, None));
    bench.pass(MS);
    let status = bench.status();
    assert_eq!((status.state, status.trouble), (LinkState::Connecting, Some(Trouble::HeldBack)));
    assert!(status.detail.to_string().contains("proxy_buffering off"), "{}", status.detail);
    bench.pass(60 * SECOND);
    assert_eq!(bench.state(), LinkState::Connecting, "being open for long proves nothing of that");
    bench.act(LinkInput::ChannelProved(1));
    assert_eq!((bench.state(), bench.status().detail), (LinkState::Online, Reason::default()));
}

#[test]
fn heartbeats_that_fail_for_a_minute_are_in_the_status_until_one_gets_through() {
    let mut bench = Bench::online();
    for failed in 1..=3 {
        bench.pass(30 * SECOND);
        bench.beaten(Err(CallFailure::Passing("no route".into(), None)));
        let status = bench.status();
        let says = status.detail.to_string().contains("heartbeats have failed")
            && status.detail.to_string().contains("no route");
        assert_eq!((status.state, says), (LinkState::Online, failed == 3), "{failed}: {}", status.detail);
    }
    bench.pass(30 * SECOND);
    bench.beaten(Ok(()));
    assert_eq!(bench.status().detail.to_string(), "");
}

#[test]
fn results_that_do_not_get_through_are_in_the_status_until_they_do_or_mcpd_is_another() {
    for another in [false, true] {
        let mut bench = Bench::online();
        bench.act(LinkInput::Results(Some((Trouble::Results, "results do not get through".into()))));
        let status = bench.status();
        assert_eq!(status.state, LinkState::Online);
        assert!(status.detail.to_string().contains("results do not get through"), "{}", status.detail);
        bench.act(match another {
            true => LinkInput::Credentials(Ok(McpdChange::Other(None))),
            false => LinkInput::Results(None),
        });
        assert_eq!(bench.status().detail.to_string(), "");
    }
}
