//! The link to mcpd: registering, the control channel, the heartbeat, and what to do when one of them fails.
//!
//! ```text
//!   NoCredentials ──file appears──► Idle ──something opted in──► Registering ──200──► Opening ──200──► Online
//!                                                                    ▲                   │               │
//!                                                                    └── Waiting (backoff or refused) ◄──┴── any failure
//! ```
//!
//! Only what is *wanted* and what mcpd last *accepted* is kept; `Link::step` compares the two after every input and does the next
//! thing that is missing. So a change of the set while a call is under way, a lost channel and a forgotten session all take the same
//! way back. Replies carry the attempt and channels the epoch they belong to; anything older is ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::Effect;
use crate::domain::{CallFailure, LinkState, LinkStatus, Provider, ProviderName};

/// Least time between the begins of two register calls (the contract's number).
pub const REGISTER_SPACING: Duration = Duration::from_millis(250);
/// How often names that mcpd gave to somebody else are tried again (the contract's number).
pub const CONFLICT_RETRY: Duration = Duration::from_secs(60);
/// A channel that lives shorter than this was taken away by somebody (the contract's number).
const QUICK_CLOSE: Duration = Duration::from_secs(5);
/// So many quick closes running mean another process with the same session (the contract's number).
const QUICK_CLOSES: u32 = 3;
/// Wait between tries while another process has the session (the contract's number).
const TAKEN_RETRY: Duration = Duration::from_secs(60);
/// A channel that has been open so long has proved itself even without a byte (the contract's number).
const PROVED_AFTER: Duration = Duration::from_secs(30);
/// How long after a wake from sleep the link is tried once a second: networks come back within it.
const WAKE_EAGER: Duration = Duration::from_secs(60);
/// Wait between tries in that time.
const WAKE_RETRY: Duration = Duration::from_secs(1);

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
    /// Usable credentials are there (`Ok`, with whether the mcpd URL is another one than before), or why not.
    Credentials(Result<UrlChange, String>),
    /// A register call ended, with the session's sticky id where mcpd took it.
    Registered(u64, Result<String, CallFailure>),
    /// The channel's response headers came: it is open.
    ChannelOpened(u64),
    /// The channel's first byte came.
    ChannelProved(u64),
    /// The channel could not be opened, or ended.
    ChannelClosed(u64, CallFailure),
    /// A heartbeat ended.
    Heartbeat(Result<(), CallFailure>),
    /// The machine slept and woke.
    Woke,
}

/// Whether newly read credentials lead to another mcpd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlChange {
    /// The same as before, or the first.
    Same,
    /// Another: its sessions are not ours.
    Other,
}

/// Something to do for the link.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEffect {
    /// Call register with this whole set; the reply names the attempt.
    Register {
        /// Names the reply.
        attempt: u64,
        /// The sticky id, where there is one.
        session: Option<String>,
        /// The whole set.
        providers: Vec<Provider>,
        /// Whether the machine has just woken, so that a slow answer is no answer.
        after_wake: bool,
    },
    /// Write the sticky id to its file.
    Persist(String),
    /// Open the control channel.
    OpenChannel {
        /// Names everything that comes from it.
        epoch: u64,
        /// The session's sticky id.
        session: String,
    },
    /// Close the control channel.
    CloseChannel,
    /// Call heartbeat.
    Heartbeat {
        /// The session's sticky id.
        session: String,
        /// Whether the machine has just woken, so that kept connections may be dead and a slow answer is no answer.
        after_wake: bool,
    },
    /// mcpd did not know the session: its task ids mean nothing any more.
    SessionForgotten,
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
    /// Whether this life has written the id: the file may lack what belongs to it, its mcpd and its mode.
    persisted: bool,
    wanted: BTreeMap<ProviderName, Provider>,
    /// Names that mcpd gives to somebody else, as far as we know.
    conflicts: BTreeSet<ProviderName>,
    /// When they are tried again.
    conflicts_until: Option<Instant>,
    /// They are being tried again.
    with_conflicts: bool,
    /// What mcpd accepted last in this session, and still believes as far as we know.
    accepted: Option<BTreeMap<ProviderName, Provider>>,
    /// Whether mcpd may list something of ours.
    listed: bool,
    in_flight: Option<(u64, BTreeMap<ProviderName, Provider>)>,
    attempts: u64,
    last_register: Option<Instant>,
    channel: Channel,
    epoch: u64,
    wait: Option<Wait>,
    failures: u32,
    quick_closes: u32,
    forgiven: bool,
    reauthorized: bool,
    heartbeat_at: Option<Instant>,
    heartbeat_in_flight: bool,
    /// Why mcpd refused the last heartbeat, if it did: the channel can stay open long after a token has run out.
    heartbeat_refused: Option<String>,
    eager_until: Option<Instant>,
    draining: bool,
    /// Whether tasks are under way: their cancels come by the channel, and the heartbeat keeps their session alive.
    busy: bool,
    /// Failed heartbeats.
    pub(super) missed: u64,
    /// Channels opened again.
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
            heartbeat_in_flight: false,
            heartbeat_refused: None,
            eager_until: None,
            draining: false,
            busy: false,
            missed: 0,
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
            LinkInput::Heartbeat(reply) => self.heartbeat_replied(reply, now, fx),
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
        let heartbeat = self.heartbeat_at.filter(|_| !self.heartbeat_in_flight);
        let proved = match self.channel {
            Channel::Open { since, proved: false } => Some(since + PROVED_AFTER),
            _ => None,
        };
        let spacing = self.last_register.map(|at| at + REGISTER_SPACING);
        let spaced =
            spacing.filter(|_| self.wait.is_none() && self.in_flight.is_none() && self.must_register());
        [wait, heartbeat, proved, spaced, self.conflicts_until].into_iter().flatten().min()
    }

    /// The link as everybody sees it.
    pub(super) fn status(&self, now: Instant) -> LinkStatus {
        let plain = |state, detail: &str| LinkStatus { state, detail: detail.to_owned(), next_attempt: None };
        if self.draining {
            return plain(LinkState::Draining, "stopping: no new tasks are taken");
        }
        if let Err(why) = &self.credentials {
            return plain(LinkState::NoCredentials, why);
        }
        if self.wanted.is_empty() {
            return plain(LinkState::Idle, "no provider is opted in and able to work");
        }
        let waiting = self.wait.as_ref().map(|w| LinkStatus {
            state: w.state,
            detail: w.detail.clone(),
            next_attempt: Some(w.until.saturating_duration_since(now)),
        });
        if let (Channel::Open { .. }, Some(detail)) = (&self.channel, &self.heartbeat_refused) {
            let next_attempt = self.heartbeat_at.map(|at| at.saturating_duration_since(now));
            return LinkStatus { next_attempt, ..plain(LinkState::Refused, detail) };
        }
        match (&self.channel, waiting) {
            (Channel::Open { .. }, Some(wait)) => LinkStatus { state: LinkState::Online, ..wait },
            (Channel::Open { .. }, None) => plain(LinkState::Online, ""),
            (_, Some(wait)) => wait,
            (_, None) if self.publishable().is_empty() => {
                plain(LinkState::Refused, "mcpd gives every name to somebody else; choose other names")
            }
            (_, None) => plain(LinkState::Connecting, ""),
        }
    }

    // ---- the next thing that is missing ----------------------------------------------------------------------------

    /// The wanted set without the names that mcpd gives to somebody else, unless they are being tried again.
    fn publishable(&self) -> BTreeMap<ProviderName, Provider> {
        let mut set = self.wanted.clone();
        if !self.with_conflicts {
            set.retain(|name, _| !self.conflicts.contains(name));
        }
        set
    }

    /// Whether nothing is to be published and nothing runs.
    fn is_resting(&self) -> bool {
        self.publishable().is_empty() && !self.draining && !self.busy
    }

    fn must_register(&self) -> bool {
        let set = self.publishable();
        if set.is_empty() {
            // Deregistering: only what was registered, and only once.
            return self.listed && self.accepted.as_ref().is_none_or(|accepted| !accepted.is_empty());
        }
        self.accepted.as_ref() != Some(&set)
    }

    fn step(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.credentials.is_err() {
            return;
        }
        if self.is_resting() {
            self.rest(fx);
        }
        if self.wait.is_none() && self.in_flight.is_none() && self.must_register() {
            self.register(now, fx);
        }
        self.open_if_ready(fx);
        self.heartbeat_if_due(now, fx);
    }

    fn register(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.last_register.is_some_and(|at| at + REGISTER_SPACING > now) {
            return;
        }
        let set = self.publishable();
        self.attempts += 1;
        self.last_register = Some(now);
        let (attempt, session) = (self.attempts, self.session.clone());
        let (providers, after_wake) = (set.values().cloned().collect(), self.is_eager(now));
        self.in_flight = Some((attempt, set));
        fx.push(Effect::Link(LinkEffect::Register { attempt, session, providers, after_wake }));
    }

    fn open_if_ready(&mut self, fx: &mut Vec<Effect>) {
        let registered = self.accepted.as_ref().is_some_and(|set| !set.is_empty());
        // What is about to be deregistered has no channel: opened here it would be closed, and opened, and closed again.
        let unwanted = self.draining || self.is_resting();
        if !registered || self.channel != Channel::Closed || self.wait.is_some() || unwanted {
            return;
        }
        let Some(session) = self.session.clone() else { return };
        self.epoch += 1;
        self.reconnects += u64::from(self.epoch > 1);
        self.channel = Channel::Opening;
        fx.push(Effect::Link(LinkEffect::OpenChannel { epoch: self.epoch, session }));
    }

    fn heartbeat_if_due(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.heartbeat_in_flight || self.heartbeat_at.is_none_or(|at| at > now) {
            return;
        }
        let Some(session) = self.session.clone() else { return };
        self.heartbeat_in_flight = true;
        self.heartbeat_at = Some(now + self.settings.heartbeat_interval);
        let after_wake = self.is_eager(now);
        fx.push(Effect::Link(LinkEffect::Heartbeat { session, after_wake }));
    }

    /// Nothing is opted in: no channel, no heartbeat, no waiting.
    fn rest(&mut self, fx: &mut Vec<Effect>) {
        self.close_channel(fx);
        self.heartbeat_at = None;
        if !self.must_register() {
            self.wait = None;
        }
    }

    fn close_channel(&mut self, fx: &mut Vec<Effect>) {
        if self.channel != Channel::Closed {
            self.channel = Channel::Closed;
            fx.push(Effect::Link(LinkEffect::CloseChannel));
        }
    }

    // ---- what happened ---------------------------------------------------------------------------------------------

    fn credentials(&mut self, read: Result<UrlChange, String>, fx: &mut Vec<Effect>) {
        if read == Ok(UrlChange::Other) {
            self.session = None;
            self.start_over(fx);
            self.listed = false;
            self.heartbeat_at = None;
            fx.push(Effect::Link(LinkEffect::SessionForgotten));
        }
        if read.is_ok() && self.wait.as_ref().is_some_and(|w| w.state == LinkState::Refused) {
            self.wait = None;
        }
        self.credentials = read.map(|_| ());
    }

    /// Forgets what mcpd believes: register and open again.
    fn start_over(&mut self, fx: &mut Vec<Effect>) {
        self.accepted = None;
        self.in_flight = None;
        self.heartbeat_refused = None;
        self.close_channel(fx);
    }

    fn registered(
        &mut self,
        attempt: u64,
        reply: Result<String, CallFailure>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        let Some((_, set)) = self.in_flight.take_if(|(current, _)| *current == attempt) else { return };
        match reply {
            Ok(session) => self.register_accepted(session, set, now, fx),
            // To deregister is best effort: mcpd lets the rows go by itself when the heartbeats stop.
            Err(_) if set.is_empty() => self.accepted = Some(set),
            Err(CallFailure::Conflict(names)) => self.conflicted(&names, &set, now),
            Err(CallFailure::Unknown(detail)) => {
                let detail = format!("no provider API: {detail}; run `mcprelay check-mcpd`");
                self.back_off(LinkState::Refused, detail, None, now);
            }
            Err(failure) => self.failed(failure, now),
        }
    }

    fn register_accepted(
        &mut self,
        session: String,
        set: BTreeMap<ProviderName, Provider>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        self.listed = !set.is_empty();
        self.conflicts.retain(|name| !set.contains_key(name));
        self.with_conflicts = false;
        self.accepted = Some(set);
        self.reauthorized = false;
        if self.session.as_ref() != Some(&session) {
            // Another session than the one the channel was opened for.
            self.close_channel(fx);
            self.session = Some(session.clone());
            self.persisted = false;
        }
        if !std::mem::replace(&mut self.persisted, true) {
            fx.push(Effect::Link(LinkEffect::Persist(session)));
        }
        if self.heartbeat_at.is_none() && self.listed {
            self.heartbeat_at = Some(now + self.settings.heartbeat_interval);
        }
    }

    fn conflicted(
        &mut self,
        names: &BTreeSet<ProviderName>,
        set: &BTreeMap<ProviderName, Provider>,
        now: Instant,
    ) {
        let ours: BTreeSet<_> = names.iter().filter(|name| set.contains_key(*name)).cloned().collect();
        if ours.is_empty() {
            let detail = "mcpd answered 409 to register without naming a conflict".to_owned();
            return self.back_off(LinkState::Backoff, detail, None, now);
        }
        if std::mem::take(&mut self.with_conflicts) {
            self.conflicts.clear();
        }
        self.conflicts.extend(ours);
        self.conflicts_until = Some(now + CONFLICT_RETRY);
    }

    fn channel_proved(&mut self) {
        if let Channel::Open { proved, .. } = &mut self.channel {
            *proved = true;
            self.failures = 0;
            self.forgiven = false;
            self.eager_until = None;
        }
    }

    fn channel_closed(&mut self, why: CallFailure, now: Instant, fx: &mut Vec<Effect>) {
        let quick = matches!(self.channel, Channel::Open { since, .. } if now < since + QUICK_CLOSE);
        let lived = matches!(self.channel, Channel::Open { .. });
        self.channel = Channel::Closed;
        self.accepted = None;
        if lived {
            self.quick_closes = if quick { self.quick_closes + 1 } else { 0 };
        }
        if self.quick_closes >= QUICK_CLOSES {
            let detail = "session used by another process: the channel was closed at once, several times running; \
                          is another agent or an old registrar using the same provider-session file?";
            return self.wait_for(LinkState::Refused, detail.to_owned(), TAKEN_RETRY, now);
        }
        match why {
            CallFailure::Unknown(detail) => self.session_unknown(detail, now, fx),
            failure => self.failed(failure, now),
        }
    }

    /// mcpd does not know the session: register, at once the first time.
    fn session_unknown(&mut self, detail: String, now: Instant, fx: &mut Vec<Effect>) {
        self.start_over(fx);
        fx.push(Effect::Link(LinkEffect::SessionForgotten));
        if std::mem::replace(&mut self.forgiven, true) {
            self.back_off(LinkState::Backoff, format!("mcpd does not know the session: {detail}"), None, now);
        }
    }

    fn heartbeat_replied(&mut self, reply: Result<(), CallFailure>, now: Instant, fx: &mut Vec<Effect>) {
        self.heartbeat_in_flight = false;
        self.heartbeat_refused = None;
        match reply {
            Ok(()) => self.reauthorized = false,
            Err(CallFailure::Unauthorized { changed: true, .. }) if !self.reauthorized => {
                self.missed += 1;
                self.reauthorized = true;
                self.heartbeat_at = Some(now);
            }
            Err(CallFailure::Unauthorized { detail, .. }) => {
                self.missed += 1;
                self.heartbeat_refused = Some(check_token(&detail));
            }
            Err(CallFailure::Unknown(detail)) => {
                self.missed += 1;
                if self.accepted.is_some() {
                    self.session_unknown(detail, now, fx);
                }
            }
            Err(failure) => {
                self.missed += 1;
                if self.is_eager(now) && self.channel != Channel::Closed {
                    self.start_over(fx);
                    self.failed(failure, now);
                }
            }
        }
    }

    fn woke(&mut self, now: Instant) {
        self.eager_until = Some(now + WAKE_EAGER);
        self.wait = None;
        // A call from before the sleep is as good as lost; its late answer changes nothing.
        self.in_flight = None;
        if self.heartbeat_at.is_some() {
            self.heartbeat_at = Some(now);
            self.heartbeat_in_flight = false;
        }
    }

    // ---- waiting ---------------------------------------------------------------------------------------------------

    fn failed(&mut self, failure: CallFailure, now: Instant) {
        match failure {
            CallFailure::Unauthorized { changed: true, .. } if !self.reauthorized => self.reauthorized = true,
            CallFailure::Unauthorized { detail, .. } => {
                self.back_off(LinkState::Refused, check_token(&detail), None, now);
            }
            CallFailure::Unknown(detail) => self.back_off(LinkState::Backoff, detail, None, now),
            CallFailure::Conflict(_) => {
                self.back_off(LinkState::Backoff, "mcpd answered 409".to_owned(), None, now)
            }
            CallFailure::Passing(detail, retry_after) => {
                self.back_off(LinkState::Backoff, detail, retry_after, now)
            }
        }
    }

    /// Waits as the contract says: d + uniform(0, d/2), d doubling from the least to the most; `Retry-After` may only lengthen it.
    fn back_off(&mut self, state: LinkState, detail: String, retry_after: Option<Duration>, now: Instant) {
        if self.is_eager(now) {
            return self.wait_for(state, detail, WAKE_RETRY, now);
        }
        let doubled = self.settings.reconnect_min.saturating_mul(1 << self.failures.min(16));
        let base = doubled.min(self.settings.reconnect_max);
        self.failures += 1;
        let jittered = base + base.mul_f64(self.rng.f64() / 2.0);
        self.wait_for(state, detail, jittered.max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER)), now);
    }

    fn wait_for(&mut self, state: LinkState, detail: String, wait: Duration, now: Instant) {
        self.wait = Some(Wait { until: now + wait, state, detail });
    }

    fn is_eager(&self, now: Instant) -> bool {
        self.eager_until.is_some_and(|until| now < until)
    }
}

/// The longest `Retry-After` that is honoured: an mcpd with a wrong clock must not switch the agent off.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What to do about a refusal.
fn check_token(detail: &str) -> String {
    format!("{detail}; check the token in the credentials file")
}
