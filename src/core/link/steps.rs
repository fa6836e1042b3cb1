//! The steps that lead from what mcpd has accepted to what is wanted.

use std::{collections::BTreeMap, time::Instant};

use super::{Channel, Link, LinkEffect, REGISTER_SPACING};
use crate::{
    core::Effect,
    domain::{Provider, ProviderName},
};

impl Link {
    /// The wanted set without the names that mcpd gives to somebody else, unless they are being tried again.
    pub(super) fn publishable(&self) -> impl Iterator<Item = (&ProviderName, &Provider)> {
        self.wanted.iter().filter(|(name, _)| self.with_conflicts || !self.conflicts.contains(*name))
    }

    /// Whether nothing is to be published and nothing runs.
    pub(super) fn is_resting(&self) -> bool {
        self.publishable().next().is_none() && !self.draining && !self.busy
    }

    pub(super) fn must_register(&self) -> bool {
        if self.publishable().next().is_none() {
            // Deregistering is for what was registered, happens once, and not because somebody else has the names.
            return self.listed
                && self.wanted.is_empty()
                && self.accepted.as_ref().is_none_or(|accepted| !accepted.is_empty());
        }
        self.accepted.as_ref().is_none_or(|accepted| !self.publishable().eq(accepted))
    }

    pub(super) fn step(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.credentials.is_err() {
            return;
        }
        if self.is_resting() {
            self.rest(fx);
        }
        if self.wait.is_none() && self.in_flight.is_none() && self.must_register() {
            self.register(now, fx);
        }
        self.open_if_ready(now, fx);
        self.heartbeat_if_due(now, fx);
    }

    fn register(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.last_register.is_some_and(|at| at + REGISTER_SPACING > now) {
            return;
        }
        let set: BTreeMap<_, _> =
            self.publishable().map(|(name, provider)| (name.clone(), provider.clone())).collect();
        self.attempts += 1;
        self.last_register = Some(now);
        let (attempt, session) = (self.attempts, self.session.clone());
        let (providers, after_wake) = (set.values().cloned().collect(), self.is_eager(now));
        (self.in_flight, self.in_flight_outdated) = (Some((attempt, set)), false);
        fx.push(Effect::Link(LinkEffect::Register { attempt, session, providers, after_wake }));
    }

    fn open_if_ready(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        let registered = self.accepted.as_ref().is_some_and(|set| !set.is_empty());
        // A set that is about to be deregistered needs no channel: opened here, it would be closed at once, and so on in a circle.
        let unwanted = self.draining || self.is_resting();
        if !registered || self.channel != Channel::Closed || self.wait.is_some() || unwanted {
            return;
        }
        let Some(session) = self.session.clone() else { return };
        self.epoch += 1;
        self.reconnects += u64::from(self.epoch > 1);
        self.channel = Channel::Opening;
        // The set may be wanted again before the reply to its deregistration has come, and then nothing else sets the heartbeat.
        self.heartbeat_at.get_or_insert(now + self.settings.heartbeat_interval);
        fx.push(Effect::Link(LinkEffect::OpenChannel { epoch: self.epoch, session }));
    }

    fn heartbeat_if_due(&mut self, now: Instant, fx: &mut Vec<Effect>) {
        if self.heartbeat_in_flight.is_some() || self.heartbeat_at.is_none_or(|at| at > now) {
            return;
        }
        let Some(session) = self.session.clone() else {
            // The next session sets its own time; one that stays in the past would make the agent spin.
            self.heartbeat_at = None;
            return;
        };
        self.heartbeats += 1;
        self.heartbeat_in_flight = Some(self.heartbeats);
        self.heartbeat_at = Some(now + self.settings.heartbeat_interval);
        let (number, after_wake) = (self.heartbeats, self.is_eager(now));
        fx.push(Effect::Link(LinkEffect::Heartbeat { number, session, after_wake }));
    }

    /// Nothing is opted in: no channel, no heartbeat, no waiting.
    fn rest(&mut self, fx: &mut Vec<Effect>) {
        self.close_channel(fx);
        self.heartbeat_at = None;
        if !self.must_register() {
            self.wait = None;
        }
    }

    pub(super) fn close_channel(&mut self, fx: &mut Vec<Effect>) {
        self.slept_through = false;
        if self.channel != Channel::Closed {
            self.channel = Channel::Closed;
            fx.push(Effect::Link(LinkEffect::CloseChannel));
        }
    }
}
