//! What an inference says, and how it ends: in every way there is.

use std::time::Duration;

use fastrand::Rng;
use mcprelay::pb::{
    self, SessionRequest, TaskChunk, TaskFinished, session_request::Payload, task_chunk,
    task_finished::Outcome,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::story::{Finish, Scribe};
use crate::support::{chunk, completion, last_chunk};

/// What an inference will say.
#[derive(Clone, Debug)]
pub struct Script {
    tokens: u32,
    form: Form,
    first_after: Duration,
    gap: Duration,
    ending: Ending,
    /// How long after being told it stops; `None`: not at all.
    stops_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Raw,
    Plain,
    /// One whole answer, raw.
    Body,
    /// One whole answer, plain.
    Result,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Complete,
    Error,
    /// Nothing more comes.
    Silence,
    /// A chunk that is no JSON, then on as if nothing had been.
    Malformed,
    /// A whole answer after chunks.
    BodyAfterChunks,
    /// The end, and then another one.
    Twice,
    /// The end, and then more chunks.
    Late,
    /// The one refusal there is.
    Refused,
}

impl Script {
    pub fn draw(rng: &mut Rng, streaming: bool) -> Self {
        let ms = Duration::from_millis;
        let form = match rng.u8(..10) {
            0..4 => Form::Raw,
            4..7 => Form::Plain,
            7 | 8 => Form::Body,
            _ => Form::Result,
        };
        let ending = match rng.u8(..20) {
            0..11 => Ending::Complete,
            11 => Ending::Error,
            12 | 13 => Ending::Silence,
            14 => Ending::Malformed,
            15 => Ending::BodyAfterChunks,
            16 => Ending::Twice,
            17 | 18 => Ending::Late,
            _ => Ending::Refused,
        };
        Self {
            tokens: rng.u32(if streaming { 0..25 } else { 1..8 }),
            form,
            first_after: ms([0, 0, 50, 2_500][rng.usize(..4)]),
            gap: ms([0, 0, 1, 30, 400, 1_200][rng.usize(..6)]),
            ending,
            stops_after: [Some(ms(0)), Some(ms(0)), Some(ms(3_000)), None][rng.usize(..4)],
        }
    }

    fn whole(&self) -> bool {
        matches!(self.form, Form::Body | Form::Result)
    }

    pub fn meant(&self) -> Finish {
        match self.ending {
            Ending::Complete | Ending::Twice | Ending::Late => Finish::Ok,
            Ending::Silence => Finish::Never,
            Ending::BodyAfterChunks if self.whole() || self.tokens == 0 => Finish::Ok,
            Ending::Malformed if self.whole() => Finish::Ok,
            Ending::Error | Ending::Malformed | Ending::BodyAfterChunks | Ending::Refused => Finish::Bad,
        }
    }
}

/// One inference at work.
pub struct Inference {
    pub run: usize,
    pub task: String,
    pub scribe: Scribe,
    pub to_agent: mpsc::Sender<SessionRequest>,
    pub script: Script,
}

impl Inference {
    /// Says it all, or stops when told to.
    pub async fn perform(&self, cancel: CancellationToken) {
        let told = async {
            cancel.cancelled().await;
            match self.script.stops_after {
                Some(after) => sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = told => self.finish(Finish::Cancelled, Some(Outcome::Cancelled(pb::Cancelled {}))).await,
            () = self.play() => {}
        }
    }

    async fn play(&self) {
        let script = &self.script;
        sleep(script.first_after).await;
        if script.ending == Ending::Refused {
            return self.finish(Finish::Bad, Some(Outcome::Error(refusal()))).await;
        }
        if script.whole() {
            return self.whole().await;
        }
        for _ in 0..script.tokens {
            self.token().await;
            sleep(script.gap).await;
        }
        self.end().await;
    }

    async fn whole(&self) {
        if self.script.ending == Ending::Silence {
            return std::future::pending().await;
        }
        if self.script.ending == Ending::Error {
            return self.finish(Finish::Bad, Some(Outcome::Error(failure()))).await;
        }
        let text: String = (0..self.script.tokens).map(|n| token(self.run, n)).collect();
        self.scribe.story().runs[self.run].tokens = self.script.tokens;
        let outcome = match self.script.form {
            Form::Body => Outcome::BodyJson(completion(&text).into()),
            _ => Outcome::Result(pb::CompletionResult { content: text, ..pb::CompletionResult::default() }),
        };
        self.finish(Finish::Ok, Some(outcome)).await;
        self.afterwards().await;
    }

    async fn end(&self) {
        match self.script.ending {
            Ending::Silence => std::future::pending().await,
            Ending::Error => self.finish(Finish::Bad, Some(Outcome::Error(failure()))).await,
            Ending::Malformed => {
                self.raw("{\"choices\":[{").await;
                self.token().await;
                self.finish(Finish::Bad, None).await;
            }
            Ending::BodyAfterChunks if self.script.tokens > 0 => {
                self.finish(Finish::Bad, Some(Outcome::BodyJson(completion("all of it").into()))).await;
            }
            _ => {
                if self.script.form == Form::Raw || self.script.tokens == 0 {
                    self.raw(&last_chunk()).await;
                }
                self.finish(Finish::Ok, None).await;
                self.afterwards().await;
            }
        }
    }

    /// What a confused program still says after its end.
    async fn afterwards(&self) {
        match self.script.ending {
            Ending::Twice => self.finish(Finish::Bad, Some(Outcome::Error(failure()))).await,
            Ending::Late => {
                for n in 0..3 {
                    self.raw(&chunk(&token(self.run, self.script.tokens + n))).await;
                }
            }
            _ => {}
        }
    }

    async fn token(&self) {
        let (n, now) = {
            let now = self.scribe.now();
            let mut story = self.scribe.story();
            let run = &mut story.runs[self.run];
            run.tokens += 1;
            (run.tokens - 1, now)
        };
        let text = token(self.run, n);
        match self.script.form {
            Form::Raw => self.raw(&chunk(&text)).await,
            _ => {
                let delta = pb::Delta { content: text, ..pb::Delta::default() };
                self.output(task_chunk::Output::Delta(delta)).await;
            }
        }
        self.scribe.story().runs[self.run].first_token.get_or_insert(now);
    }

    async fn raw(&self, json: &str) {
        self.output(task_chunk::Output::ChunkJson(json.to_owned().into())).await;
    }

    async fn output(&self, output: task_chunk::Output) {
        let now = self.scribe.now();
        self.scribe.story().runs[self.run].last_sign = Some(now);
        let chunk = TaskChunk { task_id: self.task.clone(), output: Some(output), more: vec![] };
        self.send(Payload::TaskChunk(chunk)).await;
    }

    async fn finish(&self, finish: Finish, outcome: Option<Outcome>) {
        let now = self.scribe.now();
        self.scribe.log(format_args!("run {} finishes: {finish:?}", self.run));
        self.scribe.story().runs[self.run].finished.get_or_insert((now, finish));
        let finished = TaskFinished { task_id: self.task.clone(), outcome, usage: None };
        self.send(Payload::TaskFinished(finished)).await;
    }

    async fn send(&self, payload: Payload) {
        // A connection that is gone takes nothing more.
        let _ = self.to_agent.send(SessionRequest { payload: Some(payload) }).await;
    }
}

/// The n-th token of a run: it says which it is.
fn token(run: usize, n: u32) -> String {
    format!("{run}.{n} ")
}

fn failure() -> pb::Error {
    pb::Error {
        code: pb::ErrorCode::Internal.into(),
        message: "the model fell over".to_owned(),
        ..pb::Error::default()
    }
}

fn refusal() -> pb::Error {
    pb::Error {
        code: pb::ErrorCode::Overloaded.into(),
        message: "not now".to_owned(),
        retryable: true,
        retry_after_ms: Some(1_000),
        ..pb::Error::default()
    }
}
