//! Server-sent events as the check reads them: unlike the agent's reader it also sees comments, which may be keep-alives.

use reqwest::Response;

/// The longest line the check takes: it makes all bodies itself, and they are short.
const MAX_LINE_BYTES: usize = 1024 * 1024;

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
    lines: Lines,
}

impl Frames {
    pub(super) fn new(response: Response) -> Self {
        Self { response, lines: Lines::default() }
    }

    /// The next frame; `None` at the stream's end. Nothing is lost when the wait is given up.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            if let Some(frame) = self.lines.frame() {
                return Ok(Some(frame));
            }
            if self.lines.bytes.len() > MAX_LINE_BYTES {
                return Err("a line of the stream does not end".into());
            }
            match self.response.chunk().await {
                Ok(Some(piece)) => self.lines.bytes.extend_from_slice(&piece),
                Ok(None) => return Ok(None),
                Err(error) => {
                    return Err(format!("the stream broke ({})", crate::http::root_cause(&error)));
                }
            }
        }
    }
}

/// What has come and is not yet a frame.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    name: String,
    data: Vec<String>,
}

impl Lines {
    fn frame(&mut self) -> Option<Frame> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(frame) = self.line(line.trim_end_matches(['\r', '\n'])) {
                return Some(frame);
            }
        }
        None
    }

    fn line(&mut self, line: &str) -> Option<Frame> {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => return self.dispatch(),
            "" => return Some(Frame::Comment),
            "event" => self.name = value.to_owned(),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Frame> {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        let name = if name.is_empty() { "message".to_owned() } else { name };
        (!data.is_empty()).then(|| Frame::Event { name, data: data.join("\n") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_comments_are_read_whatever_the_pieces() {
        let text = b": ping\n\nevent: task\r\ndata: {\r\ndata:}\r\nid: 7\r\n\r\nevent: empty\n\ndata: x\n\n";
        let mut lines = Lines::default();
        let mut frames = Vec::new();
        for byte in text {
            lines.bytes.push(*byte);
            frames.extend(lines.frame());
        }
        let event = |name: &str, data: &str| Frame::Event { name: name.into(), data: data.into() };
        assert_eq!(frames, [Frame::Comment, event("task", "{\n}"), event("message", "x")]);
    }
}
