//! `mcprelay infer`: calls a virtual LLM through mcpd, as any caller would.

use std::io::{self, IsTerminal as _, Read as _};

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use futures_util::StreamExt as _;
use reqwest::{Response, header};
use reqwest_eventsource::{Error as StreamError, Event, EventSource, retry};
use serde_json::{Value, json, value::RawValue};

use super::{
    Stop,
    answer::Answer,
    completions,
    http::{self, CallError, Mcpd},
    output,
};
use crate::{
    config::{FolderArgs, Lookup, McpdArgs},
    domain::Printable,
    upstream::contract::{DONE, infer_path},
};

/// The longest prompt that is read, in bytes: the agent's own default limit for a whole request.
const MAX_PROMPT_BYTES: u64 = 32 * 1024 * 1024;

/// Arguments of `infer`.
#[derive(Debug, Args)]
pub struct InferArgs {
    /// The LLM, as `mcprelay get llm` lists it
    #[arg(add = ArgValueCandidates::new(completions::llms))]
    pub name: String,
    /// What to ask; from standard input where it is missing or "-"
    pub prompt: Option<String>,
    /// Ask for the whole answer at once
    #[arg(long)]
    pub no_stream: bool,
    /// text prints the answer, json the OpenAI bodies: one chunk a line, or the whole completion
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Format,
    /// How mcpd is reached.
    #[command(flatten)]
    pub mcpd: McpdArgs,
    /// Where the files are.
    #[command(flatten)]
    pub folder: FolderArgs,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The answer's text
    Text,
    /// OpenAI's JSON
    Json,
}

/// Asks, prints, and ends with the answer. Ctrl-C closes the connection, which cancels the inference.
pub async fn run(args: InferArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let mcpd = Mcpd::new(&args.mcpd, &args.folder.path(env)?, env)?;
    let prompt = prompt(args.prompt.as_deref())?;
    let ask = Ask { mcpd: &mcpd, llm: &args.name, prompt: &prompt, stream: !args.no_stream };
    let mut out = io::stdout().lock();
    tokio::select! {
        ended = ask.answer_into(&mut out, args.output) => ended,
        _ = tokio::signal::ctrl_c() => Err(Stop::Failed("cancelled: the inference has been told to stop".into())),
    }
}

fn prompt(argument: Option<&str>) -> Result<String, Stop> {
    match argument {
        Some(prompt) if prompt != "-" => Ok(prompt.to_owned()),
        None if io::stdin().is_terminal() => {
            Err(Stop::Usage("there is no prompt: pass it after the name, or on standard input".into()))
        }
        _ => read_prompt(io::stdin()),
    }
}

fn read_prompt(from: impl io::Read) -> Result<String, Stop> {
    let mut text = String::new();
    let read = from.take(MAX_PROMPT_BYTES + 1).read_to_string(&mut text);
    match read {
        Err(error) => Err(Stop::Failed(format!("cannot read the prompt from standard input: {error}"))),
        Ok(n) if n as u64 > MAX_PROMPT_BYTES => {
            Err(Stop::Usage("the prompt is longer than 32 MiB: shorten it".into()))
        }
        Ok(_) if text.trim().is_empty() => {
            Err(Stop::Usage("the prompt is empty: pass it after the name, or on standard input".into()))
        }
        Ok(_) => Ok(text),
    }
}

/// One question.
pub struct Ask<'a> {
    /// The mcpd to ask.
    pub mcpd: &'a Mcpd,
    /// The LLM to ask.
    pub llm: &'a str,
    /// The prompt.
    pub prompt: &'a str,
    /// Whether the answer is to come piece by piece.
    pub stream: bool,
}

impl Ask<'_> {
    /// Asks and writes the answer as it arrives; ends the text with a line end.
    pub async fn answer_into(&self, out: &mut impl io::Write, format: Format) -> Result<(), Stop> {
        let path = self.path()?;
        let body = json!({
            "model": self.llm, "messages": [{"role": "user", "content": self.prompt}], "stream": self.stream,
        });
        let request = self.mcpd.post(&path).json(&body);
        let mut printer = Printer { out, format, at_line_start: true, answer: Answer::default() };
        if self.stream {
            let events =
                EventSource::new(request).map_err(|_| Stop::Failed("cannot send the prompt twice".into()))?;
            let ended = self.stream_into(events, &path, &mut printer).await;
            // The error goes on a line of its own.
            printer.end()?;
            ended?;
        } else {
            let response = request.send().await.map_err(|error| self.mcpd.no_answer(&error))?;
            self.whole_into(self.checked(response, &path).await?, &mut printer).await?;
            printer.end()?;
        }
        printer.conclude(self.llm)
    }

    fn path(&self) -> Result<String, Stop> {
        infer_path(self.llm)
            .ok_or_else(|| Stop::Usage(format!("\"{}\" cannot be the name of an LLM", self.llm)))
    }

    async fn stream_into(
        &self,
        mut events: EventSource,
        path: &str,
        printer: &mut Printer<'_, impl io::Write>,
    ) -> Result<(), Stop> {
        events.set_retry_policy(Box::new(retry::Never));
        loop {
            match events.next().await {
                Some(Ok(Event::Open)) => {}
                Some(Ok(Event::Message(event))) if event.data.trim() == DONE => return Ok(()),
                Some(Ok(Event::Message(event))) => printer.chunk(&event.data)?,
                Some(Err(StreamError::InvalidStatusCode(_, response))) => {
                    self.checked(response, path).await?;
                    return Err(self.mcpd.not_mcpd("its reply is not a stream").into());
                }
                // Something on the way does not stream, but the answer is here nevertheless.
                Some(Err(StreamError::InvalidContentType(kind, response))) if is_json(&kind) => {
                    return self.whole_into(response, printer).await;
                }
                Some(Err(StreamError::InvalidContentType(..))) => {
                    return Err(self.mcpd.not_mcpd("its reply is neither a stream nor JSON").into());
                }
                Some(Err(StreamError::Transport(error))) if printer.at_line_start => {
                    return Err(self.mcpd.no_answer(&error).into());
                }
                Some(Err(_)) | None => return Err(self.broken_off()),
            }
        }
    }

    async fn whole_into(
        &self,
        response: Response,
        printer: &mut Printer<'_, impl io::Write>,
    ) -> Result<(), Stop> {
        printer.whole(&self.mcpd.json::<Box<RawValue>>(response).await?)
    }

    /// A success, or the error in words that name the LLM.
    async fn checked(&self, response: Response, path: &str) -> Result<Response, Stop> {
        let after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        self.mcpd.accept(response, path).await.map_err(|error| self.refused(error, after))
    }

    fn refused(&self, error: CallError, after: Option<String>) -> Stop {
        let CallError::Status { status, message, .. } = error else { return error.into() };
        let advice = match (status, after) {
            (404, _) => "`mcprelay get llm` lists those that exist".to_owned(),
            (429 | 503, Some(seconds)) => format!("try again in {seconds} s"),
            (429 | 503, None) => "try again later, and see `mcprelay get llm`".to_owned(),
            (400..500, _) => "change the request".to_owned(),
            _ => "see the agent's status and log".to_owned(),
        };
        let message = if message.is_empty() { "no reason given" } else { &message };
        Stop::Failed(format!("LLM \"{}\" answers {status} ({message}): {advice}", self.llm))
    }

    fn broken_off(&self) -> Stop {
        Stop::Failed(format!("the answer of LLM \"{}\" broke off before its end: ask again", self.llm))
    }
}

fn is_json(kind: &header::HeaderValue) -> bool {
    kind.to_str().is_ok_and(|kind| kind.starts_with("application/json"))
}

/// Writes an answer's pieces.
struct Printer<'a, W> {
    out: &'a mut W,
    format: Format,
    at_line_start: bool,
    answer: Answer,
}

impl<W: io::Write> Printer<'_, W> {
    fn chunk(&mut self, data: &str) -> Result<(), Stop> {
        let chunk: Value = serde_json::from_str(data).map_err(|_| {
            Stop::Failed("the answer has a piece that is not JSON: see the provider's log".into())
        })?;
        if chunk.get("error").is_some_and(|error| !error.is_null()) {
            self.end()?;
            return Err(self.broken(&http::message_in(&chunk)));
        }
        match self.format {
            Format::Json => self.text(&format!("{data}\n")),
            Format::Text => {
                let text = self.answer.take(&chunk);
                self.text(&text)
            }
        }
    }

    fn broken(&self, message: &str) -> Stop {
        Stop::Failed(match message {
            "" => "the answer broke off, and its error says no reason: see the agent's log".into(),
            message => format!("the answer is incomplete: {message}"),
        })
    }

    fn whole(&mut self, completion: &RawValue) -> Result<(), Stop> {
        match self.format {
            Format::Json => self.text(completion.get()),
            Format::Text => {
                let completion: Value = serde_json::from_str(completion.get()).unwrap_or_default();
                let text = self.answer.take(&completion);
                self.text(&text)
            }
        }
    }

    /// Flushes after every write, so that each piece is seen as it comes.
    fn text(&mut self, text: &str) -> Result<(), Stop> {
        if let Some(last) = text.chars().last() {
            self.at_line_start = last == '\n';
            self.out.write_all(printable(text, self.format).as_bytes())?;
            self.out.flush()?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Stop> {
        if !self.at_line_start {
            self.out.write_all(b"\n")?;
            self.at_line_start = true;
        }
        Ok(self.out.flush()?)
    }

    /// Says what the text alone does not: a tool call, a refusal, an answer that was cut.
    fn conclude(&mut self, llm: &str) -> Result<(), Stop> {
        if self.format == Format::Json {
            return Ok(());
        }
        let (line, remark, ended) = self.answer.end(llm).split();
        self.text(&line.unwrap_or_default())?;
        if let Some(remark) = remark {
            output::note(&format!("note: {remark}"));
        }
        ended
    }
}

/// An answer keeps its lines and tabs; anything else that could steer a terminal is escaped. JSON has done that itself.
fn printable(text: &str, format: Format) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if format == Format::Json || text.chars().all(harmless) {
        return text.to_owned();
    }
    text.split_inclusive(['\n', '\t'])
        .map(|part| match part.strip_suffix(['\n', '\t']) {
            Some(start) => format!("{}{}", Printable(start), &part[start.len()..]),
            None => Printable(part).to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, body::Bytes, response::IntoResponse, routing};

    use super::*;
    use crate::cli::stub::Stub;

    async fn ask<R>(stream: bool, format: Format, reply: R) -> (Result<(), Stop>, String)
    where
        R: IntoResponse + Clone + Send + Sync + 'static,
    {
        let handler = async move |body: Json<Value>| {
            assert_eq!(body.0["messages"][0], json!({"role": "user", "content": "hi"}));
            assert_eq!(body.0["stream"], json!(stream));
            reply.clone()
        };
        let stub =
            Stub::serve(Router::new().route("/api/v1/llms/{name}/infer", routing::post(handler))).await;
        let mut out = Vec::new();
        let mcpd = stub.mcpd();
        let ask = Ask { mcpd: &mcpd, llm: "a/b", prompt: "hi", stream };
        let ended = ask.answer_into(&mut out, format).await;
        (ended, String::from_utf8(out).expect("UTF-8"))
    }

    fn events(text: &'static str) -> impl IntoResponse + Clone {
        ([("content-type", "text/event-stream")], Bytes::from_static(text.as_bytes()))
    }

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n: ping\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"lo\\u001b[2J\"}}]}\n\ndata: [DONE]\n\n"
    );

    #[tokio::test]
    async fn a_stream_is_printed_as_text_that_cannot_steer_the_terminal() {
        let (ended, out) = ask(true, Format::Text, events(STREAM)).await;
        assert_eq!((ended, &*out), (Ok(()), "Hello\\u{1b}[2J\n"));
    }

    #[tokio::test]
    async fn a_stream_is_printed_as_one_chunk_a_line() {
        let (ended, out) = ask(true, Format::Json, events(STREAM)).await;
        assert_eq!(ended, Ok(()));
        assert_eq!(out.lines().count(), 3);
        assert!(out.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    }

    #[tokio::test]
    async fn a_whole_answer_is_printed_also_where_a_stream_was_asked_for() {
        let reply = Json(json!({"choices": [{"message": {"content": "Hello\n"}}]}));
        assert_eq!(ask(false, Format::Text, reply.clone()).await, (Ok(()), "Hello\n".into()));
        assert_eq!(ask(true, Format::Text, reply.clone()).await, (Ok(()), "Hello\n".into()));
        let (_, out) = ask(false, Format::Json, reply.clone()).await;
        assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON"), reply.0);
    }

    #[tokio::test]
    async fn an_error_of_the_llm_is_one_sentence_in_both_modes() {
        let body = Json(json!({"error": {"message": "all slots are busy"}}));
        let reply = (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "2")], body);
        for stream in [true, false] {
            let expected = r#"LLM "a/b" answers 429 (all slots are busy): try again in 2 s"#;
            assert_eq!(ask(stream, Format::Text, reply.clone()).await.0, Err(Stop::Failed(expected.into())));
        }
    }

    #[tokio::test]
    async fn an_error_in_the_middle_ends_the_line_and_fails() {
        let text = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\ndata: {\"error\":{\"message\":\"lost\"}}\n\n";
        let (ended, out) = ask(true, Format::Text, events(text)).await;
        assert_eq!((ended, &*out), (Err(Stop::Failed("the answer is incomplete: lost".into())), "Hel\n"));
    }

    #[tokio::test]
    async fn a_stream_without_its_end_is_a_failure() {
        let half = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n";
        let (ended, out) = ask(true, Format::Text, events(half)).await;
        assert!(matches!(ended, Err(Stop::Failed(message)) if message.contains("broke off")));
        assert_eq!(out, "Hel\n");
    }

    #[tokio::test]
    async fn a_tool_call_is_shown_and_a_refusal_fails() {
        let tool = Json(json!({"choices": [{"message": {"content": null, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ]}, "finish_reason": "tool_calls"}]}));
        assert_eq!(ask(false, Format::Text, tool).await, (Ok(()), "tool call: weather({})\n".into()));
        let refusal = Json(json!({"choices": [{"message": {"content": null, "refusal": "No."}}]}));
        let expected = Err(Stop::Failed("LLM \"a/b\" refuses: No.".into()));
        assert_eq!(ask(false, Format::Text, refusal.clone()).await, (expected, String::new()));
        assert_eq!(ask(false, Format::Json, refusal).await.0, Ok(()), "a script reads it itself");
    }

    #[test]
    fn an_empty_prompt_is_wrong_usage() {
        assert!(matches!(read_prompt(&b" \n"[..]), Err(Stop::Usage(_))));
        assert_eq!(read_prompt(&b"hi\n"[..]), Ok("hi\n".into()));
        assert!(matches!(prompt(Some("x")), Ok(text) if text == "x"));
    }
}
