//! What is measured: the loads, and the names of the values.

use crate::load::LoadArgs;

/// How much of a load there is.
#[derive(Clone, Copy, Debug)]
enum Amount {
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
    /// The round trip to mcpd.
    pub rtt_ms: u64,
    /// How long it takes until the last caller has begun. Without it all callers of a paced load stay in step: each burst
    /// of first tokens is all of them in one millisecond.
    ramp_ms: u64,
}

/// The loads of the tables.
pub const CELLS: [Cell; 9] = [
    Cell {
        id: "plain",
        title: "plain, 16 tokens, 32 callers",
        callers: 32,
        tokens: 16,
        delay_us: 0,
        stream: false,
        amount: Amount::Seconds(2.0),
        rtt_ms: 0,
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
        rtt_ms: 0,
        ramp_ms: 0,
    },
    paced("paced8", "streaming, 128 tokens 10 ms apart, 8 callers", 8, 2),
    paced("paced64", "streaming, 128 tokens 10 ms apart, 64 callers", 64, 2),
    Cell {
        // As long as a stream lasts.
        ramp_ms: 1400,
        ..paced("spread64", "like paced64, but the callers begin one after the other", 64, 3)
    },
    paced("paced256", "streaming, 128 tokens 10 ms apart, 256 callers", 256, 3),
    distant("rtt20", "streaming, 128 tokens 20 ms apart, 8 callers, mcpd 20 ms away", 20),
    distant("rtt50", "streaming, 128 tokens 20 ms apart, 8 callers, mcpd 50 ms away", 50),
    distant("rtt100", "streaming, 128 tokens 20 ms apart, 8 callers, mcpd 100 ms away", 100),
];
/// The cell without a load: a start, and an agent that has nothing to do.
pub const IDLE: &str = "idle";

const fn paced(id: &'static str, title: &'static str, callers: u32, each: u32) -> Cell {
    Cell {
        id,
        title,
        callers,
        tokens: 128,
        delay_us: 10_000,
        stream: true,
        amount: Amount::Each(each),
        rtt_ms: 0,
        ramp_ms: 0,
    }
}

const fn distant(id: &'static str, title: &'static str, rtt_ms: u64) -> Cell {
    Cell { delay_us: 20_000, rtt_ms, ..paced(id, title, 8, 2) }
}

impl Cell {
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

    /// As many callers at once and a shorter load: what opens every connection that the load needs.
    pub fn warm_up(&self, address: &str, path: &str) -> LoadArgs {
        let load = LoadArgs { ramp_ms: 0, ..self.load(address, path) };
        match self.amount {
            Amount::Each(_) => LoadArgs { each: Some(1), tokens: 16, ..load },
            Amount::Seconds(_) => LoadArgs { seconds: 0.5, ..load },
        }
    }
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
    /// The relay's CPU time; the Node program's where the agent is beside it.
    pub const CPU_REQUESTS: &str = "CPU s per 1,000 requests";
    /// The same.
    pub const CPU_TOKENS: &str = "CPU s per million tokens";
    /// The CPU time of the agent beside a Node program.
    pub const CPU_BESIDE: &str = "and of the agent beside it";
    /// The CPU time of the stand-in for mcpd.
    pub const CPU_MCPD: &str = "CPU s of mcpd per 1,000 requests";
    /// The most memory the relay ever had.
    pub const PEAK_RSS: &str = "peak RSS MiB";
    /// Result POSTs, chunks and ends together.
    pub const POSTS: &str = "POSTs per 100 tokens";
    /// Events with text that reach the caller.
    pub const CHUNKS: &str = "chunks per stream";
    /// Connections for result POSTs that were opened after the warm-up.
    pub const TO_MCPD: &str = "connections opened to mcpd";
    /// The same to the provider.
    pub const TO_PROVIDER: &str = "connections opened to provider";
    /// Spans that arrive at the collector.
    pub const SPANS: &str = "spans per request";
    /// Memory of an agent that has nothing to do.
    pub const IDLE_RSS: &str = "idle RSS MiB";
    /// From the start of the process to its row in mcpd's list.
    pub const START: &str = "start to online ms";
    /// How often a thread of an agent that has nothing to do goes to sleep again.
    pub const WAKE_UPS: &str = "wake-ups per minute";
    /// The file's size.
    pub const PROGRAM: &str = "program MiB";

    /// All, in the order of a table's lines.
    pub const ALL: [&str; 24] = [
        REQUESTS,
        TOKENS,
        LATENCY_P50,
        LATENCY_P99,
        FIRST_P50,
        FIRST_P99,
        FIRST_OVER_P50,
        FIRST_OVER_P99,
        GAP_P50,
        GAP_P99,
        CPU_REQUESTS,
        CPU_TOKENS,
        CPU_BESIDE,
        CPU_MCPD,
        PEAK_RSS,
        POSTS,
        CHUNKS,
        TO_MCPD,
        TO_PROVIDER,
        SPANS,
        IDLE_RSS,
        START,
        WAKE_UPS,
        PROGRAM,
    ];
}
