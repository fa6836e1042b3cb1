//! The faults that wait for something to hit.

use std::time::Duration;

use tokio::time::Instant;

use crate::faults::{Aim, Answer, Fault, Refused};
use crate::wire::CallKind;

/// What a fault does to one call.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) cut: bool,
    pub(crate) delay: Option<Duration>,
    pub(crate) answer: Option<Answer>,
    pub(crate) lose_reply: bool,
    /// The rest is for uploads.
    pub(crate) breaks: Option<Break>,
    pub(crate) hold: bool,
    pub(crate) lose_line: Option<u64>,
}

/// Where an upload's connection is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Break {
    pub(crate) bytes: Option<u64>,
    pub(crate) lines: Option<u64>,
    pub(crate) applied: bool,
}

/// The faults that wait for something to hit.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    rules: Vec<Rule>,
    close_channels: Countdown,
    no_session_id: Countdown,
    twice: Countdown,
    overtake: Countdown,
    lose_received: Countdown,
    refusing: Vec<(Refused, Option<Instant>)>,
}

/// An effect that waits for its calls.
#[derive(Debug)]
struct Rule {
    call: Option<CallKind>,
    skip: u32,
    left: Countdown,
    effect: Effect,
}

impl Rule {
    fn new(aim: Aim, effect: Effect) -> Self {
        Self { call: aim.call, skip: aim.skip, left: Countdown::from_times(aim.times), effect }
    }

    /// One for uploads alone.
    fn for_uploads(skip: u32, times: u32, effect: Effect) -> Self {
        Self::new(Aim { call: Some(CallKind::ResultStream), skip, times }, effect)
    }

    /// Whether it hits this call; counts it if so.
    fn hits(&mut self, call: CallKind) -> bool {
        if self.call.is_some_and(|aimed| aimed != call) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.left.take()
    }
}

#[derive(Debug)]
enum Effect {
    Delay(Duration),
    Answer(Answer),
    LoseReply,
    Break(Break),
    Hold,
    LoseLine(u64),
}

/// How often something still happens.
#[derive(Debug, Default, Clone, Copy)]
enum Countdown {
    #[default]
    Never,
    Left(u32),
    Always,
}

impl Countdown {
    fn from_times(times: u32) -> Self {
        if times == 0 { Self::Always } else { Self::Left(times) }
    }

    fn is_spent(self) -> bool {
        matches!(self, Self::Never | Self::Left(0))
    }

    /// Whether it happens now.
    fn take(&mut self) -> bool {
        match *self {
            Self::Never | Self::Left(0) => false,
            Self::Always => true,
            Self::Left(left) => {
                *self = Self::Left(left - 1);
                true
            }
        }
    }
}

impl Armed {
    /// Arms a fault that waits; gives one back that acts at once.
    pub(crate) fn arm(&mut self, now: Instant, fault: Fault) -> Option<Fault> {
        match fault {
            Fault::Delay { aim, by } => self.rules.push(Rule::new(aim, Effect::Delay(by))),
            Fault::Answer { aim, answer } => self.rules.push(Rule::new(aim, Effect::Answer(answer))),
            Fault::LoseReply { aim } => self.rules.push(Rule::new(aim, Effect::LoseReply)),
            Fault::BreakUpload { bytes, lines, applied, skip, times } => {
                let effect = Effect::Break(Break { bytes, lines, applied });
                self.rules.push(Rule::for_uploads(skip, times, effect));
            }
            Fault::HoldUpload { times } => self.rules.push(Rule::for_uploads(0, times, Effect::Hold)),
            Fault::LoseLine { line, times } => {
                self.rules.push(Rule::for_uploads(0, times, Effect::LoseLine(line)));
            }
            Fault::LoseReceived { times } => self.lose_received = Countdown::from_times(times),
            Fault::CloseChannels { times } => self.close_channels = Countdown::from_times(times),
            Fault::NoSessionId { times } => self.no_session_id = Countdown::from_times(times),
            Fault::Twice { times } => self.twice = Countdown::from_times(times),
            Fault::Overtake { times } => self.overtake = Countdown::from_times(times),
            Fault::Refuse { what, lasting } => {
                self.refusing.push((what, lasting.and_then(|lasting| now.checked_add(lasting))));
            }
            Fault::Clear => {
                *self = Self::default();
                return Some(Fault::Clear);
            }
            at_once => return Some(at_once),
        }
        None
    }

    /// What to do to a call.
    pub(crate) fn orders(&mut self, now: Instant, call: CallKind) -> Orders {
        let mut orders = Orders { cut: self.refuses(now, Refused::Calls), ..Orders::default() };
        if orders.cut {
            return orders;
        }
        for rule in &mut self.rules {
            if orders.answer.is_some() || !rule.hits(call) {
                continue;
            }
            match &rule.effect {
                Effect::Delay(by) => orders.delay = Some(orders.delay.unwrap_or_default() + *by),
                Effect::Answer(answer) => orders.answer = Some(answer.clone()),
                Effect::LoseReply => orders.lose_reply = true,
                Effect::Break(breaks) => orders.breaks = Some(*breaks),
                Effect::Hold => orders.hold = true,
                Effect::LoseLine(line) => orders.lose_line = Some(*line),
            }
        }
        self.rules.retain(|rule| !rule.left.is_spent());
        orders
    }

    /// Whether connections or calls are refused now.
    pub(crate) fn refuses(&mut self, now: Instant, what: Refused) -> bool {
        self.refusing.retain(|(_, until)| until.is_none_or(|until| until > now));
        self.refusing.iter().any(|(refused, _)| *refused == what)
    }

    pub(crate) fn closes_channel(&mut self) -> bool {
        self.close_channels.take()
    }

    pub(crate) fn hides_session_id(&mut self) -> bool {
        self.no_session_id.take()
    }

    pub(crate) fn is_overtaken(&mut self) -> bool {
        self.overtake.take()
    }

    pub(crate) fn loses_received(&mut self) -> bool {
        self.lose_received.take()
    }

    pub(crate) fn delivers_twice(&mut self) -> bool {
        self.twice.take()
    }
}
