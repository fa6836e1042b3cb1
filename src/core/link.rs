//! The link to mcpd: registering, the control channel, the heartbeat, and what to do when one of them fails.
//!
//! ```text
//!   NoCredentials ──file appears──► Idle ──something opted in──► Registering ──200──► Opening ──200──► Online
//!                                                                    ▲                   │               │
//!                                                                    └── Waiting (backoff or refused) ◄──┴── any failure
//! ```
//!
//! The link keeps what is *wanted* and what mcpd last *accepted*; after every input, `Link::step` compares the two and does the next thing
//! that is missing. A change of the set during a call, a lost channel and a forgotten session are thus all handled in the same way.
//! Replies carry the attempt or number, and channels the epoch, that they belong to; anything older is ignored.

mod backoff;
mod replies;
mod status;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::Effect;
use crate::domain::{CallFailure, LinkState, Provider, ProviderName};

/// Least time between the starts of two register calls (the contract's number).
pub const REGISTER_SPACING: Duration = Duration::from_millis(250);
/// How often names that mcpd gave to somebody else are tried again (the contract's number).
pub const CONFLICT_RETRY: Duration = Duration::from_secs(60);
/// How long a channel must be open to have proved itself even without a byte (the contract's number).
const PROVED_AFTER: Duration = Duration::from_secs(30);

/// The owner's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Between heartbeats.
    pub heartbeat_interval: Duration,
    /// First wait of the backoff.
    pub reconnect_min: Duration,
    /// Longest wait of the backoff, before jitter.
    pub reconnect_max: Duration,
}

/// Something that happened to the link.
#[derive(Debug)]
pub enum LinkInput {
    /// There are usable credentials (`Ok`, with whether they lead to another mcpd than before), or the reason why not.
    Credentials(Result<UrlChange, String>),
    /// A register call ended, with the session's sticky id where mcpd took it.
    Registered(u64, Result<String, CallFailure>),
    /// The channel's response headers came: it is open.
    ChannelOpened(u64),
    /// The channel's first byte came.
    ChannelProved(u64),
    /// The channel could not be opened, or ended.
    ChannelClosed(u64, CallFailure),
    /// The heartbeat of this number ended.
    Heartbeat(u64, Result<(), CallFailure>),
    /// The machine slept and woke.
    Woke,
}

/// Whether newly read credentials lead to another mcpd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlChange {
    /// The same as before, or the first.
    Same,
    /// Another: the agent's session is unknown there.
    Other,
}

/// Something to do for the link.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEffect {
    /// Call register with this whole set; the reply names the attempt.
    Register {
        /// Identifies the reply.
        attempt: u64,
        /// The sticky id, where there is one.
        session: Option<String>,
        /// The whole set.
        providers: Vec<Provider>,
        /// Whether the machine has just woken, so that a slow answer counts as none.
        after_wake: bool,
    },
    /// Write the sticky id to its file.
    Persist(String),
    /// Open the control channel.
    OpenChannel {
        /// Identifies everything that comes from the channel.
        epoch: u64,
        /// The session's sticky id.
        session: String,
    },
    /// Close the control channel.
    CloseChannel,
    /// Call heartbeat; the reply names the number.
    Heartbeat {
        /// Identifies the reply.
        number: u64,
        /// The session's sticky id.
        session: String,
        /// Whether the machine has just woken, so that kept connections may be dead and a slow answer counts as none.
        after_wake: bool,
    },
    /// mcpd did not know the session, so the ids of its tasks mean nothing any more.
    SessionForgotten,
    /// The session belonged to another mcpd, and so did the ids of its tasks.
    SessionLeft,
}

#[derive(Debug, PartialEq, Eq)]
enum Channel {
    Closed,
    Opening,
    Open { since: Instant, proved: bool },
}

#[derive(Debug, PartialEq, Eq)]
struct Wait {
    until: Instant,
    state: LinkState,
    detail: String,
}

/// The state of the link.
#[derive(Debug)]
pub(super) struct Link {
    settings: Settings,
    rng: fastrand::Rng,
    credentials: Result<(), String>,
    session: Option<String>,
    /// Whether the agent has written the id since its start: a file from before may lack the mcpd's URL or the right mode.
    persisted: bool,
    wanted: BTreeMap<ProviderName, Provider>,
    /// Names that mcpd gives to somebody else, as far as is known.
    conflicts: BTreeSet<ProviderName>,
    /// When they are tried again.
    conflicts_until: Option<Instant>,
    /// Whether they are being tried again.
    with_conflicts: bool,
    /// What mcpd accepted last in this session and, as far as is known, still has.
    accepted: Option<BTreeMap<ProviderName, Provider>>,
    /// Whether mcpd may list something of this agent.
    listed: bool,
    /// The register call under way: its attempt, and the set that it carries.
    in_flight: Option<(u64, BTreeMap<ProviderName, Provider>)>,
    /// Whether mcpd turned out not to know the session while a register call was under way: it may have forgotten what the call registered.
    in_flight_outdated: bool,
    attempts: u64,
    last_register: Option<Instant>,
    channel: Channel,
    epoch: u64,
    wait: Option<Wait>,
    /// Waits since a channel last proved itself: the backoff doubles with each.
    failures: u32,
    /// How many channels in a row were closed right after they were opened.
    quick_closes: u32,
    /// Whether an unknown session has already caused an immediate registration, so that the next one waits.
    forgiven: bool,
    /// Whether changed credentials have already caused an immediate retry.
    reauthorized: bool,
    heartbeat_at: Option<Instant>,
    heartbeats: u64,
    heartbeat_in_flight: Option<u64>,
    /// Why mcpd refused the last heartbeat, if it did: the channel can stay open long after a token has run out.
    heartbeat_refused: Option<String>,
    /// Until when the link is tried once a second, after a wake.
    eager_until: Option<Instant>,
    /// The channel is from before a sleep, and may be dead without anybody having noticed.
    slept_through: bool,
    draining: bool,
    /// Whether tasks are under way: they need the channel for their cancels, and the heartbeat to keep their session alive.
    busy: bool,
    /// How often a channel was opened again.
    pub(super) reconnects: u64,
}

impl Link {
    pub(super) fn new(settings: Settings, session: Option<String>, seed: u64) -> Self {
        Self {
            settings,
            rng: fastrand::Rng::with_seed(seed),
            credentials: Err("the credentials have not been read yet".to_owned()),
            session,
            persisted: false,
            wanted: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            conflicts_until: None,
            with_conflicts: false,
            accepted: None,
            listed: false,
            in_flight: None,
            in_flight_outdated: false,
            attempts: 0,
            last_register: None,
            channel: Channel::Closed,
            epoch: 0,
            wait: None,
            failures: 0,
            quick_closes: 0,
            forgiven: false,
            reauthorized: false,
            heartbeat_at: None,
            heartbeats: 0,
            heartbeat_in_flight: None,
            heartbeat_refused: None,
            eager_until: None,
            slept_through: false,
            draining: false,
            busy: false,
            reconnects: 0,
        }
    }

    pub(super) fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    pub(super) fn conflicts(&self) -> &BTreeSet<ProviderName> {
        &self.conflicts
    }

    /// The set to publish has changed, or may have.
    pub(super) fn want(&mut self, set: BTreeMap<ProviderName, Provider>, now: Instant, fx: &mut Vec<Effect>) {
        if !self.draining && self.wanted != set {
            self.conflicts.retain(|name| set.contains_key(name));
            self.wanted = set;
            self.step(now, fx);
        }
    }

    /// Says whether tasks are under way.
    pub(super) fn set_busy(&mut self, busy: bool, now: Instant, fx: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.busy, busy) && !busy {
            self.step(now, fx);
        }
    }

    /// Whether no register call is under way or due: what a stopping agent waits for.
    pub(super) fn is_quiet(&self) -> bool {
        let due = self.credentials.is_ok() && self.wait.is_none() && self.must_register();
        self.in_flight.is_none() && !due
    }

    /// Deregisters, best effort; the channel and the heartbeat stay for the work that still runs.
    pub(super) fn drain(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        self.draining = true;
        self.wanted.clear();
        self.step(now, fx);
    }

    pub(super) fn handle(&mut self, input: LinkInput, now: Instant, fx: &mut Vec<Effect>) {
        match input {
            LinkInput::Credentials(read) => self.credentials(read, fx),
            LinkInput::Registered(attempt, reply) => self.registered(attempt, reply, now, fx),
            LinkInput::ChannelOpened(epoch) if epoch == self.epoch && self.channel == Channel::Opening => {
                self.channel = Channel::Open { since: now, proved: false };
                self.reauthorized = false;
            }
            LinkInput::ChannelProved(epoch) if epoch == self.epoch => self.channel_proved(),
            LinkInput::ChannelClosed(epoch, why)
                if epoch == self.epoch && self.channel != Channel::Closed =>
            {
                self.channel_closed(why, now, fx);
            }
            LinkInput::ChannelOpened(_) | LinkInput::ChannelProved(_) | LinkInput::ChannelClosed(..) => {}
            LinkInput::Heartbeat(number, reply) => self.heartbeat_replied(number, reply, now, fx),
            LinkInput::Woke => self.woke(now),
        }
        self.step(now, fx);
    }

    /// Does what is due at `now`.
    pub(super) fn tick(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.wait.as_ref().is_some_and(|w| w.until <= now) {
            self.wait = None;
        }
        if self.conflicts_until.is_some_and(|at| at <= now) {
            self.conflicts_until = None;
            self.with_conflicts = !self.conflicts.is_empty();
        }
        if matches!(self.channel, Channel::Open { since, proved: false } if since + PROVED_AFTER <= now) {
            self.channel_proved();
        }
        self.step(now, fx);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.credentials.is_err() {
            return None;
        }
        let wait = self.wait.as_ref().map(|w| w.until);
        let heartbeat = self.heartbeat_at.filter(|_| self.heartbeat_in_flight.is_none());
        let proved = match self.channel {
            Channel::Open { since, proved: false } => Some(since + PROVED_AFTER),
            _ => None,
        };
        let spacing = self.last_register.map(|at| at + REGISTER_SPACING);
        let spaced =
            spacing.filter(|_| self.wait.is_none() && self.in_flight.is_none() && self.must_register());
        [wait, heartbeat, proved, spaced, self.conflicts_until].into_iter().flatten().min()
    }
}
