//! The core driven by hand: the clock is a number, and the effects are inspected.

mod callers;
mod deadlines;
mod heartbeats;
mod herd;
mod link;
mod model;
mod patterns;
mod refusals;
mod sharing;
mod unsure;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::*;
use crate::domain::{
    Activity, End, FailureCode, Provider, ProviderName, ProviderState, RequestFacts, SessionHello,
    SessionKey, Task, TaskId,
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn settings() -> Settings {
    Settings {
        task_timeout: 600 * SECOND,
        first_token_timeout: 60 * SECOND,
        idle_token_timeout: 30 * SECOND,
        queue_timeout: 40 * SECOND,
        max_in_flight: 1,
        max_queued: 2,
        max_queued_per_caller: 1,
        drain_timeout: 20 * SECOND,
        link: super::link::Settings {
            heartbeat_interval: 30 * SECOND,
            reconnect_min: 5 * SECOND,
            reconnect_max: 60 * SECOND,
            token_source: "the credentials file",
        },
    }
}

pub(super) fn name(text: &str) -> ProviderName {
    ProviderName::new(text).unwrap()
}

pub(super) fn provider(text: &str, max_in_flight: u32) -> Provider {
    Provider {
        name: name(text),
        kind: "ollama".into(),
        model: "m".into(),
        tier: String::new(),
        description: String::new(),
        publish: true,
        sharing: Vec::new(),
        max_in_flight: Some(max_in_flight),
        state: ProviderState::Ready,
        state_detail: String::new(),
        features: Vec::new(),
        context_tokens: None,
        max_output_tokens: None,
        server: None,
    }
}

pub(super) fn task(id: &str, llm: &str, streaming: bool) -> Task {
    Task {
        id: TaskId::new(id).unwrap(),
        llm: llm.to_owned(),
        streaming,
        request: "{}".into(),
        asked: RequestFacts::default(),
        deadline: None,
        trace_context: BTreeMap::new(),
        caller: None,
    }
}

/// A core, its clock, and what the outputs of its tasks have shown.
pub(super) struct Rig {
    pub(super) core: Core,
    pub(super) now: Instant,
    pub(super) activity: RefCell<BTreeMap<TaskKey, Activity>>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let core = Core::new(settings, None, 1);
        Self { core, now: Instant::now(), activity: RefCell::default() }
    }

    /// One session with one provider.
    pub(super) fn serving(max_in_flight: u32) -> Self {
        let mut rig = Self::new();
        rig.open(1, "program");
        rig.push(1, vec![provider("llm", max_in_flight)]);
        rig
    }

    pub(super) fn open(&mut self, session: u64, client: &str) -> Vec<Effect> {
        let hello = SessionHello {
            client_id: client.to_owned(),
            client_version: String::new(),
            max_message_bytes: 1 << 20,
            builtin: false,
        };
        self.act(Input::SessionOpened(SessionKey(session), hello))
    }

    pub(super) fn push(&mut self, session: u64, providers: Vec<Provider>) -> Vec<Effect> {
        self.act(Input::Snapshot(SessionKey(session), 1, providers.into_iter().map(Ok).collect()))
    }

    pub(super) fn act(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        let seen = self.activity.borrow();
        let look = |key| seen.get(&key).copied().unwrap_or_default();
        self.core.handle(input, self.now, &look, &mut effects);
        effects
    }

    /// Lets time pass, ticking whenever something is due; every effect comes with when it came.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<(Duration, Effect)> {
        let (began, until) = (self.now, self.now + time);
        let mut all = Vec::new();
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= until) {
            self.now = due.max(self.now);
            let mut effects = Vec::new();
            let seen = self.activity.borrow();
            let look = |key| seen.get(&key).copied().unwrap_or_default();
            self.core.tick(self.now, &look, &mut effects);
            drop(seen);
            let stuck = effects.is_empty() && self.core.next_deadline() == Some(due);
            assert!(!stuck, "a deadline that is due and does nothing would spin");
            all.extend(effects.into_iter().map(|effect| (self.now - began, effect)));
        }
        self.now = until;
        all
    }

    /// Notes a piece of output now.
    pub(super) fn output(&self, key: TaskKey, first_token: bool) {
        let seen = Activity { any_output: true, first_token, last_sign: Some(self.now) };
        self.activity.borrow_mut().insert(key, seen);
    }
}

/// The codes of the failures among some effects, with their tasks.
pub(super) fn failures<'a>(effects: impl IntoIterator<Item = &'a Effect>) -> Vec<(u64, FailureCode)> {
    let failed = |effect: &Effect| match effect {
        Effect::End(key, End::Failed(failure), _) => Some((key.0, failure.code)),
        _ => None,
    };
    effects.into_iter().filter_map(failed).collect()
}

/// The tasks that are offered among some effects.
pub(super) fn offers<'a>(effects: impl IntoIterator<Item = &'a Effect>) -> Vec<u64> {
    let offered = |effect: &Effect| if let Effect::Offer(key, _, _) = effect { Some(key.0) } else { None };
    effects.into_iter().filter_map(offered).collect()
}
