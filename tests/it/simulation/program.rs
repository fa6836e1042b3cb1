//! A local program with moods: it serves, vanishes, comes back, drains, is replaced, and answers in every way there is.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use fastrand::Rng;
use mcprelay::pb::{self, session_request::Payload, session_response};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    plan::{Mood, ProgramPlan},
    script::{Inference, Script},
    story::{Presence, Run, Scribe, Step},
};
use crate::support::{Client, provider};

/// Wait before the agent's socket is tried again, as a client library would.
const RECONNECT: Duration = Duration::from_millis(400);
/// How long a replaced connection goes on talking.
const GHOST: Duration = Duration::from_secs(2);

/// What a program has said is on its way so long before its connection can go.
const SAID: Duration = Duration::from_millis(1);

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
                            self.blocked(ms);
                            blocked = Some(self.scribe.moment(self.scribe.now() + ms));
                        }
                        Mood::Withdraw(ms) => {
                            self.blocked(ms);
                            self.push(&mut session, false).await;
                            sleep(Duration::from_millis(ms)).await;
                            self.push(&mut session, true).await;
                        }
                        Mood::Vanish(ms) => {
                            self.lost(&session);
                            return Away::For(Duration::from_millis(ms));
                        }
                        Mood::Drain(ms) => {
                            self.is(Step::Drained);
                            session.client.drain().await;
                            sleep(SAID).await;
                            self.finish_what_runs(&mut session).await;
                            self.lost(&session);
                            return Away::For(Duration::from_millis(ms));
                        }
                        Mood::Replace => {
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

    /// It reads nothing from now on, for so long.
    fn blocked(&self, ms: u64) {
        let now = self.scribe.now();
        self.scribe.story().blocked.push(((now, now + ms), self.plan.client_id.clone()));
    }

    fn is(&self, step: Step) {
        let (at, program) = (self.scribe.now(), self.plan.client_id.clone());
        let presence = Presence { at, program, names: self.plan.names.clone(), step };
        self.scribe.story().presence.push(presence);
    }

    /// Whatever runs on the session is nobody's any more.
    fn lost(&self, session: &Session) {
        self.is(Step::Lost);
        let now = self.scribe.now();
        let mut story = self.scribe.story();
        for running in session.runs.values() {
            story.runs[running.run].lost_at.get_or_insert(now);
        }
    }

    async fn push(&self, session: &mut Session, publish: bool) {
        self.is(if publish { Step::Pushed } else { Step::Withdrew });
        let mut providers = Vec::new();
        for name in &self.plan.names {
            let max_in_flight = Some(self.max_in_flight);
            let sharing = vec![pb::Sharing { on_battery: Some(false), ..pb::Sharing::default() }];
            providers.push(pb::Provider { max_in_flight, sharing, ..provider(name, publish) });
        }
        let snapshot = pb::ProviderSnapshot { generation: 1, providers };
        session.client.send(Payload::ProviderSnapshot(snapshot)).await;
        sleep(SAID).await;
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
            program: self.plan.client_id.clone(),
            name: offer.provider_name.clone(),
            life,
            at,
            last_sign: None,
            first_token: None,
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
        // What lay unread while it was blocked was offered at some time before.
        let late = story
            .blocked
            .iter()
            .any(|((from, to), of)| *of == self.plan.client_id && (*from..=*to + 1).contains(&now));
        if held >= self.max_in_flight as usize && !late {
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
