//! How the link reacts: to mcpd's replies, to the channel opening and closing, to other credentials, and to a wake from sleep.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    CONFLICT_RETRY, Channel, Link, LinkEffect, UrlChange,
    backoff::{WAKE_EAGER, check_token},
};
use crate::{
    core::Effect,
    domain::{CallFailure, LinkState, Provider, ProviderName},
};

/// A channel that is closed sooner than this was probably taken over by another process (the contract's number).
const QUICK_CLOSE: Duration = Duration::from_secs(5);
/// This many quick closes in a row mean that another process has the same session (the contract's number).
const QUICK_CLOSES: u32 = 3;
/// Wait between attempts while another process has the session (the contract's number).
const TAKEN_RETRY: Duration = Duration::from_secs(60);

impl Link {
    pub(super) fn credentials(&mut self, read: Result<UrlChange, String>, fx: &mut Vec<Effect>) {
        if read == Ok(UrlChange::Other) {
            self.session = None;
            self.start_over(fx);
            self.listed = false;
            self.heartbeat_at = None;
            self.end_session(LinkEffect::SessionLeft, fx);
        }
        if read.is_ok() && self.wait.as_ref().is_some_and(|w| w.state == LinkState::Refused) {
            self.wait = None;
        }
        self.credentials = read.map(|_| ());
    }

    /// Forgets what mcpd has accepted, so that the link registers and opens its channel again.
    fn start_over(&mut self, fx: &mut Vec<Effect>) {
        self.accepted = None;
        self.in_flight = None;
        self.heartbeat_refused = None;
        self.close_channel(fx);
    }

    pub(super) fn registered(
        &mut self,
        attempt: u64,
        reply: Result<String, CallFailure>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        let Some((_, set)) = self.in_flight.take_if(|(current, _)| *current == attempt) else { return };
        match reply {
            Ok(_) if self.in_flight_outdated => {}
            Ok(session) => self.register_accepted(session, set, now, fx),
            // Deregistering is best effort: mcpd drops the rows by itself when the heartbeats stop. What is wanted by now has to wait.
            Err(failure) if set.is_empty() => {
                self.accepted = Some(set);
                if self.publishable().next().is_some() {
                    self.failed(failure, now);
                }
            }
            Err(CallFailure::Conflict(names)) => self.conflicted(&names, &set, now),
            Err(CallFailure::Unknown(detail)) => {
                let detail = format!("no provider API: {detail}; run `mcprelay check-mcpd`");
                self.back_off(LinkState::Refused, detail, None, now);
            }
            Err(failure) => {
                // The call may have arrived: mcpd now has either this set or the one before.
                self.accepted = None;
                self.failed(failure, now);
            }
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
            // This is not the session that the channel was opened for.
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

    pub(super) fn channel_proved(&mut self) {
        if let Channel::Open { proved, .. } = &mut self.channel {
            *proved = true;
            self.failures = 0;
            self.forgiven = false;
            self.eager_until = None;
        }
    }

    pub(super) fn channel_closed(&mut self, why: CallFailure, now: Instant, fx: &mut Vec<Effect>) {
        let quick = matches!(self.channel, Channel::Open { since, .. } if now < since + QUICK_CLOSE);
        let lived = matches!(self.channel, Channel::Open { .. });
        self.channel = Channel::Closed;
        self.slept_through = false;
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

    /// mcpd does not know the session: register again, at once the first time.
    fn session_unknown(&mut self, detail: String, now: Instant, fx: &mut Vec<Effect>) {
        // There is one register call at a time: the next one follows the reply to the one under way.
        let under_way = self.in_flight.take();
        self.start_over(fx);
        (self.in_flight_outdated, self.in_flight) = (under_way.is_some(), under_way);
        self.end_session(LinkEffect::SessionForgotten, fx);
        if std::mem::replace(&mut self.forgiven, true) {
            self.back_off(LinkState::Backoff, format!("mcpd does not know the session: {detail}"), None, now);
        }
    }

    /// Ends the session. The answer to a heartbeat under way would be about that session, so it is ignored.
    fn end_session(&mut self, how: LinkEffect, fx: &mut Vec<Effect>) {
        self.heartbeat_in_flight = None;
        fx.push(Effect::Link(how));
    }

    pub(super) fn heartbeat_replied(
        &mut self,
        number: u64,
        reply: Result<(), CallFailure>,
        now: Instant,
        fx: &mut Vec<Effect>,
    ) {
        if self.heartbeat_in_flight.take_if(|current| *current == number).is_none() {
            return;
        }
        self.heartbeat_refused = None;
        match reply {
            Ok(()) => {
                self.reauthorized = false;
                if self.slept_through {
                    // The network works, so the channel is reopened now instead of after it has been silent for too long.
                    self.close_channel(fx);
                }
            }
            Err(CallFailure::Unauthorized { changed: true, .. }) if !self.reauthorized => {
                self.reauthorized = true;
                self.heartbeat_at = Some(now);
            }
            Err(CallFailure::Unauthorized { detail, .. }) => {
                self.heartbeat_refused = Some(check_token(&detail));
            }
            Err(CallFailure::Unknown(detail)) => {
                if self.accepted.is_some() || self.channel != Channel::Closed {
                    self.session_unknown(detail, now, fx);
                }
            }
            Err(failure) => {
                self.heed_retry_after(&failure, now);
                if self.is_eager(now) && self.channel != Channel::Closed {
                    self.start_over(fx);
                    self.failed(failure, now);
                }
            }
        }
    }

    pub(super) fn woke(&mut self, now: Instant) {
        self.eager_until = Some(now + WAKE_EAGER);
        self.slept_through = self.channel != Channel::Closed;
        self.wait = None;
        // A call from before the sleep is as good as lost: it is not known whether it arrived, and a late answer to it is ignored.
        if self.in_flight.take().is_some() {
            self.accepted = None;
        }
        if self.heartbeat_at.is_some() {
            self.heartbeat_at = Some(now);
            self.heartbeat_in_flight = None;
        }
    }
}
