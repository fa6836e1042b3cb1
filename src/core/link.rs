//! The link to mcpd: registering, the control channel, the heartbeat, and what to do when one of them fails.
//!
//! ```text
//!   NoCredentials ──file appears──► Idle ──something opted in──► Registering ──200──► Opening ──200──► Online
//!                                                                    ▲                   │               │
//!                                                                    └── Waiting (backoff or refused) ◄──┴── any failure
//! ```
//!
//! Each part keeps its own state: `Registration` what mcpd has accepted, `Conflicts` the names that others have, `ControlChannel`
//! and `Heartbeat` theirs, `Retry` the waits. `Link` joins them. It knows what is *wanted*; after every input, `Link::step`
//! compares that with what is and does the next thing that is missing. A change of the set during a call, a lost channel and a
//! forgotten session are thus all handled in the same way. Replies carry the attempt or number, and channels the epoch, that they
//! belong to; anything older is ignored.

mod channel;
mod conflicts;
mod heartbeat;
mod messages;
mod pattern;
mod registration;
mod retry;
mod status;
mod step;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::domain::{CallFailure, LinkState, ProviderName, Reason, Trouble};

pub use conflicts::CONFLICT_RETRY;
pub use messages::{LinkEffect, LinkInput, McpdChange, Settings};
pub use registration::REGISTER_SPACING;

use channel::{ControlChannel, Pattern};
use conflicts::Conflicts;
use heartbeat::Heartbeat;
use registration::{Ended, ProviderSet, Registration};
use retry::{Retry, honoured};

/// Wait between attempts while another process has the session (the contract's number).
const CONTESTED_RETRY: Duration = Duration::from_secs(60);

/// The link to mcpd.
#[derive(Debug)]
pub(super) struct Link {
    credentials: Result<(), Reason>,
    wanted: ProviderSet,
    registration: Registration,
    conflicts: Conflicts,
    heartbeat: Heartbeat,
    channel: ControlChannel,
    retry: Retry,
    /// What is wrong with the way of results.
    results_trouble: Option<(Trouble, Reason)>,
    draining: bool,
    /// Whether tasks are under way: they need the channel for their cancels, and the heartbeat to keep their session alive.
    busy: bool,
}

impl Link {
    /// A link without credentials and with nothing to publish. `seed` fixes the jitter.
    pub(super) fn new(settings: &Settings, session: Option<String>, seed: u64) -> Self {
        Self {
            credentials: Err("the credentials have not been read yet".into()),
            wanted: ProviderSet::new(),
            registration: Registration::new(session),
            conflicts: Conflicts::default(),
            heartbeat: Heartbeat::new(settings.heartbeat_interval),
            channel: ControlChannel::new(),
            retry: Retry::new(settings, seed),
            results_trouble: None,
            draining: false,
            busy: false,
        }
    }

    pub(super) fn session(&self) -> Option<&str> {
        self.registration.session()
    }

    pub(super) fn conflicts(&self) -> &BTreeSet<ProviderName> {
        self.conflicts.names()
    }

    /// How often a control channel was opened in the place of one that was lost.
    pub(super) fn reconnects(&self) -> u64 {
        self.channel.reopened()
    }

    /// Whether no register call is under way or due: what a stopping agent waits for.
    pub(super) fn is_quiet(&self) -> bool {
        let due = self.credentials.is_ok() && !self.retry.is_waiting() && self.must_register();
        !self.registration.is_under_way() && !due
    }

    // ---- what happens ----------------------------------------------------------------------------------------------

    /// The set to publish has changed, or may have.
    pub(super) fn want(&mut self, set: ProviderSet, now: Instant, effects: &mut Vec<LinkEffect>) {
        if !self.draining && self.wanted != set {
            self.conflicts.keep_only(&set);
            self.wanted = set;
            self.step(now, effects);
        }
    }

    /// Says whether tasks are under way.
    pub(super) fn set_busy(&mut self, busy: bool, now: Instant, effects: &mut Vec<LinkEffect>) {
        if std::mem::replace(&mut self.busy, busy) && !busy {
            self.step(now, effects);
        }
    }

    /// Deregisters, best effort; the channel and the heartbeat stay for the work that still runs.
    pub(super) fn drain(&mut self, now: Instant, effects: &mut Vec<LinkEffect>) {
        self.draining = true;
        self.wanted.clear();
        self.step(now, effects);
    }

    pub(super) fn handle(&mut self, input: LinkInput, now: Instant, effects: &mut Vec<LinkEffect>) {
        match input {
            LinkInput::Credentials(read) => self.credentials_read(read, effects),
            LinkInput::Registered(attempt, reply) => self.registered(attempt, reply, now, effects),
            LinkInput::ChannelOpened(epoch) => {
                if self.channel.opened(epoch, now) {
                    self.retry.authorized();
                }
            }
            LinkInput::ChannelProved(epoch) => {
                if self.channel.prove(epoch) {
                    self.retry.proved();
                }
            }
            LinkInput::ChannelClosed(epoch, why) => {
                if self.channel.ended(epoch, &why, now) {
                    self.channel_ended(why, now, effects);
                }
            }
            LinkInput::Heartbeat(number, reply) => {
                if self.heartbeat.take(number) {
                    self.heartbeat_replied(reply, now, effects);
                }
            }
            LinkInput::Results(trouble) => self.results_trouble = trouble,
            LinkInput::Woke => self.woke(now),
            LinkInput::AuthoritiesChanged => self.retry.end_wait(),
        }
        self.step(now, effects);
    }

    /// Does what is due at `now`.
    pub(super) fn tick(&mut self, now: Instant, effects: &mut Vec<LinkEffect>) {
        self.retry.tick(now);
        self.conflicts.tick(now);
        if self.channel.tick(now) {
            self.retry.proved();
        }
        self.step(now, effects);
    }

    /// When [`Link::tick`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.credentials.is_err() {
            return None;
        }
        let spaced = self.registration.next_start().filter(|_| self.is_register_due());
        let parts = [
            self.retry.next_deadline(),
            self.heartbeat.next_deadline(),
            self.channel.next_deadline(),
            self.conflicts.next_deadline(),
            spaced,
        ];
        parts.into_iter().flatten().min()
    }

    fn credentials_read(&mut self, read: Result<McpdChange, Reason>, effects: &mut Vec<LinkEffect>) {
        self.credentials = match read {
            Ok(McpdChange::Other(session)) => {
                self.change_mcpd(session, effects);
                Ok(())
            }
            Ok(McpdChange::Same) => {
                self.retry.end_refusal();
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    /// A new life begins: what was learnt of the former mcpd says nothing of this one.
    fn change_mcpd(&mut self, session: Option<String>, effects: &mut Vec<LinkEffect>) {
        let left = self.registration.leave(session);
        self.conflicts = Conflicts::default();
        self.results_trouble = None;
        self.retry.forget();
        self.heartbeat.stop();
        self.start_over(effects);
        self.channel.forget();
        self.end_session(LinkEffect::SessionLeft(left), effects);
    }

    fn registered(
        &mut self,
        attempt: u64,
        reply: Result<String, CallFailure>,
        now: Instant,
        effects: &mut Vec<LinkEffect>,
    ) {
        match (reply, self.registration.take(attempt)) {
            (_, None) | (Ok(_), Some(Ended::Outdated(_))) => {}
            (Ok(session), Some(Ended::Current(set))) => self.register_accepted(&session, set, now, effects),
            (Err(failure), Some(Ended::Current(set) | Ended::Outdated(set))) => {
                self.register_failed(failure, &set, now);
            }
        }
    }

    fn register_accepted(
        &mut self,
        session: &str,
        set: ProviderSet,
        now: Instant,
        effects: &mut Vec<LinkEffect>,
    ) {
        self.conflicts.accepted(&set);
        self.retry.authorized();
        if self.registration.accept(session, set) {
            // This is not the session that the channel was opened for.
            self.close_channel(effects);
        }
        if self.registration.must_persist() {
            effects.push(LinkEffect::Persist(session.to_owned()));
        }
        if self.registration.is_listed() {
            self.heartbeat.start(now);
        }
    }

    fn register_failed(&mut self, failure: CallFailure, set: &ProviderSet, now: Instant) {
        match failure {
            // Deregistering is best effort: mcpd drops the rows by itself when the heartbeats stop. What is wanted by now has to wait.
            failure if set.is_empty() => {
                self.registration.assume_empty();
                if self.publishes() {
                    self.retry.failed(failure, now);
                }
            }
            CallFailure::Conflict(names) => self.conflicted(names, set, now),
            CallFailure::Unknown(detail) => {
                let detail =
                    Reason::new(format!("no provider API: {}", detail.what), "run `mcprelay check-mcpd`");
                self.retry.back_off(LinkState::Refused, detail, None, now);
            }
            failure => {
                // The call may have arrived: mcpd now has either this set or the one before.
                self.registration.doubt();
                self.retry.failed(failure, now);
            }
        }
    }

    fn conflicted(&mut self, mut names: BTreeSet<ProviderName>, set: &ProviderSet, now: Instant) {
        names.retain(|name| set.contains_key(name));
        if names.is_empty() {
            let detail = "mcpd answered 409 to register without naming a conflict".into();
            return self.retry.back_off(LinkState::Backoff, detail, None, now);
        }
        self.conflicts.refused(names, now);
    }

    fn channel_ended(&mut self, why: CallFailure, now: Instant, effects: &mut Vec<LinkEffect>) {
        self.registration.doubt();
        match (self.channel.pattern(), why) {
            (Some(pattern @ Pattern::Contested), _) => {
                self.retry.wait_for(LinkState::Refused, pattern.reason(), CONTESTED_RETRY, now);
                self.retry.blame(pattern.trouble());
            }
            (Some(pattern), CallFailure::ChannelEnded { .. }) => {
                self.retry.back_off(LinkState::Backoff, pattern.reason(), None, now);
                self.retry.blame(pattern.trouble());
            }
            (_, CallFailure::Unknown(detail)) => self.session_unknown(detail, now, effects),
            (_, failure) => self.retry.failed(failure, now),
        }
    }

    fn heartbeat_replied(
        &mut self,
        reply: Result<(), CallFailure>,
        now: Instant,
        effects: &mut Vec<LinkEffect>,
    ) {
        match reply {
            Ok(()) => {
                self.retry.authorized();
                self.heartbeat.succeeded();
                if self.channel.has_slept() {
                    // The network works, so the channel is reopened now instead of after it has been silent for too long.
                    self.close_channel(effects);
                }
            }
            Err(CallFailure::Unauthorized { changed, detail }) => {
                if changed && self.retry.may_try_new_credentials() {
                    self.heartbeat.hurry(now);
                } else {
                    self.heartbeat.refuse(self.retry.check_token(detail));
                }
            }
            Err(CallFailure::Unknown(detail)) => {
                if self.registration.is_accepted() || !self.channel.is_closed() {
                    self.session_unknown(detail, now, effects);
                }
            }
            Err(failure) => self.heartbeat_failed(failure, now, effects),
        }
    }

    fn heartbeat_failed(&mut self, failure: CallFailure, now: Instant, effects: &mut Vec<LinkEffect>) {
        self.heartbeat.failed(failure.reason(), now);
        if let CallFailure::Passing(_, Some(asked)) = failure {
            self.heartbeat.put_off(now + honoured(asked));
        }
        if self.retry.is_eager(now) && !self.channel.is_closed() {
            self.registration.abandon();
            self.start_over(effects);
            self.retry.failed(failure, now);
        }
    }

    /// mcpd does not know the session: register again, at once the first time.
    fn session_unknown(&mut self, detail: Reason, now: Instant, effects: &mut Vec<LinkEffect>) {
        self.registration.outdate();
        self.start_over(effects);
        self.end_session(LinkEffect::SessionForgotten, effects);
        if !self.retry.forgive() {
            let detail = detail.within(|said| format!("mcpd does not know the session: {said}"));
            self.retry.back_off(LinkState::Backoff, detail, None, now);
        }
    }

    /// What mcpd last said about the session counts no more, so the channel opens again once the set is registered.
    fn start_over(&mut self, effects: &mut Vec<LinkEffect>) {
        self.heartbeat.forget_refusal();
        self.close_channel(effects);
    }

    fn end_session(&mut self, how: LinkEffect, effects: &mut Vec<LinkEffect>) {
        self.heartbeat.ignore_reply();
        effects.push(how);
    }

    fn woke(&mut self, now: Instant) {
        self.retry.woke(now);
        self.channel.woke();
        self.registration.slept();
        self.heartbeat.woke(now);
    }
}
