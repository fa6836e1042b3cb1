//! The embedded provider: repeats the prompt word by word. For demonstrations and tests, without any server.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Opened, Readiness};
use crate::{
    domain::{Failure, FailureCode, Outcome, ProviderState, Usage},
    provide::{
        config_file::Entry,
        task::{Chunks, Finished, NotSent, Provider, Task},
    },
};

/// The pause between two words unless the entry says otherwise: slow enough to be seen as a stream.
const TOKEN_DELAY: Duration = Duration::from_millis(5);
/// What the answer begins with, so that nobody takes the echo for a model's opinion.
const PREFIX: &str = "You said:";

pub(super) fn open(entry: &Entry) -> Opened {
    let provider =
        Arc::new(Echo { model: entry.model.clone(), token_delay: entry.token_delay.unwrap_or(TOKEN_DELAY) });
    // It never changes, so the other end is not needed.
    let (_, readiness) = watch::channel(Readiness::new(ProviderState::Ready, ""));
    Opened { provider, readiness }
}

/// The embedded provider. One token is one word.
#[derive(Clone, Debug)]
pub struct Echo {
    model: String,
    token_delay: Duration,
}

#[tonic::async_trait]
impl Provider for Echo {
    async fn run(&self, task: Task, chunks: Chunks, cancel: CancellationToken) -> Finished {
        tokio::select! {
            biased;
            finished = self.answer(&task, &chunks) => finished,
            () = cancel.cancelled() => Outcome::Cancelled.into(),
        }
    }
}

impl Echo {
    async fn answer(&self, task: &Task, chunks: &Chunks) -> Finished {
        let request: Request = match serde_json::from_slice(&task.request) {
            Ok(request) => request,
            Err(error) => {
                let why = format!("the request is not a chat-completions body: {error}");
                return Failure::new(FailureCode::InvalidRequest, why).into();
            }
        };
        let answer = Answer::to(&request);
        let id = format!("chatcmpl-echo-{}", task.id);
        if request.stream {
            self.stream(&id, &answer, &request, chunks).await
        } else {
            self.whole(&id, &answer).await
        }
    }

    async fn whole(&self, id: &str, answer: &Answer) -> Finished {
        let words = u32::try_from(answer.words.len()).unwrap_or(u32::MAX);
        sleep(self.token_delay * words).await;
        let message = Delta { role: Some("assistant"), content: Some(&answer.words.concat()) };
        let choice = Choice {
            index: 0,
            message: Some(message),
            delta: None,
            finish_reason: Some(answer.finish_reason),
        };
        let mut body = self.envelope(id, "chat.completion", Some(choice));
        body.usage = Some(answer.numbers());
        Finished { outcome: Outcome::Body(json(&body)), usage: Some(answer.usage()) }
    }

    async fn stream(&self, id: &str, answer: &Answer, request: &Request, chunks: &Chunks) -> Finished {
        match self.pieces(id, answer, request, chunks).await {
            Ok(()) => Finished { outcome: Outcome::Complete, usage: Some(answer.usage()) },
            Err(reason) => reason.into(),
        }
    }

    async fn pieces(
        &self,
        id: &str,
        answer: &Answer,
        request: &Request,
        chunks: &Chunks,
    ) -> Result<(), NotSent> {
        let piece = |delta, finish_reason| {
            let choice = Choice { index: 0, message: None, delta: Some(delta), finish_reason };
            json(&self.envelope(id, "chat.completion.chunk", Some(choice)))
        };
        chunks.raw(piece(Delta { role: Some("assistant"), content: Some("") }, None)).await?;
        for word in &answer.words {
            if !self.token_delay.is_zero() {
                sleep(self.token_delay).await;
            }
            chunks.raw(piece(Delta { role: None, content: Some(word) }, None)).await?;
        }
        chunks.raw(piece(Delta { role: None, content: None }, Some(answer.finish_reason))).await?;
        if request.stream_options.as_ref().is_some_and(|options| options.include_usage) {
            let mut last = self.envelope(id, "chat.completion.chunk", None);
            last.usage = Some(answer.numbers());
            chunks.raw(json(&last)).await?;
        }
        Ok(())
    }

    fn envelope<'a>(&'a self, id: &'a str, object: &'static str, choice: Option<Choice<'a>>) -> Envelope<'a> {
        // The time is fixed, so that the same question gets the same answer, byte for byte.
        Envelope {
            id,
            object,
            created: 0,
            model: &self.model,
            choices: choice.into_iter().collect(),
            usage: None,
        }
    }
}

/// What the echo reads of a request.
#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Message {
    content: Value,
}

impl Message {
    /// The text, also where the content comes in parts.
    fn text(&self) -> String {
        let parts = self.content.as_array().into_iter().flatten();
        let texts = parts.filter_map(|part| part.get("text")?.as_str());
        self.content.as_str().into_iter().chain(texts).collect::<Vec<_>>().join(" ")
    }
}

/// The answer, cut into words, each with the space before it.
struct Answer {
    words: Vec<String>,
    prompt_words: usize,
    finish_reason: &'static str,
}

impl Answer {
    fn to(request: &Request) -> Self {
        let texts: Vec<String> = request.messages.iter().map(Message::text).collect();
        let prompt_words = texts.iter().map(|text| text.split_whitespace().count()).sum();
        let said = PREFIX.split(' ').chain(texts.last().into_iter().flat_map(|text| text.split_whitespace()));
        let spaced = |(at, word): (usize, &str)| if at == 0 { word.to_owned() } else { format!(" {word}") };
        let mut words: Vec<String> = said.enumerate().map(spaced).collect();
        let limit = request.max_completion_tokens.or(request.max_tokens).unwrap_or(usize::MAX);
        let finish_reason = if words.len() > limit { "length" } else { "stop" };
        words.truncate(limit);
        Self { words, prompt_words, finish_reason }
    }

    fn numbers(&self) -> Numbers {
        let (prompt_tokens, completion_tokens) = (self.prompt_words, self.words.len());
        Numbers { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    fn usage(&self) -> Usage {
        let count = |n| u32::try_from(n).ok();
        Usage::new(count(self.prompt_words), count(self.words.len()))
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    id: &'a str,
    object: &'static str,
    created: u32,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Numbers>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct Numbers {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

fn json(value: &Envelope<'_>) -> Bytes {
    // Texts and numbers only: nothing in it can fail to be JSON.
    serde_json::to_vec(value).unwrap_or_default().into()
}
