//! What is measured: the loads, and the goals for the agent under them.

use crate::{
    load::LoadArgs,
    system::{RATHOLE, TRACED_GRPC, TRACED_HTTP},
};

/// How much of a load there is.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// So many requests of every caller.
    Each(u32),
    /// As many as go into so many seconds.
    Seconds(f64),
}

/// One load that every system gets.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Its short name.
    pub id: &'static str,
    /// What it is, for the table.
    pub title: &'static str,
    callers: u32,
    tokens: u32,
    delay_us: u64,
    stream: bool,
    amount: Amount,
    /// How long it takes until the last caller has begun. Without it all callers of a paced load stay in step: each burst of first
    /// tokens is all of them in one millisecond.
    ramp_ms: u64,
}

/// The loads of the table.
pub const CELLS: [Cell; 6] = [
    Cell {
        id: "plain",
        title: "plain, 16 tokens, 32 callers",
        callers: 32,
        tokens: 16,
        delay_us: 0,
        stream: false,
        amount: Amount::Seconds(2.0),
        ramp_ms: 0,
    },
    Cell {
        id: "burst",
        title: "streaming, 128 tokens, no delay, 32 callers",
        callers: 32,
        tokens: 128,
        delay_us: 0,
        stream: true,
        amount: Amount::Seconds(2.0),
        ramp_ms: 0,
    },
    paced("paced8", "streaming, 128 tokens 10 ms apart, 8 callers", 8, 2),
    paced("paced64", "streaming, 128 tokens 10 ms apart, 64 callers", 64, 2),
    Cell {
        // As long as a stream lasts.
        ramp_ms: 1400,
        ..paced("spread64", "the same, but the callers begin one after the other", 64, 3)
    },
    paced("paced256", "streaming, 128 tokens 10 ms apart, 256 callers", 256, 3),
];

const fn paced(id: &'static str, title: &'static str, callers: u32, each: u32) -> Cell {
    Cell {
        id,
        title,
        callers,
        tokens: 128,
        delay_us: 10_000,
        stream: true,
        amount: Amount::Each(each),
        ramp_ms: 0,
    }
}

impl Cell {
    /// A load of its own: `callers` streams at once with `tokens` tokens each, every one `each` times.
    pub fn streams(callers: u32, each: u32, tokens: u32, delay_us: u64) -> Self {
        let amount = Amount::Each(each);
        Self { id: "streams", title: "", callers, tokens, delay_us, stream: true, amount, ramp_ms: 0 }
    }

    /// The load as arguments for the callers' process.
    pub fn load(&self, address: &str, path: &str) -> LoadArgs {
        let (each, seconds) = match self.amount {
            Amount::Each(each) => (Some(each), 0.0),
            Amount::Seconds(seconds) => (None, seconds),
        };
        LoadArgs {
            address: address.to_owned(),
            path: path.to_owned(),
            callers: self.callers,
            each,
            seconds,
            tokens: self.tokens,
            delay_us: self.delay_us,
            stream: self.stream,
            ramp_ms: self.ramp_ms,
        }
    }

    /// Whether the load pushes as hard as it can, so that everything should be warm before.
    pub fn pushes(&self) -> bool {
        self.delay_us == 0
    }
}

/// What a value is held against.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// This number.
    Fixed(f64),
    /// So many times what another system had in the same run.
    Times(f64, &'static str),
}

/// One line of the goals.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Whose value it is about.
    pub system: &'static str,
    /// The cell's id.
    pub cell: &'static str,
    /// The metric's name.
    pub metric: &'static str,
    /// Whether the bound is the most, or else the least.
    pub at_most: bool,
    /// What it is held against.
    pub bound: Bound,
}

const fn goal(cell: &'static str, metric: &'static str, at_most: bool, bound: Bound) -> Goal {
    Goal { system: "agent", cell, metric, at_most, bound }
}

/// Telemetry may cost so much of the CPU of an agent without it.
const fn traced(system: &'static str, cell: &'static str) -> Goal {
    Goal { system, ..goal(cell, metric::CPU_REQUESTS, true, Bound::Times(1.15, "agent")) }
}

/// Of the spans that are made so many arrive: what is dropped costs nothing.
const fn arriving(system: &'static str, cell: &'static str) -> Goal {
    Goal { system, ..goal(cell, metric::SPANS, false, Bound::Fixed(99.0)) }
}

/// The names of what is measured, with their units.
pub mod metric {
    /// Right answers per second.
    pub const REQUESTS: &str = "requests/s";
    /// Tokens of right answers per second.
    pub const TOKENS: &str = "tokens/s";
    /// Request to end of answer.
    pub const LATENCY_P50: &str = "latency p50 ms";
    /// Request to end of answer.
    pub const LATENCY_P99: &str = "latency p99 ms";
    /// Request to first text.
    pub const FIRST_P50: &str = "first token p50 ms";
    /// Request to first text.
    pub const FIRST_P99: &str = "first token p99 ms";
    /// The same, less what it was without a relay.
    pub const FIRST_OVER_P50: &str = "first token over direct p50 ms";
    /// The same, less what it was without a relay.
    pub const FIRST_OVER_P99: &str = "first token over direct p99 ms";
    /// Between two events with text of one stream.
    pub const GAP_P50: &str = "gap p50 ms";
    /// Between two events with text of one stream.
    pub const GAP_P99: &str = "gap p99 ms";
    /// The relay's CPU time.
    pub const CPU_REQUESTS: &str = "CPU s per 1,000 requests";
    /// The relay's CPU time.
    pub const CPU_TOKENS: &str = "CPU s per million tokens";
    /// The most memory the relay ever had.
    pub const PEAK_RSS: &str = "peak RSS MiB";
    /// Result POSTs, chunks and ends together.
    pub const POSTS: &str = "POSTs per 100 tokens";
    /// Events with text that reach the caller.
    pub const CHUNKS: &str = "chunks per stream";
    /// Connections that the result POSTs of the load opened.
    pub const CONNECTIONS: &str = "connections opened";
    /// Spans at the collector, of those that were made.
    pub const SPANS: &str = "spans that arrived %";
    /// Memory of a relay that has nothing to do.
    pub const IDLE_RSS: &str = "idle RSS MiB";
    /// From the start of the process to its row in mcpd's list.
    pub const START: &str = "start to online ms";
}

/// The goals for the agent.
pub const GOALS: [Goal; 25] = [
    goal("plain", metric::CPU_REQUESTS, true, Bound::Times(0.25, "node")),
    goal("plain", metric::REQUESTS, false, Bound::Times(3.0, "node")),
    goal("burst", metric::TOKENS, false, Bound::Times(1.0, RATHOLE)),
    goal("burst", metric::TOKENS, false, Bound::Times(17.0, "node-per-token")),
    goal("burst", metric::CPU_REQUESTS, true, Bound::Fixed(1.0)),
    goal("paced64", metric::FIRST_OVER_P50, true, Bound::Times(1.3, "floor")),
    goal("paced64", metric::FIRST_OVER_P50, true, Bound::Fixed(2.0)),
    goal("paced64", metric::GAP_P99, true, Bound::Times(1.25, "direct")),
    goal("spread64", metric::FIRST_OVER_P50, true, Bound::Times(1.3, "floor")),
    goal("spread64", metric::FIRST_OVER_P50, true, Bound::Fixed(2.0)),
    goal("spread64", metric::GAP_P99, true, Bound::Times(1.25, "direct")),
    goal("paced8", metric::CHUNKS, false, Bound::Fixed(120.0)),
    // 4 s for 768 streams.
    goal("paced256", metric::CPU_REQUESTS, true, Bound::Fixed(4.0 / 0.768)),
    goal("paced256", metric::TOKENS, false, Bound::Fixed(19_000.0)),
    goal("paced256", metric::PEAK_RSS, true, Bound::Fixed(30.0)),
    goal("idle", metric::IDLE_RSS, true, Bound::Fixed(15.0)),
    goal("idle", metric::START, true, Bound::Fixed(100.0)),
    traced(TRACED_HTTP, "plain"),
    traced(TRACED_GRPC, "plain"),
    traced(TRACED_HTTP, "burst"),
    traced(TRACED_GRPC, "burst"),
    arriving(TRACED_HTTP, "plain"),
    arriving(TRACED_GRPC, "plain"),
    arriving(TRACED_HTTP, "burst"),
    arriving(TRACED_GRPC, "burst"),
];
