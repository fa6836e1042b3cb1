//! The instruments: names, units, what they are for, and the bounds of their buckets.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter},
};

use crate::{
    domain::ProviderName,
    telemetry::names::{key, metric},
};

/// The conventions' bounds for seconds of an inference.
const INFERENCE_SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// The conventions' bounds for seconds of an HTTP request.
const HTTP_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The words for a provider's states: each is a series, so that a dashboard sees the ones it has left.
pub const PROVIDER_STATES: [&str; 5] = ["ready", "loading", "unavailable", "paused", "lost"];

/// All that is counted and measured.
pub(super) struct Instruments {
    pub(super) duration: Histogram<f64>,
    pub(super) time_to_first_chunk: Histogram<f64>,
    pub(super) time_per_output_chunk: Histogram<f64>,
    /// Of prompts and answers, from the cache and of the reasoning.
    pub(super) tokens: [Counter<u64>; 4],
    pub(super) http_duration: Histogram<f64>,
    pub(super) running: UpDownCounter<i64>,
    pub(super) queued: UpDownCounter<i64>,
    pub(super) ended: Counter<u64>,
    pub(super) reconnects: Counter<u64>,
    pub(super) heartbeats_missed: Counter<u64>,
    pub(super) link_state: Gauge<u64>,
    pub(super) link_trouble: Gauge<u64>,
    pub(super) provider_state: Gauge<u64>,
    pub(super) chunks: Counter<u64>,
    pub(super) posts: Counter<u64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, about: &'static str, bounds: [f64; 14]| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(about)
                .with_boundaries(bounds.to_vec())
                .build()
        };
        let count = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(about).build()
        };
        let level = |name: &'static str, about: &'static str| {
            meter.i64_up_down_counter(name).with_unit("{task}").with_description(about).build()
        };
        Self {
            duration: seconds(
                metric::INFERENCE_DURATION,
                "Time from the offer of a task to the end of its answer",
                INFERENCE_SECONDS,
            ),
            time_to_first_chunk: seconds(
                metric::TIME_TO_FIRST_CHUNK,
                "Time from the offer of a streaming task to its first chunk",
                INFERENCE_SECONDS,
            ),
            time_per_output_chunk: seconds(
                metric::TIME_PER_OUTPUT_CHUNK,
                "Time from one chunk of an answer to the next",
                INFERENCE_SECONDS,
            ),
            tokens: [
                (metric::INPUT_TOKENS, "Tokens of prompts, as their providers counted them"),
                (metric::OUTPUT_TOKENS, "Tokens of answers, as their providers counted them"),
                (metric::CACHE_READ_INPUT_TOKENS, "Tokens of prompts that came from the provider's cache"),
                (metric::REASONING_OUTPUT_TOKENS, "Tokens of answers that were reasoning"),
            ]
            .map(|(name, about)| count(name, "{token}", about)),
            http_duration: seconds(
                metric::HTTP_DURATION,
                "Time of one POST of a result part to mcpd",
                HTTP_SECONDS,
            ),
            running: level(metric::TASKS_RUNNING, "Tasks at a provider now"),
            queued: level(metric::TASKS_QUEUED, "Tasks waiting for a slot now"),
            ended: count(metric::TASKS_ENDED, "{task}", "Tasks that ended, by outcome"),
            reconnects: count(
                metric::RECONNECTS,
                "{attempt}",
                "Attempts to reopen the control channel after its loss",
            ),
            heartbeats_missed: count(
                metric::HEARTBEATS_MISSED,
                "{heartbeat}",
                "Heartbeats that mcpd did not take",
            ),
            link_state: meter
                .u64_gauge(metric::LINK_STATE)
                .with_description("1 for the state the link to mcpd is in, 0 for the others")
                .build(),
            link_trouble: meter
                .u64_gauge(metric::LINK_TROUBLE)
                .with_description("1 for the trouble that the link to mcpd has, 0 for the others")
                .build(),
            provider_state: meter
                .u64_gauge(metric::PROVIDER_STATE)
                .with_description("1 for the state a provider is in, 0 for the others")
                .build(),
            chunks: count(metric::CHUNKS_RECEIVED, "{chunk}", "Chunks of output that came from providers"),
            posts: count(
                metric::POSTS_SENT,
                "{post}",
                "Result POSTs that went to mcpd, repetitions included",
            ),
        }
    }

    /// The provider is in this state, or in none.
    pub(super) fn provider(&self, name: &ProviderName, state: Option<&str>) {
        for each in PROVIDER_STATES {
            let labels =
                [KeyValue::new(key::LLM, name.as_str().to_owned()), KeyValue::new(key::PROVIDER_STATE, each)];
            self.provider_state.record(u64::from(Some(each) == state), &labels);
        }
    }

    /// Shows what has no labels from the start: a series that begins with its first event hides that event from every rate.
    pub(super) fn begin(&self) {
        self.queued.add(0, &[]);
        for counter in [&self.reconnects, &self.heartbeats_missed, &self.posts] {
            counter.add(0, &[]);
        }
    }
}
