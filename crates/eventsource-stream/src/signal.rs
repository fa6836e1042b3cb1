//! What a stream says beside its events, as events: the one way that leads through `reqwest-eventsource`.
//!
//! A signal is an event whose type no server can send: types end at a line's end, and a signal's begins with one.

use crate::parser::Event;
use crate::skipped::{Refused, TooLarge};

const COMMENT: &str = "\ncomment";
const BYTES: &str = "\nbytes";
const OVERSIZED: &str = "\noversized";
const NO_TEXT: &str = "\nno-text";

/// Something worth knowing that is no event of the server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// A comment line came, which may be a keep-alive.
    Comment,
    /// Bytes came that complete nothing yet.
    Bytes,
    /// An event over the limit came and was dropped.
    Oversized(Refused),
    /// The first bytes are none of a text: something on the way has compressed the stream, which ends here.
    NoText,
}

impl Signal {
    /// The signal that `event` is; `None` if it is the server's own event.
    pub fn of(event: &Event) -> Option<Self> {
        match event.event.as_str() {
            COMMENT => Some(Self::Comment),
            BYTES => Some(Self::Bytes),
            OVERSIZED => refused(&event.data).map(Self::Oversized),
            NO_TEXT => Some(Self::NoText),
            _ => None,
        }
    }

    pub(crate) fn into_event(self) -> Event {
        let (event, data) = match self {
            Self::Comment => (COMMENT, String::new()),
            Self::Bytes => (BYTES, String::new()),
            Self::Oversized(refused) => (OVERSIZED, written(&refused)),
            Self::NoText => (NO_TEXT, String::new()),
        };
        Event { event: event.to_owned(), data, ..Event::default() }
    }
}

/// One line each for the reason, the sizes and the type, then the beginning and the ending.
fn written(refused: &Refused) -> String {
    let (why, limit) = match refused.why {
        TooLarge::Event { limit } => ("event", limit),
        TooLarge::Id => ("id", 0),
        TooLarge::Endless { limit } => ("endless", limit),
    };
    let Refused { event, beginning, ending, bytes, .. } = refused;
    format!("{why}\n{limit}\n{bytes}\n{}\n{event}\n{beginning}{ending}", beginning.len())
}

fn refused(data: &str) -> Option<Refused> {
    let mut parts = data.splitn(6, '\n');
    let (why, limit) = (parts.next()?, parts.next()?.parse().ok()?);
    let (bytes, beginning) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let event = parts.next()?.to_owned();
    let (beginning, ending) = parts.next()?.split_at_checked(beginning)?;
    let why = match why {
        "event" => TooLarge::Event { limit },
        "id" => TooLarge::Id,
        _ => TooLarge::Endless { limit },
    };
    Some(Refused { why, event, beginning: beginning.to_owned(), ending: ending.to_owned(), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_comes_out_as_it_went_in() {
        for why in [TooLarge::Event { limit: 7 }, TooLarge::Id, TooLarge::Endless { limit: 9 }] {
            let refused = Refused {
                why,
                event: "task".to_owned(),
                beginning: "{\n\"é".to_owned(),
                ending: "\n}".to_owned(),
                bytes: 12,
            };
            let signal = Signal::Oversized(refused);
            assert_eq!(Signal::of(&signal.clone().into_event()), Some(signal));
        }
        for signal in [Signal::Comment, Signal::Bytes, Signal::NoText] {
            assert_eq!(Signal::of(&signal.clone().into_event()), Some(signal));
        }
        assert_eq!(Signal::of(&Event { event: "oversized".to_owned(), ..Event::default() }), None);
    }
}
