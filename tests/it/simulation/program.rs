//! A local program with moods: it serves, vanishes, comes back, drains, is replaced, and answers in every way there is.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use fastrand::Rng;
use mcprelay::pb::{
    self, SessionRequest, TaskChunk, TaskFinished, session_request::Payload, session_response, task_chunk,
    task_finished::Outcome,
};
use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    plan::{Mood, ProgramPlan},
    story::{Finish, Run, Scribe, Trouble},
};
use crate::support::{Client, chunk, completion, last_chunk, provider};

/// Wait before the agent's socket is tried again, as a client library would.
const RECONNECT: Duration = Duration::from_millis(400);
/// How long a replaced connection goes on talking.
const GHOST: Duration = Duration::from_secs(2);

/// A local program.
pub struct Program {
    pub plan: ProgramPlan,
    pub socket: PathBuf,
    pub scribe: Scribe,
    pub max_in_flight: u32,
    pub rng: Rng,
}

/// How a session ended for its program.
enum Away {
    /// It comes back after this.
    For(Duration),
    /// It is back already; the former connection still talks.
    Replaced(Box<Session>),
}

/// One connection, and what runs on it.
struct Session {
    client: Client,
    runs: BTreeMap<String, Running>,
    ended: CancellationToken,
}

struct Running {
    run: usize,
    provider: String,
    cancel: CancellationToken,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Program {
    /// Serves for ever.
    pub async fn live(mut self) {
        loop {
            let Some(client) = Client::try_connect(&self.socket, &self.plan.client_id).await else {
                sleep(RECONNECT).await;
                continue;
            };
            let session = Session { client, runs: BTreeMap::new(), ended: CancellationToken::new() };
            match self.serve(session).await {
                Away::For(duration) => sleep(duration).await,
                Away::Replaced(former) => drop(tokio::spawn(ghost(*former))),
            }
        }
    }

    async fn serve(&mut self, mut session: Session) -> Away {
        self.push(&mut session, true).await;
        let mut blocked = None;
        loop {
            let mood = self.plan.moods.first().map(|(at, _)| self.scribe.moment(*at));
            tokio::select! {
                biased;
                () = at(mood) => {
                    let (_, mood) = self.plan.moods.remove(0);
                    self.scribe.log(format_args!("{} {mood:?}", self.plan.client_id));
                    match mood {
                        Mood::Block(ms) => {
                            self.excuse(ms);
                            blocked = Some(self.scribe.moment(self.scribe.now() + ms));
                        }
                        Mood::Withdraw(ms) => {
                            self.excuse(ms);
                            self.push(&mut session, false).await;
                            sleep(Duration::from_millis(ms)).await;
                            self.push(&mut session, true).await;
                        }
                        Mood::Vanish(ms) => {
                            self.excuse(ms);
                            self.lost(&session);
                            return Away::For(Duration::from_millis(ms));
                        }
                        Mood::Drain(ms) => {
                            self.excuse(ms + 20_000);
                            session.client.drain().await;
                            self.finish_what_runs(&mut session).await;
                            self.lost(&session);
                            return Away::For(Duration::from_millis(ms));
                        }
                        Mood::Replace => {
                            self.excuse(GHOST.as_millis() as u64);
                            self.lost(&session);
                            return Away::Replaced(Box::new(session));
                        }
                    }
                }
                () = at(blocked), if blocked.is_some() => blocked = None,
                message = session.client.message(), if blocked.is_none() => match message {
                    Ok(Some(message)) => self.take(&mut session, message),
                    Ok(None) | Err(_) => {
                        self.scribe.log(format_args!("{} lost its session", self.plan.client_id));
                        self.lost(&session);
                        return Away::For(RECONNECT);
                    }
                },
            }
        }
    }

    fn excuse(&self, ms: u64) {
        let now = self.scribe.now();
        self.scribe.trouble(now, now + ms, Trouble::Local);
    }

    /// Whatever runs on the session is nobody's any more.
    fn lost(&self, session: &Session) {
        let now = self.scribe.now();
        let mut story = self.scribe.story();
        for running in session.runs.values() {
            story.runs[running.run].lost_at.get_or_insert(now);
        }
    }

    async fn push(&self, session: &mut Session, publish: bool) {
        let mut providers = Vec::new();
        for name in &self.plan.names {
            let max_in_flight = Some(self.max_in_flight);
            providers.push(pb::Provider { max_in_flight, ..provider(name, publish) });
        }
        let snapshot = pb::ProviderSnapshot { generation: 1, providers };
        session.client.send(Payload::ProviderSnapshot(snapshot)).await;
    }

    /// Answers what was offered before the goodbye, for as long as that takes.
    async fn finish_what_runs(&mut self, session: &mut Session) {
        let until = self.scribe.moment(self.scribe.now() + 20_000);
        while self.running(session) > 0 {
            tokio::select! {
                biased;
                () = sleep_until(until) => return,
                message = session.client.message() => match message {
                    Ok(Some(message)) => self.take(session, message),
                    Ok(None) | Err(_) => return,
                },
                () = sleep(Duration::from_millis(250)) => {}
            }
        }
    }

    fn running(&self, session: &Session) -> usize {
        let story = self.scribe.story();
        session.runs.values().filter(|r| story.runs[r.run].finished.is_none()).count()
    }

    fn take(&mut self, session: &mut Session, message: session_response::Payload) {
        match message {
            session_response::Payload::TaskOffer(offer) => self.offered(session, offer),
            session_response::Payload::TaskCancel(cancel) => {
                if let Some(running) = session.runs.get(&cancel.task_id) {
                    let now = self.scribe.now();
                    self.scribe.story().runs[running.run].cancelled_at.get_or_insert(now);
                    self.scribe.log(format_args!("run {} told to stop: {:?}", running.run, cancel.reason()));
                    running.cancel.cancel();
                }
            }
            _ => {}
        }
    }

    fn offered(&mut self, session: &mut Session, offer: pb::TaskOffer) {
        self.count_slots(session, &offer);
        let script = Script::draw(&mut self.rng, offer.streaming);
        let (run, at) = (self.scribe.story().runs.len(), self.scribe.now());
        self.scribe
            .log(format_args!("run {run} of {} on {}: {script:?}", offer.task_id, self.plan.client_id));
        let life = self.scribe.story().lives.len();
        self.scribe.story().runs.push(Run {
            task: offer.task_id.clone(),
            life,
            at,
            tokens: 0,
            finished: None,
            cancelled_at: None,
            lost_at: None,
            meant: script.meant(),
        });
        let cancel = session.ended.child_token();
        let running = Running { run, provider: offer.provider_name.clone(), cancel: cancel.clone() };
        session.runs.insert(offer.task_id.clone(), running);
        let work = Inference {
            run,
            task: offer.task_id,
            scribe: self.scribe.clone(),
            to_agent: session.client.sender(),
            script,
        };
        let ended = session.ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = work.perform(cancel) => {}
            }
        });
    }

    /// An offer beyond the limit is a breach, unless the slot was given back because a cancel stayed unconfirmed for its bound.
    fn count_slots(&self, session: &Session, offer: &pb::TaskOffer) {
        let now = self.scribe.now();
        let mut story = self.scribe.story();
        let bound = mcprelay::core::CANCEL_BOUND.as_millis() as u64;
        let holds = |r: &&Running| {
            let run = &story.runs[r.run];
            let given_up = run.cancelled_at.is_some_and(|at| at + bound <= now);
            r.provider == offer.provider_name && run.finished.is_none() && !given_up
        };
        let held = session.runs.values().filter(holds).count();
        if held >= self.max_in_flight as usize {
            let (limit, task) = (self.max_in_flight, &offer.task_id);
            story.slot_breaches.push(format!("{task} was offered at {now} ms while {held} of {limit} ran"));
        }
    }
}

/// Waits for a moment, or for ever.
pub async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A replaced connection that does not know it yet.
async fn ghost(mut former: Session) {
    let talk = async { while let Ok(Some(_)) = former.client.message().await {} };
    let _ = tokio::time::timeout(GHOST, talk).await;
    sleep(GHOST).await;
}

/// What an inference will say.
#[derive(Clone, Debug)]
struct Script {
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
    fn draw(rng: &mut Rng, streaming: bool) -> Self {
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

    fn meant(&self) -> Finish {
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
struct Inference {
    run: usize,
    task: String,
    scribe: Scribe,
    to_agent: mpsc::Sender<SessionRequest>,
    script: Script,
}

impl Inference {
    async fn perform(&self, cancel: CancellationToken) {
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
        let n = {
            let mut story = self.scribe.story();
            let run = &mut story.runs[self.run];
            run.tokens += 1;
            run.tokens - 1
        };
        let text = token(self.run, n);
        match self.script.form {
            Form::Raw => self.raw(&chunk(&text)).await,
            _ => {
                let delta = pb::Delta { content: text, ..pb::Delta::default() };
                self.output(task_chunk::Output::Delta(delta)).await;
            }
        }
    }

    async fn raw(&self, json: &str) {
        self.output(task_chunk::Output::ChunkJson(json.to_owned().into())).await;
    }

    async fn output(&self, output: task_chunk::Output) {
        let chunk = TaskChunk { task_id: self.task.clone(), output: Some(output) };
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
