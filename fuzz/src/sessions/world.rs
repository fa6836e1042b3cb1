//! The agent around the core: it feeds steps in, lets time pass, and hands every effect to the ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    ledger::{Ledger, Session},
    step::{Entry, How, Reply, Step},
};
use crate::{
    core::{Core, DRAIN_DELIVERY_BOUND, Effect, Input, LinkInput, Settings, link, link::McpdChange},
    domain::{
        Activity, CallFailure, Failure, FailureCode, Outcome, Pause, Provider, ProviderName, ProviderState, Pushed,
        RequestFacts, SessionHello, SessionKey, Task, TaskId, TaskKey,
    },
};

const MAX_IN_FLIGHT: u32 = 2;
const MAX_QUEUED: u32 = 3;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// What a session that takes only small messages takes, in bytes; beyond what an offer costs by itself.
const SMALL_MESSAGE: usize = (4 << 10) + 100;
/// So often the clock may be asked for at one moment before it stands still.
const MOST_TICKS: u32 = 8;
/// The register calls after which a stopping agent has taken its names back: one may be under way, one may be needed.
const LAST_CALLS: u32 = 3;
/// The longest that the link waits before it tries something again.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// One agent's life.
pub struct World {
    core: Core,
    ledger: Ledger,
    activity: BTreeMap<TaskKey, Activity>,
    now: Instant,
    sessions: u64,
}

impl World {
    pub fn new() -> Self {
        let seconds = Duration::from_secs;
        let link = link::Settings {
            heartbeat_interval: seconds(30),
            reconnect_min: seconds(5),
            reconnect_max: seconds(60),
            token_source: "the credentials file",
        };
        let settings = Settings {
            task_timeout: seconds(600),
            first_token_timeout: seconds(40),
            idle_token_timeout: seconds(20),
            queue_timeout: seconds(30),
            max_in_flight: MAX_IN_FLIGHT,
            max_queued: MAX_QUEUED,
            max_queued_per_caller: MAX_QUEUED,
            drain_timeout: DRAIN_TIMEOUT,
            link,
        };
        Self {
            core: Core::new(settings, None, 1),
            ledger: Ledger::new(MAX_IN_FLIGHT),
            activity: BTreeMap::new(),
            now: Instant::now(),
            sessions: 0,
        }
    }

    /// Takes one step; an agent that is through takes none.
    pub fn take(&mut self, step: &Step) {
        if self.ledger.drained {
            return;
        }
        match step {
            Step::Pass(ms) => self.pass_to(self.now + Duration::from_millis(u64::from(*ms))),
            Step::PassToDeadline => {
                if let Some(at) = self.core.next_deadline() {
                    self.pass_to(at);
                }
            }
            Step::Output { task, token } => self.output(*task, *token),
            step => {
                if let Some(input) = self.input(step) {
                    self.handle(input);
                }
            }
        }
        self.check_views();
    }

    /// Everybody goes, mcpd takes what it is given, and the agent drains: it must come to its end.
    pub fn end(&mut self) {
        self.take(&Step::Drain);
        self.pass_to(self.now + DRAIN_TIMEOUT + DRAIN_DELIVERY_BOUND);
        for _ in 0..LAST_CALLS {
            // A call that outlasts the drain is answered to nobody: an agent that is through takes nothing.
            if let Some(attempt) = self.ledger.registering.take_if(|_| !self.ledger.drained) {
                self.handle(Input::Link(LinkInput::Registered(attempt, Ok("last".to_owned()))));
            }
            self.pass_to(self.now + LONGEST_WAIT);
        }
        assert!(self.ledger.drained, "the agent never ends");
        assert_eq!(self.core.tasks_under_way(), self.ledger.tasks.len());
    }

    fn handle(&mut self, input: Input) {
        let mut effects = Vec::new();
        let activity = |key| self.activity.get(&key).copied().unwrap_or_default();
        self.core.handle(input, self.now, &activity, &mut effects);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.ledger.take(effect, self.now);
        }
        self.ledger.check_holders();
    }

    /// Lets time pass, with a tick at each deadline on the way; mcpd is given up where it did not take an end in time.
    fn pass_to(&mut self, until: Instant) {
        let mut ticks = 0;
        while !self.ledger.drained {
            let given_up = self.ledger.next_given_up().filter(|(at, _)| *at <= until);
            let due = self.core.next_deadline().filter(|at| *at <= until);
            match (given_up, due) {
                (Some((at, key)), due) if due.is_none_or(|due| at <= due) => {
                    self.now = self.now.max(at);
                    self.settle(key);
                }
                (_, Some(at)) => {
                    ticks = if at > self.now { 0 } else { ticks + 1 };
                    assert!(ticks < MOST_TICKS, "the clock stands still");
                    self.now = self.now.max(at);
                    self.tick();
                }
                (_, None) => break,
            }
        }
        self.now = self.now.max(until);
    }

    fn tick(&mut self) {
        let mut effects = Vec::new();
        let activity = |key| self.activity.get(&key).copied().unwrap_or_default();
        self.core.tick(self.now, &activity, &mut effects);
        self.carry_out(effects);
    }

    fn output(&mut self, task: u8, token: bool) {
        let Some(key) = self.task(task) else { return };
        if self.ledger.tasks[&key].held.is_some() {
            let activity = self.activity.entry(key).or_default();
            (activity.any_output, activity.last_sign) = (true, Some(self.now));
            activity.first_token |= token;
        }
    }

    /// A step as the core's input; none where it would break what the agent owes the core.
    fn input(&mut self, step: &Step) -> Option<Input> {
        Some(match step {
            Step::Task { id, llm, streaming, size, deadline_ms } => {
                let deadline = deadline_ms.map(|ms| Duration::from_millis(ms.into()));
                let request = Bytes::from(vec![b' '; usize::from(*size)]);
                let llm = name(*llm).as_str().to_owned();
                Input::Task(Task { llm, streaming: *streaming, request, deadline, ..a_task(*id) })
            }
            Step::BadTask { id } => Input::BadTask(a_task(*id), failure()),
            Step::CallerLeft { id } => Input::CallerLeft(a_task(*id).id),
            Step::Open { client, builtin, small } => self.opened(*client, *builtin, *small),
            Step::Snapshot { session, providers } => self.snapshot(*session, providers)?,
            Step::Finished { session, task, how } => {
                let (session, key) = (self.session(*session)?, self.task(*task)?);
                self.ledger.tasks.get_mut(&key)?.held.take_if(|(by, _)| *by == session);
                Input::Finished(session, key, outcome(how))
            }
            Step::Refused { session, task } => {
                let (session, key) = (self.session(*session)?, self.task(*task)?);
                let held = self.ledger.tasks.get_mut(&key)?.held.take_if(|(by, _)| *by == session);
                self.ledger.refused = held.map(|_| key);
                Input::Refused(session, key, failure())
            }
            Step::Broken { session, task } => {
                Input::Broken(self.session(*session)?, self.task(*task)?, failure())
            }
            Step::SessionDraining(session) => {
                let session = self.session(*session)?;
                self.ledger.sessions.get_mut(&session)?.draining = true;
                Input::SessionDraining(session, None)
            }
            Step::SessionClosed(session) => {
                let session = self.session(*session)?;
                self.ledger.close(session);
                Input::SessionClosed(session)
            }
            Step::Settled(task) => {
                let key = self.task(*task)?;
                self.settle(key);
                return None;
            }
            Step::NobodyWaits(task) => {
                let key = self.task(*task)?;
                self.ledger.tasks.get_mut(&key).filter(|task| !task.settled)?;
                self.caller_gone(key);
                return None;
            }
            Step::DeliveryFailed(task) => Input::DeliveryFailed(self.task(*task)?, failure()),
            Step::Pause { name: which, paused } => self.pause(which.map(name), *paused),
            Step::Restored(id) => Input::Restored(vec![a_task(*id).id]),
            Step::Drain => {
                self.ledger.draining = true;
                self.ledger.drain_bound.get_or_insert(self.now + DRAIN_TIMEOUT + DRAIN_DELIVERY_BOUND);
                Input::Drain
            }
            Step::Output { .. } | Step::Pass(_) | Step::PassToDeadline => return None,
            link => Input::Link(self.link(link)?),
        })
    }

    fn link(&mut self, step: &Step) -> Option<LinkInput> {
        let ledger = &mut self.ledger;
        Some(match step {
            Step::Credentials(None) => LinkInput::Credentials(Err("none".into())),
            Step::Credentials(Some(other)) => {
                LinkInput::Credentials(Ok(if *other { McpdChange::Other(None) } else { McpdChange::Same }))
            }
            Step::Registered(reply) => LinkInput::Registered(ledger.registering.take()?, answer(reply)),
            Step::ChannelOpened => LinkInput::ChannelOpened(ledger.epoch),
            Step::ChannelProved => LinkInput::ChannelProved(ledger.epoch),
            Step::ChannelClosed(reply) => {
                ledger.channel = false;
                LinkInput::ChannelClosed(ledger.epoch, answer(reply).err()?)
            }
            Step::Heartbeat(reply) => LinkInput::Heartbeat(ledger.heartbeat.take()?, answer(reply).map(drop)),
            Step::Woke => {
                ledger.heartbeat = None;
                LinkInput::Woke
            }
            _ => return None,
        })
    }

    fn opened(&mut self, client: u8, builtin: bool, small: bool) -> Input {
        let key = SessionKey(self.sessions);
        self.sessions += 1;
        self.ledger.sessions.insert(key, Session::default());
        let hello = SessionHello {
            client_id: format!("client {}", client % 3),
            client_version: "1".to_owned(),
            max_message_bytes: if small { SMALL_MESSAGE } else { 1 << 20 },
            builtin,
        };
        Input::SessionOpened(key, hello)
    }

    fn snapshot(&mut self, session: u8, entries: &[Entry]) -> Option<Input> {
        let key = self.session(session)?;
        let pushed: Vec<Pushed> = entries.iter().map(pushed).collect();
        let session = self.ledger.sessions.get_mut(&key)?;
        session.providers.clear();
        for provider in pushed.iter().flatten() {
            // Of two with one name the first counts.
            session.providers.entry(provider.name.clone()).or_insert_with(|| provider.clone());
        }
        session.snapshots += 1;
        Some(Input::Snapshot(key, session.snapshots, pushed))
    }

    fn pause(&mut self, name: Option<ProviderName>, paused: bool) -> Input {
        let ledger = &mut self.ledger;
        match &name {
            Some(name) if paused => {
                ledger.resumed.remove(name);
                ledger.paused.insert(name.clone());
            }
            Some(name) => {
                ledger.paused.remove(name);
                ledger.resumed.insert(name.clone());
            }
            None => {
                ledger.all_paused = paused;
                ledger.paused.clear();
                ledger.resumed.clear();
            }
        }
        Input::SetPaused(name, paused.then(Pause::default))
    }

    /// mcpd takes the task's end, if it has one.
    fn settle(&mut self, key: TaskKey) {
        let ending = self.ledger.tasks.get_mut(&key).filter(|task| task.ended && !task.settled);
        if let Some(task) = ending {
            task.settled = true;
            self.handle(Input::Settled(key));
        }
    }

    fn caller_gone(&mut self, key: TaskKey) {
        self.ledger.abandoned = Some(key);
        self.handle(Input::CallerGone(key));
        self.ledger.abandoned = None;
        if let Some(task) = self.ledger.tasks.get_mut(&key) {
            task.settled = true;
        }
    }

    /// One of the tasks under way.
    fn task(&self, n: u8) -> Option<TaskKey> {
        pick(self.ledger.tasks.keys(), n)
    }

    /// One of the sessions that are there.
    fn session(&self, n: u8) -> Option<SessionKey> {
        pick(self.ledger.sessions.keys(), n)
    }

    /// What is shown agrees with what was told.
    fn check_views(&self) {
        let activity = |key| self.activity.get(&key).copied().unwrap_or_default();
        assert_eq!(self.core.tasks(self.now, activity).len(), self.ledger.tasks.len());
        assert_eq!(self.core.sessions().len(), self.ledger.sessions.len());
        self.core.link_status(self.now);
        for view in self.core.providers().iter().filter(|view| !view.lost) {
            let session = &self.ledger.sessions[&view.session];
            assert_eq!(session.providers.get(&view.provider.name), Some(&view.provider));
        }
    }
}

fn pick<T: Copy>(keys: impl ExactSizeIterator<Item = impl std::ops::Deref<Target = T>>, n: u8) -> Option<T> {
    let len = keys.len();
    let mut keys = keys;
    (len > 0).then(|| keys.nth(usize::from(n) % len).map(|key| *key)).flatten()
}

fn name(n: u8) -> ProviderName {
    ProviderName::new(["a", "b", "c"][usize::from(n % 3)]).expect("a name")
}

fn a_task(id: u8) -> Task {
    Task {
        id: TaskId::new(&format!("t{}", id % 32)).expect("an id"),
        llm: "a".to_owned(),
        streaming: false,
        request: Bytes::new(),
        asked: RequestFacts::default(),
        deadline: None,
        trace_context: BTreeMap::new(),
        caller: None,
    }
}

fn failure() -> Failure {
    Failure::new(FailureCode::Internal, "it failed")
}

fn outcome(how: &How) -> Outcome {
    match how {
        How::Complete => Outcome::Complete,
        How::Body => Outcome::Body(Bytes::from_static(b"{}")),
        How::Failed => Outcome::Failed(failure()),
        How::Cancelled => Outcome::Cancelled,
    }
}

fn answer(reply: &Reply) -> Result<String, CallFailure> {
    let why = || "so it is".to_owned();
    Err(match reply {
        Reply::Good { session } => return Ok(format!("session {}", session % 2)),
        Reply::Unauthorized { changed } => CallFailure::Unauthorized { detail: why().into(), changed: *changed },
        Reply::Unknown => CallFailure::Unknown(why().into()),
        Reply::Conflict { name: n } => CallFailure::Conflict(BTreeSet::from([name(*n)])),
        Reply::Passing { retry_after_s } => {
            CallFailure::Passing(why().into(), retry_after_s.map(|s| Duration::from_secs(s.into())))
        }
    })
}

/// An entry of a snapshot; some make no sense.
fn pushed(entry: &Entry) -> Pushed {
    let state = match entry.state % 4 {
        0 => ProviderState::Loading,
        1 => ProviderState::Unavailable,
        _ => ProviderState::Ready,
    };
    if entry.name == u8::MAX {
        return Err(("\n".to_owned(), failure()));
    }
    Ok(Provider {
        name: name(entry.name),
        kind: "echo".into(),
        model: if entry.model { "m" } else { "n" }.into(),
        tier: String::new(),
        description: String::new(),
        publish: entry.publish,
        sharing: Vec::new(),
        max_in_flight: entry.max_in_flight.map(|n| u32::from(n % 4)),
        state,
        state_detail: String::new(),
        features: Vec::new(),
        context_tokens: None,
        max_output_tokens: None,
        server: None,
    })
}
