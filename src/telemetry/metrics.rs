//! What is measured, and what may be a label: only what is bounded by the set of providers. No task id, no session id.

mod instruments;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{BoundCounter, BoundHistogram, BoundUpDownCounter, Meter},
};

use self::instruments::Instruments;
pub use self::instruments::PROVIDER_STATES;
use super::{
    names::{key, value},
    server::Server,
};
use crate::domain::{EndKind, FailureCode, LinkState, Provider, ProviderName, Trouble, Usage};

/// All states of the link: each is a series, so that a dashboard sees the ones the link has left.
const LINK_STATES: [LinkState; 7] = [
    LinkState::NoCredentials,
    LinkState::Idle,
    LinkState::Connecting,
    LinkState::Online,
    LinkState::Backoff,
    LinkState::Refused,
    LinkState::Draining,
];

/// Providers whose series are kept at hand; beyond them all are looked up anew.
const MAX_AT_HAND: usize = 1000;

/// What the agent counts and measures. Cheap to clone; without an exporter every method is one comparison.
#[derive(Clone, Default)]
pub struct Metrics(Option<Arc<Measured>>);

/// The instruments, and the series of them that are in use: to find a series by its labels costs fifty times as much as to add to it.
struct Measured {
    instruments: Instruments,
    /// Few, mostly, so that comparing their names is less work than hashing one.
    providers: Mutex<BTreeMap<ProviderName, Arc<Series>>>,
    /// All POSTs.
    sent: BoundCounter<u64>,
    /// The providers' states, as they were last told.
    states: Mutex<BTreeMap<ProviderName, &'static str>>,
    /// Nearly every POST ends like the one before.
    posts: Mutex<Option<LastPost>>,
}

struct LastPost {
    server: Server,
    status: Option<u16>,
    duration: BoundHistogram<f64>,
}

/// One provider's own series, each bound when it is first used: one that is bound is shown, if only as zero. The labels are what the
/// provider's owner chose, so there are as many as there are providers.
pub(super) struct Series {
    labels: [KeyValue; 4],
    running: OnceLock<BoundUpDownCounter<i64>>,
    chunks: OnceLock<BoundCounter<u64>>,
    first_chunk: OnceLock<BoundHistogram<f64>>,
    next_chunk: OnceLock<BoundHistogram<f64>>,
    completed: OnceLock<BoundHistogram<f64>>,
    /// Of the prompt and the answer, from the cache and of the reasoning.
    tokens: [OnceLock<BoundCounter<u64>>; 4],
    /// Tasks that ended well.
    ended: OnceLock<BoundCounter<u64>>,
}

impl Metrics {
    pub(super) fn new(meter: &Meter) -> Self {
        let instruments = Instruments::new(meter);
        instruments.begin();
        let sent = instruments.posts.bind(&[]);
        Self(Some(Arc::new(Measured {
            instruments,
            sent,
            providers: Mutex::default(),
            states: Mutex::default(),
            posts: Mutex::default(),
        })))
    }

    fn instruments(&self) -> Option<&Instruments> {
        self.0.as_ref().map(|m| &m.instruments)
    }

    /// Whether anybody reads them.
    pub fn enabled(&self) -> bool {
        self.0.is_some()
    }

    /// One more attempt to reopen the control channel.
    pub fn reconnect(&self) {
        if let Some(i) = self.instruments() {
            i.reconnects.add(1, &[]);
        }
    }

    /// One heartbeat that mcpd did not take.
    pub fn heartbeat_missed(&self) {
        if let Some(i) = self.instruments() {
            i.heartbeats_missed.add(1, &[]);
        }
    }

    /// One task that made no sense and could not even be answered.
    pub fn task_lost(&self) {
        self.task_ended(None, EndKind::Failed(FailureCode::BadTask));
    }

    /// The link to mcpd is in `state` from now on, and has this trouble or none.
    pub fn link(&self, state: LinkState, trouble: Option<Trouble>) {
        let Some(i) = self.instruments() else { return };
        for each in LINK_STATES {
            i.link_state.record(u64::from(each == state), &[KeyValue::new(key::LINK_STATE, each.as_str())]);
        }
        for each in Trouble::ALL {
            let is_so = u64::from(Some(each) == trouble);
            i.link_trouble.record(is_so, &[KeyValue::new(key::LINK_TROUBLE, each.as_str())]);
        }
    }

    /// The providers that are served now, each with the word of its state, one of [`PROVIDER_STATES`]. One that was
    /// among them before and is not any more has gone: it is in no state.
    pub fn providers(&self, now: BTreeMap<ProviderName, &'static str>) {
        let Some(measured) = &self.0 else { return };
        let mut told = measured.states.lock().unwrap_or_else(PoisonError::into_inner);
        for name in told.keys().filter(|name| !now.contains_key(name)) {
            measured.instruments.provider(name, None);
        }
        for (name, state) in now.iter().filter(|(name, state)| told.get(name) != Some(state)) {
            measured.instruments.provider(name, Some(state));
        }
        *told = now;
    }

    pub(super) fn queued(&self, change: i64) {
        if let Some(i) = self.instruments() {
            i.queued.add(change, &[]);
        }
    }

    /// The series of `provider`'s inferences.
    pub(super) fn series(&self, provider: &Provider) -> Option<Arc<Series>> {
        let measured = self.0.as_ref()?;
        let mut at_hand = measured.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = at_hand.get(&provider.name).filter(|s| s.are_of(provider)) {
            return Some(known.clone());
        }
        if at_hand.len() >= MAX_AT_HAND {
            at_hand.clear();
        }
        let series = Arc::new(Series::of(provider));
        at_hand.insert(provider.name.clone(), series.clone());
        Some(series)
    }

    pub(super) fn running(&self, change: i64, series: &Series) {
        if let Some(i) = self.instruments() {
            series.running.get_or_init(|| i.running.bind(series.llm())).add(change);
        }
    }

    /// A chunk came; a stream's took so long since the offer if it is the first, else since the one before.
    pub(super) fn chunk(&self, series: &Series, is_first: bool, took: Option<Duration>) {
        let Some(i) = self.instruments() else { return };
        series.chunks.get_or_init(|| i.chunks.bind(series.llm())).add(1);
        let Some(took) = took else { return };
        let histogram = if is_first {
            series.first_chunk.get_or_init(|| i.time_to_first_chunk.bind(&series.labels))
        } else {
            series.next_chunk.get_or_init(|| i.time_per_output_chunk.bind(&series.labels))
        };
        histogram.record(took.as_secs_f64());
    }

    pub(super) fn inference_ended(&self, series: &Series, took: Duration, usage: Usage, end: EndKind) {
        let Some(i) = self.instruments() else { return };
        let took = took.as_secs_f64();
        match error_type(end) {
            Some(error) => i.duration.record(took, &series.with(error)),
            None => series.completed.get_or_init(|| i.duration.bind(&series.labels)).record(took),
        }
        let counts = [
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.reasoning_output_tokens,
        ];
        for ((bound, counter), tokens) in series.tokens.iter().zip(&i.tokens).zip(counts) {
            let Some(tokens) = tokens else { continue };
            let labels = || series.with(KeyValue::new(key::TOKEN_MODALITY, value::UNKNOWN_MODALITY));
            bound.get_or_init(|| counter.bind(&labels())).add(tokens.into());
        }
    }

    pub(super) fn task_ended(&self, series: Option<&Series>, end: EndKind) {
        let Some(i) = self.instruments() else { return };
        let labels = |llm: &KeyValue| -> Vec<_> {
            [llm.clone(), KeyValue::new(key::OUTCOME, end.as_str())]
                .into_iter()
                .chain(error_type(end))
                .collect()
        };
        match series {
            Some(series) if end == EndKind::Answered => {
                series.ended.get_or_init(|| i.ended.bind(&labels(&series.labels[Series::LLM]))).add(1);
            }
            Some(series) => i.ended.add(1, &labels(&series.labels[Series::LLM])),
            // A name that no provider has may be anything mcpd thought of, so it is no label.
            None => i.ended.add(1, &labels(&KeyValue::new(key::LLM, value::OTHER))),
        }
    }

    /// A POST to `server` got this status, or no reply.
    pub(super) fn post_sent(&self, took: Duration, server: &Server, status: Option<u16>) {
        let Some(measured) = &self.0 else { return };
        measured.sent.add(1);
        let mut last = measured.posts.lock().unwrap_or_else(PoisonError::into_inner);
        let same = last.as_ref().is_some_and(|l| l.status == status && l.server == *server);
        if !same {
            let duration = measured.instruments.http_duration.bind(&server.labels(status));
            *last = Some(LastPost { server: server.clone(), status, duration });
        }
        if let Some(last) = &*last {
            last.duration.record(took.as_secs_f64());
        }
    }
}

fn error_type(end: EndKind) -> Option<KeyValue> {
    end.error_type().map(|e| KeyValue::new(key::ERROR_TYPE, e))
}

impl Series {
    const KIND: usize = 1;
    const MODEL: usize = 2;
    const LLM: usize = 3;

    fn of(provider: &Provider) -> Self {
        Self {
            labels: [
                KeyValue::new(key::OPERATION_NAME, value::CHAT),
                KeyValue::new(key::PROVIDER_NAME, Arc::<str>::from(provider_name(&provider.kind))),
                KeyValue::new(key::REQUEST_MODEL, Arc::clone(&provider.model)),
                KeyValue::new(key::LLM, Arc::<str>::from(provider.name.as_str())),
            ],
            running: OnceLock::new(),
            chunks: OnceLock::new(),
            first_chunk: OnceLock::new(),
            next_chunk: OnceLock::new(),
            completed: OnceLock::new(),
            tokens: Default::default(),
            ended: OnceLock::new(),
        }
    }

    fn llm(&self) -> &[KeyValue] {
        std::slice::from_ref(&self.labels[Self::LLM])
    }

    /// Whether the provider is still what it was when its series were looked up.
    fn are_of(&self, provider: &Provider) -> bool {
        *self.labels[Self::MODEL].value.as_str() == *provider.model
            && self.labels[Self::KIND].value.as_str() == provider_name(&provider.kind)
    }

    fn with(&self, more: KeyValue) -> Vec<KeyValue> {
        self.labels.iter().cloned().chain([more]).collect()
    }
}

/// The conventions' name for a provider of this kind: the owner's word, but where they have another, and where its
/// owner gave none.
pub(super) fn provider_name(kind: &str) -> &str {
    match kind {
        "" => value::OTHER,
        "gemini" => value::GEMINI,
        other => other,
    }
}
