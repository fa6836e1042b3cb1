//! The control channel: whether it is open, and what its ends say.

use std::time::{Duration, Instant};

use super::pattern::Ends;
use crate::domain::CallFailure;

pub(super) use super::pattern::Pattern;

/// How long a channel must be open to have proved itself even without a byte (the contract's number).
const PROVED_AFTER: Duration = Duration::from_secs(30);
/// How long an open channel may be without a byte before the status says that it is held back: mcpd greets at once, and sends a
/// keep-alive every 15 s.
const FIRST_BYTE_AFTER: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq)]
enum State {
    Closed,
    Opening,
    Open { since: Instant, proved: bool, first_byte: FirstByte },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstByte {
    Awaited,
    /// It should have come by now.
    Late,
    Came,
}

/// The control channel.
#[derive(Debug)]
pub(super) struct ControlChannel {
    state: State,
    /// The channel that was opened last; what comes from any other is ignored.
    epoch: u64,
    /// How often one was opened in the place of one that was lost.
    reopened: u64,
    /// The last one ended, or could not be opened, while it was wanted.
    lost: bool,
    /// How the last channels ended.
    ends: Ends,
    /// It is from before a sleep, and may be dead without anybody having noticed.
    slept_through: bool,
}

impl ControlChannel {
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            epoch: 0,
            reopened: 0,
            lost: false,
            ends: Ends::default(),
            slept_through: false,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// How often a channel was opened in the place of one that was lost.
    pub(super) fn reopened(&self) -> u64 {
        self.reopened
    }

    /// No channel is wanted for now: the next one takes no other's place.
    pub(super) fn rest(&mut self) {
        self.lost = false;
    }

    /// Whether it is from before a sleep.
    pub(super) fn has_slept(&self) -> bool {
        self.slept_through
    }

    /// What the ends of the last channels have in common, if anything.
    pub(super) fn pattern(&self) -> Option<Pattern> {
        self.ends.pattern()
    }

    /// The same, as long as an open channel has not outlived it.
    pub(super) fn open_pattern(&self, now: Instant) -> Option<Pattern> {
        let State::Open { since, .. } = self.state else { return None };
        self.pattern().filter(|pattern| !pattern.is_outlived_by(now.duration_since(since)))
    }

    /// Nothing is known of the channels of another mcpd.
    pub(super) fn forget(&mut self) {
        self.ends = Ends::default();
        self.lost = false;
    }

    /// A channel is being opened; returns its epoch, and whether it takes the place of a lost one.
    pub(super) fn open(&mut self) -> (u64, bool) {
        let again = std::mem::take(&mut self.lost);
        self.reopened += u64::from(again);
        self.epoch += 1;
        self.state = State::Opening;
        (self.epoch, again)
    }

    /// The channel of this epoch is open; `false` if it is not awaited.
    pub(super) fn opened(&mut self, epoch: u64, now: Instant) -> bool {
        let awaited = epoch == self.epoch && self.state == State::Opening;
        if awaited {
            self.state = State::Open { since: now, proved: false, first_byte: FirstByte::Awaited };
        }
        awaited
    }

    /// The first byte of the channel of this epoch came, so it has proved itself; `false` if it is not open.
    pub(super) fn prove(&mut self, epoch: u64) -> bool {
        match &mut self.state {
            State::Open { proved, first_byte, .. } if epoch == self.epoch => {
                (*proved, *first_byte) = (true, FirstByte::Came);
                true
            }
            _ => false,
        }
    }

    /// Whether the open channel has shown its first byte: until then something on the way may hold it back.
    pub(super) fn is_through(&self) -> bool {
        matches!(self.state, State::Open { first_byte: FirstByte::Came, .. })
    }

    /// Whether the open channel has shown nothing for so long that something on the way seems to hold it back.
    pub(super) fn is_held_back(&self) -> bool {
        matches!(self.state, State::Open { first_byte: FirstByte::Late, .. })
    }

    /// The channel of this epoch ended, or could not be opened; `false` if that is not the current one.
    pub(super) fn ended(&mut self, epoch: u64, why: &CallFailure, now: Instant) -> bool {
        if epoch != self.epoch || self.is_closed() {
            return false;
        }
        if let State::Open { since, .. } = self.state {
            self.ends.note(now.duration_since(since), why);
        }
        self.close()
    }

    /// The agent closes it; `false` if it was closed.
    pub(super) fn close(&mut self) -> bool {
        self.slept_through = false;
        let was_open = std::mem::replace(&mut self.state, State::Closed) != State::Closed;
        self.lost |= was_open;
        was_open
    }

    pub(super) fn woke(&mut self) {
        self.slept_through = !self.is_closed();
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let State::Open { since, proved, first_byte } = self.state else { return None };
        let late = (first_byte == FirstByte::Awaited).then(|| since + FIRST_BYTE_AFTER);
        late.or((!proved).then(|| since + PROVED_AFTER))
    }

    /// `true` if the channel proves itself at `now`, by being open for long enough.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        let State::Open { since, proved, first_byte } = &mut self.state else { return false };
        if *first_byte == FirstByte::Awaited && *since + FIRST_BYTE_AFTER <= now {
            *first_byte = FirstByte::Late;
        }
        *since + PROVED_AFTER <= now && !std::mem::replace(proved, true)
    }
}
