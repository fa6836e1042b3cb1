//! What the ends of several channels in a row say: another process has the session, or a proxy ends what is silent.

use std::time::Duration;

use crate::domain::{CallFailure, Reason, Trouble};

/// A channel that is closed sooner than this was probably taken over by another process that does not wait (the contract's number).
const QUICK_CLOSE: Duration = Duration::from_secs(5);
/// This many quick closes in a row mean that another process has the same session (the contract's number).
const QUICK_CLOSES: u32 = 3;
/// A channel that mcpd ended in order sooner than this was probably taken over by another process with our backoff (the contract's
/// number).
const EARLY_END: Duration = Duration::from_secs(30);
/// This many early ends in a row mean the same (the contract's number).
const EARLY_ENDS: u32 = 4;
/// Less silence before an end is no sign of a read timeout: nobody sets one that short.
const MIN_READ_TIMEOUT: Duration = Duration::from_secs(1);
/// By how much two read timeouts may differ: proxies keep them to a few milliseconds, and two processes that take turns do not.
const SAME_SILENCE: Duration = Duration::from_millis(150);

/// What the ends of the last channels have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Another process takes the channel over each time.
    Contested,
    /// Something between the agent and mcpd ends a channel that was silent for this long.
    ReadTimeout(Duration),
}

impl Pattern {
    /// Whether a channel of this age shows that it does not hold any more.
    pub(super) fn is_outlived_by(self, age: Duration) -> bool {
        match self {
            Self::Contested => age > EARLY_END,
            // mcpd's keep-alives put the end off, so twice the time is no accident.
            Self::ReadTimeout(silence) => age > 2 * silence,
        }
    }

    /// What it means, and what helps.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Contested => Reason::new(
                "session used by another process: the channel was taken over each time, several times running",
                "look for another agent or an old registrar with a copy of the same provider-session file",
            ),
            Self::ReadTimeout(silence) => Reason::new(
                format!(
                    "a proxy before mcpd ends the control channel after {:.0} s of silence",
                    silence.as_secs_f64()
                ),
                "set its read timeout to an hour (nginx: proxy_read_timeout, HAProxy: timeout tunnel or \
                 timeout server), or let mcpd send keep-alives more often",
            ),
        }
    }

    pub(super) fn trouble(self) -> Trouble {
        match self {
            Self::Contested => Trouble::Contested,
            Self::ReadTimeout(_) => Trouble::ReadTimeout,
        }
    }
}

/// How the last channels ended.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// Channels in a row that were closed right after they were opened.
    quick: u32,
    /// Channels in a row that mcpd ended in order and early.
    early: u32,
    /// The silence before the last end, and how many ends in a row came after the same.
    silence: Option<(Duration, u32)>,
}

impl Ends {
    /// A channel of this age ended.
    pub(super) fn note(&mut self, age: Duration, why: &CallFailure) {
        let (in_order, silent) = match why {
            CallFailure::ChannelEnded { in_order, silent, .. } => (*in_order, *silent),
            _ => (false, Duration::ZERO),
        };
        let counted = |held: bool, count: u32| if held { count + 1 } else { 0 };
        self.quick = counted(age < QUICK_CLOSE, self.quick);
        self.early = counted(in_order && age < EARLY_END, self.early);
        self.silence = (silent >= MIN_READ_TIMEOUT).then(|| match self.silence {
            Some((before, count)) if before.abs_diff(silent) <= SAME_SILENCE => (silent, count + 1),
            _ => (silent, 1),
        });
    }

    pub(super) fn pattern(&self) -> Option<Pattern> {
        match self.silence {
            // Two processes that take turns may hit the same silence twice, and hardly ever three times.
            Some((silence, count)) if count >= 3 || (count == 2 && self.early.max(self.quick) <= 2) => {
                Some(Pattern::ReadTimeout(silence))
            }
            _ => (self.quick >= QUICK_CLOSES || self.early >= EARLY_ENDS).then_some(Pattern::Contested),
        }
    }
}
