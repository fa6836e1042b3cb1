//! The answer on its way back: a server's events become chunks, byte for byte.

use bytes::Bytes;
use tokio::time::Instant;

use super::failures::Origin;
use crate::{
    domain::{Failure, Outcome, Usage},
    json::{
        scan::{self, Span, check_object},
        text::quote_into,
    },
    openai::{Choices, ChunkReader},
    provide::task::{Chunks, Finished},
    sse::{Event, Item, Parser},
};

use std::time::Duration;

/// Longest event of an answer, in bytes. A chunk is some hundred bytes; a picture in one may take megabytes.
const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;
/// How often a server's comments are passed on as signs of life: far below the agent's token deadlines.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// The names of an event stream's fields, a comment's being empty; llama.cpp has written errors into a field of their own.
const FIELDS: [&[u8]; 6] = [b":", b"data:", b"event:", b"id:", b"retry:", b"error:"];

/// How an answer is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::provide) enum Form {
    /// As events.
    Events,
    /// As one JSON object.
    Whole,
}

/// How the answer to a request for a stream is to be read, going by how it begins: some servers label good streams as JSON or HTML, others
/// label one JSON object, mostly an error, as a stream. `None` if that cannot be told yet; `label` decides where the beginning does not.
pub(in crate::provide) fn form_of(beginning: &[u8], label: Form) -> Option<Form> {
    let begins = beginning.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(beginning).trim_ascii_start();
    match begins {
        [] => None,
        [b'{' | b'[' | b'<', ..] => Some(Form::Whole),
        _ if FIELDS.iter().any(|field| begins.starts_with(field)) => Some(Form::Events),
        _ if FIELDS.iter().any(|field| field.starts_with(begins)) => None,
        _ => Some(label),
    }
}

/// One streamed answer.
pub(in crate::provide) struct Relay<'a> {
    origin: &'a Origin,
    chunks: &'a Chunks,
    /// What stands as the model in the caller's answer, where the owner says so.
    model: Option<&'a str>,
    parser: Parser,
    reader: ChunkReader,
    /// The host asked for the usage chunk, not the caller, who therefore does not get it.
    drop_usage: bool,
    begun: Choices,
    ended: Choices,
    usage: Option<Usage>,
    shown_alive: Option<Instant>,
}

impl<'a> Relay<'a> {
    pub(in crate::provide) fn new(
        origin: &'a Origin,
        chunks: &'a Chunks,
        model: Option<&'a str>,
        drop_usage: bool,
    ) -> Self {
        Self {
            origin,
            chunks,
            model,
            parser: Parser::new(MAX_EVENT_BYTES),
            reader: ChunkReader::default(),
            drop_usage,
            begun: Choices::default(),
            ended: Choices::default(),
            usage: None,
            shown_alive: None,
        }
    }

    /// What the server counted.
    pub(in crate::provide) fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Whether each choice that began has ended: the end of input is then orderly, and what follows does not matter.
    pub(in crate::provide) fn is_complete(&self) -> bool {
        !self.ended.is_empty() && self.ended.contains(self.begun)
    }

    /// Passes on what `piece` completes. An error is the stream's end, whether good or bad.
    pub(in crate::provide) async fn take(&mut self, piece: &[u8]) -> Result<(), Finished> {
        self.parser.push(piece);
        loop {
            match self.parser.next_item() {
                Ok(Some(item)) => self.item(item).await?,
                Ok(None) => return Ok(()),
                Err(_) => {
                    let what = format_args!("an event of more than {MAX_EVENT_BYTES} bytes");
                    return Err(self.origin.bad_output(what).into());
                }
            }
        }
    }

    /// The end of an answer whose body ended in order: a last line counts without its end if it is whole.
    pub(in crate::provide) async fn end_of_input(&mut self) -> Finished {
        match self.parser.finish() {
            Some(Item::Event(event)) if !is_whole(event.data.as_bytes()) => {}
            Some(item) => {
                if let Err(end) = self.item(item).await {
                    return end;
                }
            }
            None => {}
        }
        match self.is_complete() {
            true => Outcome::Complete.into(),
            false => {
                self.origin.bad_output("a stream that ended without finish_reason and without [DONE]").into()
            }
        }
    }

    async fn item(&mut self, item: Item) -> Result<(), Finished> {
        match item {
            Item::Comment => self.alive().await,
            Item::Event(Event { event, data, .. }) if event == "error" => Err(self.failed(data)),
            Item::Field { name, value } if name == "error" => Err(self.failed(value)),
            Item::Event(event) => self.data(event.data.into()).await,
            Item::Field { .. } => Ok(()),
        }
    }

    /// An error that is marked as one, whatever its shape.
    fn failed(&self, data: String) -> Finished {
        let failure: Failure = self.origin.reported(&data.into());
        failure.into()
    }

    async fn data(&mut self, data: Bytes) -> Result<(), Finished> {
        match data.trim_ascii() {
            b"[DONE]" => {
                // Without each choice's finish_reason, only this says that the stream is complete, so the agent has to see it.
                if !self.is_complete() {
                    self.chunks.raw(data).await?;
                }
                return Err(Outcome::Complete.into());
            }
            b"" => return Ok(()),
            _ => {}
        }
        // What does not parse is passed on as it is: the agent checks every chunk and names the fault.
        let meta = self.reader.read(&data).unwrap_or_default();
        if meta.is_error {
            return Err(self.origin.reported(&data).into());
        }
        self.begun.add(meta.begun);
        self.ended.add(meta.ended);
        self.usage = meta.usage.or(self.usage);
        if self.drop_usage && meta.only_usage {
            return Ok(());
        }
        Ok(self.chunks.raw(with_model(data, self.model)).await?)
    }

    async fn alive(&mut self) -> Result<(), Finished> {
        let now = Instant::now();
        if self.shown_alive.is_some_and(|shown| now - shown < ALIVE_INTERVAL) {
            return Ok(());
        }
        self.shown_alive = Some(now);
        Ok(self.chunks.alive().await?)
    }
}

/// Whether the data of an event that nothing ended is all of it.
fn is_whole(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]" || check_object(data).is_ok()
}

/// A chunk or an answer with `model` in the place of the server's own name for it; every other byte stays.
pub(in crate::provide) fn with_model(text: Bytes, model: Option<&str>) -> Bytes {
    let Some(model) = model else { return text };
    let mut places: Vec<Span> = Vec::new();
    let read = scan::object(&text, |scan, key| {
        let value = scan.skip()?;
        if scan.of(key) == b"model" {
            places.push(value);
        }
        Ok(())
    });
    if read.is_err() || places.is_empty() {
        return text;
    }
    let mut out = Vec::with_capacity(text.len() + model.len());
    let mut at = 0;
    for place in places {
        out.extend_from_slice(&text[at..place.start as usize]);
        quote_into(&mut out, model);
        at = place.end as usize;
    }
    out.extend_from_slice(&text[at..]);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_what_it_begins_with() {
        use Form::{Events, Whole};
        for (beginning, label, form) in [
            ("", Events, None),
            (" \r\n", Whole, None),
            ("dat", Whole, None),
            ("data: {", Whole, Some(Events)),
            (": ping\n", Whole, Some(Events)),
            ("\u{feff}event: error\n", Whole, Some(Events)),
            ("error: {", Whole, Some(Events)),
            ("\n\n{\"id\":1", Events, Some(Whole)),
            ("<html>", Events, Some(Whole)),
            ("hello", Whole, Some(Whole)),
            ("hello", Events, Some(Events)),
        ] {
            assert_eq!(form_of(beginning.as_bytes(), label), form, "{beginning:?} labelled {label:?}");
        }
    }

    #[test]
    fn only_the_top_level_model_is_replaced_in_an_answer() {
        let chunk = Bytes::from_static(br#"{"id":"x", "model" : "/home/m.gguf","choices":[{"model":"y"}]}"#);
        let shown = br#"{"id":"x", "model" : "nice","choices":[{"model":"y"}]}"#;
        assert_eq!(with_model(chunk.clone(), Some("nice")), shown.as_slice());
        assert_eq!(with_model(chunk.clone(), None), chunk);
        assert_eq!(with_model(Bytes::from_static(b"[]"), Some("nice")), b"[]".as_slice());
    }
}
