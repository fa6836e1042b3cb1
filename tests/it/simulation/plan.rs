//! One schedule: everything that will be done and go wrong, drawn from a seed before anything happens.

use std::time::Duration;

use fake_mcpd::{Aim, Answer, CallKind, Fault as McpdFault, PingStyle, Refused};
use fastrand::Rng;

use crate::support::{
    Scheme,
    proxy::{Order, Way},
};

/// How long things go wrong, in ms.
pub const CHAOS: u64 = 60_000;
/// The names that programs serve and callers ask for.
pub const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
/// The agent's limit for a whole task in every schedule: short, so that it is reached.
pub const TASK_TIMEOUT: Duration = Duration::from_secs(50);
/// For the first token.
pub const FIRST_TOKEN: Duration = Duration::from_secs(12);
/// Between two tokens.
pub const IDLE_TOKEN: Duration = Duration::from_secs(8);
/// In the queue.
pub const QUEUE: Duration = Duration::from_secs(15);

/// A schedule.
#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub scheme: Scheme,
    pub max_in_flight: u32,
    pub max_queued: u32,
    pub drain_timeout: Duration,
    pub idempotent: bool,
    pub result_stream: bool,
    pub keep_alive: Option<Duration>,
    pub ping_style: PingStyle,
    pub programs: Vec<ProgramPlan>,
    pub calls: Vec<CallPlan>,
    /// In the order of time, which is in ms.
    pub faults: Vec<(u64, Fault)>,
    /// When the agent is told to stop.
    pub drain_at: u64,
}

/// A local program.
#[derive(Clone, Debug)]
pub struct ProgramPlan {
    pub client_id: String,
    pub names: Vec<&'static str>,
    pub seed: u64,
    pub moods: Vec<(u64, Mood)>,
}

/// What a local program does as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Its connection ends without a word, for so many ms.
    Vanish(u64),
    /// It says goodbye, ends what runs, and comes back after so many ms.
    Drain(u64),
    /// It connects a second time; the first connection goes on talking for a while.
    Replace,
    /// It withdraws everything, for so many ms.
    Withdraw(u64),
    /// It reads nothing, for so many ms.
    Block(u64),
}

/// One inference that somebody asks for.
#[derive(Clone, Debug)]
pub struct CallPlan {
    pub at: u64,
    pub llm: &'static str,
    pub streaming: bool,
    pub deadline: Option<Duration>,
    /// The caller goes away after so many ms.
    pub leaves_after: Option<u64>,
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// On the network.
    Network(Order),
    /// In mcpd.
    Mcpd(McpdFault),
    /// The owner pauses or resumes everything.
    Pause(bool),
    /// The machine is unplugged for so many ms, and every provider is shared only while it is not on battery.
    Unplug(u64),
    /// It is plugged in again.
    Plug,
    /// The agent is killed.
    Kill,
    /// It is started again.
    Revive,
    /// The machine seems to have slept so many ms.
    Sleep(u64),
    /// A task that was delivered before is delivered again.
    LateDuplicate,
    /// mcpd takes another token, which nobody has.
    NewToken,
    /// The credentials file gets it.
    TokenWritten,
    /// The credentials file is half a file.
    CredentialsSpoilt,
}

impl Plan {
    /// The schedule of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let (faulty, moody) = (rng.u8(..100) < 85, rng.u8(..100) < 70);
        let programs = programs(rng, moody);
        let calls = (0..rng.u64(3..=14)).map(|_| call(rng)).collect();
        let mut faults = Vec::new();
        if faulty {
            (0..rng.u64(1..=5)).for_each(|_| faults.extend(trouble(rng)));
        }
        let drain_at = match rng.u8(..10) {
            0..3 => rng.u64(5_000..CHAOS),
            _ => CHAOS + rng.u64(0..5_000),
        };
        let mut plan = Self {
            seed,
            max_in_flight: rng.u32(1..=3),
            max_queued: rng.u32(0..=4),
            drain_timeout: Duration::from_secs(rng.u64(1..=20)),
            idempotent: rng.u8(..100) < 75,
            keep_alive: (rng.bool()).then_some(Duration::from_secs(5)),
            ping_style: if rng.bool() { PingStyle::Event } else { PingStyle::Comment },
            programs,
            calls,
            faults,
            drain_at,
            // The last draws, so that the rest of a schedule is the same over every scheme and way.
            scheme: [Scheme::Http, Scheme::Https1, Scheme::Https2][rng.usize(..3)],
            result_stream: rng.u8(..100) < 70,
        };
        if plan.result_stream && rng.u8(..100) < 60 {
            (0..rng.u64(1..=4)).for_each(|_| plan.faults.push(upload_trouble(rng)));
        }
        plan.faults.retain(|(at, _)| *at <= plan.drain_at);
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Whether something stands between what the agent sent and what mcpd saw, which TLS hides; or parts went in uploads, which the
    /// relay does not read.
    pub fn is_sealed(&self) -> bool {
        let between =
            |fault: &Fault| matches!(fault, Fault::Network(_) | Fault::Mcpd(_) | Fault::LateDuplicate);
        self.result_stream
            || self.scheme != Scheme::Http && self.faults.iter().any(|(_, fault)| between(fault))
    }
}

/// Something that goes wrong with uploads: on their way, or in mcpd.
fn upload_trouble(rng: &mut Rng) -> (u64, Fault) {
    let (at, times) = (rng.u64(500..CHAOS), rng.u32(1..=3));
    let (applied, skip) = (rng.bool(), rng.u32(..2));
    let fault = match rng.u8(..10) {
        0..3 => McpdFault::BreakUpload { bytes: None, lines: Some(rng.u64(1..8)), applied, skip, times },
        3 => McpdFault::BreakUpload { bytes: Some(rng.u64(1..1_500)), lines: None, applied, skip, times },
        4 => McpdFault::HoldUpload { times: if rng.bool() { 0 } else { times } },
        5 => McpdFault::LoseLine { line: rng.u64(1..6), times },
        6 => McpdFault::LoseReceived { times: rng.u32(1..6) },
        7 => McpdFault::LoseReply { aim: Aim::next(CallKind::ResultStream).times(times) },
        8 => McpdFault::Delay {
            aim: Aim::next(CallKind::ResultStream).times(times),
            by: Duration::from_millis(rng.u64(10..5_000)),
        },
        _ => McpdFault::Answer { aim: Aim::next(CallKind::ResultStream).times(times), answer: passing(rng) },
    };
    (at, Fault::Mcpd(fault))
}

fn programs(rng: &mut Rng, moody: bool) -> Vec<ProgramPlan> {
    let mut programs = Vec::new();
    for n in 0..rng.usize(1..=3) {
        let mut names: Vec<_> = NAMES.into_iter().filter(|_| rng.u8(..3) > 0).collect();
        if names.is_empty() {
            names.push(NAMES[0]);
        }
        let mut moods: Vec<_> = (0..rng.usize(0..=2)).map(|_| (rng.u64(2_000..CHAOS), mood(rng))).collect();
        moods.retain(|_| moody);
        moods.sort_by_key(|(at, _)| *at);
        programs.push(ProgramPlan { client_id: format!("program-{n}"), names, seed: rng.u64(..), moods });
    }
    programs
}

fn mood(rng: &mut Rng) -> Mood {
    let away = [200, 3_000, 9_000, 14_000][rng.usize(..4)];
    match rng.u8(..6) {
        0 | 1 => Mood::Vanish(away),
        2 => Mood::Drain(away),
        3 => Mood::Replace,
        4 => Mood::Withdraw(away),
        _ => Mood::Block([500, 5_000, 40_000][rng.usize(..3)]),
    }
}

fn call(rng: &mut Rng) -> CallPlan {
    let deadline = match rng.u8(..10) {
        0..2 => None,
        2..4 => Some(Duration::from_millis(rng.u64(300..5_000))),
        _ => Some(Duration::from_secs(rng.u64(10..90))),
    };
    CallPlan {
        at: rng.u64(1_000..CHAOS),
        llm: NAMES[rng.usize(..NAMES.len())],
        streaming: rng.u8(..10) < 7,
        deadline,
        leaves_after: (rng.u8(..10) < 2).then(|| rng.u64(0..8_000)),
    }
}

/// One piece of trouble: a beginning and, where it lasts, an end.
fn trouble(rng: &mut Rng) -> Vec<(u64, Fault)> {
    let at = rng.u64(500..CHAOS);
    let lasting = [100, 1_000, 4_000, 12_000, 45_000][rng.usize(..5)];
    let network = |order| Fault::Network(order);
    let for_a_while = |order| vec![(at, network(order)), (at + lasting, network(Order::Clear))];
    let mcpd = |fault| vec![(at, Fault::Mcpd(fault))];
    let times = rng.u32(1..=3);
    match rng.u8(..35) {
        0 => for_a_while(Order::Refuse),
        1 => vec![(at, network(Order::CutAll))],
        2 => vec![
            (at, network(Order::CutAll)),
            (at, network(Order::Refuse)),
            (at + lasting, network(Order::Clear)),
        ],
        3 => vec![(at, network(Order::CutAfter(Way::ToMcpd, rng.usize(1..900))))],
        4 => vec![(at, network(Order::CutAfter(Way::ToAgent, rng.usize(1..400))))],
        5..9 => (0..times).map(|_| (at, network(Order::CutReply))).collect(),
        9 => for_a_while(if rng.bool() { Order::Stall } else { Order::Deafen }),
        10 => vec![
            (at, network(Order::Stall)),
            (at + lasting, network(Order::CutAll)),
            (at + lasting, network(Order::Clear)),
        ],
        11 => for_a_while(Order::Delay(Duration::from_millis(rng.u64(5..900)))),
        12 => for_a_while(Order::Bytewise),
        13 => mcpd(McpdFault::Drop { broken: rng.bool() }),
        14 => mcpd(McpdFault::Silent),
        15 => mcpd(McpdFault::CloseChannels { times }),
        16 => mcpd(McpdFault::Refuse {
            what: if rng.bool() { Refused::Calls } else { Refused::Connections },
            lasting: Some(Duration::from_millis(lasting)),
        }),
        17 => mcpd(McpdFault::Delay { aim: aim(rng, times), by: Duration::from_millis(rng.u64(10..20_000)) }),
        18 | 19 => mcpd(McpdFault::Answer { aim: aim(rng, times), answer: passing(rng) }),
        20 => mcpd(McpdFault::LoseReply { aim: Aim::next(CallKind::Result).times(times) }),
        21 => mcpd(if rng.bool() { McpdFault::Forget } else { McpdFault::Restart }),
        22 => mcpd(McpdFault::Twice { times: 5 }),
        23 => mcpd(if rng.bool() {
            McpdFault::Garbage { frame: None }
        } else {
            McpdFault::NoSessionId { times: 1 }
        }),
        24 if rng.bool() => vec![(at, Fault::Unplug(lasting)), (at + lasting, Fault::Plug)],
        24 => vec![(at, Fault::Pause(true)), (at + lasting.min(12_000), Fault::Pause(false))],
        25 => vec![(at, Fault::Kill), (at + [10, 2_000, 20_000][rng.usize(..3)], Fault::Revive)],
        26 => vec![(at, Fault::Sleep(slept(rng))), (at, network(Order::CutAll))],
        27 => {
            // What was open before the sleep is dead, and for a while so is what is tried after it.
            let mut asleep = for_a_while(Order::Deafen);
            asleep.push((at + 1, Fault::Sleep(slept(rng))));
            asleep
        }
        28 => mcpd(McpdFault::Overtake { times }),
        29 => mcpd(McpdFault::Answer {
            aim: Aim::next(CallKind::Register).times(times),
            answer: Answer::status(409)
                .body(format!(r#"{{"conflicts":["{}"]}}"#, NAMES[rng.usize(..NAMES.len())])),
        }),
        30 => mcpd(McpdFault::Answer {
            aim: Aim::next(CallKind::Result),
            answer: Answer::status([413, 403, 400][rng.usize(..3)]),
        }),
        31 => mcpd(McpdFault::Answer {
            aim: Aim::next(if rng.bool() { CallKind::Heartbeat } else { CallKind::Stream }).times(times),
            answer: Answer::status([404, 410, 401, 409][rng.usize(..4)]),
        }),
        32 => forgotten_meanwhile(rng),
        33 => vec![(at, Fault::CredentialsSpoilt), (at + lasting, Fault::TokenWritten)],
        _ if rng.bool() => vec![(at, Fault::LateDuplicate)],
        _ => vec![(at, Fault::NewToken), (at + [100, 3_000][rng.usize(..2)], Fault::TokenWritten)],
    }
}

/// A heartbeat learns that the session is unknown while a register call for another set is under way.
fn forgotten_meanwhile(rng: &mut Rng) -> Vec<(u64, Fault)> {
    let (register, beat) = (Aim::next(CallKind::Register).times(2), Aim::next(CallKind::Heartbeat));
    let by = Duration::from_millis(rng.u64(1_000..14_000));
    vec![
        (29_000, Fault::Mcpd(McpdFault::Delay { aim: register, by })),
        (29_000, Fault::Mcpd(McpdFault::Answer { aim: beat, answer: Answer::status(404) })),
        (29_500, Fault::Pause(true)),
        (29_500 + rng.u64(1..20_000), Fault::Pause(false)),
    ]
}

fn slept(rng: &mut Rng) -> u64 {
    rng.u64(6_000..3_600_000)
}

/// An answer that says to come back, at once or at a time of its own.
fn passing(rng: &mut Rng) -> Answer {
    let answer = Answer::status([500, 502, 503, 429, 408, 425][rng.usize(..6)]);
    if rng.bool() { answer.retry_after(rng.u32(1..20)) } else { answer }
}

fn aim(rng: &mut Rng, times: u32) -> Aim {
    let kinds =
        [CallKind::Register, CallKind::Stream, CallKind::Heartbeat, CallKind::Result, CallKind::Result];
    Aim::next(kinds[rng.usize(..kinds.len())]).times(times)
}
