//! The control channel: whether it is open, and what its ends say.

use std::time::{Duration, Instant};

/// How long a channel must be open to have proved itself even without a byte (the contract's number).
const PROVED_AFTER: Duration = Duration::from_secs(30);
/// A channel that is closed sooner than this was probably taken over by another process (the contract's number).
const QUICK_CLOSE: Duration = Duration::from_secs(5);
/// This many quick closes in a row mean that another process has the same session (the contract's number).
const QUICK_CLOSES: u32 = 3;

#[derive(Debug, PartialEq, Eq)]
enum State {
    Closed,
    Opening,
    Open { since: Instant, proved: bool },
}

/// The control channel.
#[derive(Debug)]
pub(super) struct ControlChannel {
    state: State,
    /// The channel that was opened last; what comes from any other is ignored.
    epoch: u64,
    /// How many channels in a row were closed right after they were opened.
    quick_closes: u32,
    /// It is from before a sleep, and may be dead without anybody having noticed.
    slept_through: bool,
}

impl ControlChannel {
    pub(super) fn new() -> Self {
        Self { state: State::Closed, epoch: 0, quick_closes: 0, slept_through: false }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// How often a channel was opened again.
    pub(super) fn reopened(&self) -> u64 {
        self.epoch.saturating_sub(1)
    }

    /// Whether it is from before a sleep.
    pub(super) fn has_slept(&self) -> bool {
        self.slept_through
    }

    /// Whether another process seems to have the session: it has taken the last channels over.
    pub(super) fn is_contested(&self) -> bool {
        self.quick_closes >= QUICK_CLOSES
    }

    /// A channel is being opened; returns its epoch.
    pub(super) fn open(&mut self) -> u64 {
        self.epoch += 1;
        self.state = State::Opening;
        self.epoch
    }

    /// The channel of this epoch is open; `false` if it is not awaited.
    pub(super) fn opened(&mut self, epoch: u64, now: Instant) -> bool {
        let awaited = epoch == self.epoch && self.state == State::Opening;
        if awaited {
            self.state = State::Open { since: now, proved: false };
        }
        awaited
    }

    /// The channel of this epoch has proved itself; `false` if it is not open.
    pub(super) fn prove(&mut self, epoch: u64) -> bool {
        match &mut self.state {
            State::Open { proved, .. } if epoch == self.epoch => {
                *proved = true;
                true
            }
            _ => false,
        }
    }

    /// The channel of this epoch ended, or could not be opened; `false` if that is not the current one.
    pub(super) fn ended(&mut self, epoch: u64, now: Instant) -> bool {
        if epoch != self.epoch || self.is_closed() {
            return false;
        }
        if let State::Open { since, .. } = self.state {
            self.quick_closes = if now < since + QUICK_CLOSE { self.quick_closes + 1 } else { 0 };
        }
        self.state = State::Closed;
        self.slept_through = false;
        true
    }

    /// The agent closes it; `false` if it was closed.
    pub(super) fn close(&mut self) -> bool {
        self.slept_through = false;
        std::mem::replace(&mut self.state, State::Closed) != State::Closed
    }

    pub(super) fn woke(&mut self) {
        self.slept_through = !self.is_closed();
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Open { since, proved: false } => Some(since + PROVED_AFTER),
            _ => None,
        }
    }

    /// `true` if the channel proves itself at `now`, by being open for long enough.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        self.next_deadline().is_some_and(|at| at <= now) && self.prove(self.epoch)
    }
}
