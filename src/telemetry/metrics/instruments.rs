//! The instruments: names, units, what they are for, and the bounds of their buckets.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

use crate::telemetry::names::metric;

/// The conventions' bounds for seconds of an inference: 0.01 doubling to 81.92.
const INFERENCE_SECONDS: Doubling = Doubling { first: 0.01, factor: 2.0, count: 14 };
/// The conventions' bounds for tokens: 1 times four to 67108864.
const TOKENS: Doubling = Doubling { first: 1.0, factor: 4.0, count: 14 };
/// The conventions' bounds for seconds of an HTTP request.
const HTTP_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Bucket bounds that grow by a factor.
struct Doubling {
    first: f64,
    factor: f64,
    count: i32,
}

impl Doubling {
    fn bounds(&self) -> Vec<f64> {
        (0..self.count).map(|i| self.first * self.factor.powi(i)).collect()
    }
}

/// All that is counted and measured.
pub(super) struct Instruments {
    pub(super) operation_duration: Histogram<f64>,
    pub(super) time_to_first_chunk: Histogram<f64>,
    pub(super) time_per_output_chunk: Histogram<f64>,
    pub(super) token_usage: Histogram<u64>,
    pub(super) http_duration: Histogram<f64>,
    pub(super) running: UpDownCounter<i64>,
    pub(super) queued: UpDownCounter<i64>,
    pub(super) ended: Counter<u64>,
    pub(super) reconnects: Counter<u64>,
    pub(super) heartbeats_missed: Counter<u64>,
    pub(super) link_state: Gauge<u64>,
    pub(super) chunks: Counter<u64>,
    pub(super) posts: Counter<u64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, about: &'static str, bounds: Vec<f64>| {
            meter.f64_histogram(name).with_unit("s").with_description(about).with_boundaries(bounds).build()
        };
        let count = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(about).build()
        };
        let level = |name: &'static str, about: &'static str| {
            meter.i64_up_down_counter(name).with_unit("{task}").with_description(about).build()
        };
        Self {
            operation_duration: seconds(
                metric::OPERATION_DURATION,
                "Time from the offer of a task to the end of its answer",
                INFERENCE_SECONDS.bounds(),
            ),
            time_to_first_chunk: seconds(
                metric::TIME_TO_FIRST_CHUNK,
                "Time from the offer of a streaming task to its first chunk",
                INFERENCE_SECONDS.bounds(),
            ),
            time_per_output_chunk: seconds(
                metric::TIME_PER_OUTPUT_CHUNK,
                "Time from one chunk of an answer to the next",
                INFERENCE_SECONDS.bounds(),
            ),
            token_usage: meter
                .u64_histogram(metric::TOKEN_USAGE)
                .with_unit("{token}")
                .with_description("Tokens of one inference as its provider counted them")
                .with_boundaries(TOKENS.bounds())
                .build(),
            http_duration: seconds(
                metric::HTTP_DURATION,
                "Time of one POST of a result part to mcpd",
                HTTP_SECONDS.to_vec(),
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
            chunks: count(metric::CHUNKS_RECEIVED, "{chunk}", "Chunks of output that came from providers"),
            posts: count(
                metric::POSTS_SENT,
                "{post}",
                "Result POSTs that went to mcpd, repetitions included",
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_the_conventions_own() {
        assert_eq!(INFERENCE_SECONDS.bounds().first(), Some(&0.01));
        assert_eq!(INFERENCE_SECONDS.bounds().last(), Some(&81.92));
        assert_eq!(TOKENS.bounds().last(), Some(&67_108_864.0));
    }
}
