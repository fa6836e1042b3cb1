//! Server-sent events as the check reads them: unlike the agent's reader it tells each comment, which may be a keep-alive.

use reqwest::Response;

use crate::sse::{Event, Item, Parser};

/// The largest event the check takes, in bytes: it makes all bodies itself, and they are short.
const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// One thing that came down a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// An event; without a name it is a "message".
    Event {
        /// Its name.
        name: String,
        /// Its data, lines joined.
        data: String,
    },
    /// A comment line.
    Comment,
}

/// A stream being read.
#[derive(Debug)]
pub(super) struct Frames {
    response: Response,
    parser: Parser,
}

impl Frames {
    pub(super) fn new(response: Response) -> Self {
        Self { response, parser: Parser::new(MAX_EVENT_BYTES) }
    }

    /// The next frame; `None` at the stream's end. Nothing is lost when the wait is given up.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            match self.parser.next_item().map_err(|why| why.to_string())? {
                Some(Item::Event(Event { event: name, data, .. })) => {
                    return Ok(Some(Frame::Event { name, data }));
                }
                Some(Item::Comment) => return Ok(Some(Frame::Comment)),
                Some(Item::Field { .. }) => continue,
                None => {}
            }
            match self.response.chunk().await {
                Ok(Some(piece)) => self.parser.push(&piece),
                Ok(None) => return Ok(None),
                Err(error) => {
                    return Err(format!("the stream broke ({})", crate::http::root_cause(&error)));
                }
            }
        }
    }
}
