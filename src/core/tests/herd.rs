//! A thousand agents whose mcpd restarts.

use super::{
    link::{Bench, beats, passing, registers},
    *,
};
use crate::core::link::McpdChange;

/// A thousand agents whose mcpd goes away for `down`: the moments of all register calls that reach it when it is back.
fn herd(down: Duration) -> Vec<Duration> {
    let began = Instant::now();
    let mut calls = Vec::new();
    for agent in 0..1_000 {
        let mut bench = Bench::new(agent);
        bench.act(LinkInput::Credentials(Ok(McpdChange::Same)));
        bench.want(&["a"]);
        bench.registered(1);
        bench.act(LinkInput::ChannelOpened(1));
        bench.act(LinkInput::ChannelProved(1));
        bench.now = began;
        bench.act(LinkInput::ChannelClosed(1, passing()));
        loop {
            let (_, effects) = bench.until_something();
            if beats(&effects) > 0 {
                bench.beaten(Err(passing()));
            }
            let Some(attempt) = registers(&effects).first().copied() else { continue };
            if bench.now - began >= down {
                calls.push(bench.now - began);
                break;
            }
            bench.act(LinkInput::Registered(attempt, Err(passing())));
        }
    }
    calls.sort();
    calls
}

/// The most of them within any one second, and how many a second on average from the first to the last.
fn peak_and_mean(calls: &[Duration]) -> (f64, f64) {
    let within = |from: &Duration| calls.iter().filter(|at| (*from..*from + SECOND).contains(*at)).count();
    let peak = calls.iter().map(within).max().unwrap_or_default();
    let window = calls[calls.len() - 1] - calls[0];
    (peak as f64, calls.len() as f64 / window.as_secs_f64())
}

#[test]
fn a_thousand_agents_whose_mcpd_restarts_come_back_at_most_three_times_as_fast_as_on_average() {
    for down in [0, 1, 3, 5] {
        let calls = herd(down * SECOND);
        let (peak, mean) = peak_and_mean(&calls);
        println!("mcpd down {down} s: back from {:.1?} on, mean {mean:.0}/s, peak {peak}/s", calls[0]);
        assert!(peak <= 3.0 * mean, "down for {down} s: {peak} a second, {mean:.0} on average");
    }
}

/// An mcpd that comes back in the middle of a wave sees the rest of it, and the others one wave later, so the average is no measure.
#[test]
fn no_outage_makes_a_thousand_agents_come_faster_than_a_restart_does() {
    let (restart, _) = peak_and_mean(&herd(Duration::ZERO));
    for down in [6, 8, 15, 30, 60, 120, 300] {
        let calls = herd(down * SECOND);
        let (peak, mean) = peak_and_mean(&calls);
        println!("mcpd down {down:>3} s: back from {:.1?} on, mean {mean:.0}/s, peak {peak}/s", calls[0]);
        assert!(peak <= restart, "down for {down} s: {peak} a second");
    }
}
