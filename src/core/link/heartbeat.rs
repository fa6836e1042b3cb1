//! The heartbeat: when the next one comes, and which reply counts.

use std::time::{Duration, Instant};

use crate::domain::Reason;

/// Heartbeats that have failed for this long are no passing trouble: mcpd drops the LLMs of a session after 90 s.
const TROUBLE_AFTER: Duration = Duration::from_secs(60);

/// The heartbeat of the session in mcpd.
#[derive(Debug)]
pub(super) struct Heartbeat {
    interval: Duration,
    /// When the next one is due.
    at: Option<Instant>,
    /// The number of the last one.
    number: u64,
    /// The number of the one whose reply is awaited.
    in_flight: Option<u64>,
    /// Why mcpd refused the last one, if it did: the channel can stay open long after a token has run out.
    refused: Option<Reason>,
    /// Since when every one has failed, and why the last one did.
    failing: Option<(Instant, Reason)>,
}

impl Heartbeat {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, at: None, number: 0, in_flight: None, refused: None, failing: None }
    }

    /// Why mcpd refused the last one, if it did.
    pub(super) fn refusal(&self) -> Option<&Reason> {
        self.refused.as_ref()
    }

    /// Why they fail, if they have done so for a minute.
    pub(super) fn trouble(&self, now: Instant) -> Option<&Reason> {
        let (since, why) = self.failing.as_ref()?;
        (now.duration_since(*since) >= TROUBLE_AFTER).then_some(why)
    }

    /// mcpd took the last one.
    pub(super) fn succeeded(&mut self) {
        self.failing = None;
    }

    /// The last one did not get through.
    pub(super) fn failed(&mut self, why: Reason, now: Instant) {
        let since = self.failing.as_ref().map_or(now, |(since, _)| *since);
        self.failing = Some((since, why));
    }

    /// When the next one is due, whether or not the last one is answered by then.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.at
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.at.filter(|_| self.in_flight.is_none())
    }

    /// There is a session to keep alive.
    pub(super) fn start(&mut self, now: Instant) {
        self.at.get_or_insert(now + self.interval);
    }

    /// There is none. A time that stays in the past would make the agent spin.
    pub(super) fn stop(&mut self) {
        self.at = None;
        self.failing = None;
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_deadline().is_some_and(|at| at <= now)
    }

    /// One goes out; returns its number.
    pub(super) fn beat(&mut self, now: Instant) -> u64 {
        self.number += 1;
        self.in_flight = Some(self.number);
        self.at = Some(now + self.interval);
        self.number
    }

    /// A reply came; `true` if it is the one that is awaited.
    pub(super) fn take(&mut self, number: u64) -> bool {
        let awaited = self.in_flight.take_if(|current| *current == number).is_some();
        if awaited {
            self.refused = None;
        }
        awaited
    }

    /// mcpd refused the last one.
    pub(super) fn refuse(&mut self, why: Reason) {
        self.refused = Some(why);
    }

    /// What mcpd said of the last one counts no more.
    pub(super) fn forget_refusal(&mut self) {
        self.refused = None;
    }

    /// The next one comes at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.at = Some(now);
    }

    /// The next one comes no earlier than then.
    pub(super) fn put_off(&mut self, earliest: Instant) {
        self.at = self.at.map(|at| at.max(earliest));
    }

    /// The session has ended: a reply that is still to come would be about that session.
    pub(super) fn ignore_reply(&mut self) {
        self.in_flight = None;
    }

    /// The machine slept and woke: mcpd has to hear at once that the session lives.
    pub(super) fn woke(&mut self, now: Instant) {
        if self.at.is_some() {
            self.at = Some(now);
            self.in_flight = None;
        }
    }
}
